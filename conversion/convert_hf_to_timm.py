# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""Convert a `CaitForImageClassification` to timm's Hub format: config.json and model.safetensors with official keys.

    python conversion/convert_hf_to_timm.py --source cait-xxs24-224 --output_dir cait-for-timm
    python -c "import timm; timm.create_model('local-dir:cait-for-timm', pretrained=True)"

The way back from `convert_cait_to_hf.py`. timm itself is not needed. `architecture` is timm's name of the official
architecture (`timm/models/cait.py`); `model_args` contains what differs from it.
"""

import argparse
import json
import math
import signal
import sys
from pathlib import Path
from typing import Any

import safetensors.torch

from cait_hf import CHECKPOINTS, CaitCheckpoint, CaitConfig, CaitImageProcessorPil
from cait_hf.checkpoints import resolve_model
from cait_hf.command_line import add_debug_argument, run_command
from cait_hf.configuration_cait import as_pair
from cait_hf.files import new_folder
from cait_hf.loading import load_model, require_finite
from cait_hf.state_dict import convert_to_official_state_dict
from cait_hf.timm_format import timm_model_args


def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv` (default: the process's own); return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True, help="Folder or repository with a CaitForImageClassification.")
    parser.add_argument("--output_dir", required=True, type=Path, help="Folder to write.")
    parser.add_argument("--overwrite", action="store_true", help="Replace an output folder that is not empty.")
    add_debug_argument(parser)
    return run_command(convert, parser.parse_args(argv))


def convert(args: argparse.Namespace):
    """Load, convert, write to a temporary folder, and only then give it its name."""
    args.source = resolve_model(args.source)
    with new_folder(args.output_dir, args.source, args.overwrite) as folder:
        model = load_model(args.source)
        require_finite(args.source, model.state_dict())
        timm_config = timm_config_dict(model.config, load_image_processor(args.source, model.config))
        (folder / "config.json").write_text(json.dumps(timm_config, indent=2) + "\n", encoding="utf-8")
        tensors = convert_to_official_state_dict(model.state_dict())
        safetensors.torch.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    print(f"Wrote {args.output_dir}: {timm_config['architecture']}, model_args {timm_config['model_args']}.")


def load_image_processor(source: str, config: CaitConfig) -> CaitImageProcessorPil:
    """The preparation of the images that `source` states, else the one of the official checkpoints."""
    try:
        return CaitImageProcessorPil.from_pretrained(source)
    except OSError:
        height, width = as_pair(config.image_size)
        return CaitImageProcessorPil(
            size={"shortest_edge": min(height, width)}, crop_size={"height": height, "width": width}
        )


def timm_config_dict(config: CaitConfig, image_processor: CaitImageProcessorPil) -> dict[str, Any]:
    """Content of timm's `config.json`.

    `interpolate_pos_encoding` has no counterpart: a CaiT in timm takes images of one size only.

    Raises:
        ValueError: if the network or the preparation of its images has an option that timm lacks.
    """
    checkpoint = closest_checkpoint(config)
    model_args = timm_model_args(config)
    defaults = timm_model_args(CaitConfig(**checkpoint.config_kwargs, num_labels=config.num_labels))
    labels = list(config.id2label.values())
    return {
        "architecture": checkpoint.timm_name,
        "num_classes": config.num_labels,
        "num_features": config.hidden_size,
        "global_pool": "token",
        "model_args": {name: value for name, value in model_args.items() if value != defaults[name]},
        "label_names": labels,
        "pretrained_cfg": {
            "custom_load": False,
            "input_size": [config.num_channels, *as_pair(config.image_size)],
            "fixed_input_size": True,
            "interpolation": image_processor.resample.name.lower(),
            "crop_pct": crop_pct(image_processor),
            "crop_mode": "center",
            "mean": list(image_processor.image_mean),
            "std": list(image_processor.image_std),
            "num_classes": config.num_labels,
            "pool_size": None,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
    }


def closest_checkpoint(config: CaitConfig) -> CaitCheckpoint:
    """The official checkpoint whose architecture has most in common with `config`."""

    def agreements(checkpoint: CaitCheckpoint) -> int:
        return sum(getattr(config, name) == value for name, value in checkpoint.config_kwargs.items())

    return max(CHECKPOINTS, key=agreements)


def crop_pct(image_processor: CaitImageProcessorPil) -> float:
    """Side of the crop in units of the shortest edge, from which timm finds the edge as floor(crop / crop_pct)."""
    edge = image_processor.size.get("shortest_edge")
    if edge is None:
        raise ValueError(
            f"size is {image_processor.size} in preprocessor_config.json, but timm needs a shortest_edge."
        )
    crop = image_processor.crop_size["height"]
    return crop / edge if math.floor(crop / (crop / edge)) == edge else crop / (edge + 0.5)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # clean up when terminated, too
    sys.exit(main())
