# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""float32, bfloat16 and float16 give the same logits, to rounding, at every resolution up to 448 and at M48's depth.

The authors advise to evaluate M48 in float32 (facebookresearch/deit, `README_cait.md`) without saying what happens
otherwise. Distances are in standard deviations of the logits, from float64; every part of the models matters.
"""

import contextlib
import copy

import pytest
import torch
from random_weights import images, randomize_, tiny_config

from cait_hf import CHECKPOINTS, CaitConfig, CaitForImageClassification
from cait_hf.attention_cait import class_attention_forward, talking_heads_attention_forward
from cait_hf.attention_fused import fused_talking_heads_attention_forward


FORMATS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# bfloat16 has 3 bits fewer than float16; measured: up to 4e-6, 0.041 and 0.0046.
TOLERANCES = {"float32": 2e-5, "bfloat16": 0.1, "float16": 0.0125}
# 48 layers of that width at 448 pixels; measured: 0.041 and 0.0076.
DEEP_TOLERANCES = {"bfloat16": 0.1, "float16": 0.02}
# M48's 48 layers and width; measured: 0.16 and 0.061.
M48_TOLERANCES = {"bfloat16": 0.4, "float16": 0.15}


@torch.no_grad()
def logits_of(model, pixel_values: torch.Tensor, autocast: torch.dtype | None = None) -> torch.Tensor:
    with torch.autocast("cpu", dtype=autocast) if autocast else contextlib.nullcontext():
        return model(pixel_values, interpolate_pos_encoding=True).logits


def distance(logits: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference in standard deviations of the logits; NaN, which no bound admits, if one is not finite."""
    return float((logits.double() - expected).abs().max() / expected.double().std())


@pytest.fixture(scope="module")
def model() -> CaitForImageClassification:
    return randomize_(CaitForImageClassification(tiny_config(image_size=448, patch_size=16, num_labels=50)))


@pytest.mark.parametrize("attn_implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("size", [224, 384, 448])
@pytest.mark.parametrize("name", FORMATS)
def test_formats_agree(model, name, size, attn_implementation):
    expected = logits_of(copy.deepcopy(model).double(), images(2, size))
    rounded = copy.deepcopy(model).to(FORMATS[name])
    rounded.set_attn_implementation(attn_implementation)
    logits = logits_of(rounded, images(2, size))
    assert logits.dtype == FORMATS[name] and distance(logits, expected) < TOLERANCES[name]


@pytest.mark.parametrize("attn_implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("name", ["bfloat16", "float16"])
def test_autocast_agrees(model, name, attn_implementation):
    """And it leaves the residual stream in float32, where the branches of all layers add up."""
    expected = logits_of(copy.deepcopy(model).double(), images(2, 448))
    model.set_attn_implementation(attn_implementation)
    assert distance(logits_of(model, images(2, 448), autocast=FORMATS[name]), expected) < TOLERANCES[name]
    with torch.autocast("cpu", dtype=FORMATS[name]):
        outputs = model.cait(images(1, 448), output_hidden_states=True)
    assert {hidden_states.dtype for hidden_states in outputs.hidden_states} == {torch.float32}


TALKING = {"formulas": talking_heads_attention_forward, "operator": fused_talking_heads_attention_forward}


@pytest.mark.parametrize("name", ["class attention", *TALKING])
def test_large_scores_do_not_overflow_in_float16(name):
    """Products of queries and keys above float16's largest number, 65504, that the scaling brings below it."""
    torch.manual_seed(0)
    heads, patches, head_dim = 4, 49, 64
    query, key, value = (torch.randn(1, heads, patches, head_dim, dtype=torch.float16) for _ in range(3))
    query, key = query.sign() * 80, query.sign() * 80 + key
    assert (query.double() @ key.double().transpose(-1, -2)).max() > 2**18
    weight, bias = torch.eye(heads, dtype=torch.float16), torch.zeros(heads, dtype=torch.float16)

    def attend(dtype: torch.dtype) -> torch.Tensor:
        q, k, v, w, b = (tensor.to(dtype) for tensor in (query, key, value, weight, bias))
        if name == "class attention":
            return class_attention_forward(None, q[:, :, :1], k, v, None, head_dim**-0.5)[0]
        return TALKING[name](q, k, v, w, b, w, b, head_dim**-0.5)[0]

    torch.testing.assert_close(attend(torch.float16).double(), attend(torch.float64), rtol=1e-3, atol=1e-3)


@pytest.fixture(scope="module")
def deep() -> tuple[CaitForImageClassification, torch.Tensor]:
    """M48's depth at the tiny width, and its logits in float64. 32 pixels a patch: 196 patches."""
    config = tiny_config(num_hidden_layers=48, image_size=448, patch_size=32, num_labels=50)
    model = randomize_(CaitForImageClassification(config))
    return model, logits_of(copy.deepcopy(model).double(), images(2, 448))


@pytest.mark.parametrize("autocast", [False, True], ids=["weights", "autocast"])
@pytest.mark.parametrize("name", DEEP_TOLERANCES)
def test_48_layers_at_448_pixels(deep, name, autocast):
    model, expected = deep
    model = model if autocast else copy.deepcopy(model).to(FORMATS[name])
    logits = logits_of(model, images(2, 448), autocast=FORMATS[name] if autocast else None)
    assert distance(logits, expected) < DEEP_TOLERANCES[name]


@pytest.fixture(scope="module")
def m48() -> CaitForImageClassification:
    """M48's depth, width and heads, with LayerScale of order 1."""
    official = next(checkpoint for checkpoint in CHECKPOINTS if checkpoint.official_name == "M48_448")
    config = CaitConfig(**{**official.config_kwargs, "layer_scale_init_value": 1.0}, num_labels=1000)
    assert (config.num_hidden_layers, config.hidden_size, config.image_size) == (48, 768, 448)
    return randomize_(CaitForImageClassification(config))


@pytest.mark.slow
@pytest.mark.parametrize("autocast", [False, True], ids=["weights", "autocast"])
@pytest.mark.parametrize("name", M48_TOLERANCES)
def test_m48_in_half_precision(m48, name, autocast):
    """At 224 pixels: a processor that cannot compute in half precision takes minutes for 448."""
    expected = logits_of(m48, images(1, 224))
    model = m48 if autocast else copy.deepcopy(m48).to(FORMATS[name])
    logits = logits_of(model, images(1, 224), autocast=FORMATS[name] if autocast else None)
    assert distance(logits, expected) < M48_TOLERANCES[name]
