# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""Accuracy of an image classifier on ImageNet-1k validation, ImageNet-Real or ImageNet-V2 (matched frequency).

    cait-hf evaluate timm/cait_s24_224.fb_dist_in1k --data_dir imagenet/val
    cait-hf evaluate timm/cait_s24_224.fb_dist_in1k --data_dir imagenet/val --test_set real
    accelerate launch -m cait_hf_cli evaluate cait-m48-448 --test_set v2 --dataset_name vaishaal/ImageNetV2 \\
        --data_files imagenetv2-matched-frequency.tar.gz --split train --streaming

Any model that `AutoModelForImageClassification` loads, with the 1000 classes of ImageNet-1k, prepared as its image
processor says (crop 1.0 for CaiT). --data_dir has subfolders named by synset or number, or all images, with
--labels_file. For the official CaiT checkpoints the published accuracies and timm's stand beside ours.

Rerun the same command after an interruption: the evaluation resumes. The ranks of the correct classes are kept beside
the results, and a file of another model, other data or other settings is refused.
"""

import argparse
import hashlib
import inspect
import json
import os
import time
from functools import partial
from pathlib import Path
from typing import Any

import accelerate
import numpy as np
import torch
import transformers
from transformers import AutoModelForImageClassification, PreTrainedConfig
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from ..checkpoints import CHECKPOINTS, CaitCheckpoint, find_checkpoint, resolve_model
from ..command_line import run_command
from ..configuration_cait import CaitConfig
from ..evaluation.imagenet import (
    NUM_IMAGES,
    EvaluationImages,
    EvaluationImageStream,
    Prepare,
    indices_of_classes,
    labels_in_data,
    load_folder,
    load_rows,
    reassessed_labels,
)
from ..evaluation.ranks import Ranks, rank_batch, rank_images
from ..files import write_json
from ..image_processing_pil_cait import CaitImageProcessorPil
from ..labels import IMAGENET_1K_CLASSES
from ..loading import load_model, load_weights, require_none_missing
from ..prediction.run import hash_of_weights
from ..sources import check_architecture
from ..topk_accuracy import topk_of_ranks


TITLES = {"imagenet": "ImageNet-1k validation", "real": "ImageNet-Real", "v2": "ImageNet-V2 matched frequency"}
M48_ADVICE = '"for CaiT M48 it is best to evaluate with FP32 precision" (the authors, deit README_cait.md)'


def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv` (default: the process's own); return its exit code."""
    parser = argparse.ArgumentParser(
        prog="cait-hf evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", metavar="FOLDER_OR_ID", help="Folder or repository of an image classifier.")
    parser.add_argument("--test_set", choices=sorted(NUM_IMAGES), default="imagenet", help="default: %(default)s")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--data_dir", type=Path, help="Folder of images.")
    source.add_argument("--dataset_name", help="Dataset of the Hub, or a local one, for `load_dataset`.")
    parser.add_argument("--dataset_config_name", help="Configuration of that dataset.")
    parser.add_argument("--data_files", help="Pattern of the files of that dataset to take.")
    parser.add_argument("--split", default="validation", help="Split of that dataset (default: %(default)s).")
    parser.add_argument("--streaming", action="store_true", help="Read that dataset without storing it.")
    parser.add_argument("--image_column_name", help="Column of the images. Without it: found by its type.")
    parser.add_argument("--labels_file", type=Path, help="Synset or number of each image of a folder without any.")
    parser.add_argument("--real_labels", type=Path, help="real.json of ImageNet-Real (default: timm's copy).")
    parser.add_argument("--checkpoint", help="Official checkpoint to compare with, such as S24_224, if not plain.")
    parser.add_argument("--size", type=int, help="Height and width in pixels (default: the image processor's).")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--max_samples", type=int, help="A quick look: so many images, evenly spaced.")
    parser.add_argument("--batch_size", type=int, default=64, help="Per process (default: %(default)s).")
    parser.add_argument("--num_workers", type=int, default=min(8, os.cpu_count() or 1), help="To prepare images.")
    parser.add_argument("--save_steps", type=int, default=20, help="Batches after which the ranks are written.")
    parser.add_argument("--output", type=Path, help="Results (default: outputs/MODEL-TEST_SET.json).")
    return run_command(evaluate_command, parser.parse_args(argv))


def evaluate_command(args: argparse.Namespace) -> None:
    """Load, evaluate what is not evaluated yet, print and write the results."""
    check_arguments(args)
    args.model = resolve_model(args.model)
    # Every process takes its own images, of a stream too: the first one need not decode those of all.
    accelerator = accelerate.Accelerator(dataloader_config=accelerate.DataLoaderConfiguration(dispatch_batches=False))
    images = load_images(args)
    model, image_processor = load_classifier(args.model, getattr(torch, args.dtype))
    checkpoint = find_published(args.model, args.checkpoint, model.config)
    columns = columns_of_classes(args.model, model.config)
    if args.dtype != "float32" and has_architecture(model.config, find_checkpoint("M48_448")):
        accelerator.print(f"warning: --dtype is {args.dtype}, but {M48_ADVICE}")
    prepare = Prepare(
        image_processor, size_options(image_processor, args.size), args.num_workers if args.streaming else 1
    )

    output = args.output or Path("outputs", f"{Path(args.model).name}-{args.test_set}.json")
    ranks = Ranks(output.with_name(f"{output.name}.ranks"))
    ranks.open(accelerator, partial(settings_of, args, model, prepare, images))
    kept = len(ranks)
    if kept:
        accelerator.print(f"Resuming: {ranks.path} has {kept:,} images.")
    start = time.perf_counter()
    loader = load_remaining(images, args, ranks, prepare)
    if loader is not None:
        rank = partial(rank_batch, model.to(accelerator.device).eval(), columns, forward_options(model, args.size))
        rank_images(ranks, accelerator, accelerator.prepare(loader), rank, images.names, args.save_steps)
    seconds = time.perf_counter() - start
    if not ranks:
        raise ValueError(f"No image of the data has a label in {TITLES[args.test_set]}.")

    if accelerator.is_main_process:
        evaluated = len(ranks) - kept
        results = {
            "model": args.model,
            "checkpoint": checkpoint and checkpoint.official_name,
            "test_set": args.test_set,
            "data": str(args.data_dir or args.dataset_name),
            "num_images": len(ranks),
            "max_samples": args.max_samples,
            "image_size": list(prepare.pixels(None).shape[-2:]),
            "dtype": args.dtype,
            "accuracy": compare(topk_of_ranks(np.array([*ranks.values()])), len(ranks), checkpoint, args.test_set),
            "images_per_second": evaluated / seconds if evaluated else None,
            "hardware": hardware(accelerator),
        }
        print(table(results))
        for note in notes(args, results, checkpoint, model.config):
            print(note)
        write_json(output, results, indent=1)
        ranks.path.unlink(missing_ok=True)
        print(f"Wrote {output}.")
    accelerator.end_training()


def check_arguments(args: argparse.Namespace) -> None:
    """Raises ValueError for values and combinations that are not allowed."""
    for name, least in (("size", 1), ("max_samples", 1), ("batch_size", 1), ("save_steps", 1), ("num_workers", 0)):
        if getattr(args, name) is not None and getattr(args, name) < least:
            raise ValueError(f"--{name} is {getattr(args, name)}, but it must be at least {least}.")
    for name in ("dataset_config_name", "data_files", "streaming", "image_column_name"):
        if getattr(args, name) and args.data_dir:
            raise ValueError(f"--{name} is for --dataset_name, but --data_dir is given.")
    if args.labels_file and (args.dataset_name or args.test_set == "real"):
        raise ValueError("--labels_file is for --data_dir and the test sets imagenet and v2.")
    if args.real_labels and args.test_set != "real":
        raise ValueError(f"--real_labels is for --test_set real, but --test_set is {args.test_set}.")


def load_images(args: argparse.Namespace) -> EvaluationImages | EvaluationImageStream:
    label = reassessed_labels(args.real_labels) if args.test_set == "real" else labels_in_data
    if args.data_dir:
        return load_folder(args.data_dir, label, args.labels_file)
    return load_rows(
        args.dataset_name,
        args.dataset_config_name,
        args.split,
        args.data_files,
        args.streaming,
        label,
        args.image_column_name,
    )


def load_classifier(source: str, dtype: torch.dtype) -> tuple[torch.nn.Module, Any]:
    """The model and its image processor, on Pillow as in the evaluations that are compared.

    Raises:
        ValueError: if the weights lack tensors: a new classifier would be evaluated otherwise.
    """
    described, _ = PreTrainedConfig.get_config_dict(source)
    if described.get("model_type") == "cait" or str(described.get("architecture")).startswith("cait_"):
        return load_model(source).to(dtype), CaitImageProcessorPil.from_pretrained(source)
    model, missing = load_weights(AutoModelForImageClassification, source, dtype)
    require_none_missing(source, missing)
    return model, AutoImageProcessor.from_pretrained(source, backend="pil")


def find_published(source: str, asked: str | None, config: PreTrainedConfig) -> CaitCheckpoint | None:
    """The official checkpoint that was asked for, else the one with the model's name and architecture.

    Raises:
        ValueError: if the model is not of the network that was asked for.
    """
    if asked is not None:
        if not isinstance(config, CaitConfig):
            raise ValueError(f"--checkpoint is {asked}, but {source} is of type {config.model_type}, no CaiT.")
        check_architecture(config, find_checkpoint(asked))
        return find_checkpoint(asked)
    for name in (source, Path(source).name):
        try:
            checkpoint = find_checkpoint(name)
        except ValueError:
            continue
        return checkpoint if has_architecture(config, checkpoint) else None
    return None


def has_architecture(config: PreTrainedConfig, checkpoint: CaitCheckpoint) -> bool:
    try:
        check_architecture(config, checkpoint)
    except (ValueError, AttributeError):  # another CaiT, or none
        return False
    return True


def columns_of_classes(source: str, config: PreTrainedConfig) -> list[int] | None:
    """Output of the model for each class index, by the model's names of its classes; None where both are the same.

    Raises:
        ValueError: if the model has not the 1000 classes of ImageNet-1k.
    """
    if config.num_labels != IMAGENET_1K_CLASSES:
        raise ValueError(
            f"{source} has {config.num_labels} classes, but it must have the {IMAGENET_1K_CLASSES} of ImageNet-1k."
        )
    indices = indices_of_classes([config.id2label[output] for output in range(IMAGENET_1K_CLASSES)])
    if indices in (None, list(range(IMAGENET_1K_CLASSES))):
        return None  # names such as LABEL_0 say nothing: the usual order
    return np.argsort(indices).tolist()


def forward_options(model: torch.nn.Module, size: int | None) -> dict[str, bool]:
    """Arguments of the model's forward for images of another size, where it has any."""
    name = "interpolate_pos_encoding"
    return {name: True} if size is not None and name in inspect.signature(model.forward).parameters else {}


def size_options(image_processor: Any, size: int | None) -> dict[str, dict[str, int]]:
    """Arguments of a call of the image processor for images of `size` pixels, with its own ratio of the crop."""
    if size is None:
        return {}
    resized = getattr(image_processor, "size", None)
    if not resized:
        raise ValueError(f"--size is {size}, but the size of a {type(image_processor).__name__} is fixed.")
    edges = [name for name in ("shortest_edge", "height", "width") if resized.get(name)]
    if not getattr(image_processor, "do_center_crop", None):
        return {"size": dict.fromkeys(edges, size)}
    scaled = round(size * resized.get(edges[0]) / image_processor.crop_size["height"])
    return {"size": dict.fromkeys(edges, scaled), "crop_size": {"height": size, "width": size}}


def settings_of(
    args: argparse.Namespace,
    model: torch.nn.Module,
    prepare: Prepare,
    images: EvaluationImages | EvaluationImageStream,
) -> dict:
    """What the ranks depend on, what is easiest to understand first."""
    data = [args.dataset_name, args.dataset_config_name, args.data_files, args.split, str(args.real_labels)]
    data += [args.image_column_name] if args.image_column_name else []
    if isinstance(images, EvaluationImages):
        data = [images.names, images.labels]
    image_processor: Any = prepare.image_processor
    preparation = [type(image_processor).__name__, image_processor.to_dict(), prepare.options]
    return {
        "test_set": args.test_set,
        "dtype": args.dtype,
        "max_samples": args.max_samples,
        "preprocessing": hashlib.sha256(json.dumps(preparation, default=str, sort_keys=True).encode()).hexdigest(),
        "data": hashlib.sha256(json.dumps(data).encode()).hexdigest(),
        "model": hash_of_weights(model),
    }


def load_remaining(
    images: EvaluationImages | EvaluationImageStream,
    args: argparse.Namespace,
    ranks: dict[int, int],
    prepare: Prepare,
) -> torch.utils.data.DataLoader | None:
    """Batches of the images that have no rank yet; None if there are none."""
    if isinstance(images, EvaluationImageStream):
        images.done, images.max_samples = frozenset(ranks), args.max_samples
        return torch.utils.data.DataLoader(images, args.batch_size, collate_fn=prepare)
    indices = [index for index in images.labeled(args.max_samples) if index not in ranks]
    if not indices:
        return None
    subset = torch.utils.data.Subset(images, indices)
    return torch.utils.data.DataLoader(subset, args.batch_size, num_workers=args.num_workers, collate_fn=prepare)


def compare(
    fractions: dict[str, float], num_images: int, checkpoint: CaitCheckpoint | None, test_set: str
) -> dict[str, dict[str, float | None]]:
    """Percentages by "top1" and "top5": ours, the standard error of a binomial fraction, and those of others."""
    rows = {
        name: {"ours": 100 * fraction, "standard_error": 100 * (fraction * (1 - fraction) / num_images) ** 0.5}
        for name, fraction in fractions.items()
    }
    others = {}
    if checkpoint is not None and checkpoint.timm_accuracy is not None:
        others = {"timm": getattr(checkpoint.timm_accuracy, test_set)}
    if checkpoint is not None and test_set == "imagenet" and checkpoint.published_top1 is not None:
        others = {"published": (checkpoint.published_top1, checkpoint.published_top5), **others}
    for source, values in others.items():
        for row, value in zip(rows.values(), values):
            row[source] = value
            row[f"difference from {source}"] = None if value is None else row["ours"] - value
    return rows


def table(results: dict) -> str:
    """What was evaluated, how fast, and the accuracies in percent, a column each."""
    height, width = results["image_size"]
    speed = results["images_per_second"]
    lines = [
        f"{results['model']} on {TITLES[results['test_set']]}: {results['num_images']:,} images of "
        f"{height} x {width} pixels in {results['dtype']}" + (f", {speed:.1f} images/s" if speed else ""),
    ]
    columns = [name.replace("_", " ") for name in results["accuracy"]["top1"]]
    rows = {"": columns}
    for name, row in results["accuracy"].items():
        signs = ["+" if column.startswith("difference") else "" for column in columns]
        rows[name] = ["" if value is None else f"{value:{sign}.3f}" for sign, value in zip(signs, row.values())]
    widths = [max(len(column), 7) for column in columns]
    for name, cells in rows.items():
        lines.append("  ".join([f"{name:4}", *(f"{cell:>{width}}" for width, cell in zip(widths, cells))]))
    return "\n".join(lines)


def notes(
    args: argparse.Namespace, results: dict, checkpoint: CaitCheckpoint | None, config: PreTrainedConfig
) -> list[str]:
    """What a reader of the table should know."""
    found = []
    if results["num_images"] != NUM_IMAGES[args.test_set]:
        kind = "the first of the stream" if args.streaming else "evenly spaced"
        kind = f", {kind}" if args.max_samples else ""
        found.append(f"Not the whole set: {results['num_images']:,} of {NUM_IMAGES[args.test_set]:,} images{kind}.")
    if checkpoint is None:
        same = [known.official_name for known in CHECKPOINTS if has_architecture(config, known)]
        found += [f"Its architecture is that of {name}: pass --checkpoint {name} to compare." for name in same]
    elif checkpoint.published_top1_source and args.test_set == "imagenet":
        found.append(f"Published: {checkpoint.published_top1_source}.")
    if checkpoint is not None and results["image_size"] != 2 * [checkpoint.image_size]:
        found.append(f"The accuracies of others are at {checkpoint.image_size} x {checkpoint.image_size} pixels.")
    return found


def hardware(accelerator: accelerate.Accelerator) -> dict[str, str | int]:
    is_gpu = accelerator.device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(accelerator.device) if is_gpu else str(accelerator.device),
        "num_processes": accelerator.num_processes,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
