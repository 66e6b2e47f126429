# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""The recipes in the package, `scripts/accelerate_configs`: flags exist, recipes train a step, variants are right."""

import re
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from test_scripts import NAMES, SCRIPTS, TINY, TINY_FIELDS, load_script, write_images
from transformers import (
    AutoModelForImageClassification,
    TrainerCallback,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
)

from cait_hf import CHECKPOINTS, CaitConfig, CaitForImageClassification, CaitImageProcessorPil
from cait_hf.cards.training import shown
from cait_hf.training.arguments import RECIPES, changed_fields, find_file, names_in, parse_arguments
from cait_hf.training.experiment import prepare
from cait_hf.training.models import load_config


pytestmark = pytest.mark.usefixtures("no_plots")
CONFIGS = SCRIPTS / "accelerate_configs"
TRAINING_PAGE = (SCRIPTS.parent / "docs" / "training.md").read_text(encoding="utf-8")
SCRATCH = {"fashion_mnist", "fashion_mnist_teacher", "pretrain"}
ADDED = {"distill_regnety160"}  # to another recipe
# At 224 pixels; with the ten checkpoints' architectures they are the formula that timm's own models confirm.
PARAMETERS = {
    "xxs24": 11_956_264,
    "xxs36": 17_299_720,
    "xs24": 26_560_648,
    "xs36": 38_557_432,
    "s24": 46_916_200,
    "s36": 68_220_712,
    "s48": 89_525_224,
    "m24": 185_850_088,
    "m36": 270_929_512,
    "m48": 356_008_936,
}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Path:
    """A dataset of six classes, and a checkpoint and a teacher for them."""
    folder = tmp_path_factory.mktemp("recipes")
    write_images(folder / "train", range(6), 4)
    labels = dict(enumerate(sorted(NAMES)))
    for name in ("checkpoint", "teacher"):
        CaitForImageClassification(CaitConfig(**TINY_FIELDS, id2label=labels)).save_pretrained(folder / name)
        CaitImageProcessorPil(size=16, crop_size=16).save_pretrained(folder / name)
    return folder


@pytest.mark.parametrize("recipe", [name for name in names_in(RECIPES) if "/" not in name])
def test_recipe_trains_a_step(recipe, workplace, tmp_path, monkeypatch):
    pytest.importorskip("timm", reason="the recipes have timm's augmentations")
    if "lora" in recipe:
        pytest.importorskip("peft", reason="adapters are PEFT's")
    files = [recipe]
    flags = f"--train_dir {workplace / 'train'} --train_val_split 0.25 --output_dir {tmp_path / 'out'} --max_steps 1"
    flags += " --per_device_train_batch_size 4 --dataloader_num_workers 0 --disable_tqdm true --save_strategy no"
    flags += " --eval_strategy no --load_best_model_at_end false --warmup_epochs 0"
    if recipe in ADDED:
        files.insert(0, "pretrain")
        flags += f" --teacher_model_name_or_path {workplace / 'teacher'}"
    if recipe in SCRATCH | ADDED:
        flags += f" --config_overrides {TINY} --torch_compile false"
        flags += "" if recipe.startswith("fashion_mnist") else " --base_learning_rate 0.5"
    else:
        flags += f" --model_name_or_path {workplace / 'checkpoint'}"
    if "image_size" in yaml.safe_load(Path(find_file(recipe, RECIPES)).read_text()):
        flags += " --image_size 24"
    script, ran = load_script("run_image_classification"), {}

    class Observer(TrainerCallback):
        def on_train_begin(self, args, state, control, model, optimizer, lr_scheduler, **kwargs):
            groups = optimizer.param_groups
            ran["learning_rate"] = max(group["initial_lr"] for group in groups)
            ran["weight_decay"] = max(group["weight_decay"] for group in groups)
            ran["optimizer"], ran["schedule"] = type(optimizer.optimizer).__name__, lr_scheduler.lr_lambdas[0]
            ran["trained"] = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)

    def observed(argv: list[str]):
        experiment = real_prepare(argv)
        experiment.callbacks.append(Observer())
        ran["smoothing"], ran["images"] = experiment.train_collator.label_smoothing, len(experiment.train_data)
        ran["batch"] = experiment.training_args.train_batch_size
        return experiment

    real_prepare = script.prepare
    monkeypatch.setattr(script, "prepare", observed)
    results = script.main([*files, *flags.split()])
    assert 0 <= results["eval_top1"] <= 1
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "out")
    assert model.config.num_labels == 6

    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    settings = dict(re.findall(r"^\| ([\w ]+) \| `(.*)` \|$", card, re.MULTILINE))
    assert float(settings["learning_rate"]) == ran["learning_rate"]
    assert float(settings["weight_decay"]) == ran["weight_decay"]
    assert float(settings["label_smoothing_factor"]) == ran["smoothing"]
    assert settings["optim"].removeprefix("timm's ").split("_")[0] == ran["optimizer"].lower()
    schedule = getattr(ran["schedule"], "func", ran["schedule"]).__qualname__
    if schedule.startswith("cosine_schedule"):  # ours
        assert settings["lr_scheduler_type"].startswith("cosine of the official training")
    else:
        assert f"_get_{settings['lr_scheduler_type']}_schedule" in schedule
    assert int(settings["images per step"]) == ran["batch"] and int(settings["training images"]) == ran["images"] == 18
    assert (settings["max_steps"], settings["steps trained"], settings["warmup_steps"]) == ("1", "1", "0")
    assert "num_train_epochs" not in settings and "Measured on 6 images of `train` (split `25% held out`)" in card
    total = f"{model.num_parameters():,}"
    trained = "" if ran["trained"] == model.num_parameters() else f" ({ran['trained']:,} were trained)"
    assert f"It has {total} parameters{trained}\nand 6 classes" in card
    parts = parse_arguments([*files, *flags.split()])
    changed = {name: getattr(part, name) for part in parts[:3] for name in changed_fields(part)}
    changed = {name: value for name, value in changed.items() if name not in ("train_dir", "model_name_or_path")}
    assert {name: settings[name] for name in changed} == {name: shown(value) for name, value in changed.items()}
    assert not (tmp_path / "out" / "adapter" / "README.md").exists()


def test_recipe_leaves_out_what_a_model_lacks(workplace, tmp_path, caplog):
    """A ViT has neither drop path nor named layers; a flag by hand for them stays an error."""
    pytest.importorskip("timm", reason="the recipe has timm's augmentations")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    ViTForImageClassification(ViTConfig(**sizes, image_size=16, patch_size=4)).save_pretrained(tmp_path / "vit")
    ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(tmp_path / "vit")
    flags = f"finetune --train_dir {workplace / 'train'} --output_dir {tmp_path / 'out'}".split()
    flags += ["--model_name_or_path", str(tmp_path / "vit")]
    experiment = prepare(flags)
    assert "recipe's drop_path_rate is left out: models of type vit" in caplog.text
    assert "recipe's layer_decay is left out: ViTForImageClassification" in caplog.text
    assert experiment.model_args.drop_path_rate is None and experiment.recipe.layer_decay == 1
    for flag in ("drop_path_rate", "layer_decay"):
        with pytest.raises(ValueError, match=flag):
            prepare([*flags, f"--{flag}", "0.25"])


@pytest.mark.parametrize("name", PARAMETERS)
def test_variant(name):
    """Architecture by the number of parameters, LayerScale and drop path as they end in the configuration."""
    pytest.importorskip("timm", reason="flags that need it are refused without it")
    files = ["pretrain", f"variants/{name}"]
    model_args, _, recipe, args = parse_arguments([*files, "--train_dir", "x", "--output_dir", "x"])
    config = load_config(model_args)
    config.num_labels = 1000
    with torch.device("meta"):
        assert CaitForImageClassification(config).num_parameters() == PARAMETERS[name]
    official = [c for c in CHECKPOINTS if c.official_name.lower().startswith(f"{name}_")]
    for checkpoint in official:
        assert config.layer_scale_init_value == checkpoint.config_kwargs["layer_scale_init_value"]
    assert config.drop_path_rate == yaml.safe_load(Path(find_file(files[1], RECIPES)).read_text())["drop_path_rate"]
    assert (args.num_train_epochs, recipe.mixup, recipe.ema_decay) == (400, 0.8, 0.99996)
    assert args.learning_rate == pytest.approx(5e-4 * 128 / 512)  # one process


def test_files_of_flags_by_path_and_name(tmp_path):
    own = tmp_path / "own.yaml"
    own.write_text("learning_rate: 0.25\ndo_eval: true\n")
    flags = ["--train_dir", "x", "--output_dir", "x", "--seed", "3"]
    *_, args = parse_arguments(["linear_probe", str(own), *flags])
    assert (args.learning_rate, args.num_train_epochs, args.seed) == (0.25, 30, 3)
    for name in ("finetun", "s24", "../setup", "search"):
        with pytest.raises(ValueError, match=rf"{name} is neither a file .*finetune.*variants/s24"):
            parse_arguments([name, *flags])


def test_each_recipe_names_its_source_and_is_documented():
    assert {path.stem for path in (RECIPES / "variants").iterdir()} == {*PARAMETERS}
    for path in RECIPES.rglob("*.yaml"):
        assert "# Source: " in path.read_text(encoding="utf-8"), path
        assert path.parent.name == "variants" or f"| `{path.stem}`" in TRAINING_PAGE, path


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_reads_its_configurations(path):
    config = load_config_from_file(str(path))
    assert config.num_processes == {"one_gpu": 1, "cpu": 2, "multi_node": 16}.get(path.stem, 8)
    text = path.read_text(encoding="utf-8")
    if path.stem == "fsdp2":
        wrapped = re.search(r"cls_to_wrap: (\S+)", text)[1].split(",")
        assert set(wrapped) == set(CaitForImageClassification._no_split_modules)


def test_slurm_file_names_recipes_that_exist():
    text = (CONFIGS / "multi_node.slurm").read_text(encoding="utf-8")
    assert {*re.search(r"multi_node\.slurm (.+) \.\.\.$", text, re.M)[1].split()} <= {*names_in(RECIPES)}


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.slurm")), ids=lambda path: path.stem)
def test_slurm_file_names_files_that_exist(path):
    text = path.read_text(encoding="utf-8")
    for name in re.findall(r"scripts/\S+\.(?:yaml|py)", text):
        assert (SCRIPTS.parent / name).is_file(), name
