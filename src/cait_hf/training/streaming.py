# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""Images that are read while they are used, by any number of processes and workers, with exact resume."""

import itertools
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import datasets
import numpy as np
import torch
from datasets.distributed import split_dataset_by_node
from PIL import Image

from ..corrupt_images import CorruptImageError, CorruptList, explain, name_of
from ..image_datasets import MAX_SHARDS, ImageRows, one_by_one


logger = logging.getLogger(__name__)

# Of one epoch of a stream; the epochs themselves are counted above these bits of a key.
KEY_BITS = 40


@dataclass(eq=False)
class ImageStream(ImageRows, torch.utils.data.IterableDataset):
    """Images that are read while they are used.

    The stream of a training (`endless`) is epoch after epoch, each in another order, so that neither a
    worker nor a process ever runs out before the others; the end is up to the training. Each epoch has each image
    once, over all processes and workers together. An image has the same key in an epoch whatever their number; the
    *order* is repeated, after `set_epoch` and `skip_batches` too, for the same number of processes and of workers.

    Among processes it is shared by `split`: not before, so that `accelerate` can deal out the batches of the first.
    Each process and each worker reads shards of its own (files, mostly); where there are fewer shards than processes,
    every process reads all of them and uses its part of the images.
    """

    max_samples: int | None = None
    shuffle_buffer: int | None = None  # None keeps the order of the data
    endless: bool = False
    seed: int = 0
    corrupt_images: str = "error"
    output_dir: str | os.PathLike = "."

    def __post_init__(self) -> None:
        super().__post_init__()
        self.rank, self.world_size = 0, 1
        # first epoch, batches to skip, their size: shared, because workers may outlive an epoch
        self._start = torch.tensor([0, 0, 1]).share_memory_()

    def split(self, rank: int, world_size: int) -> None:
        """Give this process its part of the images: that of process `rank` of `world_size`."""
        if not 0 <= rank < world_size:
            raise ValueError(f"rank is {rank}, but it must be at least 0 and less than world_size, {world_size}.")
        self.rank, self.world_size = rank, world_size

    def set_epoch(self, epoch: int) -> None:
        """Begin the next iteration with this epoch (the first is 0)."""
        self._start[0] = epoch

    def skip_batches(self, batches: int, batch_size: int) -> None:
        """Begin iterations after so many batches of this process, as a `DataLoader` over this stream counts them.

        The images are read, but not decoded; with `corrupt_images` "skip" they are, to know which of them count.
        """
        self._start[1], self._start[2] = batches, batch_size

    def __iter__(self) -> Iterator[dict]:
        """Raises `CorruptImageError`, as `LabeledImages` does, unless `corrupt_images` is "skip"."""
        for key, row, image in self._images():
            try:
                class_name = self.class_of(row["row"])
            except ValueError as error:
                raise CorruptImageError(f"{self._place(row)}: {error}") from error
            yield self.item(image, class_name, key)

    def _images(self) -> Iterator[tuple[int, dict, Image.Image]]:
        """(key, row, image) of epoch after epoch, of this worker of this process."""
        epoch, batches, batch_size = self._start.tolist()
        worker, workers = self._worker(batches)
        if worker >= workers:
            return
        # a DataLoader takes a batch of each worker in turn
        skip = (batches // workers + (worker < batches % workers)) * batch_size
        corrupt_list = CorruptList(self.output_dir, self.rank)
        for number in itertools.count(epoch) if self.endless else [epoch]:
            read = corrupt = 0
            for row in one_by_one(self._rows_of_epoch(number, worker, workers)):
                read += 1
                if skip and self.corrupt_images == "error":
                    skip -= 1
                    continue
                try:
                    image = self.image_of(row["row"])
                except CorruptImageError as error:
                    place = self._place(row)
                    if self.corrupt_images == "error":
                        raise explain(place, str(error)) from error
                    corrupt += 1
                    if corrupt_list.add(place, str(error)) and corrupt == 1:
                        logger.warning("Images that cannot be decoded are skipped, see %s.", corrupt_list.path)
                    continue
                if skip:
                    skip -= 1
                    continue
                yield (number << KEY_BITS) + row["key"], row, image
            if read == corrupt:
                if corrupt:
                    raise CorruptImageError(
                        f"none of the {corrupt} images that a process read in an epoch can be decoded."
                    )
                return

    def _worker(self, batches: int) -> tuple[int, int]:
        """Index of this worker and number of workers with shards to read; the one whose turn it is comes first."""
        info, count = torch.utils.data.get_worker_info(), self._numbered_rows.num_shards
        if info is None:
            return 0, 1
        if count >= self.world_size:
            count = len(range(self.rank, count, self.world_size))
        workers = min(info.num_workers, count)
        return (info.id + batches) % workers if info.id < workers else info.id, workers

    def _rows_of_epoch(self, number: int, worker: int, workers: int) -> datasets.IterableDataset:
        rows = self._numbered_rows
        if self.shuffle_buffer is not None:
            seed = int(np.random.SeedSequence((self.seed, number)).generate_state(1)[0])
            rows = rows.shuffle(seed=seed, buffer_size=self.shuffle_buffer)
        if rows.num_shards >= self.world_size:
            return rows.shard(self.world_size, self.rank, contiguous=False).shard(workers, worker, contiguous=False)
        return split_dataset_by_node(rows.shard(workers, worker, contiguous=False), self.rank, self.world_size)

    @cached_property
    def _numbered_rows(self) -> datasets.IterableDataset:
        count = min(self.rows.num_shards, MAX_SHARDS, self.max_samples or MAX_SHARDS)
        arguments = {"shards": list(range(count)), "rows": self.rows, "count": count, "max_samples": self.max_samples}
        return datasets.IterableDataset.from_generator(numbered_rows, gen_kwargs=arguments)

    def _place(self, row: dict) -> str:
        shard = row["row"].get("__url__") or f"shard {row['shard']} of {self.origin}"
        return name_of(row["row"][self.image_column], f"row {row['position']} of {shard}")


def numbered_rows(
    shards: list[int], rows: datasets.IterableDataset, count: int, max_samples: int | None
) -> Iterator[dict]:
    """The rows of some of the `count` shards of a stream, each with a number that depends on its place in the data."""
    for shard in shards:
        limit = None if max_samples is None else max_samples // count + (shard < max_samples % count)
        shard_rows = one_by_one(rows.shard(count, shard, contiguous=False))
        for position, row in enumerate(itertools.islice(shard_rows, limit)):
            yield {"key": shard + count * position, "shard": shard, "position": position, "row": row}
