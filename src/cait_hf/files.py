# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""Files and folders that appear complete or not at all, and their hashes."""

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary sibling to write; it takes the place of `path` in the end, or is removed after an error."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str, errors: str = "strict") -> None:
    """Write the file completely in UTF-8, or leave the old one; `errors` as for `open`."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors=errors)


def write_json(path: Path, content: Any, **options: Any) -> None:
    """The same with JSON and a newline; `options` are those of `json.dumps`."""
    write_text(path, json.dumps(content, **options) + "\n")


@contextmanager
def new_folder(output_dir: Path, source: str, overwrite: bool) -> Iterator[Path]:
    """A temporary sibling of `output_dir` that takes its name when the block ends, and disappears when it fails.

    Of several that write the same folder at once, each writes a sibling of its own, and the folder is always the whole
    work of one of them. A process that is killed leaves its sibling, a hidden folder, and `output_dir` as it was.

    Raises:
        OSError: if `output_dir` is a file, or contains the source, or is not empty and may not be overwritten.
    """
    output_dir, source_path = output_dir.resolve(), Path(source).resolve()
    if output_dir.is_file():
        raise FileExistsError(f"output_dir is {output_dir}, a file, but it must be a folder or not exist.")
    if source_path.exists() and output_dir in (source_path, *source_path.parents):
        raise FileExistsError(f"output_dir is {output_dir}, but it must not be or hold the source.")

    def check_not_in_use() -> None:
        if not overwrite and output_dir.exists() and any(output_dir.iterdir()):
            raise FileExistsError(f"output_dir is {output_dir}, which is not empty; empty it or pass --overwrite.")

    check_not_in_use()
    new_parents = [parent for parent in output_dir.parents if not parent.exists()]
    temporary, replaced = (output_dir.with_name(f".{output_dir.name}.{secrets.token_hex(4)}") for _ in range(2))
    try:
        temporary.mkdir(parents=True)
        yield temporary
        check_not_in_use()  # by another that has finished in the meantime
        if overwrite and output_dir.exists():
            output_dir.rename(replaced)
        elif output_dir.exists():
            output_dir.rmdir()  # only ever an empty folder
        temporary.rename(output_dir)
    except BaseException:  # Ctrl-C included
        if replaced.exists() and not output_dir.exists():
            replaced.rename(output_dir)
        shutil.rmtree(temporary, ignore_errors=True)
        for parent in new_parents:
            with suppress(OSError):
                parent.rmdir()
        raise
    finally:
        if output_dir.exists():
            shutil.rmtree(replaced, ignore_errors=True)


@contextmanager
def unchanged(path: Path) -> Iterator[None]:
    """Raise OSError in the end if `path` was written to, replaced or removed within the block."""

    def stamp() -> tuple[int, ...] | None:
        try:
            status = path.stat()
        except OSError:
            return None
        return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns

    before = stamp()
    try:
        yield
    finally:
        if stamp() != before:
            raise OSError(f"{path} changed while it was read; try again once nothing writes to it.")


def sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
