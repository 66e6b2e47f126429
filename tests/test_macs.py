# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""The count of MACs against PyTorch's counter, timm's and the published numbers."""

import pytest
import torch
from random_weights import tiny_config
from torch.utils.flop_counter import FlopCounterMode

from cait_hf import CHECKPOINTS, CaitConfig, CaitForImageClassification, find_checkpoint
from cait_hf.configuration_cait import as_pair
from cait_hf.macs import macs


@pytest.mark.parametrize(
    "config",
    [
        tiny_config(),
        tiny_config(num_hidden_layers=1, num_class_attention_layers=1, num_attention_heads=3),
        tiny_config(image_size=(24, 40), patch_size=(4, 8), num_channels=1, num_labels=7),
        tiny_config(hidden_size=64, num_attention_heads=2, intermediate_size=80, num_class_attention_layers=4),
        CaitConfig(**find_checkpoint("XXS24_224").config_kwargs, num_labels=1000),
    ],
    ids=["tiny", "one layer each", "not square", "wide", "XXS24_224"],
)
def test_macs_are_what_torch_counts(config):
    config._attn_implementation = "eager"
    with torch.device("meta"):
        model = CaitForImageClassification(config).eval().requires_grad_(False)
        image = torch.zeros(1, config.num_channels, *as_pair(config.image_size))
    with FlopCounterMode(display=False) as counter:
        model(image)
    assert counter.get_total_flops() == 2 * macs(config)


@pytest.mark.parametrize("checkpoint", CHECKPOINTS, ids=lambda checkpoint: checkpoint.hub_name)
def test_macs_agree_with_timm_and_with_the_published(checkpoint):
    counted = macs(CaitConfig(**checkpoint.config_kwargs, num_labels=1000)) / 1e9
    assert counted == pytest.approx(checkpoint.timm_gmacs, rel=0.01)
    assert counted == pytest.approx(checkpoint.published_gmacs, rel=0.015)
