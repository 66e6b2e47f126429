# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""The two attentions of CaiT as plain functions of tensors, as the paper writes them.

Sources: "Going deeper with Image Transformers" (arXiv 2103.17239), section 3 (class-attention) and appendix (talking
heads, from arXiv 2003.02436); facebookresearch/deit, `cait_models.py`, `Attention_talking_head` and `Class_Attention`.

Shapes: B images, H heads, N patches, D channels of a head.
"""

from typing import Any

import torch
from torch import nn
from torch.autograd.forward_ad import unpack_dual


def talking_heads_attention_forward(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    proj_l_weight: torch.Tensor,
    proj_l_bias: torch.Tensor,
    proj_w_weight: torch.Tensor,
    proj_w_bias: torch.Tensor,
    scaling: float,
    dropout: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Self-attention whose heads are mixed linearly before (`proj_l`) and after (`proj_w`) the softmax.

    Args:
        query, key, value (`torch.Tensor` of shape `(B, H, N, D)`): the projected patches.
        proj_l_weight, proj_w_weight (`torch.Tensor` of shape `(H, H)`): row h is the weights of output head h.
        proj_l_bias, proj_w_bias (`torch.Tensor` of shape `(H,)`): added to every entry of a head's map.
        scaling (`float`): factor of the scores, applied before the pre-softmax projection.
        dropout (`float`): probability of zeroing an entry of the mixed maps (0 outside training).

    Returns:
        The attended values `(B, N, H, D)` and the maps that multiplied them `(B, H, N, N)`. Rows of these maps need
        not sum to 1 and may be negative: the post-softmax projection follows the softmax.
    """
    scores = torch.matmul(query * scaling, key.transpose(-1, -2))  # scaled first: float16 overflows at 65504
    scores = mix_heads(scores, proj_l_weight, proj_l_bias)
    attention = mix_heads(_softmax(scores).to(value.dtype), proj_w_weight, proj_w_bias)
    attention = nn.functional.dropout(attention, p=dropout)
    return torch.matmul(attention, value).transpose(1, 2), attention


def mix_heads(maps: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """`mixed[b, h] = sum over g of weight[h, g] * maps[b, g] + bias[h]` for maps `(B, H, N, M)`, without a permute."""
    # bmm, since matmul would fold the maps of all images into one matrix: a copy, and for torch.export a condition
    # on the batch size
    mixed = torch.bmm(weight.expand(maps.shape[0], -1, -1), maps.flatten(2))
    return (mixed + bias[:, None].to(mixed.dtype)).view(maps.shape)


def class_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    scaling: float,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Softmax attention of the class token over the class token and the patches, in transformers' interface.

    Args:
        query (`torch.Tensor` of shape `(B, H, 1, D)`): the projected class token.
        key, value (`torch.Tensor` of shape `(B, H, 1 + N, D)`): the projected class token, then the patches.
        attention_mask: always `None`: every patch is an image's.

    Returns:
        The attended values `(B, 1, H, D)` and the map `(B, H, 1, 1 + N)`, whose rows sum to 1.
    """
    attention = _softmax(torch.matmul(query * scaling, key.transpose(-1, -2))).to(value.dtype)
    return torch.matmul(attention, value).transpose(1, 2), attention


def is_transformed(*tensors: torch.Tensor) -> bool:
    """Whether a transform of `torch.func` is active, or a tensor carries a forward-mode derivative.

    These need formulas whose every step PyTorch can differentiate in both modes, to any order, and batch.
    """
    # what PyTorch's own FSDP asks; no public function tells
    if torch._C._are_functorch_transforms_active():
        return True
    return any(unpack_dual(tensor).tangent is not None for tensor in tensors)


def _softmax(scores: torch.Tensor) -> torch.Tensor:
    # float16 and bfloat16 sums over hundreds of patches lose digits, and float16 overflows: at least float32
    return nn.functional.softmax(scores, dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32))
