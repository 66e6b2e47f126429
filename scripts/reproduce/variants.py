# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""The models that the paper compares CaiT with, made of CaiT's own layers, so that nothing else differs."""

from dataclasses import dataclass

import torch
from torch import nn

from cait_hf import CaitConfig, CaitForImageClassification


# The official 0.02 for weights is for 384 channels; as many times larger as keeps a layer's gain, sqrt(384 / 32).
WIDTH, HEADS, INITIALIZER_RANGE = 32, 4, 0.07
LEARNING_RATE = 2e-3


@dataclass(frozen=True)
class Variant:
    """What one model of a comparison is, and how it is trained.

    Args:
        layer_scale: initial value of LayerScale's vectors; None for branches that are added as they are; "scalar" for
            one learned factor a branch that starts at 0 (ReZero's, arXiv 2003.04887, but LayerNorm and warm-up stay).
        class_token: "separate" stage of two layers (CaiT), among the patches from the "first" layer (ViT), or "late",
            after two thirds of the layers.
        stages: resolution in pixels and fraction of the training for each part of it.
        learning_rate: AdamW's, at the end of the warm-up.
    """

    name: str
    depth: int = 12
    layer_scale: float | str | None = 0.1
    class_token: str = "separate"
    talking_heads: bool = True
    drop_path: float = 0.0
    distilled: bool = False
    patch_size: int = 7
    stages: tuple[tuple[int, float], ...] = ((28, 1.0),)
    learning_rate: float = LEARNING_RATE


def build(variant: Variant) -> nn.Module:
    """A model that takes `pixel_values` `(batch, 1, height, width)` and returns logits `(batch, 10)`."""
    config = CaitConfig(
        hidden_size=WIDTH,
        num_hidden_layers=variant.depth,
        num_attention_heads=HEADS,
        intermediate_size=4 * WIDTH,
        num_channels=1,
        image_size=variant.stages[0][0],
        patch_size=variant.patch_size,
        num_labels=10,
        drop_path_rate=variant.drop_path,
        layer_scale_init_value=variant.layer_scale if isinstance(variant.layer_scale, float) else 1.0,
        initializer_range=INITIALIZER_RANGE,
        interpolate_pos_encoding=True,
        attn_implementation="eager",  # plain products, which PyTorch's counter of operations knows
    )
    model = CaitForImageClassification(config)
    for module in model.modules():
        if hasattr(module, "lambda1") and variant.layer_scale is None:
            module.lambda1.requires_grad_(False)
        elif hasattr(module, "lambda1") and variant.layer_scale == "scalar":
            module.lambda1 = nn.Parameter(torch.zeros(1))
        if hasattr(module, "proj_l_weight") and not variant.talking_heads:
            for weight, bias in (
                (module.proj_l_weight, module.proj_l_bias),
                (module.proj_w_weight, module.proj_w_bias),
            ):
                nn.init.eye_(weight).requires_grad_(False)
                nn.init.zeros_(bias).requires_grad_(False)
    if variant.class_token == "separate":
        return _Logits(model)
    return ClassTokenAmongPatches(model, 0 if variant.class_token == "first" else variant.depth * 2 // 3)


class _Logits(nn.Module):
    def __init__(self, model: CaitForImageClassification):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.model(pixel_values).logits


class ClassTokenAmongPatches(nn.Module):
    """Without class-attention: the class token joins the patches before a layer and attends like one of them.

    Args:
        model: the CaiT whose layers are used, except those of the class stage.
        joins_at (`int`): the layer before which the class token joins; 0 is ViT.
    """

    def __init__(self, model: CaitForImageClassification, joins_at: int):
        super().__init__()
        cait = model.cait
        self.embeddings, self.layers, self.layernorm = cait.embeddings, cait.layers, cait.layernorm
        self.classifier, self.joins_at = model.classifier, joins_at

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        hidden_states, class_token = self.embeddings(pixel_values)
        for index, layer in enumerate(self.layers):
            if index == self.joins_at:
                hidden_states = torch.cat((class_token, hidden_states), dim=1)
            hidden_states = layer(hidden_states)
        return self.classifier(self.layernorm(hidden_states[:, 0]))


class ConvolutionalTeacher(nn.Sequential):
    """A small convolutional network, for the distillation."""

    def __init__(self):
        blocks = []
        for inputs, outputs in ((1, 32), (32, 64), (64, 128)):
            convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
            blocks += [convolution, nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2)]
        super().__init__(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10))


@torch.no_grad()
def branch_ratios(model: nn.Module, pixel_values: torch.Tensor) -> dict[str, list[float]]:
    """Of each patch layer how large its residual branches are, as they are added, against what they are added to.

    Returns:
        "attention" and "mlp": mean over images and tokens of |branch| / |main path| (L2 norms), a layer each.
    """
    ratios = {"attention": [], "mlp": []}
    hooks = []
    layers = next(module for name, module in model.named_modules() if name.split(".")[-1] == "layers")
    for layer in layers:
        for name, scale in (("attention", layer.layer_scale1), ("mlp", layer.layer_scale2)):

            def record(module, inputs, output, name=name):
                branch, main = inputs[0] * module.lambda1, inputs[1]
                ratios[name].append((branch.norm(dim=-1) / main.norm(dim=-1)).mean().item())

            hooks.append(scale.register_forward_hook(record))
    model.eval()(pixel_values)
    for hook in hooks:
        hook.remove()
    return ratios
