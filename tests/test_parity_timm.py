# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""Logits, hidden states, attention maps and gradients equal timm's CaiT, for the ten official architectures.

timm's model computes the same mathematics as the official code and has the same parameter names. The weights are those
of `random_weights.randomize_`, under which every part matters (shown by `test_every_parameter_matters`).

Tolerances are relative to the largest absolute value of the compared tensor. float64 is the proof of equal
mathematics: 1e-12 leaves two decades above the rounding of these depths. float32 is the proof that ours rounds no
worse: 1e-5, and 1e-4 for gradients, because these weights amplify rounding: timm's own gradients in float32 differ
from those in float64 by up to 4e-5.
"""

import pytest
import torch
from random_weights import images, randomize_, tiny_config

from cait_hf import CHECKPOINTS, CaitConfig, CaitForImageClassification
from cait_hf.state_dict import convert_to_official_state_dict
from cait_hf.timm_format import timm_model_args


timm = pytest.importorskip("timm", reason="the reference is timm's CaiT, which needs torchvision")

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}
GRADIENT_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-12}

# Nothing depends on these two (see test_every_parameter_matters): their gradient is rounding, here and in timm.
WITHOUT_INFLUENCE = ("proj_l.bias", "attn.k.bias")

# The M models at full depth would need 12 GB for the float64 gradients: their width is tested at 2 layers.
REDUCED_DEPTH = {checkpoint.timm_name: 2 for checkpoint in CHECKPOINTS if checkpoint.hidden_size == 768}


def models(checkpoint, dtype) -> tuple[CaitForImageClassification, torch.nn.Module]:
    depth = REDUCED_DEPTH.get(checkpoint.timm_name, checkpoint.num_hidden_layers)
    config = CaitConfig(**{**checkpoint.config_kwargs, "num_hidden_layers": depth}, num_labels=1000)
    ours = randomize_(CaitForImageClassification(config)).to(dtype)
    reference = timm.create_model(checkpoint.timm_name, depth=depth).to(dtype).eval()
    reference.load_state_dict(convert_to_official_state_dict(ours.state_dict()), strict=True)
    return ours, reference


def difference(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return ((actual - expected).abs().max() / expected.abs().max()).item()


def record_outputs(modules) -> list[torch.Tensor]:
    outputs = []
    for module in modules:
        module.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    return outputs


def cases():
    for checkpoint in CHECKPOINTS:
        # full depth at 384 pixels in float64 takes about a minute and 5 GB a model
        large = checkpoint.image_size > 224 and checkpoint.timm_name not in REDUCED_DEPTH
        for dtype, marks in ((torch.float32, ()), (torch.float64, pytest.mark.slow if large else ())):
            name = f"{checkpoint.timm_name}-{str(dtype).removeprefix('torch.')}"
            yield pytest.param(checkpoint, dtype, marks=marks, id=name)


@pytest.mark.parametrize(("checkpoint", "dtype"), list(cases()))
def test_logits_hidden_states_and_gradients(checkpoint, dtype):
    ours, reference = models(checkpoint, dtype)
    reference_hidden = record_outputs(reference.blocks)
    reference_class = record_outputs(reference.blocks_token_only)
    pixel_values = images(1, checkpoint.image_size).to(dtype)
    labels = torch.tensor([7])
    tolerance = TOLERANCE[dtype]
    logits = reference(pixel_values)
    torch.nn.functional.cross_entropy(logits, labels).backward()
    expected = {name: value.grad for name, value in reference.named_parameters()}
    largest = max(gradient.abs().max() for gradient in expected.values())

    for implementation in ("eager", "sdpa"):
        ours.set_attn_implementation(implementation)
        ours.zero_grad()
        outputs = ours(pixel_values, labels=labels, output_hidden_states=True, output_class_hidden_states=True)
        assert difference(outputs.logits, logits) <= tolerance
        assert len(outputs.hidden_states) == len(reference_hidden) + 1
        for actual, layer in zip(outputs.hidden_states[1:], reference_hidden, strict=True):
            assert difference(actual, layer) <= tolerance
        for actual, layer in zip(outputs.class_hidden_states, reference_class, strict=True):
            assert difference(actual, layer) <= tolerance

        outputs.loss.backward()
        gradients = convert_to_official_state_dict({name: value.grad for name, value in ours.named_parameters()})
        assert gradients.keys() == expected.keys()
        for name, gradient in gradients.items():
            scale = largest if name.endswith(WITHOUT_INFLUENCE) else expected[name].abs().max()
            error = ((gradient - expected[name]).abs().max() / scale).item()
            assert error <= GRADIENT_TOLERANCE[dtype], (implementation, name)


def test_attention_maps():
    """The maps we return are the ones that timm's layers multiply the values with."""
    config = tiny_config()
    ours = randomize_(CaitForImageClassification(config)).double()
    reference = timm_model(ours)
    maps = []
    for block in reference.blocks:
        block.attn.attn_drop.register_forward_hook(lambda _module, _inputs, output: maps.append(output))
    class_maps = []
    for block in reference.blocks_token_only:
        block.attn.fused_attn = False
        block.attn.attn_drop.register_forward_hook(lambda _module, _inputs, output: class_maps.append(output))
    pixel_values = images(2, 32).double()
    with torch.no_grad():
        reference(pixel_values)
        outputs = ours(pixel_values, output_attentions=True)
    for actual, expected in zip(outputs.attentions + outputs.class_attentions, maps + class_maps, strict=True):
        assert actual.shape == expected.shape
        assert difference(actual, expected) <= 1e-12


def timm_model(model: CaitForImageClassification) -> torch.nn.Module:
    reference = timm.models.cait.Cait(**timm_model_args(model.config)).to(model.dtype)
    reference.load_state_dict(convert_to_official_state_dict(model.state_dict()), strict=True)
    return reference.eval()


@pytest.mark.parametrize(
    "overrides",
    [
        {"image_size": (24, 48)},
        {"qkv_bias": False},
        {"num_class_attention_layers": 1, "num_hidden_layers": 1},
        {"num_attention_heads": 1},
        {"num_channels": 1},
        {"num_attention_heads": 16, "intermediate_size": 48},
    ],
    ids=str,
)
def test_other_architectures(overrides):
    ours = randomize_(CaitForImageClassification(tiny_config(**overrides))).double()
    height, width = ours.cait.embeddings.image_size
    pixel_values = images(2, height, width, channels=ours.config.num_channels).double()
    with torch.no_grad():
        assert difference(ours(pixel_values).logits, timm_model(ours)(pixel_values)) <= 1e-12


def test_every_parameter_matters():
    """Zeroing or permuting any tensor moves the logits by more than 100 times the float32 parity tolerance.

    Two kinds cannot: they add the same number to all scores of a row, which softmax ignores. These are the pre-softmax
    bias and the key bias (query . key_bias does not depend on the key, and mixing heads keeps that so).
    """
    model = randomize_(CaitForImageClassification(tiny_config())).double()
    pixel_values = images(2, 32).double()
    with torch.no_grad():
        logits = model(pixel_values).logits
        for name, parameter in model.named_parameters():
            original = parameter.clone()
            for change in (torch.zeros_like(original), original.flatten().roll(1).view_as(original)):
                parameter.copy_(change)
                moved = difference(model(pixel_values).logits, logits)
                parameter.copy_(original)
                if name.endswith(("proj_l_bias", "k_proj.bias")):
                    assert moved <= 1e-12, name
                else:
                    assert moved > 100 * TOLERANCE[torch.float32], name


def test_initialization_follows_the_official_recipe():
    """Same distribution as timm's (= official) initialization, parameter by parameter: mean, spread and extremes."""
    config = CaitConfig(num_hidden_layers=2, num_labels=1000, layer_scale_init_value=1e-5)
    torch.manual_seed(0)
    ours = convert_to_official_state_dict(CaitForImageClassification(config).state_dict())
    reference = timm.models.cait.Cait(embed_dim=192, depth=2, num_heads=4, init_values=1e-5).state_dict()
    for name, expected in reference.items():
        if expected.unique().numel() == 1:
            assert torch.equal(ours[name], expected), name
            continue
        count, spread = expected.numel(), expected.std().item()
        assert ours[name].std().item() == pytest.approx(spread, rel=min(0.9, 6 / (2 * count) ** 0.5)), name
        assert abs(ours[name].mean().item()) <= 6 * spread / count**0.5, name
        is_uniform = name.startswith("patch_embed")  # the convolution keeps PyTorch's default
        assert (ours[name].abs().max().item() <= 2 * spread) == is_uniform or count < 100, name
