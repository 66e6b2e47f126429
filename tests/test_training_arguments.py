# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""The flags of the training scripts: files of flags, what overrides what, and error messages for what cannot be."""

import importlib.util
import json
import re

import pytest
import torch
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from cait_hf.fashion_mnist import CHECKPOINT
from cait_hf.training import arguments
from cait_hf.training.arguments import parse_arguments


DO_TRAIN = ["--do_train", "--output_dir", "unused"]


def parse_file(folder, text: str, *flags: str, name: str = "recipe.yaml") -> tuple:
    (folder / name).write_text(text)
    return parse_arguments([str(folder / name), *DO_TRAIN, *flags])


VALUES = [
    ("learning_rate: 5e-4", 5e-4),  # which YAML takes for text
    ("learning_rate: 0.25", 0.25),
    ("warmup_lr: -1e-6", -1e-6),
    ("max_train_samples: 3", 3),
    ("trainable: 2", "2"),
    ("do_eval: true", True),
    ("bf16: false", False),
    ("ema_decay: null", None),
    ("eval_strategy: no", "no"),
    ("report_to: []", []),
    ("report_to: tensorboard", ["tensorboard"]),
    ("report_to: none", []),
    ("report_to: [tensorboard, trackio]", ["tensorboard", "trackio"]),
    ("lr_scheduler_kwargs: {num_cycles: 2}", {"num_cycles": 2}),
    ("run_name: 'my run = 1'", "my run = 1"),
]


@pytest.mark.parametrize("text, expected", VALUES)
def test_values_in_a_file(text, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(arguments, "get_available_reporting_integrations", lambda: ["tensorboard", "trackio"])
    name, parsed = text.partition(":")[0], parse_file(tmp_path, text)
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


BROKEN_FILES = [
    (b"mixup: 1\nmix_up: 1\ndepth: 3", "recipe.yaml sets mix_up, depth, "),
    (b"- mixup", "recipe.yaml must hold names"),
    (b"", "recipe.yaml must hold names"),
    (b"mixup: [1", "recipe.yaml cannot be read"),
    ("run_name: é".encode("latin-1"), "recipe.yaml cannot be read"),
    (b"mixup: much", "--mixup: .*'much'"),
    (b"save_strategy: often", "--save-strategy: .*'often'"),
    (b"do_eval: perhaps", "--do_eval.* perhaps"),
]


@pytest.mark.parametrize("content, message", BROKEN_FILES)
def test_broken_files_end_with_an_error_message(content, message, tmp_path):
    (tmp_path / "recipe.yaml").write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        parse_arguments([str(tmp_path / "recipe.yaml"), *DO_TRAIN])
    assert "\n" not in str(error.value)


def test_files_that_cannot_be_read_end_with_an_error_message(tmp_path):
    with pytest.raises(ValueError, match="recipe.json cannot be read as a file of flags: Expecting"):
        parse_file(tmp_path, '{"mixup": ', name="recipe.json")
    with pytest.raises(OSError, match="absent.yaml"):
        parse_arguments([str(tmp_path / "absent.yaml"), *DO_TRAIN])


# Without --do_train, which most of them have.
CONFLICTS = [
    ("--do_train false", "there is nothing to do: pass --do_train, --do_eval, --do_predict"),
    ("--do_train false --do_eval", "--do_eval or --do_predict without --do_train needs --model_name_or_path"),
    ("--no_such_flag 1", "no_such_flag"),
    ("--seed one", "--seed: .*'one'"),
    ("--model_name_or_path m --config_name c", "--config_name .*--model_name_or_path"),
    ("--model_name_or_path m --config_overrides a=1", "--config_overrides .*--model_name_or_path"),
    ("--dataset_name d --train_dir t", "--dataset_name excludes --train_dir"),
    ("--dataset_name d --validation_dir v", "--dataset_name excludes .*--validation_dir"),
    ("--train_val_split 1", "--train_val_split is 1.0, "),
    ("--train_dir d --streaming", "--streaming needs --max_steps"),
    ("--repeated_augmentation 0", "--repeated_augmentation is 0, "),
    ("--lora_rank 0", "--lora_rank is 0, "),
    ("--lora_rank 2 --trainable head", "--lora_rank .*--trainable"),
    ("--lora_rank 2 --layer_decay 0.8", "--lora_rank .*--layer_decay"),
    ("--warmup_epochs 1 --warmup_steps 5", "--warmup_epochs and --warmup_steps"),
    ("--base_learning_rate 1e-3 --learning_rate 1e-3", "--base_learning_rate .*--learning_rate"),
    ("--per_device_train_batch_size 0", "--per_device_train_batch_size is 0, "),
    ("--gradient_accumulation_steps 0", "--gradient_accumulation_steps is 0, "),
    ("--fp16 --use_cpu", "--fp16 needs a GPU"),
    ("--bf16_full_eval", "--bf16_full_eval rounds the weights"),
    ("--overwrite_output_dir --resume_from_checkpoint c", "--overwrite_output_dir .*--resume_from_checkpoint"),
    ("--save_strategy best --eval_strategy epoch", "--save_strategy best needs --metric_for_best_model"),
    ("--save_strategy best --metric_for_best_model eval_top1", "--save_strategy best .*--eval_strategy"),
]


@pytest.mark.parametrize("flags, message", CONFLICTS)
def test_conflicts_end_with_an_error_message(flags, message):
    with pytest.raises(ValueError, match=message):
        parse_arguments([*DO_TRAIN, *flags.split()])


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


@pytest.mark.parametrize("logger", sorted(INTEGRATION_TO_CALLBACK))
def test_loggers_say_that_they_are_missing(logger, monkeypatch):
    monkeypatch.setattr(arguments, "get_available_reporting_integrations", lambda: [])
    monkeypatch.setattr(arguments, "find_spec", lambda name: None)
    package = {"azure_ml": "azureml-core", "dagshub": "dagshub mlflow", "flyte": "flytekit"}.get(logger, logger)
    with pytest.raises(ImportError, match=f"--report_to {logger} needs the package {package}: pip install {package}"):
        parse_arguments([*DO_TRAIN, "--report_to", logger])
    monkeypatch.setattr(arguments, "get_available_reporting_integrations", lambda: [logger])
    parse_arguments([*DO_TRAIN, "--report_to", logger])


def test_loggers_that_do_not_exist_are_refused():
    with pytest.raises(ValueError, match="--report_to is tensorbord, but it must be none, all or .*tensorboard"):
        parse_arguments([*DO_TRAIN, "--report_to", "tensorbord"])


MODEL_FLAGS = ("model_name_or_path", "config_name", "teacher_model_name_or_path")
NO_MODELS = [
    ("{tmp}/nowhere", "but there is no such folder"),
    ("./nowhere", "but there is no such folder"),
    ("outputs/run/best", "but there is no such folder"),
    ("{tmp}/empty", "but it must be a folder with a config.json"),
]


@pytest.mark.parametrize("flag", MODEL_FLAGS)
@pytest.mark.parametrize("name, message", NO_MODELS)
def test_a_missing_model_is_reported_with_its_flag(flag, name, message, tmp_path):
    (tmp_path / "empty").mkdir()
    name = name.format(tmp=tmp_path)
    with pytest.raises(OSError, match=f"--{flag} is {re.escape(name)}, {message}"):
        parse_arguments([*DO_TRAIN, f"--{flag}", name])


@pytest.mark.parametrize("flag", MODEL_FLAGS)
def test_short_names_of_models(flag):
    for name, source in (("S24_224", "timm/cait_s24_224.fb_dist_in1k"), ("fashion_mnist", CHECKPOINT), ("a/b", "a/b")):
        parsed = parse_arguments([*DO_TRAIN, f"--{flag}", name])
        assert [getattr(part, flag) for part in parsed if hasattr(part, flag)] == [source]


PUSH = [*DO_TRAIN, "--push_to_hub"]


def test_push_is_possible_before_training(hub):
    for name in ("digits", "tester/digits", "team/digits"):
        parse_arguments([*PUSH, "--hub_model_id", name])
    parse_arguments(PUSH)
    assert hub.count("GET /api/whoami-v2") == 4 and hub.count("POST ") == 0  # no repository before there is a model


@pytest.mark.parametrize(
    "flags, message",
    [
        ("--hub_model_id a/b/c", "--push_to_hub: a/b/c is not a valid repository name"),
        ("--hub_model_id other/digits", "--hub_model_id is other/digits, .*tester, team only"),
        ("--hub_token hf_wrong", "--push_to_hub needs .*a login: .*--hub_token"),
    ],
)
def test_what_keeps_from_pushing_is_found_before_training(flags, message, hub):
    with pytest.raises((ValueError, OSError), match=message):
        parse_arguments([*PUSH, *flags.split()])


def test_push_needs_a_login_that_may_write_and_a_network(hub, monkeypatch):
    hub.token_role = "read"
    with pytest.raises(ValueError, match="--push_to_hub needs a token that may write"):
        parse_arguments(PUSH)
    for name, value in (("HF_HUB_OFFLINE", True), ("ENDPOINT", "http://127.0.0.1:9")):
        with monkeypatch.context() as patch:
            patch.setattr(f"huggingface_hub.constants.{name}", value)
            with pytest.raises(OSError, match="--push_to_hub needs the Hub within reach") as error:
                parse_arguments(PUSH)
            assert "\n" not in str(error.value)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(OSError, match="--push_to_hub needs .*hf auth login"):
        parse_arguments(PUSH)


@pytest.mark.parametrize("flag", arguments.NEEDED_PACKAGES)
def test_flags_say_which_package_they_need(flag, monkeypatch):
    package, value = arguments.NEEDED_PACKAGES[flag], {"repeated_augmentation": "3", "lora_rank": "3"}.get(flag, "0.5")
    real = importlib.util.find_spec
    monkeypatch.setattr(arguments, "find_spec", lambda name: None if name == package else real(name))
    with pytest.raises(ImportError, match=f"--{flag} needs the package {package}, .*: pip install {package}"):
        parse_arguments([*DO_TRAIN, f"--{flag}", value])
    parse_arguments(DO_TRAIN)
