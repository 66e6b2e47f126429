# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""From folders or data sets of labelled pictures to the batches of an image classifier.

Labels are matched by the names of the classes, never by their numbers: two folders number their classes differently
as soon as one lacks a class. Area and ratio of the random crop are those of the official training (defaults of timm,
which facebookresearch/deit, `datasets.py`, keeps).
"""

import glob
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import datasets
import numpy as np
import torch
from PIL import Image, ImageOps
from transformers import TrainerCallback, TrainingArguments

from ..image_processing_pil_cait import to_pixels


CROP_AREA, CROP_RATIO = (0.08, 1.0), (3 / 4, 4 / 3)  # share of the picture, width / height


def option(help: str, default=None):
    """A field of a dataclass of arguments."""
    return field(default=default, metadata={"help": help})


@dataclass
class DataArguments:
    dataset_name: str | None = option("Hub id or folder, for `load_dataset`.")
    dataset_config_name: str | None = option("Configuration of that dataset.")
    eval_split: str = option("Split of that dataset to evaluate on.", default="validation")
    train_dir: str | None = option("Folder with one subfolder of pictures a class.")
    validation_dir: str | None = option("The same, to evaluate on.")
    train_val_split: float = option(
        "Share of the training pictures to hold out if nothing else is to evaluate on.", 0.15
    )
    max_train_samples: int | None = option("Train on this many pictures, drawn once.")
    max_eval_samples: int | None = option("Evaluate on this many, drawn once.")
    image_column_name: str | None = option("Column of the pictures. Without it: found by its type.")
    label_column_name: str | None = option("Column of the classes. Without it: found by its type.")
    overwrite_output_dir: bool = option("Train anew in a folder that is not empty; deletes its checkpoints.", False)


@dataclass(eq=False)
class LabelledPictures(torch.utils.data.Dataset):
    """A table of pictures and their classes; once prepared, its items are what the model takes."""

    rows: datasets.Dataset
    image_column: str
    label_column: str
    class_names: list[str]

    def prepare(self, transform: Callable[[Image.Image, int], torch.Tensor], label2id: dict[str, int]):
        """Set what makes the model's input of a picture and of its index, and the model's numbers of the classes."""
        feature = self.rows.features[self.label_column]
        self._name_of = feature.int2str if isinstance(feature, datasets.ClassLabel) else str
        self._transform, self._label2id = transform, label2id

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict:
        row = self.rows[index]
        label = self._label2id[self._name_of(row[self.label_column])]
        return {"pixel_values": self._transform(row[self.image_column], index), "labels": label}


def load_data(
    data_args: DataArguments, training_args: TrainingArguments
) -> tuple[LabelledPictures | None, LabelledPictures | None]:
    """The pictures to train on and those to evaluate on; None for what is not asked for."""
    if data_args.dataset_name:
        splits = datasets.load_dataset(data_args.dataset_name, data_args.dataset_config_name)
        train, evaluation = splits.get("train"), splits.get(data_args.eval_split)
        found = f"{data_args.dataset_name} has only the splits {', '.join(splits)}"
    else:
        train = load_folder("train_dir", data_args.train_dir)
        evaluation = load_folder("validation_dir", data_args.validation_dir)
        found = "pass --dataset_name, or --train_dir to train and --validation_dir to evaluate"
    if training_args.do_train and train is None:
        raise ValueError(f"there are no pictures to train on: {found}.")
    if training_args.do_eval and evaluation is None:
        if not training_args.do_train:
            raise ValueError(f"there are no pictures to evaluate on: {found}.")
        parts = train.train_test_split(data_args.train_val_split, seed=training_args.seed)
        train, evaluation = parts["train"], parts["test"]
    train = train if training_args.do_train else None
    evaluation = evaluation if training_args.do_eval else None
    return (
        train and describe(train, data_args, data_args.max_train_samples, training_args.seed),
        evaluation and describe(evaluation, data_args, data_args.max_eval_samples, training_args.seed),
    )


def load_folder(flag: str, folder: str | None) -> datasets.Dataset | None:
    if folder is None:
        return None
    if not Path(folder).is_dir():
        raise ValueError(f"--{flag} is {folder}, but there is no such folder.")
    # a pattern, because in `data_dir` a class named "test" would become a split
    try:
        dataset = datasets.load_dataset("imagefolder", data_files=f"{glob.escape(folder)}/**", split="train")
    except (ValueError, FileNotFoundError) as error:
        raise ValueError(f"--{flag} is {folder}, but there are no pictures in it ({error}).") from error
    if "label" not in dataset.column_names:
        raise ValueError(
            f"--{flag} is {folder}, but its pictures must lie in two subfolders or more, one for a class."
        )
    return dataset


def describe(
    dataset: datasets.Dataset, data_args: DataArguments, max_samples: int | None, seed: int
) -> LabelledPictures:
    image_column = find_column(dataset, "image", datasets.Image, (), data_args.image_column_name)
    label_column = find_column(dataset, "label", datasets.ClassLabel, ("label", "labels"), data_args.label_column_name)
    feature = dataset.features[label_column]
    if isinstance(feature, datasets.ClassLabel):
        class_names = feature.names
    else:
        class_names = [str(value) for value in sorted(dataset.unique(label_column))]
    if max_samples is not None and max_samples < 1:
        raise ValueError(f"--max_train_samples and --max_eval_samples must be at least 1, but one is {max_samples}.")
    if max_samples is not None:
        dataset = dataset.shuffle(seed=seed).select(range(min(max_samples, len(dataset))))
    return LabelledPictures(dataset, image_column, label_column, class_names)


def find_column(
    dataset: datasets.Dataset, kind: str, feature_type: type, usual_names: tuple[str, ...], asked: str | None
) -> str:
    columns = dataset.column_names
    if asked is None:
        found = [name for name in columns if isinstance(dataset.features[name], feature_type)]
        found = found or [name for name in usual_names if name in columns]
        problem = f"{len(found)} columns of the data look like {kind}s"
    else:
        found = [name for name in columns if name == asked]
        problem = f"--{kind}_column_name is {asked}"
    if len(found) != 1:
        raise ValueError(f"{problem}: set --{kind}_column_name to one of {', '.join(columns)}.")
    return found[0]


class TrainTransform(TrainerCallback):
    """A random crop, resized, mirrored at random, then the values of the model's own preprocessing.

    The random numbers depend on the seed, the epoch and the index of the picture alone: a training that was
    interrupted in the middle of an epoch repeats them, with any number of worker processes. As a callback of `Trainer`
    it learns when an epoch begins.
    """

    def __init__(self, image_processor, seed: int):
        self.image_processor, self.seed = image_processor, seed
        self.size = input_size(image_processor)
        self.epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # workers outlive an epoch

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.epoch.fill_(int(state.epoch))

    def __call__(self, image: Image.Image, index: int) -> torch.Tensor:
        rng = np.random.default_rng((self.seed, int(self.epoch), index))
        image = to_rgb(image)
        crop = image.resize(self.size[::-1], Image.Resampling.BICUBIC, box=random_part(*image.size, rng))
        crop = ImageOps.mirror(crop) if rng.random() < 0.5 else crop
        return self.image_processor(crop, do_resize=False, do_center_crop=False, return_tensors="pt").pixel_values[0]


class EvalTransform:
    """The model's own preprocessing."""

    def __init__(self, image_processor):
        self.image_processor = image_processor

    def __call__(self, image: Image.Image, index: int) -> torch.Tensor:
        return self.image_processor(to_rgb(image), return_tensors="pt").pixel_values[0]


def to_rgb(image: Image.Image) -> Image.Image:
    """Any picture as RGB, also palettes, CMYK and 16 bits, the same way for every model."""
    return Image.fromarray(to_pixels(image).permute(1, 2, 0).numpy().astype(np.uint8))


def random_part(width: int, height: int, rng: np.random.Generator) -> tuple[float, float, float, float]:
    """Left, top, right, bottom of a part of random area, aspect ratio and place of a picture."""
    for _ in range(10):
        area = width * height * rng.uniform(*CROP_AREA)
        ratio = math.exp(rng.uniform(*map(math.log, CROP_RATIO)))
        part_width, part_height = math.sqrt(area * ratio), math.sqrt(area / ratio)
        if part_width <= width and part_height <= height:
            left, top = rng.uniform(0, width - part_width), rng.uniform(0, height - part_height)
            return left, top, min(left + part_width, width), min(top + part_height, height)
    # such a long picture seldom holds a part of an allowed ratio: take the largest one, in its middle
    ratio = min(max(width / height, CROP_RATIO[0]), CROP_RATIO[1])
    part_width, part_height = min(width, height * ratio), min(height, width / ratio)
    left, top = (width - part_width) / 2, (height - part_height) / 2
    return left, top, min(left + part_width, width), min(top + part_height, height)


def input_size(image_processor) -> tuple[int, int]:
    """(height, width) of the pictures that the model gets."""
    cropped = getattr(image_processor, "do_center_crop", None) and image_processor.crop_size
    size = cropped or getattr(image_processor, "size", None) or {}
    edges = size.get("height") or size.get("shortest_edge"), size.get("width") or size.get("shortest_edge")
    if None in edges:
        raise ValueError(f"the image processor {type(image_processor).__name__} has no size that this script knows.")
    return edges


def collate(items: list[dict]) -> dict[str, torch.Tensor]:
    return {
        "pixel_values": torch.stack([item["pixel_values"] for item in items]),
        "labels": torch.tensor([item["labels"] for item in items]),
    }
