# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""Ranks of the correct classes of many images: computed by all processes, kept in a file.

The rank of an image is the number of classes whose logits come before those of its class, 0 where that is the first;
of several classes that count as correct, the best one's. `topk_of_ranks` makes accuracies of them.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import accelerate
import torch
from accelerate.utils import broadcast_object_list
from tqdm import tqdm

from ..files import write_json


# In the place of a rank: the image could not be read; its logits are not all finite.
UNREADABLE, NOT_FINITE = -1, -2


def best_ranks(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """How many classes rank before the best of an image's labels: (images,) integers, 0 where it is the first.

    Equal logits rank by class index, the lower first, as in `topk_accuracy`.

    Args:
        logits: (images, classes).
        labels: (images, any number) class indices, -1 where there are no more; each image has at least one.
    """
    ranks = logits.argsort(dim=1, descending=True, stable=True).argsort(dim=1)  # of each class
    own = ranks.gather(1, labels.clamp(min=0)).masked_fill(labels < 0, logits.shape[1]).amin(dim=1)
    return own.masked_fill(~logits.isfinite().all(dim=1), NOT_FINITE)


@torch.no_grad()
def rank_batch(model: torch.nn.Module, columns: list[int] | None, options: dict, batch: dict) -> torch.Tensor:
    """Rank of the best of each image's labels, or what is wrong with the image: (images,) integers.

    Args:
        columns: place among the model's outputs of each class index, None where they are the same.
        options: more arguments of the model's forward.
        batch: what `cait_hf.evaluation.imagenet.Prepare` makes, on the model's device.
    """
    logits = model(batch["pixel_values"].to(model.dtype), **options).logits
    logits = logits if columns is None else logits[:, columns]
    return best_ranks(logits, batch["labels"]).masked_fill(~batch["readable"], UNREADABLE)


class Ranks(dict[int, int]):
    """Ranks by index of the image, and the file from which a run with the same settings resumes."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.settings: dict[str, str | int | None] = {}

    def open(self, accelerator: accelerate.Accelerator, settings: Callable[[], dict[str, str | int | None]]) -> None:
        """Take over what the file has; the main process reads it, and all get the ranks or the error.

        Args:
            settings: called in the main process; all that ranks depend on. An error names the first that differs.

        Raises:
            ValueError: if the file is of other settings, or damaged.
            OSError: if it cannot be read, or its folder cannot be made.
        """
        shared: list[Any] = [None, None]  # ranks, or the error
        if accelerator.is_main_process:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self.settings = settings()
                shared[0] = self._read()
            except (ValueError, OSError) as error:
                shared[1] = error
        stored, failure = broadcast_object_list(shared)
        if failure is not None:
            raise failure
        self.update(stored)

    def _read(self) -> dict[int, int]:
        if not self.path.exists():
            return {}
        try:
            stored = json.loads(self.path.read_text(encoding="utf-8"))
            others = [name for name, value in self.settings.items() if stored["settings"].get(name) != value]
            ranks = {int(index): int(rank) for index, rank in stored["ranks"].items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{self.path} is not a file of ranks of this script: delete it to start from scratch."
            ) from error
        if others:
            raise ValueError(
                f"{self.path} belongs to a run with another {others[0]}: give that run's arguments to finish "
                "it, or pass another --output, or delete the file."
            )
        return ranks

    def save(self) -> None:
        """Write the file."""
        write_json(self.path, {"settings": self.settings, "ranks": self}, indent=1)


def rank_images(
    ranks: Ranks,
    accelerator: accelerate.Accelerator,
    loader: torch.utils.data.DataLoader,
    rank: Callable[[dict], torch.Tensor],
    names: Mapping[int, str] | Sequence[str],
    save_steps: int,
) -> None:
    """Add the ranks of all images of a loader, in all processes.

    The last batches may repeat images, so that all processes have as many; kept by index, each counts once.

    Args:
        loader: prepared by `accelerator`, with batches of `Prepare`.
        rank: ranks of a batch, or what is wrong with its images (`rank_batch`).
        names: of the images by index, for messages.
        save_steps: batches after which the file is written; it also is when an error or Ctrl-C ends this function.

    Raises:
        ValueError: if an image cannot be read, or the logits of one are not finite; the other ranks are kept.
    """
    bar = tqdm(loader, desc="evaluate", disable=None if accelerator.is_main_process else True)
    try:
        for step, batch in enumerate(bar, start=1):
            keys, found = accelerator.gather((batch["keys"], rank(batch)))
            found = dict(zip(keys.tolist(), found.tolist()))
            ranks.update({index: value for index, value in found.items() if value >= 0})
            for index, value in found.items():
                check_rank(names[index], value)
            if accelerator.is_main_process and step % save_steps == 0:
                ranks.save()
    finally:
        if accelerator.is_main_process and ranks:
            ranks.save()


def check_rank(name: str, rank: int) -> None:
    if rank == UNREADABLE:
        raise ValueError(f"{name} cannot be read as an image: replace it, and rerun the same command to resume.")
    if rank == NOT_FINITE:
        raise ValueError(f"The logits of {name} are not finite: evaluate with --dtype float32.")
