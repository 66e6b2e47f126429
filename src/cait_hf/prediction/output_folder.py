# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""The folder that predictions are written to: one file a shard, and a manifest of what is finished.

The manifest says by which settings the folder was begun, and refuses others. A shard counts as finished once its file
has its name and a record of its size is written, so that a process may be killed at any moment. Names of both begin
with a dot, so that what reads the whole folder leaves them out.
"""

import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import pyarrow as pa

from ..files import read_json, write_json
from .tables import write_table


MANIFEST = ".predictions.json"
RECORDS = ".finished"  # a folder with one file a shard, until the manifest has them all
NAME = "predictions-{shard}.{format}"


class Record(TypedDict):
    """What is known of a finished shard; `ends` is whether the file of a stream ends with it."""

    images: int
    corrupt: int
    bytes: int
    ends: bool


class Counts(NamedTuple):
    """Of all finished shards."""

    shards: int
    images: int
    corrupt: int


class OutputFolder:
    """A folder of predictions in one format; several processes may write shards of their own."""

    def __init__(self, path: Path, format: str) -> None:
        self.path, self.format = path, format
        self.finished: dict[str, Record] = {}

    def begin(self, settings: dict[str, Any], replace: bool = False) -> None:
        """Write the manifest, or compare it with the one that is there; one process does that, before any other.

        Args:
            settings: all that the table depends on, by the names of the flags as far as there are flags.
            replace: whether to start from scratch where they differ.

        Raises:
            ValueError: if the folder was begun with other settings, or has predictions of unknown origin.
            OSError: if it cannot be written.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        manifest = self.path / MANIFEST
        if manifest.exists():
            begun = self._read_manifest()["settings"]
            others = [name for name in {**settings, **begun} if settings.get(name) != begun.get(name)]
            if others and not replace:
                name = others[0]
                raise ValueError(
                    f"--output_dir {self.path} has predictions with {name} {begun.get(name)}, but {name} now is "
                    f"{settings.get(name)}: choose another folder, or pass what it was begun with to finish it."
                )
            if others:
                self._remove_predictions()
        elif any(self.path.glob(NAME.format(shard="*", format="*"))):
            raise ValueError(
                f"--output_dir {self.path} has predictions, but no {MANIFEST} that says with which settings they were "
                "made: choose another folder, or delete them."
            )
        for name in (NAME.format(shard="*", format="*"), f"{MANIFEST}.*"):
            for left in self.path.glob(f".{name}"):  # by a process that was killed
                left.unlink()
        (self.path / RECORDS).mkdir(exist_ok=True)
        if not manifest.exists():
            write_json(manifest, {"settings": settings, "shards": {}}, indent=1)

    def _remove_predictions(self) -> None:
        shutil.rmtree(self.path / RECORDS, ignore_errors=True)
        for path in self.path.glob(NAME.format(shard="*", format="*")):
            path.unlink()
        (self.path / MANIFEST).unlink()  # last: without it what is left would be of unknown origin

    def read_finished(self) -> None:
        """Find out what is finished: in every process, after `begin`."""
        known = {**self._read_manifest()["shards"], **dict(self._records())}
        self.finished = {shard: record for shard, record in sorted(known.items()) if self._is_there(shard, record)}

    def _read_manifest(self) -> dict[str, Any]:
        path = self.path / MANIFEST
        manifest = read_json(path)
        if not isinstance(manifest, dict) or not {"settings", "shards"} <= manifest.keys():
            raise ValueError(f"{path} is not a manifest of predictions: delete the folder to start from scratch.")
        return manifest

    def _records(self) -> Iterator[tuple[str, Record]]:
        for path in (self.path / RECORDS).glob("[0-9]*.json"):
            with suppress(ValueError):  # cut off by a loss of power: the shard is computed again
                yield path.stem, read_json(path)

    def _is_there(self, shard: str, record: Record) -> bool:
        path = self.file_of(shard)
        return path.is_file() and path.stat().st_size == record["bytes"]

    def ends_of(self, shard: str) -> bool | None:
        """None for a shard that is not finished, else whether the file of a stream ends with it."""
        record = self.finished.get(shard)
        return None if record is None else record["ends"]

    def file_of(self, shard: str) -> Path:
        return self.path / NAME.format(shard=shard, format=self.format)

    def write(self, shard: str, table: pa.Table, ends: bool) -> None:
        """Write a shard and its record.

        Raises:
            OSError: if it cannot be written.
        """
        path = self.file_of(shard)
        write_table(path, table)
        record = Record(
            images=len(table),
            corrupt=len(table) - table["error"].null_count,
            bytes=path.stat().st_size,
            ends=ends,
        )
        write_json(self.path / RECORDS / f"{shard}.json", record)

    def finish(self) -> None:
        """Move all records into the manifest, in one process after all others have written theirs."""
        self.read_finished()
        manifest = self._read_manifest()
        write_json(self.path / MANIFEST, {**manifest, "shards": self.finished}, indent=1)
        shutil.rmtree(self.path / RECORDS)

    @property
    def counts(self) -> Counts:
        """Of the shards that were finished when the folder was read last."""
        records = self.finished.values()
        images, corrupt = (sum(record[name] for record in records) for name in ("images", "corrupt"))
        return Counts(len(records), images, corrupt)
