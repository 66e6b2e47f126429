# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""Talking-heads attention as one operator, `torch.ops.cait_hf.talking_heads_attention`, which returns no maps.

A layer keeps only queries, keys and values for the backward pass, which makes the maps again. On a CPU the operator
works in a C++ library (`attention_native.py`) or, without it, block by block in PyTorch's operations
(`attention_blocked.py`), on an NVIDIA GPU in Triton kernels (`attention_triton.py`).
`torch.compile` keeps it as one node; `torch.export` and `torch.jit.trace` record the formulas of `attention_cait.py`
in its place, which every runtime supports.

Shapes: B images, H heads, N patches, D channels of a head.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from .attention_blocked import backward as blocked_backward
from .attention_blocked import forward as blocked_forward
from .attention_cait import is_transformed, talking_heads_attention_forward
from .attention_native import backward as native_backward
from .attention_native import forward as native_forward
from .attention_native import is_available as native_is_available
from .attention_triton import backward as triton_backward
from .attention_triton import forward as triton_forward
from .attention_triton import is_available as triton_is_available


def fused_talking_heads_attention_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    proj_l_weight: Tensor,
    proj_l_bias: Tensor,
    proj_w_weight: Tensor,
    proj_w_bias: Tensor,
    scaling: float,
    dropout: float = 0.0,
) -> tuple[Tensor, Tensor | None]:
    """As `talking_heads_attention_forward`, to rounding, but without the maps: the second value is `None`.

    The plain formulas take over for what the operator cannot do: dropout of attention weights, `torch.export`,
    `torch.jit.trace`, transforms of `torch.func`, forward-mode derivatives, and devices other than CPU and CUDA; also
    for a backward pass that is to be differentiated (`create_graph=True`).
    """
    tensors = (query, key, value, proj_l_weight, proj_l_bias, proj_w_weight, proj_w_bias)
    recorded = torch.compiler.is_exporting() or torch.jit.is_tracing()  # to run where the operator is unknown
    if dropout > 0.0 or recorded or is_transformed(*tensors) or query.device.type not in ("cpu", "cuda"):
        attn_output, _ = talking_heads_attention_forward(*tensors, scaling, dropout)
        return attn_output, None
    return torch.ops.cait_hf.talking_heads_attention(*tensors, scaling), None


def talking_heads_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    proj_l_weight: Tensor,
    proj_l_bias: Tensor,
    proj_w_weight: Tensor,
    proj_w_bias: Tensor,
    scaling: float,
) -> Tensor:
    # proj_l_bias does not change the result, but it must be in the graph: its gradient is zero, not absent.
    forward = blocked_forward
    if _on_triton(query):
        forward = triton_forward
    elif native_is_available(query):
        forward = native_forward
    with _without_autocast(query):
        return forward(query, key, value, proj_l_weight, proj_w_weight, proj_w_bias, scaling)


def talking_heads_attention_backward(
    grad_output: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    proj_l_weight: Tensor,
    proj_w_weight: Tensor,
    proj_w_bias: Tensor,
    scaling: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    backward = blocked_backward
    if _on_triton(query):
        backward = triton_backward
    elif native_is_available(query):
        backward = native_backward
    with _without_autocast(query):
        return backward(grad_output, query, key, value, proj_l_weight, proj_w_weight, proj_w_bias, scaling)


def _on_triton(query: Tensor) -> bool:
    # decided here, where tensors are real: what the GPU offers is not to be asked while a graph is traced
    return query.device.type == "cuda" and triton_is_available(query)


def _without_autocast(tensor: Tensor) -> AbstractContextManager:
    # An operator's kernel inherits autocast, which would turn the products inside to half precision.
    device = tensor.device.type
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


def _register() -> None:
    """Make both functions operators of PyTorch, with the shapes of their results and the derivative."""
    forward = "cait_hf::talking_heads_attention"
    backward = "cait_hf::talking_heads_attention_backward"
    for name, function in ((forward, talking_heads_attention), (backward, talking_heads_attention_backward)):
        torch.library.define(name, torch.library.infer_schema(function, mutates_args=()))
        torch.library.impl(name, ("cpu", "cuda"), function)

    @torch.library.register_fake(forward)
    def _(query: Tensor, *others: Any) -> Tensor:
        batch_size, heads, patches, head_dim = query.shape
        return query.new_empty(batch_size, patches, heads, head_dim)

    @torch.library.register_fake(backward)
    def _(grad_output: Tensor, query: Tensor, key: Tensor, value: Tensor, *others: Any) -> tuple[Tensor, ...]:
        batch_size, heads, patches, head_dim = query.shape
        by_patches = (query.new_empty(batch_size, patches, heads, head_dim) for _ in range(3))
        return *(tensor.transpose(1, 2) for tensor in by_patches), *(torch.empty_like(other) for other in others[:-1])

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.scaling = inputs
        ctx.save_for_backward(*tensors)

    def differentiate(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # create_graph=True: the plain formulas have derivatives of every order
            inputs = (*ctx.saved_tensors, ctx.scaling)
            output, _ = talking_heads_attention_forward(*inputs)
            needed = [tensor for tensor in ctx.saved_tensors if tensor.requires_grad]
            gradients = iter(torch.autograd.grad(output, needed, grad_output, create_graph=True))
            return *(next(gradients) if tensor.requires_grad else None for tensor in ctx.saved_tensors), None
        query, key, value, proj_l_weight, proj_l_bias, proj_w_weight, proj_w_bias = ctx.saved_tensors
        grad_query, grad_key, grad_value, grad_l_weight, grad_w_weight, grad_w_bias = (
            torch.ops.cait_hf.talking_heads_attention_backward(
                grad_output, query, key, value, proj_l_weight, proj_w_weight, proj_w_bias, ctx.scaling
            )
        )
        grad_l_bias = torch.zeros_like(proj_l_bias)
        return grad_query, grad_key, grad_value, grad_l_weight, grad_l_bias, grad_w_weight, grad_w_bias, None

    torch.library.register_autograd(forward, differentiate, setup_context=setup_context)


# Remote code may hold this file a second time beside the installed package; an operator can be registered only once.
if not hasattr(torch.ops.cait_hf, "talking_heads_attention"):
    _register()
