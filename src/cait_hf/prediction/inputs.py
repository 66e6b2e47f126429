# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""The images of a prediction: from files, or the rows of a dataset; dealt out in shards, prepared by workers.

A shard is the unit of work: it becomes one file of the table, and belongs to one process. Shards and the batches
within them depend on the data alone, so that any number of processes computes the same.
"""

import glob
import hashlib
import itertools
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import PIL.Image
import torch
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

from ..command_line import one_line
from ..corrupt_images import CorruptImageError
from ..image_datasets import ImageRows, describe, one_by_one, state_of, visible_files
from ..image_input import open_image, to_rgb


URL_SCHEMES = ("http://", "https://")


class Batch(NamedTuple):
    """Rows that become one call of the model.

    Attributes:
        shard: to which it belongs.
        rows: numbers of rows of a table, or the rows of a stream.
        row_name: of an image that has no name, with the place of its number.
        first: number of the first row.
        closes: whether it is the shard's last.
        ends: whether the file of a stream ends with it.
    """

    shard: str
    rows: Sequence[int] | list[dict]
    row_name: str
    first: int
    closes: bool
    ends: bool


class LoadedBatch(NamedTuple):
    """A batch with its images prepared.

    Attributes:
        shard, closes, ends: as of the [`Batch`].
        names: of the images.
        errors: of each image why it is corrupt, or None.
        pixel_values: float32 (images that are not corrupt, channels, height, width); None without any.
    """

    shard: str
    closes: bool
    ends: bool
    names: list[str]
    errors: list[str | None]
    pixel_values: torch.Tensor | None


@dataclass(eq=False)
class Inputs(torch.utils.data.Dataset):
    """Images to predict on, in their order.

    As a dataset for a `DataLoader` it is indexed by a [`Batch`] and returns a [`LoadedBatch`]: workers read, decode
    and prepare whole batches.

    Attributes:
        images: a table or a stream.
        identity: a hash of what they are.
        prepare: what makes the model's input of a PIL image, (channels, height, width).
    """

    images: ImageRows
    identity: str
    prepare: Callable[[PIL.Image.Image], torch.Tensor] | None = None

    def __len__(self) -> int:
        """Number of images; 0 for a stream, of which it is unknown."""
        return len(self.images.rows) if isinstance(self.images.rows, datasets.Dataset) else 0

    def batches(
        self,
        shard_size: int,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        ends_of: Callable[[str], bool | None] = lambda shard: None,
    ) -> Iterator[Batch]:
        """The batches of process `rank` of `world_size`.

        A table is cut into shards of `shard_size` rows. Of a stream, whose length is unknown, each file is: a process
        reads files of its own.

        Args:
            ends_of: None for a shard that is to be computed, else whether its source ended with it.
        """
        if isinstance(self.images.rows, datasets.Dataset):
            for number in range(rank, math.ceil(len(self) / shard_size), world_size):
                stop = min((number + 1) * shard_size, len(self))
                for first in range(number * shard_size, stop, batch_size):
                    rows = range(first, min(first + batch_size, stop))
                    if ends_of(shard := f"{number:05}") is None:
                        yield Batch(shard, rows, "row {}", first, rows.stop == stop, False)
            return
        count = self.images.rows.num_shards
        for file in range(rank, count, world_size):
            known = (ends_of(f"{file:05}-{number:05}") for number in itertools.count())
            if any(itertools.takewhile(lambda end: end is not None, known)):
                continue  # all of it is done: need not be read
            rows_of_file = one_by_one(self.images.rows.shard(count, file, contiguous=False))
            position, following = 0, next(rows_of_file, None)
            while following is not None:
                room = min(batch_size, shard_size - position % shard_size)
                shard = f"{file:05}-{position // shard_size:05}"
                batch = [following, *itertools.islice(rows_of_file, room - 1)]
                following = next(rows_of_file, None)  # ahead, to know where the file ends
                ends = following is None
                closes = ends or (position + len(batch)) % shard_size == 0
                if ends_of(shard) is None:
                    yield Batch(shard, batch, f"row {{}} of file {file}", position, closes, ends)
                position += len(batch)

    def __getitem__(self, batch: Batch) -> LoadedBatch:
        """Raises OSError where the machine is at fault, not an image."""
        names: list[str] = []
        images: list[Any] = []
        for place, row in enumerate(batch.rows, start=batch.first):
            values: Any = self.images.rows[row] if isinstance(row, int) else row
            stored = values[self.images.image_column]
            name = stored.get("path") if isinstance(stored, dict) else stored
            names.append(name if name and isinstance(name, str) else batch.row_name.format(place))
            images.append(stored)
        prepared = list(self._map(self._prepared, images))
        tensors = [image for image in prepared if isinstance(image, torch.Tensor)]
        errors = [image if isinstance(image, str) else None for image in prepared]
        pixel_values = torch.stack(tensors) if tensors else None
        return LoadedBatch(batch.shard, batch.closes, batch.ends, names, errors, pixel_values)

    def _prepared(self, stored: Any) -> torch.Tensor | str:
        """The model's input, or why the image is corrupt."""
        assert self.prepare is not None
        try:
            return self.prepare(self._open(stored))
        except CorruptImageError as error:
            return one_line(error)

    def _map(self, function: Callable, values: list) -> Iterable:
        """By threads on all cores, but for a worker process, which has one: Pillow lets go of Python's lock."""
        if torch.utils.data.get_worker_info() is not None:
            return map(function, values)
        with ThreadPool(min(len(values), os.cpu_count() or 1)) as pool:
            return pool.map(function, values)

    def _open(self, stored: Any) -> PIL.Image.Image:
        """Any image as RGB."""
        is_url = isinstance(stored, str) and stored.startswith(URL_SCHEMES)
        if isinstance(stored, str) and os.path.isdir(stored):
            raise CorruptImageError("it is a folder that contains no images.")
        image = None if is_url else self.images.image_of({self.images.image_column: stored})
        try:
            return to_rgb(open_image(stored, "image") if image is None else image)
        except (OSError, ValueError) as error:  # out of reach; no pixels, or none that are numbers
            raise CorruptImageError(str(error)) from error


class Prepare:
    """Makes the model's input of an RGB image with an image processor."""

    def __init__(self, image_processor: Callable) -> None:
        self.image_processor = image_processor

    def __call__(self, image: PIL.Image.Image) -> torch.Tensor:
        return self.image_processor(image, return_tensors="pt").pixel_values[0]


def files_of(argument: str) -> list[str]:
    """The images that an argument of a command line denotes, sorted; none if it denotes nothing that exists.

    Of a folder all below it that are not hidden, of a pattern its matches; a file or URL as it is.
    """
    if argument.startswith(URL_SCHEMES):
        return [argument]
    exists = os.path.exists(argument)
    found = []
    for path in [argument] if exists else sorted(glob.glob(argument, recursive=True)):
        if os.path.isdir(path):
            suffixes = tuple(ImageFolder.EXTENSIONS)
            found += sorted(file for file in visible_files(Path(path)) if file.lower().endswith(suffixes))
        else:
            found.append(str(Path(path)))
    return found


def from_files(files: Iterable[str]) -> Inputs:
    """Each file or URL once, in their order.

    Raises:
        ValueError: if there are none, or the name of one is not UTF-8.
    """
    names = list(dict.fromkeys(files))
    for name in names:
        if name.encode(errors="replace").decode() != name:
            raise ValueError(f"the name of the image {name!r} is not UTF-8: rename it.")
    # in one Arrow array: a list would be copied into each worker process, with the counts of its references
    images = describe(datasets.Dataset.from_dict({"image": names}), "the input", labeled=False)
    return Inputs(images, hash_of([(name, state_of(name)) for name in names]))


def from_dataset(
    rows: Any, named: dict[str, Any], sources: Iterable[str | None], image_column: str | None = None
) -> Inputs:
    """The rows of a split of a dataset.

    Args:
        named: the flags that name it; a stream is known by them and by its local files.
        sources: its files or folders, also as patterns, where they are local.
        image_column: see [`describe`].

    Raises:
        ValueError: if there are none, or the column of the images is not clear.
    """
    images = describe(rows, "the dataset", image_column, labeled=False)
    if isinstance(images.rows, datasets.Dataset):
        return Inputs(images, hash_of(images.rows._fingerprint))
    found = [path for source in sources if source for path in sorted(glob.glob(os.path.expanduser(source)))]
    files = [file for path in found for file in (sorted(visible_files(Path(path))) if os.path.isdir(path) else [path])]
    states = [(os.path.abspath(file), state_of(file)) for file in files]
    return Inputs(images, hash_of([named, images.rows.num_shards, states]))


def hash_of(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()
