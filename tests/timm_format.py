# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""Folders in the format of timm's Hub repositories (`timm/cait_*`), with random weights."""

import json
from pathlib import Path

import safetensors.torch
from random_weights import randomize_

from cait_hf import CaitConfig, CaitForImageClassification
from cait_hf.state_dict import convert_to_official_state_dict


def write_timm_folder(folder: Path, architecture: str = "cait_xxs24_224", num_classes: int = 1000) -> Path:
    """A CaiT of the architecture of XXS24_224 as timm stores it."""
    folder.mkdir(parents=True)
    model = randomize_(CaitForImageClassification(CaitConfig(num_labels=num_classes)))
    weights = convert_to_official_state_dict(model.state_dict())
    safetensors.torch.save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    pretrained_cfg = {
        "tag": "fb_dist_in1k",
        "input_size": [3, 224, 224],
        "interpolation": "bicubic",
        "crop_pct": 1.0,
        "crop_mode": "center",
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "num_classes": num_classes,
    }
    config = {"architecture": architecture, "num_classes": num_classes, "pretrained_cfg": pretrained_cfg}
    (folder / "config.json").write_text(json.dumps(config))
    return folder
