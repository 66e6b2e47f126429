# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""The flags of the training scripts: files of flags, what overrides what, and error messages for what cannot be."""

import importlib.util
import json

import pytest
import torch

from cait_hf.training import arguments
from cait_hf.training.arguments import parse_arguments


DO_TRAIN = ["--do_train", "--output_dir", "unused"]


def parse_file(folder, text: str, *flags: str, name: str = "recipe.yaml") -> tuple:
    (folder / name).write_text(text)
    return parse_arguments([str(folder / name), *DO_TRAIN, *flags])


VALUES = {
    "a number that YAML takes for text": ("learning_rate: 5e-4", "learning_rate", 5e-4),
    "a number": ("learning_rate: 0.25", "learning_rate", 0.25),
    "a negative number": ("warmup_lr: -1e-6", "warmup_lr", -1e-6),
    "a whole number": ("max_train_samples: 3", "max_train_samples", 3),
    "a number as text": ("trainable: 2", "trainable", "2"),
    "yes": ("do_eval: true", "do_eval", True),
    "no": ("bf16: false", "bf16", False),
    "nothing": ("ema_decay: null", "ema_decay", None),
    "no as a word": ("eval_strategy: no", "eval_strategy", "no"),
    "an empty list": ("report_to: []", "report_to", []),
    "one logger": ("report_to: tensorboard", "report_to", ["tensorboard"]),
    "no logger": ("report_to: none", "report_to", []),
    "a list": ("report_to: [tensorboard, trackio]", "report_to", ["tensorboard", "trackio"]),
    "a dictionary": ("lr_scheduler_kwargs: {num_cycles: 2}", "lr_scheduler_kwargs", {"num_cycles": 2}),
    "a text with a space": ("run_name: 'my run = 1'", "run_name", "my run = 1"),
}


@pytest.mark.parametrize("text, name, expected", VALUES.values(), ids=VALUES)
def test_values_in_a_file(text, name, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(arguments, "get_available_reporting_integrations", lambda: ["tensorboard", "trackio"])
    parsed = parse_file(tmp_path, text)
    (value,) = {repr(getattr(part, name)): getattr(part, name) for part in parsed if hasattr(part, name)}.values()
    assert value == expected and isinstance(value, type(expected))


def test_later_files_and_flags_override(tmp_path):
    (tmp_path / "a.yaml").write_text("do_train: true\noutput_dir: a\nlearning_rate: 1e-3\ncrop_area: 0.8\nseed: 1\n")
    (tmp_path / "b.json").write_text(json.dumps({"output_dir": "b", "learning_rate": 2e-3}))
    files = [str(tmp_path / "a.yaml"), str(tmp_path / "b.json")]
    _, _, recipe, args = parse_arguments([*files, "--learning_rate", "3e-3"])
    assert (args.do_train, args.output_dir, args.learning_rate, args.seed) == (True, "b", 3e-3, 1)
    assert (recipe.crop_area, recipe.flip_probability) == (0.8, 0.5)
    assert parse_arguments(files)[3].learning_rate == 2e-3
    assert parse_arguments(files[::-1])[3].learning_rate == 1e-3


BROKEN_FILES = {
    "unknown flags": ("mixup: 1\nmix_up: 1\ndepth: 3", r"recipe.yaml sets mix_up, depth, but there are no such flags"),
    "no names": ("- mixup", "recipe.yaml must hold names of flags with their values"),
    "empty": ("", "recipe.yaml must hold names of flags with their values"),
    "broken": ("mixup: [1", "recipe.yaml cannot be read as a file of flags: "),
    "wrong value": ("mixup: much", "argument --mixup: invalid float value: 'much'"),
    "wrong choice": ("save_strategy: often", "--save-strategy: invalid choice: 'often'"),
    "not a truth value": ("do_eval: perhaps", "argument --do_eval.*got perhaps"),
}


@pytest.mark.parametrize("text, message", BROKEN_FILES.values(), ids=BROKEN_FILES)
def test_broken_files_end_with_an_error_message(text, message, tmp_path):
    with pytest.raises(ValueError, match=message) as error:
        parse_file(tmp_path, text)
    assert "\n" not in str(error.value)


def test_files_that_cannot_be_read_end_with_an_error_message(tmp_path):
    with pytest.raises(ValueError, match="recipe.json cannot be read as a file of flags: Expecting"):
        parse_file(tmp_path, '{"mixup": ', name="recipe.json")
    (tmp_path / "latin.yaml").write_bytes("run_name: é".encode("latin-1"))
    with pytest.raises(ValueError, match="latin.yaml cannot be read as a file of flags: "):
        parse_arguments([str(tmp_path / "latin.yaml"), *DO_TRAIN])
    with pytest.raises(OSError, match="absent.yaml"):
        parse_arguments([str(tmp_path / "absent.yaml"), *DO_TRAIN])


CONFLICTS = {
    "nothing to do": ("--output_dir x", "there is nothing to do: pass --do_train, --do_eval or both"),
    "no model": ("--do_eval --output_dir x", "--do_eval without --do_train needs --model_name_or_path"),
    "unknown flag": ("--do_train --output_dir x --no_such_flag 1", "no_such_flag"),
    "wrong value": ("--do_train --output_dir x --seed one", "argument --seed: invalid int value: 'one'"),
    "scratch": ("--do_train --model_name_or_path m --config_name c", "drop them or --model_name_or_path"),
    "overrides": ("--do_train --model_name_or_path m --config_overrides a=1", "drop them or --model_name_or_path"),
    "two sources": ("--do_train --dataset_name d --validation_dir v", "--dataset_name excludes"),
    "fraction": ("--do_train --train_val_split 1", "--train_val_split is 1.0, but it must be between 0 and 1"),
    "stream": ("--do_train --train_dir d --streaming", "--streaming needs --max_steps"),
    "views": ("--do_train --repeated_augmentation 0", "--repeated_augmentation is 0, but it must be at least 1"),
    "rank": ("--do_train --lora_rank 0", "--lora_rank is 0, but it must be at least 1"),
    "LoRA and freezing": ("--do_train --lora_rank 2 --trainable head", "--lora_rank says what trains"),
    "LoRA and layers": ("--do_train --lora_rank 2 --layer_decay 0.8", "--lora_rank says what trains"),
    "warm-up": ("--do_train --warmup_epochs 1 --warmup_steps 5", "say the same: pass one of them"),
    "rate": (
        "--do_train --base_learning_rate 1e-3 --learning_rate 1e-3",
        "--base_learning_rate gives --learning_rate",
    ),
    "no accumulation": (
        "--do_train --gradient_accumulation_steps 0",
        "--gradient_accumulation_steps is 0, but it must",
    ),
    "scaler": ("--do_train --fp16 --use_cpu", "--fp16 needs a GPU"),
    "best of what": ("--do_train --save_strategy best --eval_strategy epoch", "needs --metric_for_best_model"),
    "best when": ("--do_train --save_strategy best --metric_for_best_model eval_top1", "and --eval_strategy"),
}


@pytest.mark.parametrize("flags, message", CONFLICTS.values(), ids=CONFLICTS)
def test_conflicts_end_with_an_error_message(flags, message):
    with pytest.raises(ValueError, match=message):
        parse_arguments(flags.split())


def test_base_learning_rate_is_for_512_images():
    flags = ["--base_learning_rate", "5e-4", "--per_device_train_batch_size", "64"]
    args = parse_arguments([*DO_TRAIN, *flags, "--gradient_accumulation_steps", "4"])[3]
    assert args.learning_rate == pytest.approx(5e-4 * 64 * 4 / 512, rel=1e-12)
    args = parse_arguments([*DO_TRAIN, *flags])[3]
    assert args.learning_rate == pytest.approx(5e-4 * 64 / 512, rel=1e-12)


def test_bfloat16_is_the_default_on_gpus_that_have_it(monkeypatch):
    flags = [*DO_TRAIN, "--use_cpu"]
    args = parse_arguments(flags)[3]
    assert (args.bf16, args.fp16) == (False, False)
    assert parse_arguments([*flags, "--bf16"])[3].bf16 is True
    assert parse_arguments([*flags, "--bf16", "false"])[3].bf16 is False

    monkeypatch.setattr(arguments.transformers.TrainingArguments, "__post_init__", lambda self: None)
    for backend in (torch.cuda, torch.accelerator):
        monkeypatch.setattr(backend, "is_available", lambda: True)
    # a GPU without bfloat16, such as T4, emulates it: slower than float32
    for major, expected in ((9, True), (7, False)):
        monkeypatch.setattr(
            torch.cuda,
            "is_bf16_supported",
            lambda including_emulation=True, major=major: major >= 8 or including_emulation,
        )
        for fields, bf16 in (({}, expected), ({"fp16": True}, False), ({"use_cpu": True}, False)):
            assert arguments.TrainingArguments("unused", **fields).bf16 is bf16
        assert arguments.TrainingArguments("unused", bf16=False).bf16 is False


@pytest.mark.parametrize("logger", ["tensorboard", "trackio"])
def test_loggers_say_that_they_are_missing(logger, monkeypatch):
    monkeypatch.setattr(arguments, "get_available_reporting_integrations", lambda: ["wandb"])
    with pytest.raises(ImportError, match=f"--report_to {logger} needs the package {logger}: pip install"):
        parse_arguments([*DO_TRAIN, "--report_to", logger])
    parse_arguments([*DO_TRAIN, "--report_to", "wandb"])


@pytest.mark.parametrize("flag", arguments.NEEDED_PACKAGES)
def test_flags_say_which_package_they_need(flag, monkeypatch):
    package, value = arguments.NEEDED_PACKAGES[flag], {"repeated_augmentation": "3", "lora_rank": "3"}.get(flag, "0.5")
    real = importlib.util.find_spec
    monkeypatch.setattr(arguments, "find_spec", lambda name: None if name == package else real(name))
    with pytest.raises(ImportError, match=f"--{flag} needs the package {package}, .*: pip install {package}"):
        parse_arguments([*DO_TRAIN, f"--{flag}", value])
    parse_arguments(DO_TRAIN)
