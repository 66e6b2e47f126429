# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""From the flags to the images to train on and to evaluate on: limited, held out, without corrupt ones."""

import logging
import math
import os
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch

from ..corrupt_images import CorruptImageError, explain, find_corrupt, name_of, write_list
from ..image_datasets import ImageRows, Rows, column_values, describe, load_folder, load_source, some
from ..prediction.inputs import Inputs, from_dataset
from .arguments import DataArguments
from .streaming import ImageStream


logger = logging.getLogger(__name__)

TRAINING_DATA = "the training data"  # origin of what is to train on, also where some of it is held out


@dataclass(eq=False)
class LabeledImages(ImageRows, torch.utils.data.Dataset):
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
            image = self.image_of(row)
        except CorruptImageError as error:
            raise explain(self.place(number), str(error)) from error
        return self.item(image, self.class_of(row), int(index))

    def place(self, number: int) -> str:
        """The file of the image in a row, or the row (the first is 0)."""
        return name_of(self.rows[number][self.image_column], f"row {number} of {self.origin}")

    def classes_present(self) -> set[str]:
        """The classes that at least one of the images has."""
        labels = column_values(self.rows, self.label_column)
        return {self.class_name(label) for label in {labels[number] for number in self.numbers}}


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
    train_rows, eval_rows, found = load_sources(data_args, evaluate)
    if train and train_rows is None:
        raise ValueError(f"there are no images to train on: {found}.")
    if evaluate and eval_rows is None and (data_args.streaming or not train):
        note = "; --streaming holds out no fraction of the others" if data_args.streaming else ""
        raise ValueError(f"there are no images to evaluate on: {found}{note}.")
    stream = {"corrupt_images": data_args.corrupt_images, "output_dir": output_dir}
    order = {"endless": True, "shuffle_buffer": data_args.shuffle_buffer, "seed": seed}
    train_data = eval_data = None
    if train:
        limit = {"max_samples": data_args.max_train_samples}
        train_data = dataset_of(train_rows, TRAINING_DATA, data_args, **stream, **order, **limit)
    if evaluate and eval_rows is None:
        assert isinstance(train_data, LabeledImages)  # of a stream nothing is held out
        train_data, eval_data = hold_out(train_data, data_args.train_val_split, seed)
        logger.log(
            logging.WARNING if process_index == 0 else logging.DEBUG,
            "%d of the %d training images, drawn from each class, are held out to evaluate on; for others %s.",
            len(eval_data),
            len(eval_data) + len(train_data),
            f"set --eval_split: {found}" if data_args.dataset_name else "pass --validation_dir",
        )
    elif evaluate:
        limit = {"max_samples": data_args.max_eval_samples}
        eval_data = dataset_of(eval_rows, "the data to evaluate on", data_args, **stream, **limit)
    if data_args.streaming:
        return train_data, eval_data
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
    if not data_args.dataset_name and (data_args.train_files or data_args.validation_files or data_args.predict_files):
        raise ValueError(
            "--train_files, --validation_files and --predict_files need --dataset_name, their format, such as "
            "webdataset."
        )
    for name in ("dataset_config_name", "eval_split", "predict_split"):
        if getattr(data_args, name) != getattr(DataArguments, name) and not data_args.dataset_name:
            raise ValueError(f"--{name} is {getattr(data_args, name)}, but it needs --dataset_name.")


def load_sources(data_args: DataArguments, evaluate: bool) -> tuple[Rows | None, Rows | None, str]:
    """Training data, evaluation data, and which flags to pass where one is missing."""
    name, streaming = data_args.dataset_name, data_args.streaming
    if name is None:
        folders = {flag: getattr(data_args, flag) for flag in ("train_dir", "validation_dir")}
        train, evaluation = (load_folder(path, flag, streaming) if path else None for flag, path in folders.items())
        return train, evaluation, "pass --dataset_name, or --train_dir to train and --validation_dir to evaluate"
    patterns = {"train": data_args.train_files, "validation": data_args.validation_files}
    files = {split: os.path.expanduser(pattern) for split, pattern in patterns.items() if pattern is not None}
    splits = load_source(name, data_args.dataset_config_name, files=files, streaming=streaming)
    split = "validation" if data_args.validation_files else data_args.eval_split
    found = f"{name} has only the splits {', '.join(splits)}"
    if evaluate and split not in splits and split != DataArguments.eval_split:
        raise ValueError(f"--eval_split is {split}, but {found}.")
    return splits.get("train"), splits.get(split), found


def load_inputs(data_args: DataArguments) -> Inputs:
    """The images of --do_predict; of their labels none are needed.

    Raises:
        ValueError, OSError: if there are none, or they cannot be read.
    """
    name, folder, pattern = data_args.dataset_name, data_args.predict_dir, data_args.predict_files
    if folder is not None:
        rows = load_folder(folder, "predict_dir", data_args.streaming, labeled=False)
    elif name is None:
        raise ValueError("there are no images to predict on: pass --predict_dir, or --dataset_name.")
    else:
        split = data_args.predict_split if pattern is None else "predict"
        files = None if pattern is None else {split: os.path.expanduser(pattern)}
        rows = load_source(name, data_args.dataset_config_name, split, files, data_args.streaming)
    named = {"folder": folder, "dataset": name, "files": pattern, "split": data_args.predict_split}
    column = None if folder is not None else data_args.image_column_name
    return from_dataset(rows, named, (folder, name, pattern), column)


def dataset_of(rows: Rows, origin: str, data_args: DataArguments, **stream: Any) -> LabeledImages | ImageStream:
    """All images of a table or, with the settings of a stream, those of a stream."""
    names = data_args.image_column_name, data_args.label_column_name, data_args.class_names
    found = describe(rows, origin, *names)
    columns = {field.name: getattr(found, field.name) for field in fields(found)}
    if data_args.streaming:
        return ImageStream(**columns, **stream)
    return LabeledImages(**columns, numbers=np.arange(len(rows)))


def hold_out(images: LabeledImages, fraction: float, seed: int) -> tuple[LabeledImages, LabeledImages]:
    """The remaining images, and a random fraction of those of each class.

    A class of two images or more has at least one on each side; a single one remains.

    Raises:
        ValueError: if that leaves none on a side.
    """
    wanted = math.ceil(fraction * len(images))
    labels = column_values(images.rows, images.label_column)
    numbers = np.random.default_rng(seed).permutation(images.numbers)
    _, classes, sizes = np.unique([labels[number] for number in numbers], return_inverse=True, return_counts=True)
    most = sizes - 1
    counts = np.clip(np.floor(fraction * sizes).astype(int), np.minimum(1, most), most)
    for index in np.argsort(counts - fraction * sizes, kind="stable"):  # what rounding lost most of first
        counts[index] += counts.sum() < wanted and counts[index] < most[index]
    if not 0 < wanted < len(images) or not counts.any():
        raise ValueError(f"--train_val_split is {fraction}, but of {len(images)} images that leaves none on a side.")
    places = [np.flatnonzero(classes == index)[:count] for index, count in enumerate(counts)]
    held = np.isin(np.arange(len(numbers)), np.concatenate(places))
    return replace(images, numbers=numbers[~held]), replace(images, numbers=numbers[held])


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
