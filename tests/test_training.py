# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""`cait_hf.training.trainer` and what the training scripts say when the loss is not finite."""

import shutil

import datasets
import numpy as np
import pytest
import torch
from random_weights import images, randomize_, tiny_config
from test_run_image_classification import SCRIPT_NAMES
from test_scripts import TINY, load_script, write_images
from test_training_data import png
from transformers import TrainingArguments

from cait_hf import CaitForImageClassification
from cait_hf.training.streaming import ImageStream
from cait_hf.training.trainer import ImageClassificationTrainer
from cait_hf.training.transforms import collate


def batches(value: float) -> list[dict]:
    """Four images; the third has one pixel of the given value."""
    pixel_values = images(4, 32)
    pixel_values[2, 0, 5, 7] = value
    return [{"pixel_values": pixels, "labels": 1} for pixels in pixel_values]


class Record(TrainingArguments):
    """Arguments of which no field can be edited once they are the `record`."""

    record: "Record | None" = None

    def __setattr__(self, name, value):
        assert self is not Record.record or name not in self.__dataclass_fields__, f"{name} is edited"
        super().__setattr__(name, value)


def trainer(folder, train_dataset, train_collator=None, **arguments) -> ImageClassificationTrainer:
    arguments = Record(
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
    return ImageClassificationTrainer(
        model=model, args=arguments, train_dataset=train_dataset, train_collator=train_collator
    )


def stream() -> ImageStream:
    """Eight images without an end, in order; the classes alternate."""
    features = datasets.Features({"image": datasets.Image(decode=False), "label": datasets.Value("int64")})
    pixels = (images(8, 32).movedim(1, -1).sigmoid() * 255).to(torch.uint8).numpy()
    rows = {"image": [{"bytes": png(array), "path": None} for array in pixels], "label": [0, 1] * 4}
    table = datasets.Dataset.from_dict(rows, features=features).to_iterable_dataset()
    found = ImageStream(table, "image", datasets.Image(), "label", ["a", "b"], True, "the data", endless=True)
    found.prepare(lambda image, key: torch.from_numpy(np.array(image)).movedim(-1, 0) / 255, {"a": 0, "b": 1})
    return found


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
    with pytest.raises(ValueError, match="label_smoothing_factor is 0.1, .* train_collator"):  # or none would smooth
        trainer(tmp_path, batches(1.0), label_smoothing_factor=0.1)


@pytest.mark.parametrize("named", [True, False])
def test_stream_resumes_at_the_last_checkpoint(named, tmp_path):
    """With its folder, or with `True` as plain `Trainer` allows."""
    with pytest.raises(ValueError, match="No valid checkpoint"):
        trainer(tmp_path, stream(), collate).train(resume_from_checkpoint=True)
    whole = trainer(tmp_path, stream(), collate)
    whole.train()
    for step in (3, 4):
        shutil.rmtree(tmp_path / f"checkpoint-{step}")
    resumed = trainer(tmp_path, stream(), collate)
    assert resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2") if named else True).global_step == 4
    for expected, parameter in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(parameter, expected)


def test_arguments_are_never_edited(hub, repo_id, tmp_path, monkeypatch):
    """Nor does the trainer push: that is up to the script, once all is complete."""
    flags = {"label_smoothing_factor": 0.1, "push_to_hub": True, "hub_model_id": repo_id, "dataloader_drop_last": True}
    for resume_from in (None, str(tmp_path / "checkpoint-2")):
        training = trainer(tmp_path, stream(), collate, per_device_eval_batch_size=3, **flags)
        with monkeypatch.context() as patch:
            patch.setattr(Record, "record", training.args)
            training.train(resume_from)
            training.save_model(_internal_call=True)
            assert sum(len(batch["labels"]) for batch in training.get_eval_dataloader(batches(1.0))) == 4
    for folder in (tmp_path, tmp_path / "checkpoint-4"):
        kept = torch.load(folder / "training_args.bin", weights_only=False)
        assert {name: getattr(kept, name) for name in flags} == flags
    assert repo_id not in hub.repositories


@pytest.mark.parametrize("name", SCRIPT_NAMES)
def test_script_ends_with_an_error_message(name, tmp_path):
    main = load_script(name).main
    write_images(tmp_path / "train", range(2), 4)
    flags = f"--do_train --train_dir {tmp_path / 'train'} --config_overrides {TINY} --output_dir {tmp_path / 'out'}"
    flags += " --learning_rate 1e30 --lr_scheduler_type constant --max_steps 5 --per_device_train_batch_size 4"
    with pytest.raises(SystemExit, match="^error: The loss is (nan|inf) at step [2-5], so training stopped"):
        main([*flags.split(), "--disable_tqdm", "true"])
