# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""Exact talking-heads attention on a CPU, a block at a time, so that the (heads, N, N) maps stay in the cache.

The arithmetic that talking heads add is small: two products of an (H, H) matrix with an (H, N * N) one. What costs is
memory traffic, because the maps of a batch are written and read five or more times, and kept for the backward pass.
Here the maps of a few images, or of some query rows of one image, are computed, projected, normalized, projected again
and multiplied with the values before the next ones, always in the same buffers; the backward pass recomputes them from
queries, keys and values.

The mathematics is that of `talking_heads_attention_forward` in `attention_cait.py`, with two exact shortcuts: the
pre-softmax bias has no influence (softmax ignores what is the same for all keys), and the post-softmax bias adds
`bias[h] * sum over keys of value[h]` to every query. Half precision is computed in float32.

Shapes: B images, H heads, N patches, D channels of a head; a block has b images and r query rows.
"""

import math
from collections.abc import Iterator

import torch


# Most numbers in one buffer of a block: enough that a block's arithmetic outweighs the calls that start it, few enough
# that two (forward) or four (backward) float32 buffers stay in a last-level cache. A GPU, where this serves what the
# Triton kernels do not take, needs more work at a time.
BLOCK_NUMBERS = 2**20
BLOCK_NUMBERS_GPU = 2**24


def forward(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    proj_l_weight: torch.Tensor,
    proj_w_weight: torch.Tensor,
    proj_w_bias: torch.Tensor,
    scaling: float,
) -> torch.Tensor:
    """Attended values `(B, N, H, D)` of query, key and value `(B, H, N, D)`, in the dtype of the query."""
    batch_size, heads, patches, head_dim = query.shape
    output = query.new_empty(batch_size, patches, heads, head_dim)
    query, key, value, proj_l, proj_w, bias_w = _compute(query, key, value, proj_l_weight, proj_w_weight, proj_w_bias)
    proj_l = proj_l * scaling
    from_bias = (bias_w[:, None] * value.sum(2))[:, None]  # (B, 1, H, D)

    for images, rows, (first, second) in _blocks(query, buffers=2):
        _products(query[images, :, rows], key[images].transpose(2, 3), out=first)
        _mix(proj_l, first, out=second)
        torch.softmax(second, -1, out=second)
        _mix(proj_w, second, out=first)
        v, bias, out = value[images], from_bias[images], output[images, rows]
        for image, maps in enumerate(first):
            torch.add(torch.bmm(maps, v[image]).transpose(0, 1), bias[image], out=out[image])
    return output


def backward(
    grad_output: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    proj_l_weight: torch.Tensor,
    proj_w_weight: torch.Tensor,
    proj_w_bias: torch.Tensor,
    scaling: float,
) -> tuple[torch.Tensor, ...]:
    """Gradients of query, key, value, both talking-heads projections and the post-softmax bias.

    In the names below the output is `weights @ value` (and the bias's part), `weights = proj_w probabilities`,
    `probabilities = softmax(logits)`, `logits = proj_l scores`, `scores = query @ key^T`.
    """
    inputs = (query, key, value, proj_l_weight, proj_w_weight, proj_w_bias)
    query, key, value, proj_l, proj_w, bias_w = _compute(*inputs)
    grad_output = grad_output.to(query.dtype).transpose(1, 2)  # (B, H, N, D)
    proj_l = proj_l * scaling

    grad_sum = grad_output.sum(2)  # (B, H, D)
    grad_bias_w = (grad_sum * value.sum(2)).sum((0, 2))
    grad_query = _empty_like(query)
    grad_key = _empty_like(query).zero_()
    grad_value = _empty_like(query).copy_((bias_w[:, None] * grad_sum)[:, :, None])
    grad_proj_l, grad_proj_w = torch.zeros_like(proj_l), torch.zeros_like(proj_w)

    for images, rows, (scores, probabilities, third, fourth) in _blocks(query, buffers=4):
        q, k, v, grad = query[images, :, rows], key[images], value[images], grad_output[images, :, rows]
        _products(q, k.transpose(2, 3), out=scores)
        _mix(proj_l, scores, out=probabilities)
        torch.softmax(probabilities, -1, out=probabilities)

        weights = _mix(proj_w, probabilities, out=third)
        for total, maps, g in zip(grad_value[images], weights, grad, strict=True):
            total += torch.bmm(maps.transpose(1, 2), g)
        grad_weights = _products(grad, v.transpose(2, 3), out=third)
        _add_projection_gradient(grad_proj_w, grad_weights, probabilities)
        grad_probabilities = _mix(proj_w.t(), grad_weights, out=fourth)
        grad_logits = torch.ops.aten._softmax_backward_data.out(
            grad_probabilities, probabilities, -1, query.dtype, grad_input=third
        )
        _add_projection_gradient(grad_proj_l, grad_logits, scores)
        grad_scores = _mix(proj_l.t(), grad_logits, out=fourth)
        for total, maps, keys in zip(grad_query[images, :, rows], grad_scores, k, strict=True):
            total.copy_(torch.bmm(maps, keys))
        for total, maps, queries in zip(grad_key[images], grad_scores, q, strict=True):
            total += torch.bmm(maps.transpose(1, 2), queries)

    gradients = (grad_query, grad_key, grad_value, grad_proj_l * scaling, grad_proj_w, grad_bias_w)
    return tuple(gradient.to(tensor.dtype) for gradient, tensor in zip(gradients, inputs, strict=True))


def _compute(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The tensors in float32 or, if the first is wider, in its dtype."""
    dtype = torch.promote_types(tensors[0].dtype, torch.float32)
    return tuple(tensor.to(dtype) for tensor in tensors)


def _empty_like(query: torch.Tensor) -> torch.Tensor:
    """A new `(B, H, N, D)` that lies in memory as `(B, N, H, D)`, as the linear layers before it want its gradient."""
    return query.transpose(1, 2).new_empty(query.transpose(1, 2).shape).transpose(1, 2)


def _blocks(query: torch.Tensor, buffers: int) -> Iterator[tuple[slice, slice, list[torch.Tensor]]]:
    """Blocks of about equal size: slices of images and query rows, and as many buffers `(b, H, r, N)`.

    A block has complete images while they fit a buffer, else some rows of one image. All share the buffers' memory.
    """
    batch_size, heads, patches, _ = query.shape
    if query.numel() == 0:
        return
    most = BLOCK_NUMBERS if query.device.type == "cpu" else BLOCK_NUMBERS_GPU
    images = _equal_parts(batch_size, most // (heads * patches * patches))
    rows = _equal_parts(patches, most // (heads * patches))
    memory = [query.new_empty(images * heads * rows * patches) for _ in range(buffers)]
    for image in range(0, batch_size, images):
        for row in range(0, patches, rows):
            shape = (min(images, batch_size - image), heads, min(rows, patches - row), patches)
            views = [numbers[: math.prod(shape)].view(shape) for numbers in memory]
            yield slice(image, image + shape[0]), slice(row, row + shape[2]), views


def _equal_parts(total: int, most: int) -> int:
    """The size of the fewest about equal parts of `total` that have at most `most` (at least 1) each."""
    return math.ceil(total / math.ceil(total / max(1, most)))


def _products(left: torch.Tensor, right: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    # An image at a time: its heads are views of (B, N, H, D), whereas one product of all would copy them.
    for a, b, product in zip(left, right, out, strict=True):
        torch.bmm(a, b, out=product)
    return out


def _mix(weight: torch.Tensor, maps: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """`out[b, h] = sum over g of weight[h, g] * maps[b, g]` for maps `(b, H, r, N)`."""
    torch.bmm(weight.expand(len(maps), -1, -1), maps.flatten(2), out=out.flatten(2))
    return out


def _add_projection_gradient(total: torch.Tensor, grad_weights: torch.Tensor, maps: torch.Tensor) -> None:
    """`total[h, g] += sum over b, r and N of grad_weights[b, h] * maps[b, g]` for maps `(b, H, r, N)`."""
    total += torch.bmm(grad_weights.flatten(2), maps.flatten(2).transpose(1, 2)).sum(0)
