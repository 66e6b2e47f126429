# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""From folders or data sets of labelled pictures to the batches of an image classifier.

Labels are matched by the names of the classes, never by their numbers: two folders number their classes differently
as soon as one lacks a class. Area and ratio of the random crop are those of the official training (defaults of timm,
which facebookresearch/deit, `datasets.py`, keeps).
"""

import glob
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import datasets
import torch
from PIL import Image
from transformers import TrainingArguments


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

    def __getitem__(self, key: int) -> dict:
        row = self.rows[key % len(self.rows)]
        label = self._label2id[self._name_of(row[self.label_column])]
        return {"pixel_values": self._transform(row[self.image_column], key), "labels": label, "key": key}


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
