# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""`cait_hf.training.trainer` and what `scripts/run_image_classification.py` says when the loss is not finite."""

import pytest
import torch
from random_weights import pictures, randomize_, tiny_config
from test_scripts import TINY, load_script, write_pictures
from transformers import TrainingArguments

from cait_hf import CaitForImageClassification
from cait_hf.training.trainer import ImageClassificationTrainer


def batches(value: float) -> list[dict]:
    """Four pictures; the third has one pixel of the given value."""
    pixel_values = pictures(4, 32)
    pixel_values[2, 0, 5, 7] = value
    return [{"pixel_values": pixels, "labels": 1} for pixels in pixel_values]


def trainer(folder, train_dataset: list[dict], **arguments) -> ImageClassificationTrainer:
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=1,
        max_steps=4,
        save_steps=1,
        disable_tqdm=True,
        report_to=[],
        use_cpu=True,
        data_seed=0,
        train_sampling_strategy="sequential",
        **arguments,
    )
    model = randomize_(CaitForImageClassification(tiny_config(num_hidden_layers=1)))
    return ImageClassificationTrainer(model=model, args=arguments, train_dataset=train_dataset)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_training_stops_at_a_loss_that_is_not_finite(value, tmp_path):
    training = trainer(tmp_path, batches(value))
    with pytest.raises(FloatingPointError, match="The loss is nan at step 3, .*pixels or labels") as error:
        training.train()
    assert str(tmp_path) in str(error.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-1", "checkpoint-2"]
    kept = CaitForImageClassification.from_pretrained(tmp_path / "checkpoint-2").state_dict()
    for name, parameter in training.model.named_parameters():
        assert torch.equal(parameter, kept[name]) and parameter.isfinite().all(), name


def test_finite_training_goes_on(tmp_path):
    assert trainer(tmp_path, batches(1.0)).train().global_step == 4


def test_script_ends_with_a_sentence(tmp_path):
    main = load_script("run_image_classification").main
    write_pictures(tmp_path / "train", range(2), 4)
    flags = f"--do_train --train_dir {tmp_path / 'train'} --config_overrides {TINY} --output_dir {tmp_path / 'out'}"
    flags += " --learning_rate 1e30 --lr_scheduler_type constant --max_steps 5 --per_device_train_batch_size 4"
    with pytest.raises(SystemExit, match="^error: The loss is (nan|inf) at step [2-5], so training stopped"):
        main([*flags.split(), "--disable_tqdm", "true"])
