# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""`scripts/run_image_classification.py` and its twin with a loop of its own: what they write, labels, wrong input.

Both take the same flags, so most tests run both. That both give the same weights, and that these do not depend on
interruptions, accumulation and processes, is in `test_training_equivalence.py`.
"""

import dataclasses
import json
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import datasets
import pytest
import remote_code
import safetensors.torch
import torch
import transformers
import warm_process
from accelerate import Accelerator
from official_files import official_tensors, write_timm_folder, write_xxs24_timm_folder
from PIL import Image
from random_weights import tiny_config
from test_scripts import NAMES, SCRIPTS, TINY, TINY_FIELDS, load_script, run, write_images
from transformers import (
    AutoModelForImageClassification,
    TrainerCallback,
    TrainerState,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
)
from transformers.models.auto.image_processing_auto import AutoImageProcessor

import cait_hf_cli
from cait_hf import CaitConfig, CaitForImageClassification, CaitImageProcessorPil
from cait_hf.cards.training import Dataset
from cait_hf.publish import add_remote_code
from cait_hf.training import arguments
from cait_hf.training.arguments import (
    DataArguments,
    ModelArguments,
    RecipeArguments,
    TrainingArguments,
    parse_arguments,
)
from cait_hf.training.best_model import is_best
from cait_hf.training.data import TRAINING_DATA
from cait_hf.training.experiment import Experiment, prepare
from cait_hf.training.outputs import command, dataset_evaluated, settings_of


pytestmark = pytest.mark.usefixtures("no_plots")  # except those of `run_of_each`, which is older than a test
SCRIPT_NAMES = ("run_image_classification", "run_image_classification_no_trainer")


@pytest.fixture(params=SCRIPT_NAMES)
def script(request):
    return load_script(request.param)


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """train: six digits, 8 images each; validation: three of them, so that its own numbering is another."""
    folder = tmp_path_factory.mktemp("images")
    write_images(folder / "train", range(6), 8)
    write_images(folder / "validation", range(3), 4, skip=8)
    return folder


@pytest.fixture(scope="module")
def training_flags(images) -> str:
    """Six steps in two epochs of three."""
    flags = f"--do_train --per_device_train_batch_size 16 --num_train_epochs 2 --config_overrides {TINY}"
    flags += " --drop_path_rate 0.2 --learning_rate 1e-2 --disable_tqdm true --seed 3 --logging_steps 1"
    return f"--train_dir {images / 'train'} {flags}"


@pytest.fixture(scope="module", params=SCRIPT_NAMES)
def run_of_each(request, images, training_flags, tmp_path_factory) -> Path:
    """A complete run: checkpoints at steps 2, 4, 6, the best of which is the model at the end."""
    output_dir = tmp_path_factory.mktemp("trained")
    flags = "--do_eval --eval_strategy steps --eval_steps 2 --save_steps 2 --load_best_model_at_end"
    flags += f" --metric_for_best_model eval_top1 --save_total_limit 3 --validation_dir {images / 'validation'}"
    with pytest.MonkeyPatch.context() as patch:
        command = [str(SCRIPTS / f"{request.param}.py"), *training_flags.split(), *flags.split()]
        patch.setattr(sys, "argv", [*command, "--output_dir", str(output_dir)])  # the card says it
        load_script(request.param).main()
    return output_dir


@pytest.fixture(scope="module")
def trained(training_flags, tmp_path_factory) -> Path:
    """A model of six classes."""
    output_dir = tmp_path_factory.mktemp("model")
    load_script(SCRIPT_NAMES[0]).main([*training_flags.split(), "--max_steps", "1", "--output_dir", str(output_dir)])
    return output_dir


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(folder / "model.safetensors")


def evaluate(script, model: Path, images: Path, folder: Path) -> dict[str, float]:
    flags = f"--model_name_or_path {model} --do_eval --output_dir {folder} --disable_tqdm true"
    return script.main([*flags.split(), "--validation_dir", f"{images}/validation/"])


def test_training_writes_model_processor_and_results(run_of_each):
    results = json.loads((run_of_each / "all_results.json").read_text())
    assert 0 <= results["eval_top1"] <= results["eval_top5"] <= 1
    assert results["train_images_per_second"] > 0 and 0 <= results["train_data_wait_fraction"] <= 1
    assert results["train_peak_memory_mib"] > 0 and results["epoch"] == 2
    assert results["eval_top1"] == json.loads((run_of_each / "eval_results.json").read_text())["eval_top1"]
    assert results["train_loss"] == json.loads((run_of_each / "train_results.json").read_text())["train_loss"]
    report = json.loads((run_of_each / "metrics.json").read_text())
    assert "confusion_matrix" in json.dumps(report)
    card = (run_of_each / "README.md").read_text()
    assert "library_name: transformers" in card and "| `adamw_torch" in card
    assert (
        f"| {results['eval_top5']:.2%} | {results['eval_mean_class_accuracy']:.2%} | {results['eval_loss']:.4f}"
        in card
    )
    assert "python run_image_classification" in card and "--validation_dir validation" in card
    assert "Measured on 12 images of `validation`." in card and "random weights on `train`." in card
    assert "| training images | `48` |" in card and "name: validation\n" in card and "dataset_split" not in card
    if (run_of_each / "learning_curves.png").exists():  # with matplotlib
        for name in ("learning_curves.png", "confusion_matrix.png"):
            with Image.open(run_of_each / name) as image:
                assert min(image.size) > 300

    model = AutoModelForImageClassification.from_pretrained(run_of_each)
    assert isinstance(model, CaitForImageClassification) and model.config.problem_type is None
    assert model.config.label2id == {name: index for index, name in enumerate(sorted(NAMES))}
    assert (model.config.drop_path_rate, model.config.layer_scale_init_value) == (0.2, 0.1)
    processor = AutoImageProcessor.from_pretrained(run_of_each)
    assert (processor.size["shortest_edge"], processor.crop_size["height"]) == (16, 16)


def test_best_checkpoint_is_the_model_at_the_end(run_of_each):
    state = json.loads((run_of_each / "trainer_state.json").read_text())
    accuracies = {entry["step"]: entry["eval_top1"] for entry in state["log_history"] if "eval_top1" in entry}
    assert sorted(accuracies) == [2, 4, 6]
    best = run_of_each / f"checkpoint-{state['best_global_step']}"
    last, kept = weights(run_of_each), weights(best)
    assert last.keys() == kept.keys() and all(torch.equal(last[name], kept[name]) for name in last)
    assert state["best_metric"] == max(accuracies.values())
    others = {f"checkpoint-{step}" for step in (2, 4, 6)} - {best.name}
    assert any(
        not torch.equal(last["classifier.weight"], weights(run_of_each / other)["classifier.weight"])
        for other in others
    )


@pytest.mark.parametrize("metric, values, best", [("eval_loss", [2, 1, 3], [1, 1, 0]), ("top1", [2, 1, 3], [1, 0, 1])])
def test_best_is_the_smallest_loss_or_the_largest_accuracy(metric, values, best, tmp_path):
    args, state = TrainingArguments(str(tmp_path), metric_for_best_model=metric), TrainerState()
    assert [is_best({"eval_loss": value, "eval_top1": value}, args, state) for value in values] == best


def test_last_checkpoint_is_that_of_the_most_steps(run_of_each, training_flags, tmp_path):
    for step, source in ((9, 2), (10, 4)):
        shutil.copytree(run_of_each / f"checkpoint-{source}", tmp_path / f"checkpoint-{step}")
    experiment = prepare([*training_flags.split(), "--output_dir", str(tmp_path)])
    assert experiment.resume_from_checkpoint == str(tmp_path / "checkpoint-10")


def test_flags_reach_the_batches(training_flags, tmp_path):
    """Two of six classes in each mixed image, and a sixth of the smoothing for every class."""
    pytest.importorskip("timm", reason="mixup is timm's")
    flags = "--label_smoothing_factor 0.3 --mixup 0.8"
    experiment = prepare([*training_flags.split(), *flags.split(), "--output_dir", str(tmp_path / "out")])
    labels = experiment.train_collator([experiment.train_data[index] for index in (0, 8)])["labels"]
    expected = torch.full((2, 4), 0.05)
    torch.testing.assert_close(labels.sort(1).values[:, :4], expected)
    assert (labels.sort(1).values[:, 4:] > 0.06).all()


def test_evaluation_maps_labels_by_name(script, run_of_each, images, tmp_path):
    """The validation folder alone numbers its three classes 0 to 2; the model has them at 3, 4, 5 of six."""
    results = evaluate(script, run_of_each, images, tmp_path)
    model = AutoModelForImageClassification.from_pretrained(run_of_each)
    processor = AutoImageProcessor.from_pretrained(run_of_each)
    correct = 0
    for file in sorted((images / "validation").rglob("*.png")):
        with torch.no_grad():
            logits = model(**processor(Image.open(file), return_tensors="pt")).logits
        correct += model.config.id2label[int(logits.argmax())] == file.parent.name
    assert results["eval_top1"] == pytest.approx(correct / 12)
    stored = json.loads((run_of_each / "all_results.json").read_text())
    assert results["eval_loss"] == pytest.approx(stored["eval_loss"], rel=1e-5)
    assert not (tmp_path / "model.safetensors").exists()  # nothing was trained


def test_labels_of_two_numberings_meet(images, tmp_path):
    pytest.importorskip("timm", reason="repeated augmentation is timm's")
    flags = f"--do_train --do_eval --output_dir {tmp_path / 'out'} --config_overrides {TINY} --repeated_augmentation 2"
    flags += f" --train_dir {images / 'train'} --validation_dir {images / 'validation'}"
    experiment = prepare(flags.split())
    names = experiment.model.config.id2label
    items = [experiment.eval_data[index] for index in range(12)]
    assert [names[item["labels"]] for item in items] == 4 * ["one"] + 4 * ["two"] + 4 * ["zero"]
    first = Image.open(images / "validation" / "one" / "0.png")
    expected = experiment.image_processor(first, return_tensors="pt").pixel_values[0]
    assert torch.equal(items[0]["pixel_values"], expected)

    crop = experiment.train_data[0]["pixel_values"]
    assert crop.shape == (3, 16, 16) and torch.equal(crop, experiment.train_data[0]["pixel_values"])
    assert not torch.equal(crop, experiment.train_data[48]["pixel_values"])  # another view of the same image
    experiment.randomness.epoch = 1
    assert not torch.equal(crop, experiment.train_data[0]["pixel_values"])
    assert not (tmp_path / "out").exists()


def test_checkpoint_of_the_same_classes_keeps_its_order(images, tmp_path):
    backwards = dict(enumerate(sorted(NAMES, reverse=True)))
    CaitForImageClassification(CaitConfig(**TINY_FIELDS, id2label=backwards)).save_pretrained(tmp_path / "model")
    CaitImageProcessorPil(size=16, crop_size=16).save_pretrained(tmp_path / "model")
    flags = f"--do_train --train_dir {images / 'train'} --output_dir {tmp_path / 'out'}"
    experiment = prepare([*flags.split(), "--model_name_or_path", str(tmp_path / "model")])
    assert experiment.model.config.id2label == backwards
    assert backwards[experiment.train_data[0]["labels"]] == "five"


def test_images_of_another_shape_from_scratch(images, tmp_path):
    flags = f"--do_train --do_eval --train_dir {images / 'train'}/ --config_overrides {TINY},image_size=[16,24]"
    experiment = prepare([*flags.split(), "--output_dir", str(tmp_path / "out")])
    for data in (experiment.train_data, experiment.eval_data):
        assert data[0]["pixel_values"].shape == (3, 16, 24)
    logits = experiment.model(experiment.train_data[0]["pixel_values"][None]).logits
    assert logits.shape == (1, 6)


def test_evaluates_on_images_of_one_class(script, trained, tmp_path):
    write_images(tmp_path / "one class" / "validation", range(2, 3), 4)
    assert 0 <= evaluate(script, trained, tmp_path / "one class", tmp_path / "out")["eval_top1"] <= 1
    report = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert "two" in json.dumps(report)


def test_fine_tunes_a_timm_repository_at_another_resolution(script, images, tmp_path):
    """timm's own format, with a new classifier, at 32 pixels instead of 224."""
    source = write_xxs24_timm_folder(tmp_path / "timm")
    flags = "--ignore_mismatched_sizes --image_size 32 --do_train --max_steps 1 --per_device_train_batch_size 2"
    flags += f" --disable_tqdm true --learning_rate 1e-3 --model_name_or_path {source} --save_strategy no"
    flags += f" --output_dir {tmp_path / 'out'} --train_dir {images / 'train'}"
    script.main(flags.split())
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "out")
    assert isinstance(model, CaitForImageClassification)
    assert model.config.num_labels == 6 and model.config.image_size == 32
    original = CaitForImageClassification.from_pretrained(source, image_size=32)
    for name in ("position_embeddings", "patch_embeddings.projection.weight"):
        trained, stored = (m.state_dict()[f"cait.embeddings.{name}"] for m in (model, original))
        assert not torch.equal(trained, stored)
        torch.testing.assert_close(trained, stored, rtol=0, atol=2e-3)  # one step of AdamW moves by the learning rate
    processor = AutoImageProcessor.from_pretrained(tmp_path / "out")
    assert (processor.size["shortest_edge"], processor.crop_size["width"]) == (32, 32)


def test_checkpoints_of_a_timm_repository_are_complete(script, images, tmp_path):
    """There q, k and v are one tensor, whose parts are not to be taken for copies of each other."""
    source = write_timm_folder(tmp_path / "timm", official_tensors(tiny_config()))
    flags = f"--ignore_mismatched_sizes --do_train --max_steps 2 --save_steps 1 --model_name_or_path {source}"
    flags += f" --disable_tqdm true --train_dir {images / 'train'} --output_dir {tmp_path / 'out'}"
    script.main(flags.split())
    first, last = (weights(tmp_path / "out" / f"checkpoint-{step}") for step in (1, 2))
    assert first.keys() == last.keys() == weights(tmp_path / "out").keys()
    shutil.rmtree(tmp_path / "out" / "checkpoint-2")
    (tmp_path / "out" / "model.safetensors").unlink()  # as if it had been interrupted
    script.main(flags.split())  # resumes
    again = weights(tmp_path / "out" / "checkpoint-2")
    assert all(torch.equal(again[name], tensor) for name, tensor in last.items())


@pytest.mark.parametrize("trust", [False, True])
def test_names_of_code_that_is_not_copied_are_dropped(trust, trained, images, tmp_path, caplog):
    """`auto_map` without the files would be all that is looked at where the package is not installed."""
    caplog.set_level("INFO")
    source = shutil.copytree(trained, tmp_path / "source", ignore=shutil.ignore_patterns("checkpoint-*"))
    add_remote_code(source)
    flags = f"--model_name_or_path {source} --do_train --max_steps 2 --save_steps 1 --disable_tqdm true"
    flags += f" --train_dir {images / 'train'} --output_dir {tmp_path / 'out'}"
    load_script(SCRIPT_NAMES[0]).main([*flags.split(), *(["--trust_remote_code"] if trust else [])])
    for folder in (tmp_path / "out", tmp_path / "out" / "checkpoint-2"):
        for name in ("config.json", "preprocessor_config.json"):
            assert "auto_map" not in json.loads((folder / name).read_text()), folder / name
    assert sum("cait-hf push --remote_code" in record.message for record in caplog.records) == 1


def test_push_adds_the_code_to_a_trained_folder(trained, images, hub, repo_id, tmp_path):
    """The model loads by it where the package is not installed."""
    folder = shutil.copytree(trained, tmp_path / "trained", ignore=shutil.ignore_patterns("checkpoint-*"))
    assert cait_hf_cli.main(["push", str(folder), repo_id, "--remote_code"]) == 0
    assert {*remote_code.MODEL, *remote_code.IMAGE_PROCESSORS} <= set(hub.repositories[repo_id].at("main").files)
    load = """
import sys
sys.modules["cait_hf"] = None  # as if not installed
from transformers import pipeline
classify = pipeline("image-classification", sys.argv[1], trust_remote_code=True)
print(type(classify.model).__name__, len(classify(sys.argv[2], top_k=9)))
"""
    image = str(images / "train" / "one" / "0.png")
    loaded = subprocess.run([sys.executable, "-c", load, repo_id, image], capture_output=True, text=True)
    assert loaded.stdout == "CaitForImageClassification 6\n", loaded.stderr


def test_fine_tunes_another_model(script, images, tmp_path):
    """One that was trained for several classes an image, which the data do not have."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = ViTConfig(**sizes, image_size=16, patch_size=4, problem_type="multi_label_classification")
    ViTForImageClassification(config).save_pretrained(tmp_path / "vit")
    ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(tmp_path / "vit")
    flags = f"--model_name_or_path {tmp_path / 'vit'} --ignore_mismatched_sizes --do_train --do_eval --max_steps 2"
    flags += " --label_smoothing_factor 0.1 --trainable head --save_strategy no"
    flags += f" --output_dir {tmp_path / 'out'} --train_dir {images / 'train'} --disable_tqdm true"
    results = script.main(flags.split())
    assert 0 <= results["eval_top1"] <= results["eval_top5"] <= 1
    model = ViTForImageClassification.from_pretrained(tmp_path / "out")
    assert model.config.num_labels == 6 and model.config.problem_type == "single_label_classification"
    original = ViTForImageClassification.from_pretrained(tmp_path / "vit").vit.state_dict()
    assert all(torch.equal(tensor, original[name]) for name, tensor in model.vit.state_dict().items())


def test_average_of_the_weights_is_evaluated_and_saved(script, images, training_flags, tmp_path):
    pytest.importorskip("timm", reason="the average of the weights is timm's")
    flags = f"{training_flags} --ema_decay 0.9 --do_eval --validation_dir {images / 'validation'}"
    flags += f" --output_dir {tmp_path}"
    results = script.main([*flags.split(), "--save_strategy", "epoch"])
    assert results["eval_ema_loss"] != results["eval_loss"]
    raw, ema = (AutoModelForImageClassification.from_pretrained(tmp_path / folder) for folder in (".", "ema"))
    assert not torch.equal(raw.classifier.weight, ema.classifier.weight)
    evaluated = evaluate(script, tmp_path / "ema", images, tmp_path / "evaluated")
    assert evaluated["eval_loss"] == pytest.approx(results["eval_ema_loss"], rel=1e-5)
    (tmp_path / "checkpoint-6" / "ema.safetensors").unlink()
    with pytest.raises(SystemExit, match="no folder of a complete checkpoint with ema.safetensors"):
        script.main([*flags.split(), "--resume_from_checkpoint", str(tmp_path / "checkpoint-6")])


def test_adapters_are_merged_at_the_end(script, images, training_flags, tmp_path):
    pytest.importorskip("peft", reason="adapters are PEFT's")
    base = tmp_path / "base"
    CaitForImageClassification(CaitConfig(**TINY_FIELDS, num_labels=6)).save_pretrained(base)
    CaitImageProcessorPil(size=16, crop_size=16).save_pretrained(base)
    flags = training_flags.replace(f"--config_overrides {TINY}", f"--model_name_or_path {base} --lora_rank 2")
    flags += f" --do_eval --validation_dir {images / 'validation'} --output_dir {tmp_path / 'out'}"
    results = script.main(flags.split())
    merged = AutoModelForImageClassification.from_pretrained(tmp_path / "out")
    changed = {name for name, tensor in merged.state_dict().items() if not torch.equal(tensor, weights(base)[name])}
    assert {name.split(".")[-2] for name in changed} == {"q_proj", "v_proj", "classifier"}
    assert (tmp_path / "out" / "adapter" / "adapter_model.safetensors").is_file()
    evaluated = evaluate(script, tmp_path / "out", images, tmp_path / "evaluated")
    assert evaluated["eval_loss"] == pytest.approx(results["eval_loss"], rel=1e-5)


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_teacher_changes_what_is_learnt(script, kind, images, training_flags, trained, tmp_path):
    losses = {}
    for alpha in (0.0, 0.5):
        flags = f"--teacher_model_name_or_path {trained} --distillation_type {kind} --distillation_alpha {alpha}"
        output_dir = tmp_path / f"{alpha}"
        losses[alpha] = script.main(
            [*training_flags.split(), *flags.split(), "--output_dir", str(output_dir), "--save_strategy", "no"]
        )["train_loss"]
    assert losses[0.0] != losses[0.5]


def test_pushes_what_is_complete(script, images, training_flags, hub, tmp_path):
    flags = f"{training_flags} --do_eval --validation_dir {images / 'validation'} --save_strategy epoch"
    flags += f" --push_to_hub --hub_model_id tester/digits --output_dir {tmp_path / 'digits'}"
    results = script.main(flags.split())
    files = set(hub.repositories["tester/digits"].at("main").files)
    assert {"model.safetensors", "config.json", "preprocessor_config.json", "README.md", "metrics.json"} <= files
    assert not any(name.startswith("checkpoint") or name == "training_args.bin" for name in files)
    assert f"{results['eval_top1']:.4f}"[:4] in hub.read("tester/digits", "README.md").decode()


def test_record_of_a_run_is_true(script, training_flags, hub, tmp_path, monkeypatch):
    """The card, the loggers and `training_args.bin` have every flag, also those that Trainer is not to follow."""
    logged = {}

    class Logger(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            logged.update(args.to_dict())

    monkeypatch.setattr(transformers.trainer, "DEFAULT_CALLBACKS", [*transformers.trainer.DEFAULT_CALLBACKS, Logger])
    monkeypatch.setattr(Accelerator, "init_trackers", lambda self, project, config=None: logged.update(config))
    given = {"label_smoothing_factor": 0.1, "adam_beta2": 0.95, "max_grad_norm": 0.5, "push_to_hub": True}
    given |= {"hub_model_id": "tester/record", "save_steps": 1, "max_steps": 1}
    flags = [f"--{name}={value}" for name, value in given.items()]
    if script.__name__.endswith("no_trainer"):  # which calls its loggers only where there are any
        monkeypatch.setattr(arguments, "get_available_reporting_integrations", lambda: ["tensorboard"])
        flags.append("--report_to=tensorboard")
    out = tmp_path / "out"
    script.main([*training_flags.split(), *flags, "--max_train_samples=20", f"--output_dir={out}"])
    kept = torch.load(out / "checkpoint-1" / "training_args.bin", weights_only=False)
    assert {name: getattr(kept, name) for name in given} == given
    assert {name: logged[name] for name in given} == given
    card = (out / "README.md").read_text()
    settings = {"label_smoothing_factor": 0.1, "adam_beta2": 0.95, "max_grad_norm": 0.5, "save_steps": 1.0}
    settings |= {"max_train_samples": 20, "drop_path_rate": 0.2, "learning_rate": 0.01}
    assert [name for name, value in settings.items() if f"| {name} | `{value}` |" not in card] == []
    assert not any(f"| {name} |" in card for name in ("hub_model_id", "push_to_hub", "output_dir", "train_dir"))


def test_card_lists_every_changed_field():
    """All but the few that are no settings of a training, whatever fields a release of Transformers has."""
    args, data_args = TrainingArguments("out", use_cpu=True), DataArguments(train_val_split=0.25)
    args.changed = [field.name for field in dataclasses.fields(TrainingArguments) if field.init]
    experiment = SimpleNamespace(
        training_args=args,
        recipe=RecipeArguments(),
        model_args=ModelArguments(),
        data_args=data_args,
        record=SimpleNamespace(data={"train": None}),
    )
    settings = settings_of(experiment, TrainerState(epoch=2.0, global_step=6, max_steps=6))
    left_out = {*args.changed} - settings.keys()
    assert {"output_dir", "hub_token", "disable_tqdm", "logging_steps"} <= left_out and len(left_out) < 35
    assert {"adam_beta2", "max_grad_norm", "label_smoothing_factor", "dataloader_drop_last"} <= settings.keys()
    held_out = dataset_evaluated(Dataset("images"), SimpleNamespace(origin=TRAINING_DATA), data_args)
    assert held_out == Dataset("images", split="25% held out")


EVENTS = ("on_step_begin", "on_pre_optimizer_step", "on_step_end")
ALL_EVENTS = ("on_train_begin", "on_epoch_begin", *2 * EVENTS, "on_epoch_end", "on_train_end")


def test_callbacks_are_called_by_both_loops(script, training_flags, tmp_path, monkeypatch):
    """Such as for the norms of gradients, of which the loops log the one of all parameters."""
    events, norms, logged = [], [], []

    def record(event: str, callback, args, state, control, **kwargs):
        events.append(event)
        if event == "on_pre_optimizer_step":
            norms.append(torch.stack([p.grad.norm() for p in kwargs["model"].parameters()]).norm().item())

    def prepare_with_callback(argv: list[str]) -> Experiment:
        experiment = prepare(argv)
        experiment.callbacks.append(Callback())
        return experiment

    methods = {event: partial(record, event) for event in ALL_EVENTS}
    methods = {
        event: lambda *args, method=method, **kwargs: method(*args, **kwargs) for event, method in methods.items()
    }
    methods["on_log"] = lambda self, args, state, control, logs, **kwargs: logged.append(logs)
    Callback = type("Callback", (TrainerCallback,), methods)
    monkeypatch.setattr(script, "prepare", prepare_with_callback)
    flags = "--max_steps 2 --max_grad_norm 0 --save_strategy no --output_dir"
    script.main([*training_flags.split(), *flags.split(), str(tmp_path)])
    assert tuple(events) == ALL_EVENTS
    assert [logs["grad_norm"] for logs in logged if "grad_norm" in logs] == pytest.approx(norms, rel=1e-5)


@pytest.mark.parametrize("program", ["bin/cait-hf", "site-packages/cait_hf_cli.py", "scripts/train.py"])
def test_card_says_how_the_run_was_started(program, monkeypatch):
    monkeypatch.setattr(sys, "argv", [program])
    if program == "scripts/train.py":
        assert command(1) == ("python", program) and command(2) == ("accelerate", "launch", program)
    else:
        assert command(1) == ("cait-hf", "train")
        assert command(2) == ("accelerate", "launch", "-m", "cait_hf_cli", "train")


# What the flags alone tell is in `test_training_arguments.py`.
WRONG_INPUT = [
    ("{wrong}/broken.json", "broken.json cannot be read"),
    ("absent.yaml", "absent.yaml"),
    ("", "no images to train on"),
    ("--train_dir {images}/absent", "--train_dir is .*/absent, but there is no such folder"),
    ("--train_dir {wrong}/empty", "--train_dir is .*/empty, but there are no images in it"),
    ("--train_dir {images}/train/one", "--train_dir is .*/one, .*in subfolders, one for each class"),
    ("{train} --max_train_samples 0", "--max_train_samples is 0, "),
    ("{train} --config_overrides depth", "--config_overrides has 'depth', .*FIELD=VALUE"),
    ("{train} --config_overrides depth=3", "depth.*no such field"),
    ("{train} --config_overrides image_size=30", "patch_size"),
    ("{train} --config_overrides num_channels=1", "num_channels 1, .* RGB images"),
    ("{train} --drop_path_rate 1", "drop_path_rate is 1"),
    ("{train} --model_name_or_path {wrong}/empty", "--model_name_or_path is .*/empty, .*config.json"),
    ("{train} --model_name_or_path outputs/nowhere", "--model_name_or_path is outputs/nowhere: "),
    ("{train} --config_name outputs/nowhere", "--config_name is outputs/nowhere: "),
    ("{train} --model_name_or_path {damaged}", "--model_name_or_path is .*/damaged: "),
    ("{train} --teacher_model_name_or_path outputs/nowhere", "--teacher_model_name_or_path is outputs/nowhere: "),
    ("{train} --teacher_model_name_or_path {damaged}", "--teacher_model_name_or_path is .*/damaged: "),
    (
        "{train} --teacher_model_name_or_path {trained} --config_overrides image_size=20,patch_size=4",
        "--teacher_model_name_or_path is .*, which does not take the model's images of 20 x 20 pixels",
    ),
    ("{few} --model_name_or_path {trained}", "6 classes and the data 3: pass --ignore_mismatched_sizes"),
    ("{few} --do_eval --validation_dir {images}/train", "3 classes .* does not have, such as five, four, three"),
    ("--resume_from_checkpoint {wrong}/empty", "--resume_from_checkpoint is .*/empty, .* a complete checkpoint"),
    ("--output_dir {images}", "is not empty"),
    ("{train} --auto_augment best", "--auto_augment is best|timm"),
    ("{train} --timm_optimizer best", "--timm_optimizer is best|needs the package timm"),
    ("{train} --timm_optimizer lamb --adam_beta2 0.9", "--adam_beta2 is about others|needs the package timm"),
    ("{train} --layer_decay 1.5", "--layer_decay is 1.5"),
    ("{train} --trainable most", "--trainable is most"),
    ("{few} --teacher_model_name_or_path {trained}", "the teacher has 6 classes and the model 3"),
    ("{few} --metric_for_best_model acc", "--metric_for_best_model is acc, .* eval_top1, eval_mean_class_accuracy"),
    ("{train} --per_device_train_batch_size 49 --dataloader_drop_last", "leaves no batch of the 48 images"),
]


@pytest.mark.parametrize("flags, message", WRONG_INPUT)
def test_wrong_input_ends_with_an_error_message(flags, message, images, trained, tmp_path):
    wrong = tmp_path / "wrong"
    (wrong / "empty").mkdir(parents=True)
    (wrong / "broken.json").write_text('{"do_train": tr')
    train, few = (f"--train_dir {images}/{folder}" for folder in ("train", "validation"))
    damaged = shutil.copytree(trained, wrong / "damaged")
    (damaged / "model.safetensors").write_bytes(b"damaged")
    flags = flags.format(images=images, train=train, few=few, trained=trained, wrong=wrong, damaged=damaged).split()
    files = [flags.pop(0)] if flags and not flags[0].startswith("--") else []
    with pytest.raises(SystemExit, match=f"(?s)error: .*({message})"):  # both scripts read them by the same function
        load_script(SCRIPT_NAMES[0]).main([*files, "--do_train", "--output_dir", str(tmp_path / "out"), *flags])
    assert not (tmp_path / "out").exists()


def test_flags_of_trainer_alone_are_refused(training_flags, tmp_path):
    script = load_script("run_image_classification_no_trainer")
    flags = [*training_flags.split(), "--output_dir", str(tmp_path / "out"), "--eval_strategy", "epoch"]
    for flag, value in (("neftune_noise_alpha", "5"), ("lr_scheduler_type", "reduce_lr_on_plateau")):
        with pytest.raises(SystemExit, match=f"--{flag} .*is for run_image_classification.py"):
            script.main([*flags, f"--{flag}", value])


def test_logs_lie_where_they_are_not_pushed_from(tmp_path):
    script = load_script("run_image_classification_no_trainer")
    args = parse_arguments(["--do_train", "--use_cpu", "--output_dir", str(tmp_path)])[3]
    assert script.make_accelerator(args).logging_dir == str(tmp_path / "runs")


@pytest.mark.parametrize("name", SCRIPT_NAMES)
def test_wrong_input_shows_no_traceback(name, tmp_path):
    finished = run(name, "--do_train", "--train_dir", "absent", "--output_dir", tmp_path, check=False)
    assert finished.returncode == 1 and "Traceback" not in finished.stderr
    assert finished.stderr.splitlines()[-1] == "error: --train_dir is absent, but there is no such folder."


def test_an_interrupted_first_checkpoint_is_no_obstacle(script, training_flags, tmp_path):
    """It is what Trainer, which writes in place, and the other script leave; other files are."""
    for folder in ("checkpoint-1", ".checkpoint-1.part"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "model.safetensors").write_bytes(b"half")
    flags = [*training_flags.split(), "--output_dir", str(tmp_path), "--max_steps", "1", "--save_strategy", "steps"]
    (tmp_path / "notes.txt").write_text("kept")
    with pytest.raises(SystemExit, match="is not empty"):
        script.main(flags)
    (tmp_path / "notes.txt").unlink()
    script.main([*flags, "--save_steps", "1"])
    assert safetensors.torch.load_file(tmp_path / "checkpoint-1" / "model.safetensors")


def test_overwrite_output_dir_trains_from_scratch(script, training_flags, tmp_path):
    (tmp_path / "checkpoint-99").mkdir()
    (tmp_path / "checkpoint-99" / "trainer_state.json").write_text("{}")
    (tmp_path / "notes.txt").write_text("kept")
    flags = [*training_flags.split(), "--output_dir", str(tmp_path), "--max_steps", "1"]
    with pytest.raises(SystemExit, match="--crop_area is 2.0"):
        script.main([*flags, "--overwrite_output_dir", "--crop_area", "2"])
    assert (tmp_path / "checkpoint-99").exists()  # wrong input deletes nothing
    script.main([*flags, "--overwrite_output_dir"])
    assert not (tmp_path / "checkpoint-99").exists() and (tmp_path / "notes.txt").exists()
    assert (tmp_path / "checkpoint-1" / "trainer_state.json").is_file()


def test_checkpoint_of_other_flags_is_not_gone_on_from(script, images, training_flags, tmp_path):
    flags = [*training_flags.split(), "--output_dir", str(tmp_path / "out"), "--max_steps", "1"]
    assert script.main(flags)["train_loss"] > 0
    (tmp_path / "out" / "run_record.json").unlink()  # which names each flag, see `test_run_record.py`
    shutil.copytree(images / "train", tmp_path / "train")
    (tmp_path / "train" / "zero").rename(tmp_path / "train" / "nil")
    before = weights(tmp_path / "out")
    for other, message in (
        (["--train_dir", str(tmp_path / "train")], "checkpoint-1 has other classes than the data: pass the flags"),
        (["--config_overrides", TINY.replace("layers=2", "layers=3")], "checkpoint-1 does not fit the flags: pass"),
        (["--optim", "sgd"], "checkpoint-1 does not fit the flags"),
    ):
        with pytest.raises(SystemExit, match=f"^error: .*{message}"):
            script.main([*flags, *other, "--max_steps", "2"])
    after = weights(tmp_path / "out")
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert "train_loss" not in script.main(flags)  # no step was left


# Files may have at most so many bytes, as on a disk that is full; the model's own file is larger.
FULL_DISK = """
import resource, runpy, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("name", SCRIPT_NAMES)
def test_full_disk_keeps_the_checkpoints_before(name, training_flags, tmp_path):
    pytest.importorskip("resource", reason="limits of a process are a matter of POSIX")
    flags = [*training_flags.split(), "--output_dir", str(tmp_path), "--save_steps", "2", "--report_to", "none"]
    load_script(name).main([*flags, "--max_steps", "2"])
    kept = {file: file.read_bytes() for file in (tmp_path / "checkpoint-2").iterdir()}
    finished = warm_process.run(FULL_DISK, SCRIPTS / f"{name}.py", *flags)
    assert finished.returncode == 1 and "Traceback" not in finished.stderr, finished.stderr
    assert "error: the checkpoint of step 4 could not be written" in finished.stderr
    assert {file: file.read_bytes() for file in (tmp_path / "checkpoint-2").iterdir()} == kept
    assert not list(tmp_path.glob(".checkpoint*"))


def test_corrupt_image_ends_the_run_or_is_left_out(script, images, training_flags, tmp_path):
    """Also where worker processes read the images."""
    shutil.copytree(images / "train", tmp_path / "train")
    broken = tmp_path / "train" / "two" / "3.png"
    broken.write_bytes(broken.read_bytes()[:60])
    flags = training_flags.replace(str(images / "train"), str(tmp_path / "train"))
    flags += f" --dataloader_num_workers 1 --save_strategy no --output_dir {tmp_path / 'out'}"
    with pytest.raises(SystemExit, match=r"^error: .*two/3.png.*--corrupt_images skip") as error:
        script.main(flags.split())
    assert "Traceback" not in str(error.value)
    script.main([*flags.split(), "--corrupt_images", "skip"])
    assert "two/3.png" in (tmp_path / "out" / "corrupt_images.txt").read_text()
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_stream_goes_on_where_it_was(script, images, training_flags, tmp_path):
    """Parquet files read while they are used, never held whole; two workers, and an interruption after step 3."""
    pytest.importorskip("timm", reason="mixup is timm's")
    data = datasets.load_dataset("imagefolder", data_dir=str(images / "train"), split="train").shuffle(seed=0)
    for part in range(4):
        data.shard(4, part).to_parquet(tmp_path / f"{part}.parquet")
    files = f"--dataset_name parquet --train_files {tmp_path}/*.parquet"
    flags = training_flags.replace(f"--train_dir {images / 'train'}", files)
    flags += " --streaming --dataloader_num_workers 2 --save_steps 3 --mixup 0.8"
    script.main([*flags.split(), "--max_steps", "7", "--output_dir", str(tmp_path / "whole")])
    shutil.copytree(tmp_path / "whole" / "checkpoint-3", tmp_path / "resumed" / "checkpoint-3")
    script.main([*flags.split(), "--max_steps", "7", "--output_dir", str(tmp_path / "resumed")])
    whole, resumed = weights(tmp_path / "whole"), weights(tmp_path / "resumed")
    assert [name for name in whole if not torch.equal(whole[name], resumed[name])] == []
    with pytest.raises(SystemExit, match="--max_steps"):
        script.main([*flags.split(), "--output_dir", str(tmp_path / "endless")])
