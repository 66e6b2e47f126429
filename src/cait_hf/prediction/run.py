# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""Predict on all images, in one process or in several, and write the table; resumes where it was interrupted."""

import hashlib
import json
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import PreTrainedModel

from ..corrupt_images import CorruptImageError
from ..folder_lock import FolderLock
from .inputs import Inputs, LoadedBatch, Prepare, hash_of
from .output_folder import Counts, OutputFolder
from .predictor import Outputs, Predictor
from .tables import record_batch, schema_of


@dataclass
class Settings:
    """How a table is made.

    Attributes:
        format (`str`): "parquet", "csv" or "jsonl".
        batch_size (`int`): images at a time.
        shard_size (`int`): images in a file.
        num_workers (`int`): processes that decode and prepare images for each process that predicts; 0: itself, in
            threads.
        corrupt_images (`str`): "record" them as rows with an error, or "raise" `CorruptImageError`.
        show_progress (`bool` or `None`): whether there is a progress bar; None: on a terminal.
    """

    format: str = "parquet"
    batch_size: int = 32
    shard_size: int = 2048
    num_workers: int = 0
    corrupt_images: str = "record"
    show_progress: bool | None = None


@dataclass
class Summary:
    """Of a whole table, in process 0.

    Attributes:
        counts: of all shards, those of earlier runs included.
        images_per_second: of all processes together, or None where nothing was left to compute.
        waiting: fraction of its time that process 0 waited for images.
    """

    counts: Counts
    images_per_second: float | None
    waiting: float


def predict(
    inputs: Inputs,
    predictor: Predictor,
    image_processor: Any,
    output_dir: Path,
    settings: Settings,
    *,
    model_name: str,
    state: PartialState | None = None,
    replace: bool = False,
) -> Summary:
    """Write the table of `inputs` to `output_dir`, in all processes; those that are finished stay.

    Args:
        model_name: for the metadata; what is compared to resume is a hash of the weights.
        state: of the processes, or None if this one is alone.
        replace: whether predictions with other settings, which are refused, are replaced.

    Raises:
        ValueError: if the folder has predictions with other settings, or in the end not all images.
        CorruptImageError: for the first corrupt image, if these are not recorded.
        OSError: if something cannot be read or written.
    """
    rank, world_size = (state.process_index, state.num_processes) if state is not None else (0, 1)
    metadata = {
        "model": model_name,
        "revision": getattr(predictor.model.config, "_commit_hash", None),
        "image_processor": {"class": type(image_processor).__name__, **image_processor.to_dict()},
        "versions": {name: version(name) for name in ("cait-hf", "torch", "transformers")},
    }
    compared = compared_settings(inputs, predictor, settings, metadata)
    folder = OutputFolder(output_dir, settings.format)
    with ExitStack() as stack:
        begun: list[Any] = [inputs.identity, None]  # and what went wrong
        if rank == 0:
            try:
                stack.enter_context(FolderLock(output_dir))
                folder.begin(compared, replace)
            except (ValueError, OSError) as error:
                begun[1] = error
        if world_size > 1:
            broadcast_object_list(begun)
        if begun[1] is not None:
            raise begun[1]
        if begun[0] != inputs.identity:
            raise ValueError(f"process {rank} found other images than process 0: all must read the same ones.")
        folder.read_finished()
        done = folder.counts.images
        inputs.prepare = Prepare(image_processor)
        batches = inputs.batches(settings.shard_size, settings.batch_size, rank, world_size, folder.ends_of)
        schema = schema_of(predictor.num_labels, predictor.keeps_logits, predictor.embedding, metadata)
        left = (len(inputs) - done) // world_size if len(inputs) else None
        start = time.perf_counter()
        with Progress(left, settings.show_progress if rank == 0 else False) as progress:
            write_shards(progress.loaded(load(inputs, batches, predictor, settings)), predictor, folder, schema)
        if state is not None:
            state.wait_for_everyone()
        seconds = time.perf_counter() - start
        if rank == 0:
            folder.finish()
            if len(inputs) and folder.counts.images != len(inputs):
                raise ValueError(
                    f"--output_dir {output_dir} has {folder.counts.images} of {len(inputs)} images when all processes "
                    "have finished: it must be one folder that all machines share."
                )
    now = folder.counts.images - done
    return Summary(folder.counts, now / seconds if now else None, progress.waiting)


def compared_settings(inputs: Inputs, predictor: Predictor, settings: Settings, metadata: dict) -> dict[str, Any]:
    """All that the table depends on, but for the number of processes; what is easiest to understand first."""
    return {
        "format": settings.format,
        "top_k": predictor.top_k,
        "pool": predictor.pool,
        "embedding_dtype": None if predictor.embedding is None else str(predictor.embedding[1]),
        "logits": predictor.keeps_logits,
        "dtype": str(predictor.dtype).removeprefix("torch."),
        "device": predictor.device.type,
        "compile": predictor.compiled_for is not None,
        "batch_size": settings.batch_size,
        "shard_size": settings.shard_size,
        **{name: metadata[name] for name in ("model", "versions")},
        "number of images": len(inputs) or None,
        "hash of the images' names, sizes and times": inputs.identity,
        "hash of the image processor": hash_of(metadata["image_processor"]),
        "hash of the weights": hash_of_weights(predictor.model),
    }


def hash_of_weights(model: PreTrainedModel | Any) -> str:
    """SHA-256 of the configuration and of all tensors with their names."""
    config = model.config.to_dict()
    for name in ("_name_or_path", "transformers_version", "dtype"):  # where and with what it was loaded
        config.pop(name, None)
    digest = hashlib.sha256(json.dumps(config, default=str, sort_keys=True).encode())
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def load(inputs: Inputs, batches: Iterable, predictor: Predictor, settings: Settings) -> Iterator[LoadedBatch]:
    """The batches in their order, prepared ahead by worker processes.

    Raises:
        CorruptImageError: for the first corrupt image, if these are not recorded.
    """
    loader = DataLoader(
        inputs,
        sampler=batches,  # an index is a batch
        batch_size=None,
        collate_fn=unchanged,
        num_workers=settings.num_workers,
        prefetch_factor=2 if settings.num_workers else None,
        pin_memory=predictor.device.type == "cuda",
    )
    for loaded in loader:
        for name, error in zip(loaded.names, loaded.errors):
            if error is not None and settings.corrupt_images == "raise":
                raise CorruptImageError(
                    f"the image {name} cannot be decoded ({error}): repair or remove it, or drop --corrupt_images "
                    "raise."
                )
        yield loaded


def unchanged(loaded: LoadedBatch) -> LoadedBatch:
    return loaded


def outputs_of(batches: Iterable[LoadedBatch], predictor: Predictor) -> Iterator[tuple[LoadedBatch, Outputs | None]]:
    """Each batch with its outputs, which the device computes while the next batch is fetched and started."""
    before: tuple[LoadedBatch, Outputs | None] | None = None
    for loaded in batches:
        started = loaded, None if loaded.pixel_values is None else predictor(loaded.pixel_values)
        if before is not None:
            yield before
        before = started
    if before is not None:
        yield before


def write_shards(
    batches: Iterable[LoadedBatch], predictor: Predictor, folder: OutputFolder, schema: pa.Schema
) -> None:
    parts: list[pa.RecordBatch] = []
    for loaded, outputs in outputs_of(batches, predictor):
        columns = {} if outputs is None else predictor.columns(outputs)
        parts.append(record_batch(schema, loaded.names, loaded.errors, columns))
        if loaded.closes:
            folder.write(loaded.shard, pa.Table.from_batches(parts, schema), loaded.ends)
            parts = []


class Progress:
    """A bar with images a second, the fraction of time spent waiting for data, and the number of corrupt images."""

    def __init__(self, total: int | None, show: bool | None) -> None:
        self.bar = tqdm(total=total, desc="predict", unit="image", disable=None if show is None else not show)
        self.images = self.corrupt = 0
        self.waited = self.seconds = 0.0

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def loaded(self, batches: Iterable[LoadedBatch]) -> Iterator[LoadedBatch]:
        """The batches as they are; measures how long each took to come."""
        start = before = time.perf_counter()
        for loaded in batches:
            self.waited += time.perf_counter() - before
            yield loaded
            self.images += len(loaded.names)
            self.corrupt += sum(error is not None for error in loaded.errors)
            before = time.perf_counter()
            self.seconds = before - start
            self.bar.set_postfix_str(f"waiting {self.waiting:.0%}, corrupt {self.corrupt}", refresh=False)
            self.bar.update(len(loaded.names))

    @property
    def waiting(self) -> float:
        return self.waited / self.seconds if self.images else 0.0
