# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""The table of predictions: its columns, and files of it in Parquet, CSV and JSON lines."""

import csv
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from ..files import replacing


METADATA_KEY = "cait_hf"  # of the schema's metadata: JSON


def schema_of(
    num_labels: int, logits: bool, embedding: tuple[int, np.dtype] | None, metadata: dict[str, Any]
) -> pa.Schema:
    """The columns of the table.

    Args:
        num_labels: number of logits.
        logits: whether there is a column of them.
        embedding: length and dtype of an embedding, or None.
        metadata: for JSON, kept under `METADATA_KEY`.
    """
    fields = [
        pa.field("file", pa.string()),
        pa.field("labels", pa.list_(pa.string())),
        pa.field("scores", pa.list_(pa.float32())),
        pa.field("error", pa.string()),
    ]
    if embedding is not None:
        length, dtype = embedding
        fields.append(pa.field("embedding", pa.list_(pa.from_numpy_dtype(dtype), length)))
    if logits:
        fields.append(pa.field("logits", pa.list_(pa.float32(), num_labels)))
    return pa.schema(fields, {METADATA_KEY: json.dumps(metadata, sort_keys=True)})


def record_batch(
    schema: pa.Schema, names: list[str], errors: list[str | None], columns: dict[str, np.ndarray]
) -> pa.RecordBatch:
    """Rows of the table; those of corrupt images have no values.

    Args:
        columns: of the images that are not corrupt, (images, length) each: "labels" of str, the others of numbers.
    """
    corrupt = np.array([error is not None for error in errors])
    place = np.cumsum(~corrupt) - 1  # of each image among those that are not corrupt
    arrays = []
    for field in schema:
        if field.name == "file":
            arrays.append(pa.array(names, field.type))
        elif field.name == "error":
            arrays.append(pa.array(errors, field.type))
        elif corrupt.all():
            arrays.append(pa.nulls(len(names), field.type))
        else:
            values = columns[field.name]
            rows = values[np.maximum(place, 0)]  # anything in the rows that are masked
            arrays.append(_lists(rows, field.type, pa.array(corrupt)))
    return pa.record_batch(arrays, schema=schema)


def _lists(rows: np.ndarray, kind: pa.DataType, mask: pa.Array) -> pa.Array:
    """(rows, length) as an array of lists, null where masked."""
    values = pa.array(rows.reshape(-1), kind.value_type)
    if pa.types.is_fixed_size_list(kind):
        return pa.FixedSizeListArray.from_arrays(values, type=kind, mask=mask)
    offsets = pa.array(np.arange(len(rows) + 1, dtype=np.int32) * rows.shape[1])
    return pa.ListArray.from_arrays(offsets, values, type=kind, mask=mask)


def write_table(path: Path, table: pa.Table) -> None:
    """Write a file, in the format that its ending names, that is complete or not there.

    Raises:
        OSError: if it cannot be written, as on a disk that is full; nothing of it is left.
    """
    try:
        with replacing(path) as temporary, temporary.open("wb") as file:
            WRITERS[path.suffix[1:]](table, file)
            file.flush()
            os.fsync(file.fileno())  # or a machine that loses power could keep the name without the content
    except OSError as error:
        raise OSError(
            error.errno,
            f"{path} could not be written ({error.strerror or error}); the shards before it are kept, and the same "
            "command resumes",
        ) from error


def _write_parquet(table: pa.Table, file: io.BufferedWriter) -> None:
    pa.parquet.write_table(table, file)


def _write_csv(table: pa.Table, file: io.BufferedWriter) -> None:
    """Lists as JSON."""
    text = io.TextIOWrapper(file, encoding="utf-8", newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table.column_names)
    for row in _rows(table):
        writer.writerow(
            json.dumps(value, ensure_ascii=False) if isinstance(value, list) else value for value in row.values()
        )
    text.detach()


def _write_json_lines(table: pa.Table, file: io.BufferedWriter) -> None:
    for row in _rows(table):
        file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")


def _rows(table: pa.Table) -> list[dict[str, Any]]:
    """Rows in Python, numbers with the digits that float32 needs."""
    return [{name: _shortened(value) for name, value in row.items()} for row in table.to_pylist()]


def _shortened(value: Any) -> Any:
    is_numbers = isinstance(value, list) and value and isinstance(value[0], float)
    return [float(f"{number:.9g}") for number in value] if is_numbers else value


WRITERS: dict[str, Callable[[pa.Table, io.BufferedWriter], None]] = {
    "parquet": _write_parquet,
    "csv": _write_csv,
    "jsonl": _write_json_lines,
}
