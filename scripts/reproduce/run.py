# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""Repeat the paper's experiments with small models on Fashion-MNIST; `report.py` writes the results to
REPRODUCTION.md.

    python scripts/prepare_fashion_mnist.py --output_dir data/fashion-mnist
    python scripts/reproduce/run.py --data data/fashion-mnist

trains every model of every experiment with three seeds and writes a JSON file each into `scripts/reproduce/results`;
what is there already is not trained again. All models of an experiment see the same images equally often, with the
same optimizer, and are scored on the 5,000 images of the validation split; the test split is not touched.
"""

import argparse
import dataclasses
import json
import platform
import sys
import time
from pathlib import Path

import datasets
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm
from variants import HEADS, LEARNING_RATE, ConvolutionalTeacher, Variant, branch_ratios, build

from cait_hf.files import write_json
from cait_hf.training.optimization import cosine_schedule, parameter_groups


RESULTS = Path(__file__).resolve().parent / "results"
BATCH, WEIGHT_DECAY, WARMUP = 64, 0.05, 0.1
MEAN, STD = 0.286, 0.353  # of the training images


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Models to compare, trained on the first `images` of the training split for `epochs`."""

    variants: tuple[Variant, ...]
    images: int = 10_000
    epochs: float = 3


SCALES = {"none": None, "0.1": 0.1, "1e-4": 1e-4, "1e-6": 1e-6, "scalar": "scalar"}
RATES, RATE_DEPTHS = ("2e-3", "8e-3", "3.2e-2"), (24, 36, 48)
RATE_SCALES = {"none": None, "1e-5": 1e-5, "1e-6": 1e-6}
LOW, HIGH = 20, 28
EXPERIMENTS = {
    "depth": Experiment(
        tuple(
            Variant(f"{depth}-{name}", depth=depth, layer_scale=scale)
            for depth in (12, 24, 36, 48)
            for name, scale in SCALES.items()
        ),
        images=9_600,
        epochs=2,
    ),
    "learning_rates": Experiment(
        tuple(
            Variant(f"{depth}-{name}-{rate}", depth=depth, layer_scale=scale, learning_rate=float(rate))
            for depth in RATE_DEPTHS
            for name, scale in RATE_SCALES.items()
            for rate in RATES
        ),
        images=9_600,
        epochs=2,
    ),
    "class_attention": Experiment(tuple(Variant(where, class_token=where) for where in ("first", "late", "separate"))),
    "talking_heads": Experiment((Variant("with"), Variant("without", talking_heads=False))),
    # few images, seen often, for that is where regularization shows
    "drop_path": Experiment(
        tuple(Variant(str(rate), drop_path=rate) for rate in (0.0, 0.1, 0.2)), images=2_000, epochs=20
    ),
    "resolution": Experiment(
        (
            Variant("low", patch_size=4, stages=((LOW, 1.0),)),
            Variant("high", patch_size=4, stages=((HIGH, 1.0),)),
            Variant("low then high", patch_size=4, stages=((LOW, 0.75), (HIGH, 0.25))),
        )
    ),
    "distillation": Experiment((Variant("labels"), Variant("hard distillation", distilled=True))),
}


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that prepare_fashion_mnist.py wrote")
    parser.add_argument("--experiments", nargs="+", choices=EXPERIMENTS, default=[*EXPERIMENTS], help="default: all")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output_dir", type=Path, default=RESULTS, help="default: %(default)s")
    parser.add_argument("--images", type=int, help="train on as many only, to try the script")
    args = parser.parse_args(argv)
    if args.images is not None and (args.images < BATCH or args.output_dir == RESULTS):
        sys.exit(f"error: --images is {args.images}: {BATCH} or more, and only with another --output_dir.")
    try:
        train, validation = (read_split(args.data / f"{name}.parquet") for name in ("train", "validation"))
    except OSError as error:
        sys.exit(f"error: {error}; write it by scripts/prepare_fashion_mnist.py --output_dir {args.data}")

    torch.set_num_threads(1)  # the models are too small for more
    for seed in args.seeds:  # outermost: stopped early, every experiment has its answer of fewer seeds
        for name in args.experiments:
            experiment = EXPERIMENTS[name]
            if args.images is not None:
                experiment = dataclasses.replace(experiment, images=args.images, epochs=1)
            for variant in experiment.variants:
                path = args.output_dir / name / f"{variant.name.replace(' ', '_')}.seed{seed}.json"
                if path.exists():
                    require_same_settings(path, experiment, variant)
                else:
                    write(
                        path, answer(experiment, variant, seed, train, validation, description=f"{name} {path.stem}")
                    )


def settings_of(experiment: Experiment, variant: Variant) -> dict:
    """What a result has to have been made with, as JSON contains it."""
    fields = dataclasses.asdict(variant)
    settings = {"learning_rate": fields.pop("learning_rate"), "variant": fields}
    return json.loads(json.dumps({**settings, "images": experiment.images, "epochs": experiment.epochs}))


def require_same_settings(path: Path, experiment: Experiment, variant: Variant):
    """End with an error message if a result was made by other settings than the script has now."""
    result = json.loads(path.read_text(encoding="utf-8"))
    for name, value in settings_of(experiment, variant).items():
        if result[name] != value:
            sys.exit(f"error: {path} has {name} {result[name]}, now it is {value}: remove the file to train again.")


def read_split(path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Images `(images, 1, 28, 28)`, float32, normalized, and their labels, in an order that is always the same."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    rows = datasets.Dataset.from_parquet(str(path)).shuffle(seed=0)
    scans = np.stack([np.asarray(image) for image in rows["image"]])
    return (torch.from_numpy(scans)[:, None].float() / 255 - MEAN) / STD, torch.tensor(rows["label"])


def answer(experiment: Experiment, variant: Variant, seed: int, train, validation, description: str) -> dict:
    """Train and score one model; what is known of it afterwards."""
    images, labels = (tensor[: experiment.images] for tensor in train)
    steps = round(experiment.epochs * len(labels) / BATCH)
    teacher, teacher_accuracy = None, None
    if variant.distilled:
        torch.manual_seed(seed)
        teacher = ConvolutionalTeacher()
        fit(teacher, HIGH, steps, images, labels, seed, description=f"{description} teacher")
        teacher_accuracy = accuracy(teacher, *validation)

    torch.manual_seed(seed)
    model = build(variant)
    started, losses = time.perf_counter(), []
    for stage, (size, fraction) in enumerate(variant.stages):
        if stage > 0:  # as the paper fine-tunes: positions resized once, then trained, by a new optimizer
            model.model.resize_position_embeddings(size)
        losses += fit(
            model,
            size,
            max(1, round(fraction * steps)),
            images,
            labels,
            seed + 1000 * stage,
            teacher,
            variant.learning_rate,
            description,
        )
    seconds = time.perf_counter() - started
    scores = {str(size): accuracy(model, resized(validation[0], size), validation[1])}
    if size == LOW:  # as it would be tested without fine-tuning
        scores[str(HIGH)] = accuracy(model, *validation)
    return {
        **settings_of(experiment, variant),
        "seed": seed,
        "steps": steps,
        "batch_size": BATCH,
        "parameters": sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
        "macs": macs(model, size) - mixing_macs(variant, size),
        "losses": losses,
        "accuracy": scores,
        "training_accuracy": accuracy(model, resized(images[:2000], size), labels[:2000]),
        "teacher_accuracy": teacher_accuracy,
        "branch_ratios": branch_ratios(model, resized(validation[0][:256], size)),
        "seconds": round(seconds, 1),
        "machine": f"{platform.machine()}, one thread, PyTorch {torch.__version__}",
    }


def fit(
    model: nn.Module,
    size: int,
    steps: int,
    images: torch.Tensor,
    labels: torch.Tensor,
    seed: int,
    teacher: nn.Module | None = None,
    learning_rate: float = LEARNING_RATE,
    description: str = "",
) -> list[float]:
    """Train on images of `size` pixels and return every step's loss; one that is not finite ends it early."""
    model.train()
    groups = parameter_groups(model, learning_rate, WEIGHT_DECAY)
    optimizer = torch.optim.AdamW(groups, learning_rate, fused=True)
    schedule = cosine_schedule(optimizer, steps, round(WARMUP * steps), learning_rate, 0.0, 0.0)
    generator = torch.Generator().manual_seed(seed)
    order = torch.cat(
        [torch.randperm(len(labels), generator=generator) for _ in range(-(-steps * BATCH // len(labels)))]
    )
    losses = []
    for step in tqdm(range(steps), desc=description, leave=False, disable=not sys.stderr.isatty()):
        batch = order[step * BATCH : (step + 1) * BATCH]
        inputs = images[batch]
        flipped = torch.rand(len(batch), generator=generator) < 0.5
        inputs[flipped] = inputs[flipped].flip(-1)
        logits = model(resized(inputs, size))
        loss = F.cross_entropy(logits, labels[batch])
        if teacher is not None:
            with torch.no_grad():
                best = teacher(inputs).argmax(-1)
            loss = (loss + F.cross_entropy(logits, best)) / 2
        losses.append(round(loss.item(), 5))
        if not np.isfinite(losses[-1]):
            break
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return losses


def resized(images: torch.Tensor, size: int) -> torch.Tensor:
    if images.shape[-1] == size:
        return images
    return F.interpolate(images, size=(size, size), mode="bilinear", antialias=True)


@torch.no_grad()
def accuracy(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    model.eval()
    correct = sum(
        (model(inputs).argmax(-1) == references).sum().item()
        for inputs, references in zip(images.split(250), labels.split(250))
    )
    return correct / len(labels)


def macs(model: nn.Module, size: int) -> int:
    """Of one image, as PyTorch counts matrix products and convolutions."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 1, size, size))
    return counter.get_total_flops() // 2


def mixing_macs(variant: Variant, size: int) -> int:
    """MACs of the identity projections of heads that do not talk: plain attention has none."""
    if variant.talking_heads:
        return 0
    tokens = (size // variant.patch_size) ** 2
    return variant.depth * 2 * tokens**2 * HEADS**2


def write(path: Path, result: dict):
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, result)


if __name__ == "__main__":
    main()
