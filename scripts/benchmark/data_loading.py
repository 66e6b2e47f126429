# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""How many images a second the training scripts prepare, beside the loader that timm's train.py uses.

    python scripts/benchmark/data_loading.py --num_workers 2

Both read the same folder of synthetic JPEG files and do the same to each image: random crop to 224 pixels, flip,
RandAugment, normalization, random erasing. Rounds alternate, and what counts is the ratio within a round. Needs timm.
"""

import argparse
import json
import logging
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader

from cait_hf import CaitImageProcessorPil
from cait_hf.training.arguments import DataArguments, RecipeArguments
from cait_hf.training.data import load_data
from cait_hf.training.randomness import Randomness
from cait_hf.training.sampling import TrainSampler
from cait_hf.training.transforms import TrainCollator, TrainTransform


CLASSES, WIDTH, HEIGHT = 4, 500, 375  # the size that ImageNet's images usually have
# without mstd0.5: timm may then ask for posterization to 0 bits, which Pillow 13 refuses
POLICY, ERASING = "rand-m9-inc1", 0.25


def main(argv: list[str] | None = None) -> dict:
    """Measure, print and return images a second of each, and their ratio with its spread."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=512, help="in the folder (default: %(default)s)")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--num_workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--image_size", type=int, default=224)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    logging.getLogger("timm").setLevel(logging.ERROR)  # its workers read on while the folder goes
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder), args.images)
        baselines = {"cait-hf": our_loader(folder, args), "timm": timm_loader(folder, args)}
        seconds = {name: [] for name in baselines}
        for number in range(args.rounds + 1):
            for name, run in baselines.items():
                elapsed = run(number)
                if number:  # the first fills caches
                    seconds[name].append(elapsed)
    ratios = [theirs / ours for ours, theirs in zip(seconds["cait-hf"], seconds["timm"])]
    result = {name: args.images / statistics.median(values) for name, values in seconds.items()}
    result |= {"ratio": statistics.median(ratios), "lowest": min(ratios), "highest": max(ratios)}
    print(json.dumps({name: round(value, 3) for name, value in result.items()}))
    return result


def write_images(folder: Path, count: int):
    """Smooth noise, which takes about as many bytes a pixel as photographs do."""
    rng = np.random.default_rng(0)
    for index in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))
        path = folder / f"class{index % CLASSES}" / f"{index}.jpg"
        path.parent.mkdir(exist_ok=True)
        coarse.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC).save(path, quality=90)


def our_loader(folder: str, args: argparse.Namespace) -> Callable[[int], float]:
    """A function that goes through an epoch as the training scripts do, and returns the seconds."""
    images, _ = load_data(DataArguments(train_dir=folder), train=True)
    randomness = Randomness(0)
    processor = CaitImageProcessorPil(size=args.image_size, crop_size=args.image_size)
    recipe = RecipeArguments(auto_augment=POLICY, random_erasing=ERASING)
    transform = TrainTransform(processor, randomness, recipe)
    images.prepare(transform, {name: index for index, name in enumerate(images.class_names)})
    loader = DataLoader(
        images,
        batch_size=args.batch_size,
        sampler=TrainSampler(len(images), randomness),
        collate_fn=TrainCollator(CLASSES, randomness),
        num_workers=args.num_workers,
    )

    def run(epoch: int) -> float:
        randomness.epoch = epoch
        start = time.perf_counter()
        assert sum(len(batch["labels"]) for batch in loader) == args.images
        return time.perf_counter() - start

    return run


def timm_loader(folder: str, args: argparse.Namespace) -> Callable[[int], float]:
    """The same with timm's dataset and loader."""
    from timm.data import create_dataset, create_loader

    loader = create_loader(
        create_dataset("", root=folder, is_training=True),
        input_size=(3, args.image_size, args.image_size),
        batch_size=args.batch_size,
        is_training=True,
        auto_augment=POLICY,
        re_prob=ERASING,
        re_mode="pixel",
        interpolation="bicubic",
        num_workers=args.num_workers,
        persistent_workers=False,
        use_prefetcher=False,
        device=torch.device("cpu"),
    )

    def run(epoch: int) -> float:
        start = time.perf_counter()
        images = sum(len(labels) for _, labels in loader)
        assert images == args.images // args.batch_size * args.batch_size  # timm drops the last ones
        return (time.perf_counter() - start) * args.images / images

    return run


if __name__ == "__main__":
    main()
