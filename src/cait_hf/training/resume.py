# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""Which checkpoint a run resumes from, and the errors of checkpoints that cannot be read or written."""

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import PreTrainedConfig
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from .arguments import TrainingArguments
from .ema import EMA_FILE
from .folder_lock import LOCK_FILE


logger = logging.getLogger(__name__)

CORRUPT_IMAGES_LISTS = "corrupt_images*.txt"  # written before training begins, too
OTHER_FLAGS = (
    "pass the flags that it was written with, or another --output_dir, or --overwrite_output_dir to train from scratch"
)
RUN_RECORD = "run_record.json"  # beside the checkpoints, see `run_record.py`
TRAINER_STATE = "trainer_state.json"  # the last file of a checkpoint, in both scripts


def find_checkpoint_to_resume(
    args: TrainingArguments, overwrite: bool, with_ema: bool, finished: bool = False
) -> str | None:
    """The checkpoint that was asked for, else the last complete one in `output_dir`; None to start from scratch.

    Raises:
        ValueError: if the one asked for is not complete, or `output_dir` has no complete checkpoint and files that
            neither an interrupted training leaves nor one that has `finished`.
    """
    asked, ema = args.resume_from_checkpoint, f" with {EMA_FILE}" if with_ema else ""
    if asked is not None:
        if not is_complete(Path(asked), with_ema):
            raise ValueError(
                f"--resume_from_checkpoint is {asked}, but that is no folder of a complete checkpoint{ema}."
            )
        return asked
    output_dir = Path(args.output_dir)
    if not args.do_train or not output_dir.is_dir():
        return None
    files = [path for path in output_dir.iterdir() if path.name not in (RUN_RECORD, LOCK_FILE)]
    if all(path.match(CORRUPT_IMAGES_LISTS) or is_unfinished(path) for path in files):
        return None
    checkpoints = checkpoints_in(output_dir)
    if overwrite:
        return None
    complete = [step for step, path in checkpoints.items() if is_complete(path, with_ema)]
    if not complete and finished:
        return None
    if not complete:
        raise ValueError(
            f"--output_dir {output_dir} is not empty and has no complete checkpoint{ema} to "
            "resume from: choose another, or pass --overwrite_output_dir."
        )
    logger.info("Resuming from %s; pass --overwrite_output_dir to train from scratch.", checkpoints[max(complete)])
    return str(checkpoints[max(complete)])


def checkpoints_in(output_dir: Path) -> dict[int, Path]:
    """Folders of checkpoints by the number of steps taken."""
    found = output_dir.glob(f"{PREFIX_CHECKPOINT_DIR}-*")
    return {int(path.name.split("-")[1]): path for path in found if path.name.split("-")[1].isdecimal()}


def check_classes_of_checkpoint(checkpoint: str, config: PreTrainedConfig) -> None:
    """Raise ValueError if a checkpoint to resume from has other classes: their names would be wrong."""
    if type(config).from_pretrained(checkpoint).id2label != config.id2label:
        raise ValueError(f"{checkpoint} has other classes than the data: {OTHER_FLAGS}.")


def is_complete(checkpoint: Path, with_ema: bool) -> bool:
    """Whether a checkpoint was written to its end."""
    return (checkpoint / TRAINER_STATE).is_file() and (not with_ema or (checkpoint / EMA_FILE).is_file())


def is_unfinished(path: Path) -> bool:
    """Whether this is what an interruption leaves of a checkpoint: Trainer writes in place, its state last."""
    is_checkpoint = path.match(f"{PREFIX_CHECKPOINT_DIR}-*") or path.match(f".{PREFIX_CHECKPOINT_DIR}-*.part")
    return is_checkpoint and path.is_dir() and not (path / TRAINER_STATE).is_file()


@contextmanager
def could_not_be_written(step: int, output_dir: str | Path, unfinished: Path | None = None) -> Iterator[None]:
    """Raise OSError with an error message if a checkpoint could not be written, and remove its partial files."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:  # RuntimeError: torch.save on a full disk
        if unfinished is not None:
            shutil.rmtree(unfinished, ignore_errors=True)
        raise OSError(
            f"the checkpoint of step {step} could not be written to {output_dir}: {error}. The same command resumes "
            "from the last complete one."
        ) from error


@contextmanager
def could_not_go_on(checkpoint: str | None) -> Iterator[None]:
    """Raise ValueError with an error message if a checkpoint does not fit the model or the optimizer."""
    try:
        yield
    except (RuntimeError, ValueError, KeyError) as error:
        raise ValueError(f"{checkpoint} does not fit the flags: {OTHER_FLAGS}.") from error


def check_optimizer(optimizer: torch.optim.Optimizer) -> None:
    """Raise ValueError if what was loaded is the state of another kind of optimizer."""
    if not optimizer.defaults.keys() <= optimizer.param_groups[0].keys():
        raise ValueError("the optimizer was another one.")
