# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""Files as the authors and as timm publish them, with small random weights, and checkpoints of that size."""

import json
from dataclasses import replace
from pathlib import Path

import safetensors.torch
import torch
from random_weights import randomize_

from cait_hf import CaitCheckpoint, CaitConfig, CaitForImageClassification, find_checkpoint
from cait_hf.state_dict import convert_to_official_state_dict


TINY_TIMM = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 4, "num_classes": 5}


def official_tensors(config: CaitConfig, seed: int = 0) -> dict[str, torch.Tensor]:
    return convert_to_official_state_dict(randomize_(CaitForImageClassification(config), seed).state_dict())


def write_pth(file: Path, official) -> Path:
    torch.save({"model": {f"module.{key}": tensor for key, tensor in official.items()}}, file)
    return file


def write_timm_folder(folder: Path, official, **config) -> Path:
    """As timm's `save_for_hf` writes it, for tests that run without timm."""
    folder.mkdir(parents=True)
    safetensors.torch.save_file(official, folder / "model.safetensors", metadata={"format": "pt"})
    model_args = {**TINY_TIMM, "mlp_ratio": 2.0, "mlp_ratio_token_only": 2.0}
    pretrained_cfg = {"input_size": [3, 32, 32], "interpolation": "bicubic", "crop_pct": 1.0, "num_classes": 5}
    config = {"architecture": "cait_xxs24_224", "model_args": model_args, "pretrained_cfg": pretrained_cfg, **config}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def write_xxs24_timm_folder(folder: Path) -> Path:
    """timm's repository of XXS24_224, which leaves out what its name says, with random weights."""
    weights = official_tensors(CaitConfig(num_labels=1000))
    pretrained_cfg = {"tag": "fb_dist_in1k", "input_size": [3, 224, 224], "interpolation": "bicubic", "crop_pct": 1.0}
    return write_timm_folder(folder, weights, num_classes=1000, model_args={}, pretrained_cfg=pretrained_cfg)


def tiny_checkpoint(official_name: str, **overrides) -> CaitCheckpoint:
    """The checkpoint as if it were of 4 patches and 3 layers of 48 channels, with its 1000 classes."""
    checkpoint = find_checkpoint(official_name)
    if checkpoint.hidden_size == 48:  # replaced by a test already
        return checkpoint
    checkpoint = replace(
        checkpoint, image_size=32, hidden_size=48, num_hidden_layers=3, timm_file_sha256=None, **overrides
    )
    with torch.device("meta"):
        model = CaitForImageClassification(CaitConfig(**checkpoint.config_kwargs, num_labels=1000))
    return replace(checkpoint, num_parameters=model.num_parameters())


def tiny_official_tensors(checkpoint: CaitCheckpoint, seed: int = 0) -> dict[str, torch.Tensor]:
    return official_tensors(CaitConfig(**checkpoint.config_kwargs, num_labels=1000), seed)


def write_tiny_timm_folder(folder: Path, checkpoint: CaitCheckpoint, official) -> Path:
    """timm's repository of a checkpoint of `tiny_checkpoint`."""
    model_args = {
        "img_size": checkpoint.image_size,
        "embed_dim": checkpoint.hidden_size,
        "depth": checkpoint.num_hidden_layers,
        "init_values": checkpoint.layer_scale_init_value,
    }
    pretrained_cfg = {"tag": "fb_dist_in1k", "input_size": [3, 32, 32], "crop_pct": 1.0, "interpolation": "bicubic"}
    return write_timm_folder(
        folder, official, architecture=checkpoint.timm_name, model_args=model_args, pretrained_cfg=pretrained_cfg
    )
