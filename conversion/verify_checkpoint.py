# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""Load a converted CaiT through the Auto classes and compare its logits with recorded ones, or with timm's.

    python conversion/verify_checkpoint.py cait-xxs24-224
    python conversion/verify_checkpoint.py cait-xxs24-224 --against timm

The input are two images given by a formula (`formula_images`), larger than the model's so that resizing and
cropping count, prepared by the checkpoint's own image processor on Pillow. The model runs in float32 on the CPU.

`expected_logits.json` contains an entry for each of the ten official checkpoints and one for a small synthetic one;
that of a checkpoint is found by the architecture in its configuration. Logits in it are timm's, for weights that were
converted back by `cait_hf.state_dict`; an entry without logits says why. `--record` fills in the entry in a file of
the kind, after the checkpoint has been found to agree with timm. The exit code is 0 if all logits agree and 1
otherwise.
"""

import argparse
import json
import re
import sys
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cait_hf  # noqa: F401 - first, so that Transformers' optional packages import without messages


# isort: split

import numpy as np
import PIL.Image
import torch
from transformers import AutoModelForImageClassification
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from cait_hf import CaitConfig, CaitForImageClassification
from cait_hf.checkpoints import resolve_model
from cait_hf.command_line import add_debug_argument, run_command
from cait_hf.configuration_cait import as_pair
from cait_hf.files import read_json, write_text
from cait_hf.loading import load_weights, require_none_missing
from cait_hf.state_dict import convert_to_official_state_dict
from cait_hf.verify import TIMM, TOLERANCE, compare_logits, difference_text, logits_of, require_timm, timm_logits


EXPECTED_LOGITS = Path(__file__).with_name("expected_logits.json")
# The part of a configuration that decides which entry is a checkpoint's.
ARCHITECTURE = (
    "hidden_size",
    "num_hidden_layers",
    "num_class_attention_layers",
    "num_attention_heads",
    "intermediate_size",
    "image_size",
    "patch_size",
    "num_labels",
)


def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv` (default: the process's own); return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", metavar="REPO_OR_DIR", help="Repository on the Hub, or folder, of a CaiT.")
    parser.add_argument("--revision", default="main", help="Branch, tag or commit of the repository.")
    parser.add_argument(
        "--against",
        choices=("recorded", "timm"),
        default="recorded",
        help="What to compare with: the recorded logits, or timm's CaiT on the spot with the same weights.",
    )
    parser.add_argument("--record", action="store_true", help="Compare with timm, then write timm's logits down.")
    parser.add_argument("--expected", type=Path, default=EXPECTED_LOGITS, help="File of the recorded logits.")
    add_debug_argument(parser)
    return run_command(verify, parser.parse_args(argv))


def verify(args: argparse.Namespace):
    """Compare, report, and write down if asked to.

    Raises:
        ValueError: if the logits differ, none are recorded, or this is not a CaiT with all its weights.
        OSError: if the checkpoint or the file of expected logits cannot be read.
        ImportError: if timm is needed and absent.
    """
    against_timm = args.record or args.against == "timm"
    if against_timm:
        require_timm()
    args.checkpoint = resolve_model(args.checkpoint)
    model = load_model(args.checkpoint, args.revision)
    if args.record or not against_timm:
        expected_file = read_expected(args.expected)
        name = find_entry(expected_file, model.config, args.expected)
    if not against_timm:
        expected, tolerance = recorded_logits(expected_file["checkpoints"][name], name, args.expected)

    pixel_values = prepare_images(args.checkpoint, args.revision, model.config)
    if against_timm:
        weights = convert_to_official_state_dict(model.state_dict())
        expected, tolerance = timm_logits(model.config, weights, pixel_values), TOLERANCE
    reference = TIMM if against_timm else f"those recorded for {name}"
    difference = compare_logits(logits_of(model, pixel_values), expected, reference, tolerance)
    print(f"{args.checkpoint}: {difference_text(difference, reference)}.")

    if args.record:
        expected_file["checkpoints"][name] |= new_entry(args.checkpoint, model.config, expected)
        write_expected(args.expected, expected_file)
        print(f"Recorded {name} in {args.expected}.")


def load_model(source: str, revision: str) -> CaitForImageClassification:
    """The model in float32, from the class that the Auto classes choose."""
    model, missing = load_weights(AutoModelForImageClassification, source, torch.float32, revision)
    if not isinstance(model, CaitForImageClassification):
        raise ValueError(
            f"{source} is a {type(model).__name__}, but it must be a converted CaitForImageClassification."
        )
    require_none_missing(source, missing)
    return model


def prepare_images(source: str, revision: str, config: CaitConfig) -> torch.Tensor:
    """The formula's images as `pixel_values`, by the checkpoint's own image processor.

    The one on Pillow, whose pixels are the same everywhere; the one on torchvision rounds otherwise.
    """
    image_processor = AutoImageProcessor.from_pretrained(source, revision=revision, backend="pil")
    pixel_values = image_processor(formula_images(config), return_tensors="pt").pixel_values
    expected = (2, config.num_channels, *as_pair(config.image_size))
    if tuple(pixel_values.shape) != expected:
        raise ValueError(
            f"The image processor of {source} makes images of shape {tuple(pixel_values.shape)}, but the model "
            f"needs {expected}."
        )
    return pixel_values


def formula_images(config: CaitConfig) -> list[PIL.Image.Image]:
    """Two RGB images of 5/4 and 3/2 of the model's size, one wide and one tall.

    The value of channel c at column x and row y of image k is `((2k + c + 1) x + (3 - c) y + x y // 16) mod 256`:
    integers only, so it is the same on every machine.
    """
    size = max(as_pair(config.image_size))
    shorter, longer = size * 5 // 4, size * 3 // 2
    images = []
    for index, (height, width) in enumerate(((shorter, longer), (longer, shorter))):
        y, x, channel = np.ogrid[:height, :width, :3]
        values = (2 * index + channel + 1) * x + (3 - channel) * y + x * y // 16
        images.append(PIL.Image.fromarray((values % 256).astype(np.uint8)))
    return images


def read_expected(path: Path) -> dict[str, Any]:
    """The file of expected logits.

    Raises:
        ValueError: if it is not such a file.
        OSError: if it cannot be read.
    """
    try:
        expected = read_json(path)
        valid = all("architecture" in entry and "logits" in entry for entry in expected["checkpoints"].values())
    except (ValueError, TypeError, KeyError, AttributeError):
        valid = False
    if not valid:
        raise ValueError(
            f"expected is {path}, but it must be JSON with an architecture and logits for every checkpoint."
        )
    return expected


def architecture(config: CaitConfig) -> dict[str, int]:
    """The values of `config` by which an entry is found."""
    return {name: getattr(config, name) for name in ARCHITECTURE}


def find_entry(expected_file: dict[str, Any], config: CaitConfig, path: Path) -> str:
    """Name of the entry with the architecture of `config`."""
    for name, entry in expected_file["checkpoints"].items():
        if entry["architecture"] == architecture(config):
            return name
    values = ", ".join(f"{name} {value}" for name, value in architecture(config).items())
    raise ValueError(f"{path.name} has no entry for {values}; pass --against timm.")


def recorded_logits(entry: dict[str, Any], name: str, path: Path) -> tuple[torch.Tensor, float]:
    """Logits (images, labels) of the entry `name`, and the tolerance for them.

    Raises:
        ValueError: if none were recorded, or they or the tolerance are no numbers.
    """
    if entry["logits"] is None:
        reason = entry.get("reason", "they were not recorded")
        raise ValueError(f"{path.name} has no logits for {name} ({reason}); pass --against timm.")
    try:
        return torch.tensor(entry["logits"], dtype=torch.float32), float(entry["tolerance"])
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{path.name} has logits or a tolerance for {name} that are not numbers.") from None


def new_entry(source: str, config: CaitConfig, logits: torch.Tensor) -> dict[str, Any]:
    """What is written down of logits that timm has just computed."""
    commit = getattr(config, "_commit_hash", None)
    packages = ("torch", "timm", "transformers", "pillow")
    return {
        "logits": [[float(f"{value:.7g}") for value in row] for row in logits.tolist()],
        "reason": None,
        "tolerance": TOLERANCE,
        "recorded": {
            "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
            "checkpoint": Path(source).name if Path(source).is_dir() else source,
            "revision": commit,
            "computed_by": "timm, float32 on the CPU",
            "versions": {package: version(package) for package in packages},
        },
    }


def write_expected(path: Path, expected_file: dict[str, Any]):
    """Replace the file as a whole, one line a row of logits."""
    text = json.dumps(expected_file, indent=2)
    text = re.sub(r"\[[-+.,\d\seE]+\]", lambda row: " ".join(row[0].split()), text)
    write_text(path, f"{text}\n")


if __name__ == "__main__":
    sys.exit(main())
