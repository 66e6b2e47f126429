# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""Random weights under which every part of a CaiT matters, and tiny configurations.

At the default LayerScale (1e-5) a randomly initialized CaiT is its embeddings and its classifier: a parity test passes
with the attention removed. Every numerical test draws its weights here; `test_every_parameter_matters` proves them.
"""

import torch

from cait_hf import CaitConfig


TINY = {
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_class_attention_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "image_size": 32,
    "patch_size": 8,
    "layer_scale_init_value": 1.0,
    "num_labels": 5,
}


def tiny_config(**overrides) -> CaitConfig:
    """16 patches, 3 patch layers, 2 class layers, 5 labels."""
    return CaitConfig(**{**TINY, **overrides})


@torch.no_grad()
def randomize_(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Draw every parameter so that each contributes visibly to the logits; returns the model in evaluation mode.

    The scores have a standard deviation of a few units, so the softmax is neither flat nor one-hot; the talking-heads
    projections are far from the identity; no bias is zero. What adds the same vector to all patches (biases, above all
    that of the post-softmax projection, which all values share) is kept small: larger, it makes the patches of a deep
    model alike, and attention over equal patches says nothing.
    """
    generator = torch.Generator().manual_seed(seed)
    num_patches = model.get_position_embeddings().shape[1]

    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        if "lambda1" in name:
            parameter.copy_(0.5 + 0.15 * noise)
        elif "layernorm" in name and name.endswith("weight"):
            parameter.copy_(1.0 + 0.2 * noise)
        elif name.endswith("proj_w_bias"):
            parameter.copy_(0.5 / num_patches * noise)
        elif name.endswith("bias"):
            parameter.copy_(0.1 * noise)
        elif parameter.ndim == 3:  # class token and positions
            parameter.copy_(noise)
        else:
            gain = 2.0 if name.endswith(("q_proj.weight", "k_proj.weight")) else 1.0
            parameter.copy_(gain * parameter[0].numel() ** -0.5 * noise)
    return model.eval()


def images(batch_size: int, height: int, width: int | None = None, channels: int = 3, seed: int = 1) -> torch.Tensor:
    """Normalized random images `(batch, channels, height, width)`, float32."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch_size, channels, height, width or height, generator=generator)
