# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""The record of a run beside its checkpoints: flags and data, what changed when it was resumed, where it ended.

A run that is resumed is compared with its record: what would train otherwise than its beginning is refused, so that
weights, metrics and model card are of one training.
"""

import dataclasses
import hashlib
import json
import logging
import math
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from transformers import TrainerState

from ..files import write_json
from ..image_datasets import column_values
from .arguments import DataArguments, ModelArguments, RecipeArguments, TrainingArguments
from .data import LabeledImages
from .resume import RUN_RECORD, TRAINER_STATE
from .streaming import ImageStream


logger = logging.getLogger(__name__)

# Beginnings of the names of flags that change no step of a training, or only how fast, how exactly or how long.
MAY_CHANGE = (
    *("do_", "predict_", "output_dir", "overwrite_output_dir", "resume_from_checkpoint", "ignore_mismatched_sizes"),
    *("trust_remote_code", "disable_tqdm", "log_", "logging_", "report_to", "run_name", "project", "trackio_"),
    *("push_to_hub", "hub_", "eval_", "per_device_eval_batch_size", "prediction_loss_only", "include_for_metrics"),
    *("batch_eval_metrics", "bf16", "fp16_full_eval", "tf32", "save_", "load_best_model_at_end", "debug"),
    *("dataloader_num_workers", "dataloader_p"),  # pin_memory, persistent_workers, prefetch_factor
    *("use_cpu", "local_rank", "ddp_", "torch_compile", "activation_checkpointing", "gradient_checkpointing"),
    *("search", "skip_memory_metrics", "torch_empty_cache_steps", "num_train_epochs", "max_steps", "corrupt_images"),
)
EVALUATED = ("validation_dir", "validation_files", "eval_split", "max_eval_samples")  # data to evaluate on
PATHS = ("model_name_or_path", "config_name", "teacher_model_name_or_path", "train_dir", "validation_dir")
# Their product, the images of a step, must not change; a stream deals them out by process and worker.
STEP = ("per_device_train_batch_size", "gradient_accumulation_steps", "processes")
CHOOSES_DATA = ("do_eval", *(item.name for item in dataclasses.fields(DataArguments)))
SAMPLE = 32  # images whose bytes are compared
FIXED = ("constant", "constant_with_warmup", "inverse_sqrt", "reduce_lr_on_plateau")  # whatever the number of steps


@dataclass
class RunRecord:
    """What `run_record.json` of an output folder says.

    Attributes:
        flags (`dict`): all flags with the values that they have now, without tokens, and the number of processes.
        data (`dict`): "train" and "evaluation", as [`describe_data`] returns them.
        changes (`list[dict]`): of runs that were resumed: "step", "flag", and its values "before" and "after".
        finished (`dict` or `None`): the "step" and "epoch" at which it was complete, with all that it writes.
    """

    flags: dict[str, Any]
    data: dict[str, dict | None]
    changes: list[dict[str, Any]] = field(default_factory=list)
    finished: dict[str, float] | None = None

    @classmethod
    def read(cls, folder: str | Path) -> "RunRecord | None":
        """The record of a folder, `None` if it has none. Raises ValueError if it cannot be read."""
        path = Path(folder) / RUN_RECORD
        if not path.is_file():
            return None
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"{path} cannot be read ({error}): remove it to resume without a comparison of the flags, or choose "
                "another --output_dir."
            ) from error

    def write(self, folder: str | Path) -> None:
        """Write it, complete or not at all."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        write_json(Path(folder) / RUN_RECORD, asdict(self), indent=1)

    def resumes(self, before: "RunRecord", place: str, step: int, epoch: float) -> None:
        """Take over what was recorded `before`, up to a step of the training at a `place`, and add what changes.

        Raises:
            ValueError: if that would be another training, naming each flag, or if fewer epochs are asked for.
        """
        refused = self._refused(before)
        if refused:
            raise ValueError(
                f"{place} was trained with other flags, which resuming cannot change: {'; '.join(refused)}. Pass the "
                "old values, or another --output_dir (and a checkpoint's folder as --model_name_or_path, to start "
                "from its weights), or --overwrite_output_dir to train from scratch."
            )
        wanted = self.steps_wanted(step, epoch)
        if wanted < step:
            limit = "max_steps" if self.flags["max_steps"] > 0 else "num_train_epochs"
            raise ValueError(
                f"--{limit} is {self.flags[limit]}, but {place} has trained {step} steps, {epoch:.4g} epochs: pass "
                "a higher number, or another --output_dir, or --overwrite_output_dir to train from scratch."
            )
        self.changes = [change for change in before.changes if change["step"] <= step]
        for name in self._changed(before):
            values = {"before": before.flags[name], "after": self.flags[name]}
            self.changes.append({"step": step, "flag": name, **values})
            official = self.flags["min_lr"] is not None or self.flags["warmup_lr"] is not None
            varies = official or self.flags["lr_scheduler_type"] not in FIXED
            if name in ("num_train_epochs", "max_steps") and varies and wanted > step:
                logger.warning(
                    "--%s was %s and is now %s: from step %d the learning rates are those of the new length, so the "
                    "result is not that of one training of this length.",
                    *(name, before.flags[name], self.flags[name], step),
                )

    def steps_wanted(self, step: int, epoch: float) -> int:
        """Steps of the whole training, from the `epoch` that was reached at some step."""
        if self.flags["max_steps"] > 0:
            return self.flags["max_steps"]
        per_epoch = math.ceil(step / epoch - 1e-6)  # of an epoch that has begun, the last step may be a smaller one
        return math.ceil(self.flags["num_train_epochs"] * per_epoch)

    def _changed(self, before: "RunRecord") -> list[str]:
        names = [name for name in self.flags if name in before.flags]  # releases of Transformers have other flags
        return [name for name in names if self.flags[name] != before.flags[name]]

    def _refused(self, before: "RunRecord") -> list[str]:
        """Each flag that changes the training, with both values, and which images are others."""
        names = [name for name in self._changed(before) if self._matters(name, before)]
        notes = []
        for kind, purpose in (("train", "to train on"), ("evaluation", "that select the best model")):
            old, new = before.data[kind], self.data[kind]
            selects = kind == "train" or self.flags["metric_for_best_model"] is not None
            if selects and old and new and old != new and not self._leaves_corrupt_out(before, old, new):
                notes.append(f"the images {purpose} are others, {_counts(old)} before and {_counts(new)} now")
        if notes:
            names += [name for name in self._changed(before) if name in CHOOSES_DATA and name not in names]
        return [*(f"--{name} was {before.flags[name]}, now {self.flags[name]}" for name in names), *notes]

    def _matters(self, name: str, before: "RunRecord") -> bool:
        """Whether a flag that has another value changes the training; for tables of images, the images say it."""
        streams = self.flags["streaming"]
        if name in STEP:
            return streams or self._images_per_step() != before._images_per_step()
        if name in CHOOSES_DATA and name != "streaming" and not streams:
            return False
        if name in ("metric_for_best_model", "greater_is_better") and before.flags["metric_for_best_model"] is None:
            return False  # no earlier evaluation was compared
        if name in EVALUATED:
            return self.flags["metric_for_best_model"] is not None
        return not name.startswith(MAY_CHANGE) or (streams and name == "dataloader_num_workers")

    def _leaves_corrupt_out(self, before: "RunRecord", old: dict, new: dict) -> bool:
        """As the message of a corrupt image says to do."""
        skip = (before.flags["corrupt_images"], self.flags["corrupt_images"]) == ("error", "skip")
        return skip and (new["images"] or 0) <= (old["images"] or 0)

    def _images_per_step(self) -> int:
        return math.prod(self.flags[name] for name in STEP)


def make_record(
    model_args: ModelArguments,
    data_args: DataArguments,
    recipe: RecipeArguments,
    args: TrainingArguments,
    train_data: LabeledImages | ImageStream | None,
    eval_data: LabeledImages | ImageStream | None,
) -> RunRecord:
    """The record of a run that begins."""
    flags = {"processes": args.world_size, **args.to_dict()}
    for arguments in (model_args, data_args, recipe):
        flags |= asdict(arguments)
    flags |= {name: os.path.realpath(flags[name]) for name in PATHS if flags[name] and os.path.exists(flags[name])}
    flags = {name: value for name, value in flags.items() if not name.endswith("token")}
    flags = json.loads(json.dumps(flags, default=str))  # as they will be read
    return RunRecord(flags, {"train": describe_data(train_data), "evaluation": describe_data(eval_data)})


def describe_data(images: LabeledImages | ImageStream | None) -> dict[str, Any] | None:
    """What identifies images wherever they lie: their number, and hashes of all labels in order and of some images.

    A stream has its classes only; there the flags are compared.
    """
    if images is None:
        return None
    description = {"images": None, "classes": len(images.class_names), "labels": None, "sample": None}
    if isinstance(images, ImageStream):
        return description
    labels = column_values(images.rows, images.label_column)
    some = np.unique(np.linspace(0, len(images) - 1, SAMPLE).astype(int))
    sample = hashlib.sha256()
    for number in images.numbers[some]:
        sample.update(_content(images.rows[int(number)][images.image_column]))
    text = "\n".join([*images.class_names, "", *(str(labels[number]) for number in images.numbers)])
    hashes = {"labels": hashlib.sha256(text.encode()).hexdigest(), "sample": sample.hexdigest()}
    return {**description, "images": len(images), **hashes}


def _content(value: Any) -> bytes:
    """The bytes of an image that is not decoded; its name where only that is known."""
    data, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (None, value)
    if data is None and isinstance(path, str):
        try:
            data = Path(path).read_bytes()
        except OSError:
            data = path.encode()
    return data if isinstance(data, bytes) else str(path).encode()


def _counts(data: dict) -> str:
    images = "" if data["images"] is None else f"{data['images']} images of "
    return f"{images}{data['classes']} classes"


def reached(checkpoint: str) -> tuple[int, float]:
    """The step and the epoch of a checkpoint."""
    state = TrainerState.load_from_json(os.path.join(checkpoint, TRAINER_STATE))
    return state.global_step, state.epoch
