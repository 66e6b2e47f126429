# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""`scripts/` and `cait_hf.training` on small real data: what the scripts write, resume, labels and wrong input.

What is about a whole run starts the script as a child process, as a user does; what is about a message calls `main`.
"""

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from sklearn.datasets import load_digits
from timm_format import write_timm_folder
from transformers import (
    AutoModelForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
)
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from cait_hf import CaitConfig, CaitForImageClassification
from cait_hf.training.data import random_part


SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
NAMES = ("zero", "one", "two", "three", "four", "five")  # alphabetical order is not the order of the digits
TINY_FIELDS = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 16,
    "patch_size": 4,
}
TINY = ",".join(f"{name}={value}" for name, value in TINY_FIELDS.items())


def load_script(name: str, folder: Path = SCRIPTS):
    spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


run_image_classification = load_script("run_image_classification")
quickstart = load_script("quickstart")


def run(name: str, *args, check: bool = True) -> subprocess.CompletedProcess:
    command = [sys.executable, SCRIPTS / f"{name}.py", *map(str, args)]
    finished = subprocess.run(command, capture_output=True, text=True)
    assert not check or finished.returncode == 0, finished.stdout + finished.stderr
    return finished


def write_pictures(folder: Path, digits: range, per_class: int, skip: int = 0) -> Path:
    """Real scans of digits as PNG files, one subfolder a class."""
    data = load_digits()
    for digit in digits:
        (folder / NAMES[digit]).mkdir(parents=True)
        for index, scan in enumerate(data.images[data.target == digit][skip : skip + per_class]):
            Image.fromarray((scan * 15).astype(np.uint8)).save(folder / NAMES[digit] / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """train: six digits, 8 pictures each; validation: three of them, so that its own numbering is another."""
    folder = tmp_path_factory.mktemp("pictures")
    write_pictures(folder / "train", range(6), 8)
    write_pictures(folder / "validation", range(3), 4, skip=8)
    return folder


@pytest.fixture(scope="module")
def training_flags(pictures) -> list:
    """Six steps in two epochs of three, with every source of randomness that training has."""
    flags = f"--do_train --per_device_train_batch_size 16 --num_train_epochs 2 --config_overrides {TINY}"
    flags += " --drop_path_rate 0.2 --learning_rate 1e-2 --disable_tqdm true --seed 3"
    return ["--train_dir", pictures / "train", *flags.split()]


@pytest.fixture(scope="module")
def trained(pictures, training_flags, tmp_path_factory) -> Path:
    """A complete run: checkpoints at steps 2, 4, 6, the best of which is the model at the end."""
    output_dir = tmp_path_factory.mktemp("trained")
    flags = "--do_eval --eval_strategy steps --eval_steps 2 --save_steps 2 --load_best_model_at_end"
    flags += " --metric_for_best_model eval_top1 --save_total_limit 3"
    run(
        "run_image_classification",
        *training_flags,
        *flags.split(),
        *("--validation_dir", pictures / "validation"),
        *("--output_dir", output_dir),
    )
    return output_dir


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(folder / "model.safetensors")


def assert_same_weights(one: Path, other: Path):
    one, other = weights(one), weights(other)
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def test_training_writes_model_processor_and_results(trained):
    results = json.loads((trained / "all_results.json").read_text())
    assert 0 <= results["eval_top1"] <= results["eval_top5"] <= 1
    assert results["train_samples_per_second"] > 0 and results["epoch"] == 2

    model = AutoModelForImageClassification.from_pretrained(trained)
    assert isinstance(model, CaitForImageClassification)
    assert model.config.label2id == {name: index for index, name in enumerate(sorted(NAMES))}
    assert (model.config.drop_path_rate, model.config.layer_scale_init_value) == (0.2, 0.1)
    processor = AutoImageProcessor.from_pretrained(trained)
    assert (processor.size["shortest_edge"], processor.crop_size["height"]) == (16, 16)


def test_best_checkpoint_is_the_model_at_the_end(trained):
    state = json.loads((trained / "trainer_state.json").read_text())
    accuracies = {entry["step"]: entry["eval_top1"] for entry in state["log_history"] if "eval_top1" in entry}
    assert sorted(accuracies) == [2, 4, 6]
    best = trained / f"checkpoint-{state['best_global_step']}"
    assert_same_weights(trained, best)
    assert state["best_metric"] == max(accuracies.values())
    others = {f"checkpoint-{step}" for step in (2, 4, 6)} - {best.name}
    assert any(
        not torch.equal(weights(trained)["classifier.weight"], weights(trained / o)["classifier.weight"])
        for o in others
    )


def test_resumed_training_equals_uninterrupted_training(training_flags, tmp_path):
    """Killed after step 2, in the middle of an epoch: the same command goes on, and every bit is the same."""
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    flags = [*training_flags, "--save_steps", 2, "--logging_steps", 1]
    run("run_image_classification", *flags, "--output_dir", whole)
    shutil.copytree(whole / "checkpoint-2", resumed / "checkpoint-2")
    (resumed / "checkpoint-4").mkdir()  # what a process leaves that is killed while it writes
    shutil.copy(whole / "checkpoint-4" / "model.safetensors", resumed / "checkpoint-4")

    finished = run("run_image_classification", *flags, "--output_dir", resumed)
    assert f"Going on from {resumed / 'checkpoint-2'}" in finished.stderr
    assert finished.stdout.count("'loss'") == 4  # steps 3 to 6
    assert_same_weights(whole, resumed)
    assert_same_weights(whole / "checkpoint-4", resumed / "checkpoint-4")
    first, last = weights(whole / "checkpoint-2"), weights(whole)
    assert [name for name in last if torch.equal(first[name], last[name]) and "proj_l_bias" not in name] == []
    histories = [json.loads((folder / "trainer_state.json").read_text())["log_history"] for folder in (whole, resumed)]
    losses = [[(entry["step"], entry.get("loss")) for entry in history] for history in histories]
    assert losses[0] == losses[1]


def test_evaluation_maps_labels_by_name(trained, pictures, tmp_path, capsys):
    """The validation folder alone numbers its three classes 0 to 2; the model has them at 3, 4, 5 of six."""
    flags = ["--model_name_or_path", trained, "--do_eval", "--output_dir", tmp_path, "--disable_tqdm", "true"]
    results = run_image_classification.main(list(map(str, [*flags, "--validation_dir", pictures / "validation"])))

    model = AutoModelForImageClassification.from_pretrained(trained)
    processor = AutoImageProcessor.from_pretrained(trained)
    right = 0
    for file in sorted((pictures / "validation").rglob("*.png")):
        with torch.no_grad():
            logits = model(**processor(Image.open(file), return_tensors="pt")).logits
        right += model.config.id2label[int(logits.argmax())] == file.parent.name
    assert results["eval_top1"] == pytest.approx(right / 12)
    stored = json.loads((trained / "all_results.json").read_text())
    assert results["eval_loss"] == pytest.approx(stored["eval_loss"], rel=1e-5)


def test_labels_of_two_numberings_meet(pictures):
    script = run_image_classification
    flags = ["--do_train", "--do_eval", "--output_dir", "unused"]
    flags += ["--train_dir", pictures / "train", "--validation_dir", pictures / "validation"]
    model_args, data_args, training_args = script.parse_arguments([*map(str, flags), "--config_overrides", TINY])
    train_data, eval_data = script.load_data(data_args, training_args)
    config = script.load_config(model_args)
    script.set_labels(config, model_args, train_data, eval_data)
    _, processor = script.load_model(config, model_args)

    eval_data.prepare(script.EvalTransform(processor), config.label2id)
    assert [config.id2label[item["labels"]] for item in eval_data] == 4 * ["one"] + 4 * ["two"] + 4 * ["zero"]
    first = Image.open(pictures / "validation" / "one" / "0.png")
    assert torch.equal(eval_data[0]["pixel_values"], processor(first, return_tensors="pt").pixel_values[0])

    transform = script.TrainTransform(processor, seed=0)
    train_data.prepare(transform, config.label2id)
    crop = train_data[0]["pixel_values"]
    assert crop.shape == (3, 16, 16)
    assert torch.equal(crop, train_data[0]["pixel_values"])
    transform.epoch.fill_(1)
    assert not torch.equal(crop, train_data[0]["pixel_values"])  # a new crop in each epoch


def test_checkpoint_of_the_same_classes_keeps_its_order(pictures, tmp_path):
    script = run_image_classification
    backwards = dict(enumerate(sorted(NAMES, reverse=True)))
    CaitForImageClassification(CaitConfig(**TINY_FIELDS, id2label=backwards)).save_pretrained(tmp_path)
    flags = [
        "--do_train",
        "--train_dir",
        pictures / "train",
        "--output_dir",
        "unused",
        "--model_name_or_path",
        tmp_path,
    ]
    model_args, data_args, training_args = script.parse_arguments(list(map(str, flags)))
    train_data, _ = script.load_data(data_args, training_args)
    config = script.load_config(model_args)
    script.set_labels(config, model_args, train_data, None)
    assert config.id2label == backwards
    train_data.prepare(lambda image, index: image, config.label2id)
    assert backwards[train_data[0]["labels"]] == "five"


def test_data_sets_with_other_columns(tmp_path):
    """A folder of parquet files whose classes are words in a column that is not called label."""
    images = [Image.fromarray(scan.astype(np.uint8)) for scan in load_digits().images[:8]]
    columns = {"scan": images, "species": ["cat", "dog"] * 4, "number": list(range(8))}
    features = {"scan": datasets.Image(), "species": datasets.Value("string"), "number": datasets.Value("int64")}
    data = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    data.to_parquet(tmp_path / "train-00000.parquet")
    data.to_parquet(tmp_path / "validation-00000.parquet")

    flags = ["--do_train", "--do_eval", "--dataset_name", str(tmp_path), "--output_dir", "unused"]
    parse, load = run_image_classification.parse_arguments, run_image_classification.load_data
    with pytest.raises(ValueError, match="set --label_column_name to one of scan, species, number"):
        load(*parse(flags)[1:])
    train_data, eval_data = load(*parse([*flags, "--label_column_name", "species", "--max_train_samples", "5"])[1:])
    assert train_data.image_column == "scan" and train_data.class_names == ["cat", "dog"]
    assert (len(train_data), len(eval_data)) == (5, 8)
    with pytest.raises(ValueError, match="--image_column_name is picture"):
        load(*parse([*flags, "--image_column_name", "picture"])[1:])
    with pytest.raises(ValueError, match="has only the splits train, validation"):
        load(*parse(["--do_eval", "--model_name_or_path", "x", *flags[2:], "--eval_split", "test"])[1:])


def test_held_out_share(pictures):
    flags = ["--do_train", "--do_eval", "--train_dir", str(pictures / "train"), "--output_dir", "unused"]
    _, data_args, training_args = run_image_classification.parse_arguments([*flags, "--train_val_split", "0.25"])
    train_data, eval_data = run_image_classification.load_data(data_args, training_args)
    assert (len(train_data), len(eval_data)) == (36, 12)


def test_arguments_from_a_file(pictures, trained, tmp_path):
    arguments = {
        "model_name_or_path": str(trained),
        "do_eval": True,
        "validation_dir": str(pictures / "validation"),
        "output_dir": str(tmp_path / "out"),
        "max_eval_samples": 2,
        "disable_tqdm": True,
    }
    (tmp_path / "arguments.json").write_text(json.dumps(arguments))
    (tmp_path / "arguments.yaml").write_text("\n".join(f"{key}: {value}" for key, value in arguments.items()))
    for name in ("arguments.json", "arguments.yaml"):
        results = run_image_classification.main([str(tmp_path / name)])
        assert results["eval_top1"] in (0.0, 0.5, 1.0)


def test_fine_tunes_a_timm_repository_at_another_resolution(pictures, tmp_path):
    """timm's own format, with a new classifier, at 32 pixels instead of 224."""
    source = write_timm_folder(tmp_path / "timm")
    flags = "--ignore_mismatched_sizes --image_size 32 --do_train --max_steps 1 --per_device_train_batch_size 2"
    flags += f" --disable_tqdm true --learning_rate 1e-3 --model_name_or_path {source}"
    flags += f" --output_dir {tmp_path / 'out'} --train_dir {pictures / 'train'}"
    run_image_classification.main(flags.split())
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


def test_fine_tunes_another_model(pictures, tmp_path):
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=16, patch_size=4
    )
    ViTForImageClassification(config).save_pretrained(tmp_path / "vit")
    ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(tmp_path / "vit")
    flags = f"--model_name_or_path {tmp_path / 'vit'} --ignore_mismatched_sizes --do_train --do_eval --max_steps 1"
    flags += f" --output_dir {tmp_path / 'out'} --train_dir {pictures / 'train'} --disable_tqdm true"
    results = run_image_classification.main(flags.split())
    assert 0 <= results["eval_top1"] <= results["eval_top5"] <= 1
    assert ViTForImageClassification.from_pretrained(tmp_path / "out").config.num_labels == 6


def test_weight_decay_spares_vectors_and_positions(trained):
    model = AutoModelForImageClassification.from_pretrained(trained)
    decayed = run_image_classification.ImageClassificationTrainer.get_decay_parameter_names(None, model)
    spared = {name for name, _ in model.named_parameters()} - set(decayed)
    assert {"cait.embeddings.cls_token", "cait.embeddings.position_embeddings"} <= spared
    assert {name.rpartition(".")[2] for name in decayed} == {"weight", "proj_l_weight", "proj_w_weight"}
    assert not any("norm" in name or "layer_scale" in name for name in decayed)


@pytest.mark.parametrize("width, height", [(200, 150), (1, 1), (10, 4000), (4000, 10)])
def test_random_part_has_the_asked_area_and_shape(width, height):
    rng = np.random.default_rng(0)
    left, top, right, bottom = np.array([random_part(width, height, rng) for _ in range(500)]).T
    assert left.min() >= 0 and top.min() >= 0 and right.max() <= width and bottom.max() <= height
    ratios, areas = (right - left) / (bottom - top), (right - left) * (bottom - top) / (width * height)
    assert ratios.min() >= 3 / 4 - 1e-9 and ratios.max() <= 4 / 3 + 1e-9
    if width == 200:
        assert 0.08 <= areas.min() < 0.1 and 0.9 < areas.max() <= 1
        assert ratios.min() < 0.8 and ratios.max() > 1.3
        assert left.min() < 5 and right.max() > 195


WRONG_INPUT = {
    "nothing to do": ("", "nothing to do"),
    "unknown flag": ("--do_train --no_such_flag 1", "no_such_flag"),
    "no model to evaluate": ("--do_eval --validation_dir {pictures}/validation", "needs --model_name_or_path"),
    "no pictures": ("--do_train", "no pictures to train on"),
    "no folder": ("--do_train --train_dir {pictures}/absent", "there is no such folder"),
    "empty folder": ("--do_train --train_dir {empty}", "no pictures in it"),
    "one class": ("--do_train --train_dir {pictures}/train/one", "two subfolders or more"),
    "two sources": ("--do_train --dataset_name x --train_dir {pictures}/train", "excludes"),
    "share": ("--do_train --train_dir {pictures}/train --train_val_split 1.5", "--train_val_split is 1.5"),
    "no samples": ("--do_train --train_dir {pictures}/train --max_train_samples 0", "at least 1"),
    "overrides of a checkpoint": ("--do_train --model_name_or_path x --config_overrides a=1", "from scratch"),
    "override without value": ("--do_train --train_dir {pictures}/train --config_overrides depth", "FIELD=VALUE"),
    "unknown field": ("--do_train --train_dir {pictures}/train --config_overrides depth=3", "depth.*no such field"),
    "bad field": ("--do_train --train_dir {pictures}/train --config_overrides image_size=30", "patch_size"),
    "drop path": ("--do_train --train_dir {pictures}/train --drop_path_rate 1", "drop_path_rate is 1"),
    "no checkpoint": ("--do_train --train_dir {pictures}/train --model_name_or_path {empty}", "config.json"),
    "classes differ": (
        "--do_train --train_dir {pictures}/validation --model_name_or_path {trained}",
        "6 classes and the data 3: pass --ignore_mismatched_sizes",
    ),
    "class of the validation absent": (
        "--do_train --train_dir {pictures}/validation --do_eval --validation_dir {pictures}/train",
        "3 classes that the model does not have, such as five, four, three",
    ),
    "resume from nothing": ("--do_train --resume_from_checkpoint {empty}", "no folder of a complete checkpoint"),
    "full output folder": ("--do_train --output_dir {pictures}", "is not empty"),
}


@pytest.mark.parametrize("flags, message", WRONG_INPUT.values(), ids=WRONG_INPUT)
def test_wrong_input_ends_with_a_sentence(flags, message, pictures, trained, tmp_path):
    (tmp_path / "empty").mkdir()
    flags = flags.format(pictures=pictures, trained=trained, empty=tmp_path / "empty").split()
    if "--output_dir" not in flags:
        flags += ["--output_dir", str(tmp_path / "out")]
    with pytest.raises(SystemExit, match=f"(?s)error: .*({message})"):
        run_image_classification.main(flags)
    assert not (tmp_path / "out").exists()


def test_wrong_input_shows_no_traceback(tmp_path):
    finished = run(
        "run_image_classification", "--do_train", "--train_dir", "absent", "--output_dir", tmp_path, check=False
    )
    assert finished.returncode == 1 and "Traceback" not in finished.stderr
    assert finished.stderr.splitlines()[-1] == "error: --train_dir is absent, but there is no such folder."


def test_overwrite_output_dir_trains_anew(training_flags, tmp_path):
    (tmp_path / "checkpoint-99").mkdir()
    (tmp_path / "checkpoint-99" / "trainer_state.json").write_text("{}")
    (tmp_path / "notes.txt").write_text("kept")
    flags = list(map(str, [*training_flags, "--output_dir", tmp_path, "--max_steps", 1]))
    run_image_classification.main([*flags, "--overwrite_output_dir"])
    assert not (tmp_path / "checkpoint-99").exists() and (tmp_path / "notes.txt").exists()
    assert (tmp_path / "checkpoint-1" / "trainer_state.json").is_file()


def test_quickstart_writes_model_and_picture(tmp_path):
    """After two steps; the model of an earlier run is replaced, and nothing is left beside it."""
    (tmp_path / "cait-digits").mkdir()
    (tmp_path / "cait-digits" / "old.txt").touch()
    output = run("quickstart", "--output_dir", tmp_path, "--max_steps", 2).stdout
    assert not (tmp_path / "cait-digits" / "old.txt").exists()
    assert "logistic regression on pixels    90.0%" in output
    assert str(tmp_path / "demo.png") in output and output.count("  a ") == 12
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cait-digits", "demo.png"]
    with Image.open(tmp_path / "demo.png") as picture:
        assert min(picture.size) > 500
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "cait-digits")
    assert isinstance(model, CaitForImageClassification) and model.config.id2label[7] == "7"


@pytest.mark.slow
def test_quickstart_beats_the_baseline(tmp_path):
    output = run("quickstart", "--output_dir", tmp_path).stdout
    accuracy = float(output.split("  CaiT ")[1].split("%")[0])
    assert accuracy > 94  # logistic regression on pixels has 90.0


def test_interrupted_quickstart_keeps_the_old_model(tmp_path):
    class Model:
        def save_pretrained(self, folder: Path):
            folder.mkdir()
            (folder / "config.json").write_text("half")
            raise KeyboardInterrupt

    (tmp_path / "cait-digits").mkdir()
    (tmp_path / "cait-digits" / "config.json").write_text("old")
    with pytest.raises(KeyboardInterrupt):
        quickstart.save(tmp_path / "cait-digits", Model(), None)
    assert [path.name for path in tmp_path.iterdir()] == ["cait-digits"]
    assert (tmp_path / "cait-digits" / "config.json").read_text() == "old"


def test_quickstart_without_a_model_to_show(tmp_path):
    with pytest.raises(SystemExit, match="run once without --skip_training"):
        quickstart.main(["--skip_training", "--output_dir", str(tmp_path)])
