# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""Images with their classes, from folders, files and the Hub: for training, evaluation and whatever else reads them.

    images = load_images(dataset_name="cifar10", split="test")
    image, class_name = images.image_of(images.rows[0]), images.class_of(images.rows[0])

Labels are matched by the names of the classes, never by their numbers: two folders number their classes differently
as soon as one lacks a class.
"""

import errno
import glob
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import datasets
import PIL.Image
from datasets.exceptions import DatasetGenerationError, DatasetsError
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

from .corrupt_images import decode


logger = logging.getLogger(__name__)

Rows: TypeAlias = datasets.Dataset | datasets.IterableDataset

IMAGE_COLUMNS, LABEL_COLUMNS = ("image", "img"), ("label", "labels", "cls")  # usual names, where no type decides
SPLIT_NAMES = frozenset(("train", "training", "val", "valid", "validation", "dev", "eval", "test", "testing"))
# A stream is dealt out in at most so many shards: enough to share among workers, few enough to open one by one.
MAX_SHARDS = 1024


@dataclass(eq=False)
class ImageRows:
    """Rows of a dataset, where they have an image and its class, and what becomes of both.

    An item is {"pixel_values": what the transform returns, "labels": the model's number of the class, "key": int}. The
    key identifies the image wherever randomness is drawn for it. Without `prepare` it has the image itself, and the
    numbers of the classes are those of `class_names`.
    """

    rows: Rows  # their images not decoded
    image_column: str
    image_type: datasets.Image
    label_column: str  # or FIELD.KEY; empty without labels
    class_names: list[str]
    numbered: bool  # whether a label is an index of `class_names`, else it is one of them
    origin: str  # such as "the training data", for messages

    def __post_init__(self) -> None:
        self._transform: Callable[[PIL.Image.Image, int], Any] = _unchanged
        self._label2id = {name: index for index, name in enumerate(self.class_names)}

    def prepare(self, transform: Callable[[PIL.Image.Image, int], Any], label2id: dict[str, int]) -> None:
        """Set what makes the model's input of an image and of its key, and the model's numbers of the classes."""
        self._transform, self._label2id = transform, label2id

    def item(self, image: PIL.Image.Image, class_name: str, key: int) -> dict:
        """What the model gets of an image, see the class."""
        return {"pixel_values": self._transform(image, key), "labels": self._label2id[class_name], "key": key}

    def image_of(self, row: dict) -> PIL.Image.Image:
        """Raises `CorruptImageError` if the image cannot be decoded."""
        return decode(row[self.image_column], self.image_type)

    def class_of(self, row: dict) -> str:
        """Raises `ValueError` if the label is no class."""
        return self.class_name(value_at(row, self.label_column))

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


def _unchanged(image: PIL.Image.Image, key: int) -> PIL.Image.Image:
    return image


def load_images(
    dataset_name: str | None = None,
    *,
    folder: str | None = None,
    config_name: str | None = None,
    split: str = "train",
    files: str | None = None,
    streaming: bool = False,
    image_column: str | None = None,
    label_column: str | None = None,
    class_names: str | None = None,
    labeled: bool = True,
) -> ImageRows:
    """Load a split of a dataset, or a folder of images, with one subfolder a class if they are labeled.

    Args:
        dataset_name, config_name, split, files: see [`load_source`].
        folder: instead of a dataset.
        streaming: read the rows while they are used.
        image_column, label_column, class_names, labeled: see [`describe`].

    Raises:
        ValueError, OSError: if the data cannot be read, or if their columns or classes are not clear.
    """
    if (dataset_name is None) == (folder is None):
        raise ValueError(f"dataset_name is {dataset_name} and folder {folder}, but exactly one must be given.")
    rows = load_folder(folder, "folder", streaming, labeled) if folder else None
    if dataset_name is not None:
        rows = load_source(dataset_name, config_name, split, {split: files} if files else None, streaming)
    return describe(rows, "the dataset", image_column, label_column, class_names, labeled)


def load_source(
    name: str,
    config_name: str | None = None,
    split: str | None = None,
    files: str | dict[str, str] | None = None,
    streaming: bool = False,
) -> Any:
    """The rows of a split or, without `split`, those of each split by its name.

    Args:
        name: Hub id or folder for `load_dataset`, folder of `Dataset.save_to_disk`, or a format of `load_dataset`.
        files: pattern of the files, by split; without a split `load_dataset` calls them "train".

    Raises:
        ValueError, OSError: if they cannot be read.
    """
    name = os.path.expanduser(name)
    try:
        if not files and any((Path(name) / file).is_file() for file in ("state.json", "dataset_dict.json")):
            if config_name is not None:
                raise ValueError(f"a saved dataset has no configuration {config_name}.")
            saved = _load_saved(name, streaming)
            if split is not None and split not in saved:
                raise ValueError(f"it has only the splits {', '.join(saved)}, no {split}.")
            return saved if split is None else saved[split]
        if not files and Path(name).is_dir() and glob.has_magic(str(Path(name).absolute())):
            raise ValueError("`datasets` takes a path with *, ? or [ for a pattern; rename it.")
        return datasets.load_dataset(name, config_name, data_files=files or None, split=split, streaming=streaming)
    except (DatasetsError, ValueError) as error:
        reason = error.__cause__ if isinstance(error, DatasetGenerationError) else error
        patterns = [files] if isinstance(files, str) else (files or {}).values()
        where = f" with the files {', '.join(patterns)}" if files else ""
        raise ValueError(f"--dataset_name is {name}{where}, but its data cannot be read: {reason}") from error


def _load_saved(folder: str, streaming: bool) -> dict[str, Rows]:
    saved = datasets.load_from_disk(folder)
    splits = {"train": saved} if isinstance(saved, datasets.Dataset) else saved
    if not streaming:
        return splits
    return {
        name: rows.to_iterable_dataset(num_shards=max(1, min(len(rows), MAX_SHARDS))) for name, rows in splits.items()
    }


def load_folder(folder: str, flag: str, streaming: bool = False, labeled: bool = True) -> Rows:
    """The images of a folder, with one subfolder a class if `labeled`; `flag` names it in error messages.

    Classes and images are those of torchvision's `ImageFolder`: images lie at any depth below the folder of their
    class, and links are followed. Other than there, hidden files and folders do not count, folders without images
    become no classes, and Pillow's formats are all known. A metadata file of `datasets` takes the place of classes.

    Raises:
        ValueError: if there are no images, no classes, or if it is not clear which subfolders are the classes.
    """
    root = Path(folder).expanduser().absolute()
    if not root.is_dir():
        raise ValueError(f"--{flag} is {folder}, but there is no such folder.")
    try:
        files = sorted(visible_files(root))
    except PermissionError as error:
        raise ValueError(f"--{flag} is {folder}, but {error.filename} cannot be read: permission denied.") from error
    metadata = [name for name in ImageFolder.METADATA_FILENAMES if (root / name).is_file()]
    if metadata:
        escaped = [glob.escape(file) for file in files]
        try:
            return datasets.load_dataset("imagefolder", data_files=escaped, split="train", streaming=streaming)
        except (DatasetsError, ValueError, FileNotFoundError) as error:
            reason = error.__cause__ or error
            raise ValueError(f"--{flag} is {folder}, but its {metadata[0]} cannot be read: {reason}") from error
    images = [file for file in files if os.path.splitext(file)[1].lower() in ImageFolder.EXTENSIONS]
    if not images:
        raise ValueError(f"--{flag} is {folder}, but there are no images in it.")
    for image in images:
        if image.encode(errors="replace").decode() != image:
            raise ValueError(f"--{flag} is {folder}, but the name of {image!r} is not UTF-8: rename it.")
    features = datasets.Features({"image": datasets.Image()})
    columns = {"image": tuple(images)}
    if labeled:
        images, names = _class_folders(root, images, f"--{flag} is {folder}, but")
        empty = sorted({path.name for path in root.iterdir() if path.is_dir()} - {*names})
        empty = [name for name in empty if not name.startswith(".")]
        if empty:
            logger.warning("--%s: %s hold no images and become no classes.", flag, some(empty))
        features["label"] = datasets.ClassLabel(names=sorted({*names}))
        columns = {"image": tuple(images), "label": tuple(names)}
    if streaming:
        return datasets.IterableDataset.from_generator(_rows_of, features=features, gen_kwargs=columns)
    state = tuple(map(state_of, images))  # part of the key under which `datasets` keeps the rows and what it finds
    return datasets.Dataset.from_generator(_rows_of, features=features, gen_kwargs={"state": state, **columns})


def visible_files(folder: Path, above: frozenset[str] = frozenset()) -> Iterator[str]:
    """All files below a folder, through links, but none that is hidden or in a hidden folder."""
    if not os.access(folder, os.R_OK | os.X_OK):
        raise PermissionError(errno.EACCES, "permission denied", str(folder))
    above |= {os.path.realpath(folder)}
    for entry in os.scandir(folder):
        if entry.name.startswith("."):
            continue
        if not entry.is_dir():
            yield entry.path
        elif os.path.realpath(entry.path) not in above:  # or a link back would never end
            yield from visible_files(folder / entry.name, above)


def _class_folders(root: Path, images: list[str], problem: str) -> tuple[list[str], list[str]]:
    """The images that lie in subfolders and, of each, the subfolder just below `root`, its class."""
    parts = [Path(image).relative_to(root).parts for image in images]
    inside = [(image, names) for image, names in zip(images, parts) if len(names) > 1]
    if not inside:
        raise ValueError(f"{problem} its images must lie in subfolders, one for each class.")
    below = sorted({names[0] for _, names in inside})
    deeper = [names for _, names in inside if len(names) > 2]
    if len(deeper) == len(inside) or (deeper and SPLIT_NAMES.issuperset(below)):
        found = sorted({os.path.join(*names[:2]) for names in deeper})
        raise ValueError(
            f"{problem} the images of its subfolders lie in subfolders of these ({some(found)}): pass a folder whose "
            f"subfolders are the classes, such as {root / below[0]}."
        )
    if len(inside) < len(images):
        logger.warning(
            "%s %d images beside the folders of the classes are left out.", problem, len(images) - len(inside)
        )
    return [image for image, _ in inside], [names[0] for _, names in inside]


def state_of(file: str) -> tuple[int, int] | None:
    try:
        stat = os.stat(file)
    except OSError:  # such as a link to nowhere
        return None
    return stat.st_mtime_ns, stat.st_size


def _rows_of(state: tuple = (), **columns: tuple[str, ...]) -> Iterator[dict]:
    for values in zip(*columns.values()):
        yield dict(zip(columns, values))


def describe(
    rows: Rows,
    origin: str,
    image_column: str | None = None,
    label_column: str | None = None,
    class_names: str | None = None,
    labeled: bool = True,
) -> ImageRows:
    """Find the columns of images and labels, and the classes.

    Args:
        origin: of the rows, for error messages.
        image_column: without it, it is found by its type or usual name.
        label_column: the same; also FIELD.KEY, such as json.label.
        class_names: file with the name of one class a line, in the order of their numbers.
        labeled: whether labels are needed; without them there are no `class_names`.

    Raises:
        ValueError: if columns or classes are not clear, or (of a table) a label is no class.
    """
    features = rows.features or _features_of_first_row(rows, origin)
    label_types = {name: type for name, type in _with_keys_of_fields(features).items() if not name.startswith("__")}
    image_types = {name: type for name, type in label_types.items() if name in features}
    image_column = find_column(image_types, "image", datasets.Image, IMAGE_COLUMNS, image_column)
    label_column = (
        find_column(label_types, "label", datasets.ClassLabel, LABEL_COLUMNS, label_column) if labeled else ""
    )
    if rows.features is not None:  # other columns may hold images too, which would be decoded
        label_field = label_column if label_column in features else label_column.partition(".")[0]
        rows = rows.select_columns([name for name in features if name in (image_column, label_field, "__url__")])
    image_type = image_types[image_column]
    if isinstance(image_type, datasets.Image):
        rows = rows.cast_column(image_column, replace(image_type, decode=False))
    image_type = datasets.Image(mode=getattr(image_type, "mode", None))
    names: list[str] = []
    numbered = False
    if labeled:
        names, numbered = _find_classes(rows, label_column, label_types[label_column], class_names, origin)
    found = ImageRows(rows, image_column, image_type, label_column, names, numbered, origin)
    if isinstance(rows, datasets.Dataset):
        if len(rows) == 0:
            raise ValueError(f"{origin} has no images.")
        for label in set(column_values(rows, label_column)) if labeled else ():
            found.class_name(label)  # may raise
    return found


def find_column(types: dict, kind: str, feature_type: type, usual_names: tuple[str, ...], asked: str | None) -> str:
    """The column `asked` for, else the only one of a type, else the only one with a usual name.

    Args:
        types: of the columns by name; its keys are the names that an error message offers.
        kind: "image" or "label", the flag `--{kind}_column_name` being where a user asks.
        feature_type: of `datasets`, such as `datasets.Image`.

    Raises:
        ValueError: if there is not exactly one.
    """
    if asked is None:
        found = [name for name, type in types.items() if isinstance(type, feature_type)]
        found = found or [name for name in usual_names if name in types]
        problem = f"{len(found)} columns of the data look like {kind}s"
    else:
        found = [name for name in types if name == asked]
        problem = f"--{kind}_column_name is {asked}"
    if len(found) != 1:
        raise ValueError(f"{problem}: set --{kind}_column_name to one of {', '.join(types)}.")
    return found[0]


def _with_keys_of_fields(features: dict) -> dict:
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


def _features_of_first_row(rows: datasets.IterableDataset, origin: str) -> datasets.Features:
    first = list(rows.take(1))
    if not first:
        raise ValueError(f"{origin} has no images.")
    return datasets.Dataset.from_list(first).features


def _find_classes(
    rows: Rows,
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
        return _read_class_names(names_file), holds_numbers
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


def _read_class_names(file: str) -> list[str]:
    names = [line.strip() for line in Path(file).expanduser().read_text(encoding="utf-8").rstrip().splitlines()]
    if not all(names) or len(set(names)) < max(len(names), 1):
        raise ValueError(f"--class_names is {file}, but each line must be one name and no name may come twice.")
    return names


def one_by_one(rows: datasets.IterableDataset) -> Iterator[dict]:
    """All the rows, also in a worker of a `DataLoader`, where a plain loop would give that worker's part of them."""
    for batch in rows.iter(batch_size=16):  # few to hold, and much faster than single rows of parquet
        for values in zip(*batch.values(), strict=True):
            yield dict(zip(batch, values))


def some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
