# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""Files and folders that appear complete or not at all, what was written to them, and their hashes."""

import glob
import hashlib
import json
import logging
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


logger = logging.getLogger(__name__)

MANIFEST = ".cait-hf.json"  # in each folder of `new_folder`: what was written, so that nothing else is ever removed


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


def read_json(path: Path) -> Any:
    """Content of a JSON file.

    Raises:
        ValueError: if it is not valid JSON in UTF-8, or nested too deeply.
        OSError: if it cannot be read.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError(f"{path} is not valid JSON: it is nested too deeply.") from None
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from None


@contextmanager
def new_folder(output_dir: Path, source: str, overwrite: bool) -> Iterator[Path]:
    """A temporary sibling of `output_dir` that takes its name when the block ends, and disappears when it fails.

    Only a folder that was written here, and in which nothing has changed since, is ever replaced: a hidden file in it
    has the names and hashes. Of several that write the same folder at once, each writes a sibling of its own, and the
    folder is always the whole work of one of them. A process that is killed leaves its sibling, a hidden folder, and
    `output_dir` as it was; killed at the moment between both names, the next run puts `output_dir` back.

    Raises:
        OSError: if `output_dir` is a file, or contains the source, or is not empty and may not be overwritten, or
            contains files that were not written here.
    """
    output_dir, source_path = output_dir.resolve(), Path(source).resolve()
    if output_dir.is_file():
        raise FileExistsError(f"output_dir is {output_dir}, a file, but it must be a folder or not exist.")
    if source_path.exists() and output_dir in (source_path, *source_path.parents):
        raise FileExistsError(f"output_dir is {output_dir}, but it must not be or contain the source.")

    def check_not_in_use() -> None:
        if not overwrite and output_dir.exists() and any(output_dir.iterdir()):
            raise FileExistsError(f"output_dir is {output_dir}, which is not empty; empty it or pass --overwrite.")
        if kept := foreign_files(output_dir):
            known = "files that no earlier run wrote, or that have changed since"
            why = known if (output_dir / MANIFEST).is_file() else f"no {MANIFEST}, so nobody knows who wrote its files"
            raise FileExistsError(
                f"output_dir is {output_dir}, which has {why}: {', '.join(kept[:5])}; move them away, or choose "
                "another folder."
            )

    _put_back(output_dir)
    check_not_in_use()
    new_parents = [parent for parent in output_dir.parents if not parent.exists()]
    temporary = output_dir.with_name(f".{output_dir.name}.{secrets.token_hex(4)}")
    replaced = temporary.with_name(temporary.name + _REPLACED)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        write_manifest(temporary, Path(source).name)
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
            _remove_written(replaced)


_REPLACED = ".replaced"


def write_manifest(folder: Path, source: str) -> None:
    """State that all files below `folder` were written here, from a `source` of this name."""
    hashes = {name: sha256_of(folder / name) for name in _files(folder) if name != MANIFEST}
    write_json(folder / MANIFEST, {"source": source, "files": hashes}, indent=2)


def read_manifest(folder: Path) -> dict[str, Any]:
    """What `new_folder` wrote: the name of its `source`, and `files`, hashes by name; empty where there is none."""
    try:
        manifest = read_json(folder / MANIFEST)
    except (OSError, ValueError):
        return {"files": {}}
    files = manifest.get("files") if isinstance(manifest, dict) else None
    return {**manifest, "files": files} if isinstance(files, dict) else {"files": {}}


def foreign_files(folder: Path) -> list[str]:
    """Names of what is in `folder` and was not written by `new_folder`, or has changed since.

    Of a folder that is itself foreign, only its own name.
    """
    written = read_manifest(folder)["files"]
    if not written:  # whatever it is: it may be large
        return sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    foreign = []
    for name in _files(folder):
        path = folder / name
        if name == MANIFEST:
            continue
        if name not in written or path.is_symlink() or not path.is_file() or sha256_of(path) != written[name]:
            inside_written = any(known.startswith(f"{name.partition('/')[0]}/") for known in written)
            foreign.append(name if inside_written else name.partition("/")[0])
    return list(dict.fromkeys(foreign))


def _files(folder: Path) -> list[str]:
    """All that is below `folder`, but of folders only those that are empty."""
    found = []
    for parent, folders, files in os.walk(folder):
        links = [name for name in folders if Path(parent, name).is_symlink()]
        if not folders and not files and Path(parent) != folder:
            found.append(Path(parent))
        found += [Path(parent, name) for name in (*links, *files)]
    return sorted(path.relative_to(folder).as_posix() for path in found)


def _remove_written(folder: Path) -> None:
    """Remove the files that the manifest names, and folders that are empty then; what is left is reported."""
    if not folder.exists():
        return
    foreign = set(foreign_files(folder))
    for name in _files(folder):
        if name not in foreign and name.partition("/")[0] not in foreign and name != MANIFEST:
            with suppress(OSError):
                (folder / name).unlink()
    if not foreign:
        (folder / MANIFEST).unlink(missing_ok=True)
    for parent, _, _ in os.walk(folder, topdown=False):
        with suppress(OSError):
            os.rmdir(parent)
    if folder.exists():
        logger.warning("%s has files that no run wrote; they were left there.", folder)


def _put_back(output_dir: Path) -> None:
    """Undo what a process left that was killed while it replaced `output_dir`, after which there was none."""
    pattern = f".{glob.escape(output_dir.name)}.{'[0-9a-f]' * 8}{_REPLACED}"  # of this name alone: not of name.v2
    for replaced in sorted(output_dir.parent.glob(pattern)):
        if not output_dir.exists():
            replaced.rename(output_dir)
            _remove_written(replaced.with_name(replaced.name.removesuffix(_REPLACED)))  # what was to replace it
            logger.warning("%s was put back; a process was killed while it replaced it.", output_dir)
        elif read_manifest(output_dir)["files"]:
            _remove_written(replaced)
        else:
            logger.warning(
                "%s is an earlier %s, from a process that was killed: move it back, or delete it.",
                replaced,
                output_dir,
            )


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
