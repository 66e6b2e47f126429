# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""`from_pretrained` on timm's own Hub format and on ours, through Trainer's resume too, and what it refuses."""

import json

import pytest
import safetensors.torch
import torch
from official_files import write_xxs24_timm_folder
from random_weights import images, randomize_, tiny_config
from transformers import (
    AutoModelForImageClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    ViTConfig,
)

from cait_hf import CaitConfig, CaitForImageClassification, CaitImageProcessorPil, CaitModel


@pytest.fixture(scope="module")
def timm_folder(tmp_path_factory):
    """A folder like a `timm/cait_*` repository, with random weights for XXS24_224 and 1000 classes."""
    return write_xxs24_timm_folder(tmp_path_factory.mktemp("timm") / "cait_xxs24_224.fb_dist_in1k")


@pytest.fixture(scope="module")
def expected(timm_folder) -> torch.Tensor:
    model = randomize_(CaitForImageClassification(CaitConfig(num_labels=1000)))
    with torch.no_grad():
        return model(images(1, 224)).logits


@torch.no_grad()
def test_timm_repository_loads_directly(timm_folder, expected):
    model = CaitForImageClassification.from_pretrained(timm_folder)
    assert not model.training
    assert torch.equal(model(images(1, 224)).logits, expected)
    assert (model.config.hidden_size, model.config.num_hidden_layers, model.config.image_size) == (192, 24, 224)
    assert model.config.layer_scale_init_value == 1e-5
    assert model.config.id2label[0] == "tench, Tinca tinca"
    assert model.config.label2id["toilet tissue, toilet paper, bathroom tissue"] == 999
    assert model.name_or_path == str(timm_folder)

    base = CaitModel.from_pretrained(timm_folder)
    assert torch.equal(model.classifier(base(images(1, 224)).pooler_output), expected)

    processor = CaitImageProcessorPil.from_pretrained(timm_folder)
    assert processor.size["shortest_edge"] == 224


@torch.no_grad()
def test_what_was_loaded_from_timm_is_saved_in_our_names(timm_folder, expected, tmp_path):
    CaitForImageClassification.from_pretrained(timm_folder).save_pretrained(tmp_path)
    with safetensors.safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert set(file.keys()) == set(CaitForImageClassification(CaitConfig(num_labels=1000)).state_dict())
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert torch.equal(loaded(images(1, 224)).logits, expected)
    assert loaded.config.id2label[0] == "tench, Tinca tinca"


@torch.no_grad()
def test_arguments_of_from_pretrained_hold_for_timm_repositories(timm_folder):
    model, info = CaitForImageClassification.from_pretrained(
        timm_folder,
        num_labels=3,
        ignore_mismatched_sizes=True,
        image_size=(192, 256),
        drop_path_rate=0.2,
        dtype=torch.bfloat16,
        attn_implementation="eager",
        output_loading_info=True,
    )
    assert model.classifier.out_features == 3
    assert {key for key, *_ in info["mismatched_keys"]} == {"classifier.weight", "classifier.bias"}
    assert model.dtype == torch.bfloat16
    assert model.config._attn_implementation == "eager"
    assert model.config.drop_path_rate == model.cait.layers[0].drop_path.drop_prob == 0.2
    assert model.config.image_size == (192, 256)
    assert model(images(1, 192, 256)).logits.isfinite().all()

    config = CaitConfig.from_pretrained(timm_folder, image_size=256)
    resized = CaitForImageClassification.from_pretrained(timm_folder, config=config)
    reference = CaitForImageClassification.from_pretrained(timm_folder)
    assert torch.equal(resized(images(1, 256)).logits, reference(images(1, 256), interpolate_pos_encoding=True).logits)
    assert config.image_size == 256  # the caller's object is not touched


def test_adapter_trained_on_a_timm_repository_finds_its_base(timm_folder, tmp_path):
    peft = pytest.importorskip("peft", reason="adapters need PEFT")
    base = CaitForImageClassification.from_pretrained(timm_folder)
    model = peft.get_peft_model(base, peft.LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    with torch.no_grad():
        expected = model.eval()(images(1, 224)).logits
    model.save_pretrained(tmp_path)
    loaded = CaitForImageClassification.from_pretrained(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(loaded(images(1, 224)).logits, expected, rtol=1e-5, atol=1e-5)


def test_timm_repository_honours_or_refuses_each_argument(timm_folder, tmp_path):
    asked = CaitForImageClassification.from_pretrained(timm_folder, output_attentions=True)
    assert len(asked(images(1, 224)).class_attentions) == 2
    with pytest.raises(OSError, match="pytorch_model.bin"):
        CaitForImageClassification.from_pretrained(timm_folder, use_safetensors=False)
    for argument in ({"variant": "fp16"}, {"state_dict": asked.state_dict()}):
        with pytest.raises(ValueError, match=next(iter(argument))):
            CaitForImageClassification.from_pretrained(timm_folder, **argument)


@pytest.mark.parametrize("config", [ViTConfig(), {"hidden_size": 48}], ids=["ViT", "dict"])
def test_config_of_another_class_is_refused(timm_folder, config):
    with pytest.raises(ValueError, match="must be a CaitConfig"):
        CaitForImageClassification.from_pretrained(timm_folder, config=config)


@pytest.mark.parametrize("asked", [{"num_labels": 7}, {"id2label": {0: "ant", 1: "bee"}}], ids=["number", "names"])
def test_another_number_of_labels_needs_a_new_classifier(timm_folder, tmp_path, asked):
    count = asked.get("num_labels", 2)
    randomize_(CaitForImageClassification(tiny_config())).save_pretrained(tmp_path)
    for folder, stored, model_class in (
        (tmp_path, 5, CaitForImageClassification),
        (tmp_path, 5, AutoModelForImageClassification),
        (timm_folder, 1000, CaitForImageClassification),
    ):
        message = f"num_labels is {count}, but {folder} contains {stored} labels: pass ignore_mismatched_sizes=True"
        with pytest.raises(RuntimeError, match=message):
            model_class.from_pretrained(folder, **asked)
        with pytest.raises(RuntimeError, match=message):
            model_class.from_pretrained(folder, config=CaitConfig.from_pretrained(folder, **asked))
        model = model_class.from_pretrained(folder, **asked, ignore_mismatched_sizes=True)
        assert model.classifier.out_features == model.config.num_labels == count
    assert CaitModel.from_pretrained(tmp_path, **asked).config.num_labels == count  # has no classifier
    with pytest.raises(RuntimeError, match="^(?!num_labels).*ignore_mismatched_sizes"):  # another misfit
        CaitForImageClassification.from_pretrained(tmp_path, num_channels=1)


def test_subfolder(tmp_path):
    model = randomize_(CaitForImageClassification(tiny_config()))
    model.save_pretrained(tmp_path / "inner")
    loaded = CaitForImageClassification.from_pretrained(tmp_path, subfolder="inner", image_size=48)
    assert loaded.config.image_size == 48


def test_key_names_are_not_rewritten_by_a_global_mapping(tmp_path):
    """A registered conversion mapping would make Trainer's resume lose every weight: there is none for "cait"."""
    model = randomize_(CaitForImageClassification(tiny_config()))
    model.save_pretrained(tmp_path)
    with safetensors.safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert set(file.keys()) == set(model.state_dict())
    loaded = CaitForImageClassification.from_pretrained(tmp_path)
    assert not getattr(loaded, "_weight_conversions", None)


class StopAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step >= self.step


def train(folder, labels=None, stop_at=None, resume=None, **arguments):
    """The Trainer after 6 steps with drop path on 24 images, or without on images of the labels."""
    drop_path_rate = 0.1 if labels is None else 0.0
    labels = torch.arange(24) % 5 if labels is None else labels
    dataset = [{"pixel_values": x, "labels": y} for x, y in zip(images(len(labels), 32), labels)]
    defaults = {"max_steps": 6, "per_device_train_batch_size": 4, "learning_rate": 1e-3, "save_steps": 3, "seed": 3}
    quiet = {"report_to": [], "use_cpu": True, "disable_tqdm": True, "logging_steps": 100}
    trainer = Trainer(
        randomize_(CaitForImageClassification(tiny_config(drop_path_rate=drop_path_rate))),
        TrainingArguments(output_dir=str(folder), **{**defaults, **quiet, **arguments}),
        train_dataset=dataset,
        eval_dataset=dataset[:8],
        callbacks=[StopAt(stop_at)] if stop_at else [],
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def test_trainer_resume_restores_every_tensor(tmp_path):
    uninterrupted = train(tmp_path / "uninterrupted").model.state_dict()
    train(tmp_path / "parts", stop_at=3)
    resumed = train(tmp_path / "parts", resume=str(tmp_path / "parts" / "checkpoint-3")).model.state_dict()
    start = randomize_(CaitForImageClassification(tiny_config())).state_dict()
    for name, tensor in uninterrupted.items():
        assert torch.equal(resumed[name], tensor), name
        assert not torch.equal(start[name], tensor) or name.endswith(("proj_l_bias", "k_proj.bias")), name


def test_trainer_loads_the_best_model(tmp_path):
    trainer = train(
        tmp_path,
        eval_strategy="steps",
        eval_steps=3,
        load_best_model_at_end=True,
        metric_for_best_model="loss",
    )
    best = CaitForImageClassification.from_pretrained(trainer.state.best_model_checkpoint).state_dict()
    for name, tensor in trainer.model.state_dict().items():
        assert torch.equal(best[name], tensor), name


def test_accumulated_gradients_equal_the_large_batch(tmp_path):
    """Four batches of 4 with accumulation move the weights as one batch of 16 does; soft labels included."""

    one_step = {"max_steps": 1, "learning_rate": 0.1, "optim": "sgd", "max_grad_norm": 0.0, "save_strategy": "no"}
    one_step["lr_scheduler_type"] = "constant"
    soft = torch.rand(16, 5, generator=torch.Generator().manual_seed(0)).softmax(-1)
    for labels in (torch.arange(16) % 5, soft):
        states, losses = [], []
        for batch, accumulation in ((16, 1), (4, 4)):
            batches = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
            trainer = train(tmp_path / str(batch), labels, logging_strategy="no", **batches, **one_step)
            states.append(trainer.model.state_dict())
            losses.append(trainer.state.log_history[-1]["train_loss"])
        assert losses[1] == pytest.approx(losses[0], rel=1e-5)
        for name, tensor in states[0].items():
            torch.testing.assert_close(states[1][name], tensor, rtol=1e-4, atol=1e-5, msg=name)


# --- refusals


def test_other_models_are_refused(timm_folder, tmp_path):
    ViTConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="model_type='vit'"):
        CaitForImageClassification.from_pretrained(tmp_path)
    config = json.loads((timm_folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "architecture": "vit_base_patch16_224"}))
    with pytest.raises(ValueError, match="vit_base_patch16_224"):
        CaitForImageClassification.from_pretrained(tmp_path)


def test_timm_repository_with_wrong_weights_is_refused(timm_folder, tmp_path):
    (tmp_path / "config.json").write_bytes((timm_folder / "config.json").read_bytes())
    with pytest.raises(OSError, match="neither model.safetensors nor pytorch_model.bin"):
        CaitForImageClassification.from_pretrained(tmp_path)
    weights = safetensors.torch.load_file(timm_folder / "model.safetensors")
    weights.pop("blocks.3.attn.proj_w.weight")
    safetensors.torch.save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"blocks\.3\.attn\.proj_w\.weight"):
        CaitForImageClassification.from_pretrained(tmp_path)


@pytest.mark.parametrize("what", ["empty", "missing"])
def test_folders_without_a_model_are_refused(tmp_path, what):
    folder = tmp_path / "folder"
    if what == "empty":
        folder.mkdir()
    with pytest.raises(OSError, match="folder"):
        CaitForImageClassification.from_pretrained(folder)


def test_state_dict_and_config_objects_load(tmp_path):
    model = randomize_(CaitForImageClassification(tiny_config()))
    loaded = CaitForImageClassification.from_pretrained(None, config=model.config, state_dict=model.state_dict())
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    model.save_pretrained(tmp_path)
    by_path = CaitForImageClassification.from_pretrained(tmp_path, config=str(tmp_path))
    assert torch.equal(by_path.classifier.weight, model.classifier.weight)
