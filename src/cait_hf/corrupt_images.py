# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""Images that cannot be decoded: found, named, left out and listed.

What counts as decodable is what Pillow decodes completely with its own limits (truncated files and decompression bombs
are not; see "Limits" and `ImageFile.LOAD_TRUNCATED_IMAGES` in Pillow's documentation). Decoding is that of
`datasets.Image`, which also turns an image as its EXIF orientation says.
"""

import errno
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import PIL.Image

from .command_line import one_line
from .files import write_text


CORRUPT_IMAGES_FILE = "corrupt_images.txt"

# Errors of the operating system that are about one file; others, such as too many open files, are about the machine.
_FILE_ERRORS = {None, errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.ELOOP}


class CorruptImageError(ValueError):
    """An image cannot be decoded; the message is one line, also where a `DataLoader` brings it from a worker."""

    def __init__(self, message: str) -> None:
        super().__init__(message.rpartition("CorruptImageError: ")[2].strip())  # a worker's is a whole traceback


def decode(stored: Any, image_type: datasets.Image) -> PIL.Image.Image:
    """The image in a cell of a dataset that was loaded with `datasets.Image(decode=False)`.

    `stored` is {"bytes", "path"}, the path of a file or the bytes of one.

    Raises:
        CorruptImageError: with the reason alone, if it cannot be decoded.
        OSError: if the machine is at fault, not the image.
    """
    if stored is None:
        raise CorruptImageError("there is no image")
    if not isinstance(stored, dict):
        stored = image_type.encode_example(stored)
    try:
        return image_type.decode_example(stored)
    except MemoryError:
        raise
    except Exception as error:  # Pillow's plugins raise what they like: SyntaxError, struct.error, IndexError ...
        if isinstance(error, OSError) and error.errno not in _FILE_ERRORS:
            raise
        raise CorruptImageError(_reason(error, stored)) from error


def _reason(error: Exception, stored: dict) -> str:
    data, path = stored.get("bytes"), stored.get("path")
    if data == b"" or (data is None and path and os.path.isfile(path) and os.path.getsize(path) == 0):
        return "zero bytes"
    if isinstance(error, PIL.UnidentifiedImageError):  # its own text contains an address in memory
        return "of no format that Pillow reads"
    return one_line(error)


def explain(name: str, reason: str) -> CorruptImageError:
    return CorruptImageError(
        f"the image {name} cannot be decoded ({reason}): repair or remove it, or pass --corrupt_images skip to leave "
        "out all such images."
    )


def name_of(stored: Any, row_name: str) -> str:
    """The file of an image, or its row where a file contains several."""
    if isinstance(stored, str):
        return stored
    if not isinstance(stored, dict) or not stored.get("path"):
        return row_name
    return stored["path"] if stored.get("bytes") is None else f"{row_name} ({stored['path']})"


def find_corrupt(
    rows: datasets.Dataset, image_column: str, image_type: datasets.Image, numbers: Sequence[int], num_proc: int | None
) -> dict[int, str]:
    """Decode the images of the rows `numbers`; the numbers of the corrupt ones, and why.

    `datasets` keeps the result, so that a second run of the same data, or another process of this run, need not decode
    them again. It is kept in memory alone where the data lie in a folder that cannot be written.
    """
    writable = all(os.access(Path(file["filename"]).parent, os.W_OK) for file in rows.cache_files)
    checked = (
        rows.select(numbers)
        .select_columns([image_column])
        .map(
            _check,
            input_columns=[image_column],
            remove_columns=[image_column],
            fn_kwargs={"image_type": image_type},
            features=datasets.Features({"reason": datasets.Value("string")}),
            num_proc=num_proc,
            keep_in_memory=not writable,
            desc="Decoding every image once",
        )
    )
    corrupt = [number for number, reason in zip(numbers, checked[:]["reason"], strict=True) if reason is not None]
    # what was kept may be outdated, for a file that could not be read and now can
    reasons = {int(number): _check(rows[int(number)][image_column], image_type)["reason"] for number in corrupt}
    return {number: reason for number, reason in reasons.items() if reason is not None}


def _check(stored: Any, image_type: datasets.Image) -> dict[str, str | None]:
    try:
        decode(stored, image_type)
    except CorruptImageError as error:
        return {"reason": str(error)}
    return {"reason": None}


def write_list(folder: str | os.PathLike, corrupt: Sequence[tuple[str, str]]) -> Path:
    """Write (name, reason) of each corrupt image, a line each with a tab between; without any, remove an old list."""
    path = Path(folder) / CORRUPT_IMAGES_FILE
    if not corrupt:
        path.unlink(missing_ok=True)
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "".join(_line(*entry) for entry in corrupt), errors="surrogateescape")
    return path


class CorruptList:
    """The same list, written while images stream by: each corrupt image once, by any number of worker processes.

    Process 0 of a distributed training writes the file that `write_list` writes; another, which may run on another
    machine, has one of its own, such as `corrupt_images.rank1.txt`.
    """

    def __init__(self, folder: str | os.PathLike, rank: int = 0) -> None:
        name = Path(CORRUPT_IMAGES_FILE)
        self.path = Path(folder) / (name if rank == 0 else f"{name.stem}.rank{rank}{name.suffix}")
        self._listed: set[str] | None = None

    def add(self, name: str, reason: str) -> bool:
        """Whether the image is new to the list."""
        line = _line(name, reason)
        if self._listed is None:  # also what an interrupted run has met
            known = self.path.read_text(encoding="utf-8", errors="surrogateescape") if self.path.is_file() else ""
            self._listed = set(known.splitlines(keepends=True))
        if line in self._listed:
            return False
        self._listed.add(line)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # one write at the end of the file: lines of several processes do not mix
        file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(file, line.encode("utf-8", errors="surrogateescape"))
        finally:
            os.close(file)
        return True


def count_listed(folder: str | os.PathLike) -> int:
    """How many corrupt images the lists in a folder name, each counted once."""
    paths = Path(folder).glob(f"{Path(CORRUPT_IMAGES_FILE).stem}*.txt")
    return len({line for path in paths for line in path.read_bytes().splitlines()})


def _line(name: str, reason: str) -> str:
    name, reason = (text.replace("\t", "\\t").replace("\r", "\\r").replace("\n", "\\n") for text in (name, reason))
    return f"{name}\t{reason}\n"
