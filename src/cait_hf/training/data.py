# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""From folders or datasets of labeled images to the batches of an image classifier.

Labels are matched by the names of the classes, never by their numbers: two folders number their classes differently
as soon as one lacks a class.
"""

import glob
import itertools
import logging
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from datasets.distributed import split_dataset_by_node
from datasets.exceptions import DatasetGenerationError, DatasetsError
from PIL import Image

from ..dataset_columns import IMAGE_COLUMNS, LABEL_COLUMNS, find_column
from .arguments import DataArguments
from .corrupt_images import CorruptImageError, CorruptList, decode, explain, find_corrupt, name_of, write_list


logger = logging.getLogger(__name__)

TRAINING_DATA = "the training data"  # origin of what is to train on, also where some of it is held out

# A stream is dealt out in at most so many shards: enough to share among workers, few enough to open one by one.
MAX_SHARDS = 1024
# Of one pass over a stream; the passes themselves are counted above these bits of a key.
KEY_BITS = 40


@dataclass(eq=False)
class Images:
    """Where the rows of some data have an image and its class, and what becomes of them once `prepare` was called.

    An item is {"pixel_values": what the transform returns, "labels": the model's number of the class, "key": int}. The
    key identifies the image wherever randomness is drawn for it.
    """

    rows: datasets.Dataset | datasets.IterableDataset  # their images not decoded
    image_column: str
    image_type: datasets.Image
    label_column: str
    class_names: list[str]
    numbered: bool  # whether a label is an index of `class_names`, else it is one of them
    origin: str  # such as "the training data", for messages

    def prepare(self, transform: Callable[[Image.Image, int], torch.Tensor], label2id: dict[str, int]) -> None:
        """Set what makes the model's input of an image and of its key, and the model's numbers of the classes."""
        self._transform, self._label2id = transform, label2id

    def class_name(self, label: int | str | None) -> str:
        """Raises `ValueError` if a label of the data is no class."""
        if self.numbered and label is not None and 0 <= int(label) < len(self.class_names):
            return self.class_names[int(label)]
        if not self.numbered and str(label) in self._names:
            return str(label)
        known = f"numbers from 0 to {len(self.class_names) - 1}" if self.numbered else ", ".join(self.class_names[:9])
        raise ValueError(
            f"{self.origin} has the label {label!r} in the column {self.label_column}, but the classes are {known}; "
            "--class_names must name every class."
        )

    @cached_property
    def _names(self) -> frozenset[str]:
        return frozenset(self.class_names)

    def _item(self, image: Image.Image, class_name: str, key: int) -> dict:
        return {"pixel_values": self._transform(image, key), "labels": self._label2id[class_name], "key": key}


@dataclass(eq=False)
class LabeledImages(Images, torch.utils.data.Dataset):
    """The rows `numbers` of a table of images.

    Item i, for i up to `views` times the length, is of image i % length and has the key i: the same image again,
    with other randomness (repeated augmentation). The length is the number of images.
    """

    numbers: np.ndarray
    views: int = 1

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> dict:
        """Raises `CorruptImageError`, which names the file or the row, if the image cannot be decoded."""
        if not 0 <= index < self.views * len(self):
            raise IndexError(f"the index is {index}, but there are {self.views} views of {len(self)} images.")
        number = int(self.numbers[index % len(self)])
        row = self.rows[number]
        try:
            image = decode(row[self.image_column], self.image_type)
        except CorruptImageError as error:
            raise explain(self.place(number), str(error)) from error
        return self._item(image, self.class_name(value_at(row, self.label_column)), int(index))

    def place(self, number: int) -> str:
        """The file of the image in a row, or the row (the first is 0)."""
        return name_of(self.rows[number][self.image_column], f"row {number} of {self.origin}")

    def classes_present(self) -> set[str]:
        """The classes that at least one of the images has."""
        labels = column_values(self.rows, self.label_column)
        return {self.class_name(label) for label in {labels[number] for number in self.numbers}}


@dataclass(eq=False)
class ImageStream(Images, torch.utils.data.IterableDataset):
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
                class_name = self.class_name(value_at(row["row"], self.label_column))
            except ValueError as error:
                raise CorruptImageError(f"{self._place(row)}: {error}") from error
            yield self._item(image, class_name, key)

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
            for row in one_by_one(self._rows_of_pass(number, worker, workers)):
                read += 1
                if skip and self.corrupt_images == "error":
                    skip -= 1
                    continue
                try:
                    image = decode(row["row"][self.image_column], self.image_type)
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

    def _rows_of_pass(self, number: int, worker: int, workers: int) -> datasets.IterableDataset:
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


def one_by_one(rows: datasets.IterableDataset) -> Iterator[dict]:
    """All the rows, also in a worker of a `DataLoader`, where a plain loop would give that worker's part of them."""
    for batch in rows.iter(batch_size=16):  # few to hold, and much faster than single rows of parquet
        for values in zip(*batch.values(), strict=True):
            yield dict(zip(batch, values))


def load_data(
    data_args: DataArguments,
    *,
    train: bool = False,
    evaluate: bool = False,
    seed: int = 42,
    output_dir: str | os.PathLike = ".",
    num_workers: int = 0,
    process_index: int = 0,
) -> tuple[LabeledImages | ImageStream | None, LabeledImages | ImageStream | None]:
    """Load the training and evaluation data.

    In a distributed run every process calls it; the first one should go ahead, so that the others find what
    `datasets` caches (`main_process_first` of Transformers and of accelerate).

    Args:
        train, evaluate (`bool`): which of the two to load. Without evaluation data of their own, some of the training
            data are held out.
        seed (`int`): draws the images to hold out or to limit the data to, and orders a stream.
        output_dir (`str` or `os.PathLike`): where `corrupt_images="skip"` lists corrupt images.
        num_workers (`int`): processes that look for corrupt images; 0 is this one.
        process_index (`int`): of this process in a distributed run; the first, 0, writes the list.

    Returns:
        The training and the evaluation data, `None` for what is not asked for.

    Raises:
        ValueError, OSError: if the data cannot be read, or if their columns or classes are not clear.
    """
    check_data_arguments(data_args)
    train_rows, eval_rows, found = load_sources(data_args)
    if train and train_rows is None:
        raise ValueError(f"there are no images to train on: {found}.")
    if evaluate and eval_rows is None and (data_args.streaming or not train):
        note = "; --streaming holds out no fraction of the others" if data_args.streaming else ""
        raise ValueError(f"there are no images to evaluate on: {found}{note}.")
    train_data = describe(train_rows, data_args, TRAINING_DATA) if train else None
    eval_data = None
    if evaluate and eval_rows is None:
        assert isinstance(train_data, LabeledImages)  # of a stream nothing is held out
        train_data, eval_data = hold_out(train_data, data_args.train_val_split, seed)
    elif evaluate:
        eval_data = describe(eval_rows, data_args, "the data to evaluate on")
    if data_args.streaming:
        return limit_streams(train_data, eval_data, data_args, seed, output_dir)
    train_data, eval_data, corrupt = limit_tables(train_data, eval_data, data_args, seed, num_workers or None)
    if data_args.corrupt_images == "skip" and process_index == 0:
        path = write_list(output_dir, list(corrupt.items()))
        if corrupt:
            logger.warning("Left out %d images that cannot be decoded; they are listed in %s.", len(corrupt), path)
    for images in (train_data, eval_data):
        if images is not None and len(images) == 0:
            raise ValueError(f"{images.origin} has no image that can be decoded; the first is {next(iter(corrupt))}.")
    return train_data, eval_data


def check_data_arguments(data_args: DataArguments) -> None:
    for name in ("max_train_samples", "max_eval_samples", "shuffle_buffer"):
        value = getattr(data_args, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name} is {value}, but it must be at least 1.")
    if data_args.corrupt_images not in ("error", "skip"):
        raise ValueError(f"--corrupt_images is {data_args.corrupt_images}, but it must be error or skip.")
    if (data_args.train_files or data_args.validation_files) and not data_args.dataset_name:
        raise ValueError("--train_files and --validation_files need --dataset_name, their format, such as webdataset.")


def load_sources(data_args: DataArguments) -> tuple:
    """Training data, evaluation data, and which flags to pass where one is missing."""
    if data_args.dataset_name is None:
        train = load_folder("train_dir", data_args.train_dir, data_args.streaming)
        evaluation = load_folder("validation_dir", data_args.validation_dir, data_args.streaming)
        return train, evaluation, "pass --dataset_name, or --train_dir to train and --validation_dir to evaluate"
    splits = load_splits(data_args)
    evaluation = splits.get("validation" if data_args.validation_files else data_args.eval_split)
    return splits.get("train"), evaluation, f"{data_args.dataset_name} has only the splits {', '.join(splits)}"


def load_splits(data_args: DataArguments) -> dict:
    name = data_args.dataset_name
    assert name is not None  # else the data are folders
    patterns = {"train": data_args.train_files, "validation": data_args.validation_files}
    files = {split: pattern for split, pattern in patterns.items() if pattern is not None}
    saved = any((Path(name) / file).is_file() for file in ("state.json", "dataset_dict.json"))
    try:
        if saved and not files:
            return load_saved(name, data_args.streaming)
        return datasets.load_dataset(
            name, data_args.dataset_config_name, data_files=files or None, streaming=data_args.streaming
        )
    except (DatasetsError, ValueError) as error:
        reason = error.__cause__ if isinstance(error, DatasetGenerationError) else error
        where = f" with the files {', '.join(files.values())}" if files else ""
        raise ValueError(f"--dataset_name is {name}{where}, but its data cannot be read: {reason}") from error


def load_saved(folder: str, streaming: bool) -> dict:
    saved = datasets.load_from_disk(folder)
    splits = {"train": saved} if isinstance(saved, datasets.Dataset) else saved
    if not streaming:
        return splits
    return {
        name: rows.to_iterable_dataset(num_shards=max(1, min(len(rows), MAX_SHARDS))) for name, rows in splits.items()
    }


def load_folder(
    flag: str, folder: str | None, streaming: bool = False
) -> datasets.Dataset | datasets.IterableDataset | None:
    if folder is None:
        return None
    if not Path(folder).is_dir():
        raise ValueError(f"--{flag} is {folder}, but there is no such folder.")
    subfolders = [
        path for path in sorted(Path(folder).iterdir()) if path.is_dir() and not path.name.startswith((".", "__"))
    ]
    for path in [Path(folder), *subfolders]:
        if not os.access(path, os.R_OK | os.X_OK):
            raise ValueError(f"--{flag} is {folder}, but {path} cannot be read: permission denied.")
    # patterns, because in `data_dir` a class named "test" would become a split; links are not followed from above
    links = [path for path in subfolders if path.is_symlink() and any(path.iterdir())]
    roots = links if len(links) == len(subfolders) > 0 else [folder, *links]
    patterns = [f"{glob.escape(str(root))}/**" for root in roots]
    try:
        dataset = datasets.load_dataset("imagefolder", data_files=patterns, split="train", streaming=streaming)
    except (ValueError, FileNotFoundError) as error:
        raise ValueError(f"--{flag} is {folder}, but there are no images in it ({error}).") from error
    if list(dataset.column_names) == ["image"]:
        raise ValueError(f"--{flag} is {folder}, but its images must lie in two subfolders or more, one for a class.")
    names = getattr(dataset.features.get("label"), "names", None)  # None if a metadata file names the classes
    empty = [path.name for path in subfolders if names is not None and path.name not in names]
    if empty:
        logger.warning("--%s: %s hold no images themselves and become no classes.", flag, some(empty))
    return dataset


def describe(
    rows: datasets.Dataset | datasets.IterableDataset, data_args: DataArguments, origin: str
) -> LabeledImages | ImageStream:
    """All images of the rows, with the columns and the classes that they have."""
    features = rows.features or features_of_first_row(rows, origin)
    label_types = {name: type for name, type in with_keys_of_fields(features).items() if not name.startswith("__")}
    image_types = {name: type for name, type in label_types.items() if name in features}
    image_column = find_column(image_types, "image", datasets.Image, IMAGE_COLUMNS, data_args.image_column_name)
    label_column = find_column(label_types, "label", datasets.ClassLabel, LABEL_COLUMNS, data_args.label_column_name)
    if rows.features is not None:  # other columns may hold images too, which would be decoded
        label_field = label_column if label_column in features else label_column.partition(".")[0]
        rows = rows.select_columns([name for name in features if name in (image_column, label_field, "__url__")])
    image_type = image_types[image_column]
    if isinstance(image_type, datasets.Image):
        rows = rows.cast_column(image_column, replace(image_type, decode=False))
    image_type = datasets.Image(mode=getattr(image_type, "mode", None))
    class_names, numbered = find_classes(rows, label_column, label_types[label_column], data_args.class_names, origin)
    columns = (rows, image_column, image_type, label_column, class_names, numbered, origin)
    if isinstance(rows, datasets.IterableDataset):
        return ImageStream(*columns)
    if len(rows) == 0:
        raise ValueError(f"{origin} has no images.")
    images = LabeledImages(*columns, numbers=np.arange(len(rows)))
    images.classes_present()  # raises where a label is no class
    return images


def with_keys_of_fields(features: dict) -> dict:
    """The types of columns and, as "json.label", of what columns of records hold."""
    keys = {
        f"{name}.{key}": type
        for name, record in features.items()
        if isinstance(record, dict)
        for key, type in record.items()
    }
    return {**features, **keys}


def value_at(row: dict, column: str) -> Any:
    field, _, key = column.partition(".")
    return row[column] if column in row else (row[field] or {}).get(key)


def column_values(rows: datasets.Dataset, column: str) -> list:
    field = column if column in rows.column_names else column.partition(".")[0]
    return [value_at({field: value}, column) for value in rows.select_columns([field])[:][field]]


def features_of_first_row(rows: datasets.IterableDataset, origin: str) -> datasets.Features:
    first = list(rows.take(1))
    if not first:
        raise ValueError(f"{origin} has no images.")
    return datasets.Dataset.from_list(first).features


def find_classes(
    rows: datasets.Dataset | datasets.IterableDataset,
    column: str,
    label_type: Any,
    names_file: str | None,
    origin: str,
) -> tuple[list[str], bool]:
    """The names of the classes, and whether the column contains their numbers."""
    if isinstance(label_type, datasets.ClassLabel):
        if names_file is not None:
            raise ValueError(f"--class_names is {names_file}, but {origin} names its classes itself: drop it.")
        return label_type.names, True
    if not isinstance(label_type, datasets.Value):
        raise ValueError(f"--label_column_name is {column}, but in {origin} that column has no single value an image.")
    holds_numbers = "int" in label_type.dtype
    if names_file is not None:
        return read_class_names(names_file), holds_numbers
    if isinstance(rows, datasets.IterableDataset):
        raise ValueError(
            f"{origin} is streamed and its column {column} is of type {label_type.dtype}, so that the classes are not "
            "known: pass --class_names FILE, the name of one class a line, in the order of their numbers."
        )
    labels = set(column_values(rows, column))
    if None in labels:
        raise ValueError(f"{origin} has images without a label in the column {column}.")
    if holds_numbers:
        logger.warning("The numbers of the column %s become the names of classes: see --class_names.", column)
    return [str(label) for label in sorted(labels)], False


def read_class_names(file: str) -> list[str]:
    names = [line.strip() for line in Path(file).read_text(encoding="utf-8").rstrip().splitlines()]
    if not all(names) or len(set(names)) < max(len(names), 1):
        raise ValueError(f"--class_names is {file}, but each line must be one name and no name may come twice.")
    return names


def hold_out(images: LabeledImages, fraction: float, seed: int) -> tuple[LabeledImages, LabeledImages]:
    """The remaining images, and a random fraction of them."""
    count = math.ceil(fraction * len(images))
    if not 0 < count < len(images):
        raise ValueError(f"--train_val_split is {fraction}, but of {len(images)} images that leaves none on a side.")
    numbers = np.random.default_rng(seed).permutation(images.numbers)
    return replace(images, numbers=numbers[count:]), replace(images, numbers=numbers[:count])


def limit_streams(
    train: ImageStream | None,
    evaluation: ImageStream | None,
    data_args: DataArguments,
    seed: int,
    output_dir: str | os.PathLike,
) -> tuple[ImageStream | None, ImageStream | None]:
    settings: dict[str, Any] = {"corrupt_images": data_args.corrupt_images, "output_dir": output_dir}
    if train is not None:
        order: dict[str, Any] = {"endless": True, "shuffle_buffer": data_args.shuffle_buffer, "seed": seed}
        train = replace(train, max_samples=data_args.max_train_samples, **order, **settings)
    if evaluation is not None:
        evaluation = replace(evaluation, max_samples=data_args.max_eval_samples, **settings)
    return train, evaluation


def limit_tables(
    train: LabeledImages | None,
    evaluation: LabeledImages | None,
    data_args: DataArguments,
    seed: int,
    num_proc: int | None,
) -> tuple[LabeledImages | None, LabeledImages | None, dict[str, str]]:
    """As many images as are asked for; without the corrupt ones, if these are to be skipped, and those by name."""
    corrupt: dict[str, str] = {}
    asked = {"max_train_samples": train, "max_eval_samples": evaluation}
    tables = {flag: images for flag, images in asked.items() if images is not None}
    for flag, images in tables.items():
        limit = getattr(data_args, flag)
        if limit is not None:
            numbers = np.random.default_rng(seed).permutation(images.numbers)
            images = replace(images, numbers=numbers)
        if data_args.corrupt_images == "skip":
            images, found = without_corrupt(images, limit, num_proc)
            corrupt |= found
        tables[flag] = replace(images, numbers=images.numbers[:limit])
    return tables.get("max_train_samples"), tables.get("max_eval_samples"), corrupt


def without_corrupt(
    images: LabeledImages, limit: int | None, num_proc: int | None
) -> tuple[LabeledImages, dict[str, str]]:
    """The images that can be decoded, `limit` if there are so many, and for each corrupt one met why it cannot."""
    wanted = len(images) if limit is None else min(limit, len(images))
    good: list[int] = []
    corrupt: dict[int, str] = {}
    tried = 0
    while len(good) < wanted and tried < len(images):
        numbers = images.numbers[tried : tried + wanted - len(good)]
        found = find_corrupt(images.rows, images.image_column, images.image_type, numbers, num_proc)
        good += [number for number in numbers if number not in found]
        corrupt |= found
        tried += len(numbers)
    left = replace(images, numbers=np.array(good, dtype=np.int64))
    if corrupt:
        lost = replace(images, numbers=images.numbers[:tried]).classes_present() - left.classes_present()
        if lost:
            logger.warning("No image of %s can be decoded in %s.", some(sorted(lost)), images.origin)
    return left, {images.place(number): reason for number, reason in corrupt.items()}


def some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
