# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""Which checkpoint a run resumes from, and the errors of checkpoints that cannot be read or written."""

import _thread
import io
import json
import logging
import os
import pickle
import shutil
import signal
import sys
import threading
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PosixPath, WindowsPath
from typing import Any

import torch
from accelerate.utils import load
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedConfig, TrainerState
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..folder_lock import LOCK_FILE
from .arguments import TrainingArguments
from .ema import EMA_FILE


logger = logging.getLogger(__name__)

CORRUPT_IMAGES_LISTS = "corrupt_images*.txt"  # written before training begins, too
OTHER_FLAGS = (
    "pass the flags that it was written with, or another --output_dir, or --overwrite_output_dir to train from scratch"
)
RUN_RECORD = "run_record.json"  # beside the checkpoints, see `run_record.py`
TRAINER_STATE = "trainer_state.json"  # the last file of a checkpoint, in both scripts
# Patterns of the files of which a checkpoint has one at least; `*_states.pt` are DeepSpeed's.
PARTS = {
    "weights": ("model*.safetensors", "pytorch_model*", "adapter_model*", "*model_states.pt"),
    "optimizer state": ("optimizer*", "*optim_states.pt"),
    "scheduler state": ("scheduler*", "*optim_states.pt"),
}


def find_checkpoint_to_resume(
    args: TrainingArguments, overwrite: bool, with_ema: bool, finished: bool = False
) -> str | None:
    """The checkpoint that was asked for, else the last complete one in `output_dir`; None to start from scratch.

    One that is damaged is passed over with a warning; the one asked for is not.

    Raises:
        ValueError: if the one asked for is incomplete or damaged, or `output_dir` has no checkpoint to resume from
            and files that neither an interrupted training leaves nor one that has `finished`.
    """
    asked, ema = args.resume_from_checkpoint, f" with {EMA_FILE}" if with_ema else ""
    if asked is not None:
        if not is_complete(Path(asked), with_ema):
            raise ValueError(
                f"--resume_from_checkpoint is {asked}, but that is no folder of a complete checkpoint{ema}."
            )
        check_files(Path(asked))
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
    damaged = ""
    for _, checkpoint in sorted(checkpoints.items(), reverse=True):
        if not is_complete(checkpoint, with_ema):
            continue
        try:
            check_files(checkpoint)
        except ValueError as error:
            damaged = damaged or f" {error}"
            logger.warning("%s Looking for an older one.", error)
            continue
        return str(checkpoint)
    if finished:
        return None
    raise ValueError(
        f"--output_dir {output_dir} is not empty and has no complete checkpoint{ema} to "
        f"resume from: choose another, or pass --overwrite_output_dir.{damaged}"
    )


def checkpoints_in(output_dir: Path) -> dict[int, Path]:
    """Folders of checkpoints by the number of steps taken."""
    found = {path.name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-"): path for path in output_dir.glob("*-*")}
    return {int(step): path for step, path in found.items() if step.isdecimal()}


def set_aside_newer(checkpoint: Path, why: str) -> None:
    """Hide, under a name that ends with `why`, checkpoints of later steps than the one to resume from.

    Otherwise `save_total_limit`, and the next run, would prefer them.
    """
    taken = int(checkpoint.name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-"))
    for step, path in checkpoints_in(checkpoint.parent).items():
        if step <= taken or not path.is_dir() or is_unfinished(path):  # those are overwritten
            continue
        hidden = path.with_name(f".{path.name}.{why}")
        shutil.rmtree(hidden, ignore_errors=True)
        path.rename(hidden)
        logger.warning("%s was renamed to %s.", path, hidden.name)


def check_classes_of_checkpoint(checkpoint: str, config: PreTrainedConfig) -> None:
    """Raise ValueError if a checkpoint to resume from has other classes: their names would be wrong."""
    if type(config).from_pretrained(checkpoint).id2label != config.id2label:
        raise ValueError(f"{checkpoint} has other classes than the data: {OTHER_FLAGS}.")


def is_complete(checkpoint: Path, with_ema: bool) -> bool:
    """Whether a checkpoint was written to its end."""
    return (checkpoint / TRAINER_STATE).is_file() and (not with_ema or (checkpoint / EMA_FILE).is_file())


def check_files(checkpoint: Path, parts: Iterable[str] = PARTS) -> None:
    """Check that every file of a checkpoint that is read to resume can be read; nothing that a file contains is run.

    What loads the files afterwards is not all ours: accelerate, DeepSpeed and `torch.distributed.checkpoint` unpickle
    some of them without limits, so a pickle that could run code must not get that far.

    Args:
        checkpoint (`Path`): its folder.
        parts: of `PARTS`, those that it must have; `save_only_model` stores weights alone.

    Raises:
        ValueError: naming the file, if one is damaged, could run code, or is missing.
    """
    for part in parts:
        if not any(True for pattern in PARTS[part] for _ in checkpoint.rglob(pattern)):
            raise ValueError(f"{checkpoint} has no {part}.")
    for path in sorted(checkpoint.rglob("*")):
        if path.name == TRAINING_ARGS_NAME or not path.is_file():  # the record of the flags: never read
            continue
        try:
            intact = _is_intact(path)
        except pickle.UnpicklingError as error:
            raise ValueError(f"{path} is damaged, or contains what could run code and was not loaded.") from error
        except Exception as error:  # any bytes at all: the parsers' errors for them have no common class
            raise ValueError(f"{path} is damaged ({type(error).__name__}).") from error
        if not intact:
            raise ValueError(f"{path} is damaged.")


def _is_intact(path: Path) -> bool:
    """Whether the file is what its name says; else False or any error."""
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as file:  # compares the sizes in the header with the file's
            return bool(file.keys())
    if path.suffix == ".json":
        content = json.loads(path.read_text(encoding="utf-8"))
        return isinstance(content, dict) and (path.name != TRAINER_STATE or TrainerState(**content).global_step > 0)
    if path.suffix in (".pt", ".pth", ".bin", ".pkl"):
        if is_zip := zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if archive.testzip() is not None:  # compares checksums, as `torch.load` does not
                    return False
        with torch.serialization.safe_globals([(_StandIn, name) for name in OF_DEEPSPEED]):
            return isinstance(load(str(path), map_location="cpu", weights_only=True, mmap=is_zip), dict)
    if path.name == ".metadata":  # of sharded weights
        with path.open("rb") as stream:
            metadata = _MetadataUnpickler(stream).load()
        return type(metadata).__name__ == "Metadata" and _are_pickles_plain(path.parent, metadata)
    return True


def _are_pickles_plain(folder: Path, metadata: Any) -> bool:
    """Whether what sharded weights store as pickles, which PyTorch loads without limits, contains plain data alone."""
    for index, place in metadata.storage_data.items():
        if Path(place.relative_path).name != place.relative_path:
            return False
        if type(metadata.state_dict_metadata[index.fqn]).__name__ == "BytesStorageMetadata":
            with (folder / place.relative_path).open("rb") as stream:
                stream.seek(place.offset)
                load(io.BytesIO(stream.read(place.length)), map_location="cpu", weights_only=True)
    return True


OF_DEEPSPEED = (
    "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
    "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.runtime.zero.config.ZeroStageEnum",
    "deepspeed.utils.tensor_fragment.fragment_address",
)


class _StandIn:
    """Takes the place of DeepSpeed's classes where its files are only checked."""

    def __init__(self, *args: Any) -> None: ...


class _MetadataUnpickler(pickle.Unpickler):
    """Of the index that `torch.distributed.checkpoint` writes beside sharded weights: its own records alone."""

    def find_class(self, module: str, name: str) -> Any:
        from torch.distributed.checkpoint import filesystem, metadata  # there may be no torch.distributed

        for owner in (metadata, filesystem):
            found = getattr(owner, name, None)  # which follows no dots
            if isinstance(found, type) and found.__module__ == owner.__name__ == module:
                return found
        if module == "torch" and isinstance(dtype := getattr(torch, name, None), torch.dtype):
            return dtype
        for found in (torch.Size, torch.serialization._get_layout, PosixPath, WindowsPath):
            if (module, name) == (found.__module__, found.__name__):
                return found
        raise pickle.UnpicklingError(f"{module}.{name} is none of the records of sharded weights")


def is_unfinished(path: Path) -> bool:
    """Whether this is what an interruption leaves of a checkpoint: Trainer writes in place, its state last."""
    is_checkpoint = path.match(f"{PREFIX_CHECKPOINT_DIR}-*") or path.match(f".{PREFIX_CHECKPOINT_DIR}-*.part")
    return is_checkpoint and path.is_dir() and not (path / TRAINER_STATE).is_file()


def state_of(checkpoint: str, output_dir: str) -> TrainerState:
    """The state of a checkpoint, with the best checkpoint where it is now.

    What is stored is its path as of then, perhaps relative to another working directory. A best checkpoint that is
    gone or damaged is forgotten, with a warning.
    """
    state = TrainerState.load_from_json(str(Path(checkpoint, TRAINER_STATE)))
    if state.best_model_checkpoint is None:
        return state
    stored, parent = Path(state.best_model_checkpoint), Path(checkpoint).parent
    if Path(output_dir).is_dir() and parent.samefile(output_dir):
        parent = Path(output_dir)  # spelled as the paths that `save_total_limit` compares it with
    best = next((path for path in (parent / stored.name, stored) if path.is_dir()), stored)
    try:
        check_files(best, ["weights"])
        state.best_model_checkpoint = str(best)
    except ValueError as error:
        logger.warning("%s The best checkpoint will be chosen from those written from now on.", error)
        state.best_metric = state.best_global_step = state.best_model_checkpoint = None
    return state


@contextmanager
def could_not_be_written(step: int, output_dir: str | Path, unfinished: Path | None = None) -> Iterator[None]:
    """Raise OSError with an error message if a checkpoint could not be written, and remove its partial files."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:  # RuntimeError: torch.save on a full disk
        if unfinished is not None:
            shutil.rmtree(unfinished, ignore_errors=True)
        raise OSError(
            f"the checkpoint of step {step} could not be written to {output_dir}: {error}. The run can be resumed "
            "from the last complete one."
        ) from error


@contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C, and SIGTERM as Slurm and containers send it, raise KeyboardInterrupt and end the process quietly.

    Its exit status is then 130 or 143, as of any command that the signal has ended.
    """
    received, process = [int(signal.SIGINT)], os.getpid()

    def interrupt(number: int, frame: Any) -> None:
        if os.getpid() != process:  # a data worker, which inherits this: the training process ends it
            if number == signal.SIGTERM:
                os._exit(128 + number)
            return
        received[0] = number
        signal.signal(number, signal.SIG_DFL)  # a second signal ends the process at once
        if hasattr(signal, "SIGCHLD"):  # PyTorch raises at the end of its workers, who may have got the signal, too
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        sys.unraisablehook = again
        raise KeyboardInterrupt

    def again(unraisable: Any) -> None:
        # What is raised in a __del__ is lost, and with it the interruption. Other errors are the complaints of
        # PyTorch's iterators that were interrupted half made.
        if unraisable.exc_type is KeyboardInterrupt:
            signal.signal(received[0], interrupt)
            threading.Timer(0.05, _thread.interrupt_main, received).start()  # after the __del__

    in_main_thread = threading.current_thread() is threading.main_thread()  # no other may set handlers
    numbers = (signal.SIGINT, signal.SIGTERM) if in_main_thread else ()
    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    except KeyboardInterrupt:
        raise SystemExit(128 + received[0]) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def say_how_to_resume(args: TrainingArguments, overwrites: bool) -> None:
    """After an interruption: one line of the first process."""
    if args.process_index != 0:
        return
    complete = [step for step, path in checkpoints_in(Path(args.output_dir)).items() if is_complete(path, False)]
    again = "the same command"
    if complete and overwrites:
        again += " without --overwrite_output_dir"
    elif complete and args.resume_from_checkpoint is not None:
        again += " without --resume_from_checkpoint"
    resumes = f"resumes from {PREFIX_CHECKPOINT_DIR}-{max(complete)}" if complete else "starts from scratch"
    trains = args.do_train and not args.search
    message = f"interrupted: {again} {resumes} in {args.output_dir}." if trains else "interrupted."
    print(f"\n{message}", file=sys.stderr)


@contextmanager
def could_not_go_on(checkpoint: str | None) -> Iterator[None]:
    """Raise ValueError with an error message if a checkpoint does not fit the model or the optimizer."""
    try:
        yield
    except FileNotFoundError as error:
        raise ValueError(f"{error.filename} is missing: was {checkpoint} written by the other script?") from error
    except (RuntimeError, ValueError, KeyError) as error:
        raise ValueError(f"{checkpoint} does not fit the flags: {OTHER_FLAGS}.") from error


def check_optimizer(optimizer: torch.optim.Optimizer) -> None:
    """Raise ValueError if what was loaded is the state of another kind of optimizer."""
    expected = optimizer.defaults.keys() - {"differentiable"}  # which loading adds to the defaults of some
    if not expected <= optimizer.param_groups[0].keys():
        raise ValueError("the optimizer was another one.")
