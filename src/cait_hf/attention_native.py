# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""Talking-heads attention on a CPU by the library in `native/`, where it was built and the CPU has its instructions.

The library has no PyTorch inside: it gets addresses, shapes and strides through ctypes, and the address of PyTorch's
`parallel_for`, whose threads it works on. Elsewhere `attention_blocked.py` computes the same.

Environment variable `CAIT_HF_NATIVE`: `0` turns the library off, the name of an instruction set (`amx`, `avx512_bf16`,
`avx512`, `avx2`, `neon`) turns off those that are better.
"""

import ctypes
import functools
import importlib.util
import os
import sys
from pathlib import Path

import torch


INTERFACE_VERSION = 1
LIBRARY = Path("native", "attention.so")
DATA_TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
MOST_HEADS = 16
MOST_HEAD_DIM = 128  # in multiples of 16
NO_MEMORY, NOT_RUN = 2, 3


class _Problem(ctypes.Structure):
    """`Problem` of native/attention.h: the same fields in the same order, each of 8 bytes."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("query", "key", "value", "grad_output", "output")),
        *((name, ctypes.c_void_p) for name in ("grad_key", "grad_value", "proj_l", "proj_w", "proj_w_bias")),
        *((name, ctypes.c_void_p) for name in ("grad_proj_l", "grad_proj_w", "grad_proj_w_bias", "parallel_for")),
        *((name, ctypes.c_int64) for name in ("threads", "instruction_set", "data_type")),
        *((name, ctypes.c_int64) for name in ("images", "heads", "patches", "head_dim")),
        *((f"{name}_strides", ctypes.c_int64 * 3) for name in ("query", "key", "value")),
        ("scaling", ctypes.c_double),
    ]


class _Library:
    """The library and what it computes on this CPU; raises `OSError` with the reason where it cannot be used."""

    def __init__(self, wanted: str) -> None:
        library = ctypes.CDLL(str(_path()))
        if library.cait_hf_interface_version() != INTERFACE_VERSION:
            raise OSError("it was built for another version of cait_hf")
        library.cait_hf_instruction_sets.restype = ctypes.c_char_p
        names = library.cait_hf_instruction_sets().decode().split()
        self.available = [name for name in names if name != "-"]
        if not self.available:
            raise OSError("this CPU lacks the instructions that it was built for")
        if wanted and wanted not in self.available:
            known = ", ".join(self.available)
            raise ValueError(f"CAIT_HF_NATIVE is {wanted}, but this CPU has {known}; 0 turns the library off.")
        self.instruction_set = wanted or self.available[0]
        self.index = names.index(self.instruction_set)
        self.forward = library.cait_hf_attention_forward
        self.backward = library.cait_hf_attention_backward
        torch_name = "libtorch_cpu.dylib" if sys.platform == "darwin" else "libtorch_cpu.so"
        torch_library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / torch_name))
        self.parallel_for = ctypes.cast(torch_library.torch_parallel_for, ctypes.c_void_p).value


def _path() -> Path:
    """Of the library beside this file or, if this file is a checkpoint's remote code, in the installed package."""
    package = importlib.util.find_spec("cait_hf")
    for folder in (Path(__file__).parent, *map(Path, (package and package.submodule_search_locations) or ())):
        if (folder / LIBRARY).is_file():
            return folder / LIBRARY
    raise OSError("the package was installed without it: there was no C++ compiler, or no wheel for this platform")


@functools.cache
def _load() -> _Library | str:
    """The library, or why there is none."""
    wanted = os.environ.get("CAIT_HF_NATIVE", "")
    if wanted == "0":
        return "CAIT_HF_NATIVE=0"
    try:
        return _Library(wanted)
    except (OSError, AttributeError) as error:  # AttributeError: a PyTorch without the function
        return str(error)


def attention_backend() -> str:
    """What computes talking-heads attention on this CPU: "native (INSTRUCTION SET)" or "blocked (REASON)".

    Raises:
        ValueError: if `CAIT_HF_NATIVE` names an instruction set that this CPU lacks.
    """
    library = _load()
    return f"blocked ({library})" if isinstance(library, str) else f"native ({library.instruction_set})"


def is_available(query: torch.Tensor) -> bool:
    """Whether `forward` and `backward` take queries `(B, H, N, D)` of this dtype, device, and shape."""
    heads, head_dim = query.shape[1], query.shape[3]
    return (
        query.device.type == "cpu"
        and query.dtype in DATA_TYPES
        and 1 <= heads <= MOST_HEADS
        and head_dim % 16 == 0
        and 16 <= head_dim <= MOST_HEAD_DIM
        and isinstance(_load(), _Library)
    )


def forward(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    proj_l_weight: torch.Tensor,
    proj_w_weight: torch.Tensor,
    proj_w_bias: torch.Tensor,
    scaling: float,
) -> torch.Tensor:
    """As `attention_blocked.forward`: attended values `(B, N, H, D)` in the dtype of the query."""
    library = _load()
    assert isinstance(library, _Library)
    batch_size, heads, patches, head_dim = query.shape
    output = query.new_empty(batch_size, patches, heads, head_dim)
    problem, kept = _problem(library, query, key, value, proj_l_weight, proj_w_weight, proj_w_bias, scaling)
    problem.output = output.data_ptr()
    _check(library.forward(ctypes.byref(problem)))
    del kept
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
    """As `attention_blocked.backward`: gradients of query, key, value, both projections and the post-softmax bias."""
    library = _load()
    assert isinstance(library, _Library)
    batch_size, heads, patches, head_dim = query.shape
    _require("grad_output", grad_output, (batch_size, patches, heads, head_dim))
    grad_output = grad_output.to(query.dtype).contiguous()
    grad_query, grad_key, grad_value = (
        query.new_empty(batch_size, patches, heads, head_dim).transpose(1, 2) for _ in range(3)
    )
    projections = (proj_l_weight, proj_w_weight, proj_w_bias)
    gradients = [torch.empty(tensor.shape, dtype=torch.float32) for tensor in projections]  # whatever their strides
    problem, kept = _problem(library, query, key, value, *projections, scaling)
    problem.grad_output = grad_output.data_ptr()
    problem.output, problem.grad_key, problem.grad_value = (
        gradient.data_ptr() for gradient in (grad_query, grad_key, grad_value)
    )
    problem.grad_proj_l, problem.grad_proj_w, problem.grad_proj_w_bias = (
        gradient.data_ptr() for gradient in gradients
    )
    _check(library.backward(ctypes.byref(problem)))
    del kept
    of_projections = (
        torch.empty_like(tensor).copy_(gradient) for gradient, tensor in zip(gradients, projections, strict=True)
    )
    return grad_query, grad_key, grad_value, *of_projections


def _problem(
    library: _Library,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    proj_l_weight: torch.Tensor,
    proj_w_weight: torch.Tensor,
    proj_w_bias: torch.Tensor,
    scaling: float,
) -> tuple[_Problem, list[torch.Tensor]]:
    """The problem without its results, and the tensors that have to live until it is solved."""
    batch_size, heads, patches, head_dim = query.shape
    _require("key", key, query.shape)
    _require("value", value, query.shape)
    _require("proj_l_weight", proj_l_weight, (heads, heads))
    _require("proj_w_weight", proj_w_weight, (heads, heads))
    _require("proj_w_bias", proj_w_bias, (heads,))
    inputs = [
        tensor if tensor.stride(-1) == 1 else tensor.contiguous()
        for tensor in (query, key.to(query.dtype), value.to(query.dtype))
    ]
    projections = [tensor.float().contiguous() for tensor in (proj_l_weight, proj_w_weight, proj_w_bias)]
    problem = _Problem(
        *(tensor.data_ptr() for tensor in inputs),
        *(None,) * 4,
        *(tensor.data_ptr() for tensor in projections),
        *(None,) * 3,
        library.parallel_for,
        torch.get_num_threads(),
        library.index,
        DATA_TYPES[query.dtype],
        *(batch_size, heads, patches, head_dim),
        *(tensor.stride()[:3] for tensor in inputs),
        scaling,
    )
    return problem, inputs + projections


def _require(name: str, tensor: torch.Tensor, shape: tuple[int, ...]) -> None:
    """The library takes addresses: what it would read beyond the end of a tensor has to be refused here."""
    if tensor.shape != shape or tensor.device.type != "cpu":
        raise ValueError(
            f"{name} has shape {tuple(tensor.shape)} on {tensor.device}, but it must have {tuple(shape)} on the CPU."
        )


def _check(result: int) -> None:
    if result == NO_MEMORY:
        raise MemoryError("talking-heads attention: no memory left for the buffers of a thread")
    if result == NOT_RUN:
        raise RuntimeError("talking-heads attention: PyTorch's parallel_for failed")
    assert result == 0, f"is_available promised what the library does not support ({result})"
