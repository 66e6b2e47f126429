# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""Talking-heads self-attention on CUDA as fused Triton kernels: exact, and no (H, N, N) map ever in memory.

The mathematics is that of `attention_cait.py` (arXiv 2103.17239, appendix; arXiv 2003.02436); keeping a block of maps
on the chip and computing it again in backward is the method of FlashAttention (arXiv 2205.14135, 2307.08691).

    S = Q K^T                                 (H, N, N) scores
    M = scaling proj_l S                      mixed scores
    P = softmax(M)                            over the keys
    A = proj_w P                              mixed probabilities
    O = A V + proj_w_bias sum(V)              sum over the keys

and backwards, with dO given:

    dA = dO V^T,  dP = proj_w^T dA,  delta = sum(P dP) over the keys,  dM = P (dP - delta),  dS = scaling proj_l^T dM
    dQ = dS K,  dK = dS^T Q,  dV = A^T dO + proj_w_bias sum(dO) over the queries
    d_proj_l = scaling dM S^T,  d_proj_w = dA P^T,  d_proj_w_bias = sum(dO) sum(V)

The bias of the pre-softmax projection is no argument: it adds one number to a row of scores, which the softmax
ignores. Every head of P enters every head of O, so a running softmax cannot be corrected afterwards as in
FlashAttention: one kernel finds the row sums, the next computes the scores again.

Shapes in comments: B images, H heads, N patches, D channels of a head. A program holds a block of BQ queries, or of
BK keys, of one image, with all heads. HP and DP are H and D rounded up to powers of two.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch


try:
    import triton
    import triton.language as tl
except ImportError:  # PyTorch for CPUs comes without: `is_available` is False and the kernels stay plain functions
    triton = tl = None

jit = triton.jit if triton is not None else lambda kernel: kernel


def is_available(query: torch.Tensor) -> bool:
    """Whether `forward` and `backward` take tensors like `query` `(B, H, N, D)`.

    They need Triton, an NVIDIA GPU of compute capability 8.0 or newer, float32, bfloat16 or float16, and a program's
    shared memory: with H and D rounded up to powers of two, H x D is at most 2048 (float32: 1024) with 200 KiB or more
    (H100), 1024 (512) with 160 KiB (A100) and 512 with less (RTX 3090, 4090), and H at most 16, D at most 128. B and N
    are free. With `TRITON_INTERPRET=1` in the environment before Triton is imported: tensors on the CPU instead, as on
    an H100.
    """
    if triton is None or query.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return False
    if query.ndim != 4 or query.numel() == 0 or query.shape[1] > 16 or query.shape[3] > 128:
        return False
    if not _has_device(query):
        return False
    shared_memory = _shared_memory(query.device)
    largest = 512 if shared_memory < 160 * 1024 else 1024 if shared_memory < 200 * 1024 else 2048
    if query.dtype == torch.float32:
        largest = max(512, largest // 2)
    return _padded_heads(query.shape[1]) * _padded_channels(query.shape[3]) <= largest


def forward(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    proj_l_weight: torch.Tensor,
    proj_w_weight: torch.Tensor,
    proj_w_bias: torch.Tensor,
    scaling: float,
) -> torch.Tensor:
    """Talking-heads attention.

    Args:
        query, key, value (`torch.Tensor` of shape `(B, H, N, D)`): float32, bfloat16 or float16, one dtype; read with
            whatever strides they have, never copied.
        proj_l_weight, proj_w_weight (`torch.Tensor` of shape `(H, H)`): row h is the weights of output head h.
        proj_w_bias (`torch.Tensor` of shape `(H,)`): added to every entry of a head's map after the post-softmax
            projection.
        scaling (`float`): factor of the scores, applied before the pre-softmax projection.

    Returns:
        The attended values `(B, N, H, D)`, contiguous, in the dtype of `query`.
    """
    proj_l, proj_w = _scaled_projections(proj_l_weight, proj_w_weight, scaling)
    bias_term = proj_w_bias.float()[:, None] * value.sum(dim=2, dtype=torch.float32)  # (B, H, D)
    logsumexp, _ = _statistics(query, key, value, None, proj_l, proj_w)

    output = _empty_heads_last(query)
    grid, options = _launch(query, "output")
    with torch.cuda.device_of(query):
        _output_kernel[grid](
            *_with_strides(query, key, value, output),
            *(proj_l, proj_w, logsumexp, bias_term, query.shape[2]),
            **options,
        )
    return output.transpose(1, 2)


def backward(
    grad_output: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    proj_l_weight: torch.Tensor,
    proj_w_weight: torch.Tensor,
    proj_w_bias: torch.Tensor,
    scaling: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of `forward`'s arguments from that of its result; computes again what `forward` had.

    Args:
        grad_output (`torch.Tensor` of shape `(B, N, H, D)`): in the dtype of `query`, with any strides.
        query, key, value, proj_l_weight, proj_w_weight, proj_w_bias, scaling: as `forward` got them.

    Returns:
        The gradients of `query`, `key`, `value`, `proj_l_weight`, `proj_w_weight` and `proj_w_bias`, each in shape and
        dtype of its tensor, the first three `(B, N, H, D)` in memory. Equal input gives equal bits.
    """
    grad_output = grad_output.transpose(1, 2)  # (B, H, N, D)
    inputs = _with_strides(query, key, value, grad_output)
    proj_l, proj_w = _scaled_projections(proj_l_weight, proj_w_weight, scaling)
    logsumexp, delta = _statistics(query, key, value, grad_output, proj_l, proj_w)

    d_query = _empty_heads_last(query)
    grid, options = _launch(query, "query_gradient")
    # what each program finds of d_proj_l and d_proj_w: their sum has one order, unlike atomic additions
    partial = query.new_empty(*grid, 2, 16, 16, dtype=torch.float32)
    with torch.cuda.device_of(query):
        _query_gradient_kernel[grid](
            *inputs,
            *_with_strides(d_query),
            *(partial, proj_l, proj_w, logsumexp, delta, query.shape[2]),
            **options,
        )
    d_proj_l, d_proj_w = _unfold_projections(partial.sum(dim=0), query.shape[1])

    d_key, d_value = _empty_heads_last(key), _empty_heads_last(value)
    grad_sum = grad_output.sum(dim=2, dtype=torch.float32)  # (B, H, D)
    bias_term = proj_w_bias.float()[:, None] * grad_sum
    grid, options = _launch(query, "key_value_gradient")
    with torch.cuda.device_of(query):
        _key_value_gradient_kernel[grid](
            *inputs,
            *_with_strides(d_key, d_value),
            *(proj_l, proj_w, logsumexp, delta, bias_term, query.shape[2]),
            **options,
        )
    d_bias = (grad_sum * value.sum(dim=2, dtype=torch.float32)).sum(dim=(0, 2))
    return (
        d_query,
        d_key,
        d_value,
        (d_proj_l * scaling).to(proj_l_weight.dtype),
        d_proj_w.to(proj_w_weight.dtype),
        d_bias.to(proj_w_bias.dtype),
    )


def _statistics(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    grad_output: torch.Tensor | None,
    proj_l: torch.Tensor,
    proj_w: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """log2(sum over the keys of 2^M) and, with `grad_output`, delta; both `(B, H, N)` float32."""
    logsumexp = query.new_empty(query.shape[:3], dtype=torch.float32)
    delta = None if grad_output is None else torch.empty_like(logsumexp)
    grid, options = _launch(query, "statistics" if delta is None else "statistics_with_delta")
    with torch.cuda.device_of(query):
        _statistics_kernel[grid](
            *_with_strides(query, key, value, value if delta is None else grad_output),
            *(proj_l, proj_w, logsumexp, logsumexp if delta is None else delta, query.shape[2]),
            WITH_DELTA=delta is not None,
            **options,
        )
    return logsumexp, delta


def _scaled_projections(
    proj_l_weight: torch.Tensor, proj_w_weight: torch.Tensor, scaling: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """float32 and contiguous, the first with `scaling` and with log2(e): GPUs have 2^x, so M counts in log 2."""
    proj_l = proj_l_weight.float() * (scaling * math.log2(math.e))
    return proj_l.contiguous(), proj_w_weight.float().contiguous()


def _unfold_projections(folded: torch.Tensor, heads: int) -> torch.Tensor:
    """Gradients `(2, H, H)` of both projections from those `(2, 16, 16)` of what `_load_projection` makes of them."""
    repeat = 16 // _padded_heads(heads)
    unfolded = folded.view(2, 16 // repeat, repeat, 16 // repeat, repeat).diagonal(dim1=2, dim2=4).sum(-1)
    return unfolded[:, :heads, :heads]


def _empty_heads_last(like: torch.Tensor) -> torch.Tensor:
    """`(B, H, N, D)`, in memory `(B, N, H, D)`."""
    batch, heads, patches, channels = like.shape
    return like.new_empty(batch, patches, heads, channels).transpose(1, 2)


def _with_strides(*tensors: torch.Tensor) -> list:
    return [argument for tensor in tensors for argument in (tensor, tensor.stride())]


def _has_device(query: torch.Tensor) -> bool:
    if not isinstance(_output_kernel, triton.JITFunction):  # but the interpreter's
        return query.device.type == "cpu"
    if query.device.type != "cuda" or torch.version.hip is not None:
        return False
    return torch.cuda.get_device_capability(query.device) >= (8, 0)


def _padded_heads(heads: int) -> int:
    return triton.next_power_of_2(heads)


def _padded_channels(channels: int) -> int:
    return max(16, triton.next_power_of_2(channels))


def _shared_memory(device: torch.device) -> int:
    """Bytes of shared memory a program can have on a device; those of an H100 in the interpreter."""
    if device.type != "cuda":
        return 227 * 1024
    return torch.cuda.get_device_properties(device).shared_memory_per_block_optin


class Launch(NamedTuple):
    """How a kernel is launched: the tile that it works on, and what Triton makes of its loop."""

    outer: int  # queries of a program; of "key_value_gradient": keys
    inner: int  # keys of a step of its loop; of "key_value_gradient": queries
    num_warps: int
    num_stages: int


# Launches that were measured to be faster than `_default_launch` on GPUs with the shared memory of an H100, by
# (kernel, bytes of a number, HP, DP). `scripts/benchmark/gpu.sh` searches for them and prints the entries.
LAUNCHES: dict[tuple[str, int, int, int], Launch] = {}


def _launch(query: torch.Tensor, kernel: str) -> tuple[tuple[int], dict]:
    """Grid and keyword arguments of a kernel."""
    batch, heads, patches, channels = query.shape
    HP, DP = _padded_heads(heads), _padded_channels(channels)
    launch = LAUNCHES.get(_launch_key(query, kernel)) if _shared_memory(query.device) >= 200 * 1024 else None
    outer, inner, num_warps, num_stages = launch or _default_launch(query, kernel)
    options = {
        "H": heads,
        "D": channels,
        "HP": HP,
        "DP": DP,
        "BQ": inner if kernel == "key_value_gradient" else outer,
        "BK": outer if kernel == "key_value_gradient" else inner,
        "PRECISION": "ieee" if query.dtype == torch.float32 else "tf32",
        "num_warps": num_warps,
        "num_stages": num_stages,
    }
    return (batch * triton.cdiv(patches, outer),), options


def _launch_key(query: torch.Tensor, kernel: str) -> tuple[str, int, int, int]:
    return kernel, query.element_size(), _padded_heads(query.shape[1]), _padded_channels(query.shape[3])


def _default_launch(query: torch.Tensor, kernel: str) -> Launch:
    """The launch of a kernel by what a multiprocessor has.

    A multiprocessor has 64 Ki registers of 4 bytes, a thread at most 255: a program of 8 warps (256 threads) nearly
    all. Through its loop it keeps `rows` x DP float32 (`rows` = HP x BQ), twice in the gradients of keys and values:
    64 registers a thread each, for 256 rows of 64 channels. The maps of a step, `rows` x 16 float32, take 16 each, and
    up to five are alive in backward; the rest are operands and addresses. Shared memory holds operands: in bfloat16,
    32 KiB a tensor of 256 rows, 2 KiB x HP a block of 16 keys (twice, as the next one loads meanwhile), and 16 KiB a
    float32 map on its way from the warps of one head to those of all.

    More rows mean fewer readings of keys and values from the L2 cache: `rows` is the largest power of two that ptxas
    (sm_90) compiles with few or no spilled registers, within the shared memory. float32 has its products on the CUDA
    cores, from shared memory through more registers.
    """
    HP, DP = _padded_heads(query.shape[1]), _padded_channels(query.shape[3])
    shared_memory = _shared_memory(query.device)
    in_forward = kernel in ("statistics", "output")
    if query.dtype == torch.float32:
        rows = 128 if in_forward else 64
    else:
        rows = 512 if in_forward and shared_memory >= 200 * 1024 else 256
    if shared_memory < 160 * 1024:
        rows = min(rows // 2, 128)
    if DP > 64:
        rows //= 4
    num_stages = 1 if query.dtype == torch.float32 or DP > 64 else 2
    # of four heads and fewer, 64 rows or columns of a gradient spill 300 to 700 bytes a thread
    most = 32 if kernel in ("query_gradient", "key_value_gradient") else 64
    return Launch(min(most, max(4, rows // HP)), 16, 8, num_stages)


@jit
def _statistics_kernel(
    query, query_strides, key, key_strides, value, value_strides, grad_output, grad_strides,
    proj_l, proj_w, logsumexp, delta, N,
    H: tl.constexpr, D: tl.constexpr, HP: tl.constexpr, DP: tl.constexpr, BQ: tl.constexpr, BK: tl.constexpr,
    PRECISION: tl.constexpr, WITH_DELTA: tl.constexpr,
):  # fmt: skip
    image, rows = _program(N, BQ)
    q = _load(query, query_strides, image, rows, N, H, D, HP, DP)
    weight_l = _load_projection(proj_l, H, HP, False)
    if WITH_DELTA:
        grad = _load(grad_output, grad_strides, image, rows, N, H, D, HP, DP)
        weight_w_transposed = _load_projection(proj_w, H, HP, True)

    maximum = tl.full((HP, BQ), float("-inf"), tl.float32)
    total = tl.zeros((HP, BQ), tl.float32)
    weighted = tl.zeros((HP, BQ), tl.float32)  # sum of 2^M dP
    for start in range(0, N, BK):
        columns = start + tl.arange(0, BK)
        k = _load(key, key_strides, image, columns, N, H, D, HP, DP)
        mixed = _mix(weight_l, _scores(q, k, PRECISION), PRECISION)
        mixed = tl.where(columns[None, None, :] < N, mixed, float("-inf"))
        new_maximum = tl.maximum(maximum, tl.max(mixed, axis=2))
        shrink = tl.exp2(maximum - new_maximum)
        p = tl.exp2(mixed - new_maximum[:, :, None])
        total = total * shrink + tl.sum(p, axis=2)
        if WITH_DELTA:
            v = _load(value, value_strides, image, columns, N, H, D, HP, DP)
            d_p = _mix(weight_w_transposed, _scores(grad, v, PRECISION), PRECISION)
            weighted = weighted * shrink + tl.sum(p * d_p, axis=2)
        maximum = new_maximum

    _store_rows(logsumexp, maximum + tl.log2(total), image, rows, N, H, HP)
    if WITH_DELTA:
        _store_rows(delta, weighted / total, image, rows, N, H, HP)


@jit
def _output_kernel(
    query, query_strides, key, key_strides, value, value_strides, output, output_strides,
    proj_l, proj_w, logsumexp, bias_term, N,
    H: tl.constexpr, D: tl.constexpr, HP: tl.constexpr, DP: tl.constexpr, BQ: tl.constexpr, BK: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    image, rows = _program(N, BQ)
    q = _load(query, query_strides, image, rows, N, H, D, HP, DP)
    weight_l = _load_projection(proj_l, H, HP, False)
    weight_w = _load_projection(proj_w, H, HP, False)
    lse = _load_rows(logsumexp, image, rows, N, H, HP)[:, :, None]

    out = tl.zeros((HP, BQ, DP), tl.float32)
    for start in range(0, N, BK):
        columns = start + tl.arange(0, BK)
        k = _load(key, key_strides, image, columns, N, H, D, HP, DP)
        mixed = _mix(weight_l, _scores(q, k, PRECISION), PRECISION)
        p = tl.where(columns[None, None, :] < N, tl.exp2(mixed - lse), 0.0)
        a = _mix(weight_w, p, PRECISION)
        v = _load(value, value_strides, image, columns, N, H, D, HP, DP)
        out = tl.dot(a.to(v.dtype), v, out, input_precision=PRECISION)

    out += _load_head_vectors(bias_term, image, H, D, HP, DP)
    _store(output, output_strides, out, image, rows, N, H, D, HP, DP)


@jit
def _query_gradient_kernel(
    query, query_strides, key, key_strides, value, value_strides, grad_output, grad_strides, d_query, d_query_strides,
    partial, proj_l, proj_w, logsumexp, delta, N,
    H: tl.constexpr, D: tl.constexpr, HP: tl.constexpr, DP: tl.constexpr, BQ: tl.constexpr, BK: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    image, rows = _program(N, BQ)
    # rows past N: zeros in q and grad, hence in dP and dM
    q = _load(query, query_strides, image, rows, N, H, D, HP, DP)
    grad = _load(grad_output, grad_strides, image, rows, N, H, D, HP, DP)
    lse = _load_rows(logsumexp, image, rows, N, H, HP)[:, :, None]
    row_delta = _load_rows(delta, image, rows, N, H, HP)[:, :, None]
    weight_l = _load_projection(proj_l, H, HP, False)
    weight_l_transposed = _load_projection(proj_l, H, HP, True)
    weight_w_transposed = _load_projection(proj_w, H, HP, True)

    d_q = tl.zeros((HP, BQ, DP), tl.float32)
    # in parts of at least 16 terms, one for each warp if there are so many
    PARTS: tl.constexpr = min(8, HP * BQ * BK // 256)
    d_weight_l = tl.zeros((PARTS, 16, 16), tl.float32)
    d_weight_w = tl.zeros((PARTS, 16, 16), tl.float32)
    for start in range(0, N, BK):
        columns = start + tl.arange(0, BK)
        k = _load(key, key_strides, image, columns, N, H, D, HP, DP)
        s = _scores(q, k, PRECISION)
        p = tl.exp2(_mix(weight_l, s, PRECISION) - lse)
        p = tl.where(columns[None, None, :] < N, p, 0.0)
        v = _load(value, value_strides, image, columns, N, H, D, HP, DP)
        d_a = _scores(grad, v, PRECISION)
        d_m = p * (_mix(weight_w_transposed, d_a, PRECISION) - row_delta)
        d_s = _mix(weight_l_transposed, d_m, PRECISION)
        d_q = tl.dot(d_s.to(k.dtype), k, d_q, input_precision=PRECISION)
        d_weight_l = _add_projection_gradient(d_weight_l, d_m, s, PRECISION)
        d_weight_w = _add_projection_gradient(d_weight_w, d_a, p, PRECISION)

    # proj_l came with log2(e), so dS comes with it
    _store(d_query, d_query_strides, d_q * 0.6931471805599453, image, rows, N, H, D, HP, DP)
    entries = tl.arange(0, 16)[:, None] * 16 + tl.arange(0, 16)[None, :]
    partial += tl.program_id(0).to(tl.int64) * 512
    tl.store(partial + entries, tl.sum(d_weight_l, axis=0))
    tl.store(partial + 256 + entries, tl.sum(d_weight_w, axis=0))


@jit
def _key_value_gradient_kernel(
    query, query_strides, key, key_strides, value, value_strides, grad_output, grad_strides,
    d_key, d_key_strides, d_value, d_value_strides,
    proj_l, proj_w, logsumexp, delta, bias_term, N,
    H: tl.constexpr, D: tl.constexpr, HP: tl.constexpr, DP: tl.constexpr, BQ: tl.constexpr, BK: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    image, columns = _program(N, BK)
    k = _load(key, key_strides, image, columns, N, H, D, HP, DP)
    v = _load(value, value_strides, image, columns, N, H, D, HP, DP)
    weight_l = _load_projection(proj_l, H, HP, False)
    weight_w = _load_projection(proj_w, H, HP, False)
    weight_l_transposed = _load_projection(proj_l, H, HP, True)
    weight_w_transposed = _load_projection(proj_w, H, HP, True)

    d_k = tl.zeros((HP, BK, DP), tl.float32)
    d_v = tl.zeros((HP, BK, DP), tl.float32)
    for start in range(0, N, BQ):  # maps lie here with the keys before the queries
        rows = start + tl.arange(0, BQ)
        q = _load(query, query_strides, image, rows, N, H, D, HP, DP)
        lse = _load_rows(logsumexp, image, rows, N, H, HP)[:, None, :]
        p = tl.exp2(_mix(weight_l, _scores(k, q, PRECISION), PRECISION) - lse)
        p = tl.where(columns[None, :, None] < N, p, 0.0)  # else inf, which times 0 in `_mix` spoils other keys
        a = _mix(weight_w, p, PRECISION)
        grad = _load(grad_output, grad_strides, image, rows, N, H, D, HP, DP)
        row_delta = _load_rows(delta, image, rows, N, H, HP)[:, None, :]
        d_v = tl.dot(a.to(grad.dtype), grad, d_v, input_precision=PRECISION)
        d_m = p * (_mix(weight_w_transposed, _scores(v, grad, PRECISION), PRECISION) - row_delta)
        d_s = _mix(weight_l_transposed, d_m, PRECISION)
        d_k = tl.dot(d_s.to(q.dtype), q, d_k, input_precision=PRECISION)

    d_v += _load_head_vectors(bias_term, image, H, D, HP, DP)
    _store(d_key, d_key_strides, d_k * 0.6931471805599453, image, columns, N, H, D, HP, DP)
    _store(d_value, d_value_strides, d_v, image, columns, N, H, D, HP, DP)


@jit
def _program(N, BLOCK: tl.constexpr):
    """The image of this program and its block of queries or keys `(BLOCK,)`."""
    blocks = tl.cdiv(N, BLOCK)
    image = tl.program_id(0) // blocks
    return image, tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)


@jit
def _scores(x, y, PRECISION: tl.constexpr):
    """x y^T `(HP, rows of x, rows of y)`, float32."""
    return tl.dot(x, tl.permute(y, (0, 2, 1)), input_precision=PRECISION)


@jit
def _load_projection(weight, H: tl.constexpr, HP: tl.constexpr, TRANSPOSED: tl.constexpr):
    """A talking-heads projection `(H, H)` as a matrix `(16, 16)`, the smallest that tensor cores multiply.

    HP < 16 heads are no reason to multiply with zeros: maps `(HP, X)` are read as `(16, X HP / 16)`, every head in
    16 / HP pieces, and each piece takes the same piece of the other heads.
    """
    to_row = tl.arange(0, 16)[:, None]
    from_row = tl.arange(0, 16)[None, :]
    REPEAT: tl.constexpr = 16 // HP
    to_head, from_head = to_row // REPEAT, from_row // REPEAT
    mask = (to_row % REPEAT == from_row % REPEAT) & (to_head < H) & (from_head < H)
    if TRANSPOSED:
        offsets = from_head * H + to_head
    else:
        offsets = to_head * H + from_head
    return tl.load(weight + offsets, mask=mask, other=0.0)


@jit
def _mix(weight, maps, PRECISION: tl.constexpr):
    """Mixes the heads of maps `(HP, rows, columns)` by a weight of `_load_projection`."""
    SIZE: tl.constexpr = maps.shape[0] * maps.shape[1] * maps.shape[2]
    mixed = tl.dot(weight, tl.reshape(maps, (16, SIZE // 16)), input_precision=PRECISION)
    return tl.reshape(mixed, maps.shape)


@jit
def _add_projection_gradient(total, d_mixed, maps, PRECISION: tl.constexpr):
    """Adds to total `(parts, 16, 16)` the gradient of the weight of a `_mix`."""
    PARTS: tl.constexpr = total.shape[0]
    SIZE: tl.constexpr = maps.shape[0] * maps.shape[1] * maps.shape[2] // (16 * PARTS)
    left = tl.permute(tl.reshape(d_mixed, (16, PARTS, SIZE)), (1, 0, 2))
    right = tl.permute(tl.reshape(maps, (16, PARTS, SIZE)), (1, 2, 0))
    return tl.dot(left, right, total, input_precision=PRECISION)


@jit
def _offsets(strides, image, rows, N, H: tl.constexpr, D: tl.constexpr, HP: tl.constexpr, DP: tl.constexpr):
    """Where a block `(HP, rows, DP)` of a tensor `(B, H, N, D)` lies, and which of its entries exist."""
    head = tl.arange(0, HP)[:, None, None].to(tl.int64)
    row = rows[None, :, None].to(tl.int64)
    channel = tl.arange(0, DP)[None, None, :].to(tl.int64)
    # in 64 bits all of them: any stride can be the one that spans a large batch
    offsets = image.to(tl.int64) * strides[0] + head * strides[1] + row * strides[2] + channel * strides[3]
    return offsets, (head < H) & (row < N) & (channel < D)


@jit
def _load(tensor, strides, image, rows, N, H: tl.constexpr, D: tl.constexpr, HP: tl.constexpr, DP: tl.constexpr):
    offsets, mask = _offsets(strides, image, rows, N, H, D, HP, DP)
    return tl.load(tensor + offsets, mask=mask, other=0.0)


@jit
def _store(
    tensor, strides, block, image, rows, N, H: tl.constexpr, D: tl.constexpr, HP: tl.constexpr, DP: tl.constexpr
):
    offsets, mask = _offsets(strides, image, rows, N, H, D, HP, DP)
    tl.store(tensor + offsets, block.to(tensor.dtype.element_ty), mask=mask)


@jit
def _row_offsets(image, rows, N, H: tl.constexpr, HP: tl.constexpr):
    head = tl.arange(0, HP)[:, None]
    return (image.to(tl.int64) * H + head) * N + rows[None, :], (head < H) & (rows[None, :] < N)


@jit
def _load_rows(tensor, image, rows, N, H: tl.constexpr, HP: tl.constexpr):
    """(HP, rows) of a contiguous tensor `(B, H, N)`."""
    offsets, mask = _row_offsets(image, rows, N, H, HP)
    return tl.load(tensor + offsets, mask=mask, other=0.0)


@jit
def _store_rows(tensor, block, image, rows, N, H: tl.constexpr, HP: tl.constexpr):
    offsets, mask = _row_offsets(image, rows, N, H, HP)
    tl.store(tensor + offsets, block, mask=mask)


@jit
def _load_head_vectors(tensor, image, H: tl.constexpr, D: tl.constexpr, HP: tl.constexpr, DP: tl.constexpr):
    """(HP, 1, DP) of a contiguous float32 tensor `(B, H, D)`."""
    head = tl.arange(0, HP)[:, None, None]
    channel = tl.arange(0, DP)[None, None, :]
    offsets = (image.to(tl.int64) * H + head) * D + channel
    return tl.load(tensor + offsets, mask=(head < H) & (channel < D), other=0.0)
