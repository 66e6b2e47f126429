# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""The work of `cait-hf predict`, whose flags are in `cait_hf_cli.py`: what they say, for `cait_hf.prediction`."""

import argparse
import os
import sys
from datetime import timedelta
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env

from ..checkpoints import resolve_model
from ..image_datasets import load_source
from ..image_processing_pil_cait import CaitImageProcessorPil
from ..loading import load_model
from ..prediction.inputs import Inputs, files_of, from_dataset, from_files
from ..prediction.predictor import Predictor, find_device, find_dtype
from ..prediction.run import Settings, predict


def predict_command(args: argparse.Namespace) -> int:
    """In one process, or in each of those that `accelerate launch` or torchrun starts."""
    on_cpu = args.device == "cpu" or parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    # Processes wait for each other at the end alone, then perhaps for hours.
    state = PartialState(cpu=on_cpu, timeout=timedelta(days=30))
    try:
        code = predict_in(state, args)
    except KeyboardInterrupt:
        print(f"The shards in {args.output_dir} are kept: the same command resumes.", file=sys.stderr)
        raise
    state.destroy_process_group()  # after an error this could wait for the others, which wait for this one
    return code


def predict_in(state: PartialState, args: argparse.Namespace) -> int:
    if bool(args.inputs) == bool(args.dataset_name):
        raise ValueError("pass either INPUT, images and folders of them, or --dataset_name.")
    given = {name: getattr(args, name) for name in ("dataset_config_name", "data_files", "split", "image_column_name")}
    if args.inputs and (extra := next((name for name in (*given, "streaming") if getattr(args, name)), None)):
        raise ValueError(f"--{extra} is for --dataset_name, but INPUT is given.")
    for name in ("pool", "embedding_dtype"):
        if getattr(args, name) is not None and not args.embeddings:
            raise ValueError(f"--{name} is {getattr(args, name)}, but there are no embeddings: pass --embeddings.")
    device = state.device if args.device is None else find_device(args.device)
    if state.num_processes > 1 and args.device is not None and device.index is not None:
        raise ValueError(f"--device is {args.device}, but each of several processes has its own: drop it.")
    if args.inputs:
        found = {argument: files_of(argument) for argument in args.inputs}
        if missing := [argument for argument, files in found.items() if not files]:
            raise ValueError(f"INPUT is {missing[0]}, but there is no such file, or no image in it.")
        inputs = from_files(file for files in found.values() for file in files)
    else:
        with state.main_process_first():  # the others find what it downloaded
            inputs = load_inputs(args, given)
    source = resolve_model(args.model)
    predictor = Predictor(
        load_model(source),
        device=device,
        dtype=find_dtype(args.dtype, device),
        top_k=args.top_k,
        pool=(args.pool or "class") if args.embeddings else None,
        embedding_dtype=args.embedding_dtype or "float32",
        logits=args.logits,
        compile_for=args.batch_size if args.compile else None,
    )
    num_workers = args.num_workers
    if num_workers is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        cores //= int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        # The model needs a CPU, too: beside it on a few cores, worker processes gain nothing and slow it down.
        num_workers = max(1, min(8, cores)) if device.type != "cpu" else min(8, cores // 2) if cores >= 4 else 0
    settings = Settings(args.format, args.batch_size, args.shard_size, num_workers, args.corrupt_images)
    image_processor = CaitImageProcessorPil.from_pretrained(source)
    summary = predict(
        inputs, predictor, image_processor, args.output_dir, settings, model_name=args.model, state=state
    )
    if not state.is_main_process:
        return 0
    shards, images, corrupt = summary.counts
    speed = "nothing was left to do"
    if summary.images_per_second is not None:
        speed = f"{summary.images_per_second:.1f} images/s, waiting for images {summary.waiting:.0%} of the time"
    print(f"{args.output_dir} has {images:,} images in {shards:,} {'file' if shards == 1 else 'files'}: {speed}.")
    if corrupt:
        print(f"error: {corrupt:,} of {images:,} images are corrupt, see the column `error`.", file=sys.stderr)
    return int(corrupt > 0)


def load_inputs(args: argparse.Namespace, named: dict[str, Any]) -> Inputs:
    """The images of --dataset_name; `named` has the other flags that say which."""
    split = args.split or ("train" if args.data_files else "test")
    files = args.data_files and os.path.expanduser(args.data_files)
    rows = load_source(args.dataset_name, args.dataset_config_name, split, files, args.streaming)
    named = {"dataset_name": args.dataset_name, **named}
    return from_dataset(rows, named, (args.dataset_name, files), args.image_column_name)
