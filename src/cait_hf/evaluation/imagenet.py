# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""ImageNet-1k validation, ImageNet-Real and ImageNet-V2: images with their class indices, however they are laid out.

The index of a class is the place of its synset (`n01440764`) among the sorted synsets of the 1000 classes; timm has
their list, and the reassessed labels of ImageNet-Real (google-research/reassessed-imagenet, `real.json`). Names of
classes are compared as numbers where they are numbers: ImageNet-V2 calls its folders 0 to 999, and sorted as text
"10" comes before "2".
"""

import io
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import datasets
import torch
from PIL import Image

from ..files import read_json
from ..image_datasets import IMAGE_COLUMNS, LABEL_COLUMNS, Rows, find_column, load_source
from ..image_input import to_rgb
from ..labels import IMAGENET_1K_CLASSES, imagenet_1k_labels


# Images in the whole set. ImageNet-Real is the 50,000 of the validation set without the 3,163 that got no label.
NUM_IMAGES = {"imagenet": 50_000, "real": 46_837, "v2": 10_000}
SYNSET = re.compile(r"n\d{8}")
VALIDATION_NUMBER = re.compile(r"ILSVRC2012_val_(\d{8})")
IMAGE_SUFFIXES = {".jpeg", ".jpg", ".png", ".webp", ".bmp"}

Labels = tuple[int, ...]  # class indices that count as correct; none: the image is left out
Labeller = Callable[[str, Any], Labels]  # of the image's name and its label in the data, None if it has none there
Encoded = str | dict  # path of an image file, or {"bytes": ..., "path": ...} as `datasets.Image(decode=False)` has it


class EvaluationImages(torch.utils.data.Dataset):
    """Images that can be had in any order; an item is (index, encoded image, labels)."""

    def __init__(self, names: Sequence[str], labels: Sequence[Labels], encoded: Sequence[Encoded]) -> None:
        self.names, self.labels, self.encoded = names, labels, encoded

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[int, Encoded, Labels]:
        return index, self.encoded[index], self.labels[index]

    def labeled(self, max_samples: int | None) -> list[int]:
        """Indices of the images with labels, or `max_samples` of them, evenly spaced."""
        indices = [index for index, labels in enumerate(self.labels) if labels]
        count = len(indices) if max_samples is None else min(max_samples, len(indices))
        return [indices[place * len(indices) // count] for place in range(count)]


class EvaluationImageStream(torch.utils.data.IterableDataset):
    """The same of a stream, in its order, without those in `done`; it stops after `max_samples` labeled images.

    Every process reads the whole stream, and decodes only its own images.
    """

    def __init__(self, rows: datasets.IterableDataset, columns: "Columns", label: Labeller) -> None:
        self.rows, self.columns, self.label = rows, columns, label
        self.names: dict[int, str] = {}
        self.done: Collection[int] = ()
        self.max_samples: int | None = None

    def __iter__(self) -> Iterator[tuple[int, Encoded, Labels]]:
        seen = 0
        for index, row in enumerate(self.rows):
            if seen == self.max_samples:
                return
            encoded = row[self.columns.image]
            self.names[index] = encoded["path"] or f"row {index}"
            labels = self.label(self.names[index], self.columns.label_of(row))
            seen += bool(labels)
            if labels and index not in self.done:
                yield index, encoded, labels


class Columns:
    """Which columns of a dataset contain images and labels; `label` is None where only the file names give it.

    Raises:
        ValueError: if not exactly one column looks like images, or the names of the classes are not ImageNet's.
    """

    def __init__(self, rows: Rows, image_column_name: str | None) -> None:
        features = rows.features or {}
        self.image = find_column(features, "image", datasets.Image, IMAGE_COLUMNS, image_column_name)
        self.label = next((name for name in LABEL_COLUMNS if name in features), None)
        self._index_of = None
        if isinstance(features.get(self.label), datasets.ClassLabel):
            names = features[self.label].names
            self._index_of = indices_of_classes(names)
            if self._index_of is None:
                raise ValueError(
                    f"--dataset_name has {len(names)} classes such as {names[0]!r}, but they must be called by their "
                    "synsets or numbers, or be the 1000 of ImageNet-1k in their order."
                )

    def label_of(self, row: dict) -> str | int | None:
        label = None if self.label is None else row[self.label]
        return label if self._index_of is None or label is None or label < 0 else self._index_of[label]


def load_folder(folder: Path, label: Labeller, labels_file: Path | None = None) -> EvaluationImages:
    """Images in subfolders named by synset or number, or all in one folder.

    Where all are in one folder, their classes come from `labels_file`, else from their names if these end in a synset
    (`ILSVRC2012_val_00000001_n01751748.JPEG`).

    Raises:
        ValueError: if there are no images, or a class is not to be found.
        OSError: if the folder or the file cannot be read.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"--data_dir is {folder}, but there is no such folder.")
    files = [file for file in sorted([*folder.glob("*"), *folder.glob("*/*")]) if is_image(file)]
    if not files:
        raise ValueError(f"--data_dir is {folder}, but there are no images in it or in its subfolders.")
    names = [file.relative_to(folder).as_posix() for file in files]
    texts = read_labels_file(labels_file, names) if labels_file else [None] * len(names)
    labels = [label(name, text) for name, text in zip(names, texts)]
    order = sorted(range(len(names)), key=lambda i: (labels[i], names[i]))
    return EvaluationImages([names[i] for i in order], [labels[i] for i in order], [str(files[i]) for i in order])


def is_image(file: Path) -> bool:
    return file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith(".")


def load_rows(
    dataset_name: str,
    config: str | None,
    split: str,
    data_files: str | None,
    streaming: bool,
    label: Labeller,
    image_column_name: str | None = None,
) -> EvaluationImages | EvaluationImageStream:
    """Images of a dataset of the Hub, or of a local one that `load_dataset` reads.

    An image's name is that of its file; in a WebDataset without labels, its folder is the class.
    """
    rows = load_source(dataset_name, config, split, data_files, streaming)
    columns = Columns(rows, image_column_name)
    rows = rows.cast_column(columns.image, datasets.Image(decode=False))
    if streaming:
        return EvaluationImageStream(rows, columns, label)
    # Flattened, the paths are a column of their own, which is read without the images.
    paths = rows.flatten().select_columns(f"{columns.image}.path")[f"{columns.image}.path"]
    names = [path or f"row {index}" for index, path in enumerate(paths)]
    texts: list[str | int | None] = [None] * len(names)
    if columns.label:
        texts = [columns.label_of(row) for row in rows.select_columns(columns.label)]
    labels = [label(name, text) for name, text in zip(names, texts)]
    return EvaluationImages(names, labels, rows.select_columns(columns.image)[columns.image])


def labels_in_data(name: str, label: str | int | None) -> Labels:
    """The label that the data have, else the one in the image's name: its folder or its ending."""
    if label is None:
        path = Path(name)
        folder, ending = path.parent.name, path.stem.rpartition("_")[2]
        label = folder if folder and not SYNSET.fullmatch(ending) else ending
        if not (SYNSET.fullmatch(label) or label.isdecimal() and folder):
            raise ValueError(
                f"The class of {name} is unknown: its folder must be a synset such as n01440764 or a number from 0 to "
                f"{IMAGENET_1K_CLASSES - 1}, or --labels_file must name it."
            )
    return (class_index(label),)


def reassessed_labels(file: Path | None) -> Labeller:
    """A labeller that finds the labels of ImageNet-Real by the number in the image's name.

    Args:
        file: `real.json`, for each of the 50,000 images in the order of their names a list of class indices, empty
            where the image is to be left out. By default timm's copy.

    Raises:
        ValueError: if the file is something else.
        ImportError: without `file`, if timm is not installed.
    """
    if file is None:
        try:
            from timm.data import RealLabelsImagenet
        except ImportError as error:
            raise ImportError("Pass --real_labels real.json, or install timm, which has a copy.") from error
        by_number = list(RealLabelsImagenet([None] * 50_000).real_labels.values())
    else:
        by_number = read_json(file)
    if not isinstance(by_number, list) or not all(map(_is_list_of_classes, by_number)):
        raise ValueError(f"--real_labels is {file}, but it must hold a list of lists of class indices, as real.json.")

    def labels_of(name: str, label: Any) -> Labels:
        match = VALIDATION_NUMBER.search(name)
        if not match or not 1 <= int(match[1]) <= len(by_number):
            raise ValueError(
                f"{name} is none of the {len(by_number):,} images that have labels in ImageNet-Real, which are "
                "called ILSVRC2012_val_00000001 and so on."
            )
        return tuple(by_number[int(match[1]) - 1])

    return labels_of


def _is_list_of_classes(labels: Any) -> bool:
    return isinstance(labels, list) and all(isinstance(i, int) and 0 <= i < IMAGENET_1K_CLASSES for i in labels)


def read_labels_file(file: Path, names: list[str]) -> list[str]:
    """Labels of the images called `names`, as text: lines of one label each in the order of the names, or of an
    image's name and its label (separated by space or comma; more columns are ignored).

    Raises:
        ValueError: if an image has no label, or the labels are the numbers of ILSVRC's development kit.
    """
    lines = file.read_text(encoding="utf-8").splitlines()
    rows = [re.split(r"[\s,]+", line.strip()) for line in lines if line.strip()]
    if rows and all(len(row) == 1 for row in rows):
        if len(rows) != len(names):
            raise ValueError(f"--labels_file {file} has {len(rows)} labels for {len(names)} images.")
        labels = [row[0] for row in rows]
    else:
        by_stem = {Path(row[0]).stem: row[1] for row in rows if len(row) > 1}
        missing = [name for name in names if Path(name).stem not in by_stem]
        if missing:
            raise ValueError(f"--labels_file {file} lacks {len(missing)} of the images, such as {missing[0]}.")
        labels = [by_stem[Path(name).stem] for name in names]
    if str(IMAGENET_1K_CLASSES) in labels:
        raise ValueError(
            f"--labels_file {file} has classes from 1 to {IMAGENET_1K_CLASSES}, as ILSVRC's development kit, whose "
            f"order is not that of the synsets: pass synsets, or numbers from 0 to {IMAGENET_1K_CLASSES - 1}."
        )
    return labels


def indices_of_classes(names: list[str]) -> list[int] | None:
    """Class index of each name: a synset, a number, or one of the 1000 names of this package in any order.

    1000 names that mostly begin as this package's do are taken to be in the usual order: spellings differ between
    sources. None if the names are something else.
    """
    if all(SYNSET.fullmatch(name) or name.isdecimal() for name in names):
        return [class_index(name) for name in names]
    known = list(imagenet_1k_labels().values())
    if set(names) == set(known):
        return [known.index(name) for name in names]
    equal = sum(name.split(",")[0].lower() == other.split(",")[0].lower() for name, other in zip(names, known))
    return list(range(len(known))) if len(names) == len(known) and equal > 0.9 * len(known) else None


@cache
def class_index(label: str | int) -> int:
    """Index of a class that is called by its synset or its number.

    Raises:
        ValueError: if it is none of the 1000.
        ImportError: for a synset, if timm is not installed.
    """
    if isinstance(label, str) and SYNSET.fullmatch(label):
        index = synset_indices().get(label, -1)
    else:
        index = int(label) if str(label).isdecimal() else -1
    if not 0 <= index < IMAGENET_1K_CLASSES:
        raise ValueError(
            f"{label!r} is no class of ImageNet-1k: it must be a synset of its {IMAGENET_1K_CLASSES} classes or a "
            f"number from 0 to {IMAGENET_1K_CLASSES - 1}."
        )
    return index


@cache
def synset_indices() -> dict[str, int]:
    """Class index of each of the 1000 synsets, by timm's list."""
    try:
        from timm.data import ImageNetInfo
    except ImportError as error:
        raise ImportError("Classes called by their synsets need timm's list of them: pip install timm.") from error
    return {synset: index for index, synset in enumerate(ImageNetInfo().label_names())}


class Prepare:
    """Makes a batch of items of `EvaluationImages`; an image that cannot be read is black, and marked.

    As in the evaluations of the authors and of timm, EXIF orientations are ignored.

    Args:
        image_processor: the model's, on one PIL image.
        options: arguments of its call, such as another size.
        threads: how many images are prepared at once, where no worker processes do that.
    """

    def __init__(self, image_processor: Callable, options: dict[str, Any], threads: int = 1) -> None:
        self.image_processor, self.options, self.threads = image_processor, options, threads

    def __call__(self, items: list[tuple[int, Encoded, Labels]]) -> dict[str, torch.Tensor]:
        with ThreadPoolExecutor(max(self.threads, 1)) as pool:
            images = list(pool.map(open_rgb, [encoded for _, encoded, _ in items]))
            pixels = list(pool.map(self.pixels, images))
        most = max(len(labels) for _, _, labels in items)
        return {
            "pixel_values": torch.stack(pixels),
            "keys": torch.tensor([index for index, _, _ in items]),
            "labels": torch.tensor([[*labels, *[-1] * (most - len(labels))] for _, _, labels in items]),
            "readable": torch.tensor([image is not None for image in images]),
        }

    def pixels(self, image: Image.Image | None) -> torch.Tensor:
        """Input size of the model, (channels, height, width)."""
        image = image or Image.new("RGB", (256, 256))
        return self.image_processor(image, return_tensors="pt", **self.options).pixel_values[0]


def open_rgb(encoded: Encoded) -> Image.Image | None:
    """The image, or None if it cannot be read."""
    file = encoded if isinstance(encoded, str) else encoded["path"]
    if not isinstance(encoded, str) and encoded["bytes"] is not None:
        file = io.BytesIO(encoded["bytes"])
    try:
        with Image.open(file) as image:
            image.load()
            return to_rgb(image, do_exif_transpose=False)
    except Exception:  # decoders of damaged files raise nearly anything
        return None
