# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""The Triton kernels against float64: on the GPU where there is one, else in Triton's interpreter on the CPU.

Triton reads `TRITON_INTERPRET` as it is imported, so the interpreter has a process of its own. What the compiler makes
of the kernels for real GPUs is looked at everywhere: ptxas comes with Triton.
"""

import importlib.util
import os
import re
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch

from cait_hf import attention_triton
from cait_hf.attention_cait import talking_heads_attention_forward


NO_TRITON = "Triton is not installed: PyTorch for CPUs comes without"
MINUTES = "takes minutes in the interpreter: needs an NVIDIA GPU"
NAMES = ("d_query", "d_key", "d_value", "d_proj_l_weight", "d_proj_w_weight", "d_proj_w_bias")


@dataclass(frozen=True)
class Case:
    heads: int
    patches: int
    channels: int = 48
    batch: int = 1
    dtype: torch.dtype = torch.float32
    weight_dtype: torch.dtype = torch.float32
    layout: str = "heads last"
    query_scale: float = 1.0

    def __str__(self):
        parts = [f"H{self.heads}", f"N{self.patches}", f"D{self.channels}", f"B{self.batch}", str(self.dtype)[6:]]
        parts += [self.layout.replace(" ", "_")] * (self.layout != "heads last")
        return "-".join(parts)


LAYOUTS = {
    "heads last": lambda randn, B, H, N, D: randn(3, B, N, H, D).transpose(2, 3).unbind(),
    "heads first": lambda randn, B, H, N, D: randn(3, B, H, N, D).unbind(),
    "packed": lambda randn, B, H, N, D: randn(B, N, 3, H, D).permute(2, 0, 3, 1, 4).unbind(),
    "channels before patches": lambda randn, B, H, N, D: randn(3, B, H, D, N).transpose(3, 4).unbind(),
    "every second": lambda randn, B, H, N, D: randn(3, B, 2 * N, H, 2 * D)[:, :, ::2, :, ::2].transpose(2, 3).unbind(),
}


def make_inputs(case: Case) -> tuple[list[torch.Tensor], torch.Tensor]:
    """query, key, value, the two mixing matrices and the bias; a gradient of the output."""
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    B, H, N, D = case.batch, case.heads, case.patches, case.channels

    def randn(*size: int, dtype: torch.dtype = case.dtype) -> torch.Tensor:
        return torch.randn(size).to(device=device, dtype=dtype)  # drawn on the CPU: the same numbers everywhere

    query, key, value = LAYOUTS[case.layout](randn, B, H, N, D)
    query *= case.query_scale
    proj_l, proj_w, bias = (randn(*size, dtype=case.weight_dtype) for size in ((H, H), (H, H), (H,)))
    return [query, key, value, proj_l / H**0.5, proj_w / H**0.5, bias / N**0.5], randn(B, N, H, D)


def reference(inputs: list[torch.Tensor], grad: torch.Tensor, scaling: float) -> list[torch.Tensor]:
    """Output and gradients of the same numbers in float64, by autograd."""
    query, key, value, proj_l, proj_w, bias = (tensor.detach().double().requires_grad_() for tensor in inputs)
    output, _ = talking_heads_attention_forward(
        query, key, value, proj_l, torch.randn_like(bias), proj_w, bias, scaling=scaling
    )
    return [output, *torch.autograd.grad(output, (query, key, value, proj_l, proj_w, bias), grad.double())]


def relative_error(result: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest error by the largest expected number, or by 1 where zero is expected (N = 1: constant softmax)."""
    largest = expected.detach().abs().max().item()
    return (result.double() - expected).abs().max().item() / (largest if largest > 1e-9 else 1.0)


def errors(case: Case) -> dict[str, float]:
    inputs, grad = make_inputs(case)
    before = [tensor.clone() for tensor in inputs]
    scaling = case.channels**-0.5
    assert attention_triton.is_available(inputs[0])
    output = attention_triton.forward(*inputs, scaling)
    gradients = attention_triton.backward(grad, *inputs, scaling)

    assert output.is_contiguous() and output.shape == (case.batch, case.patches, case.heads, case.channels)
    assert output.dtype == case.dtype
    assert all(torch.equal(now, then) for now, then in zip(inputs, before))
    for gradient, tensor in zip(gradients, inputs, strict=True):
        assert gradient.shape == tensor.shape and gradient.dtype == tensor.dtype
    assert all(gradient.transpose(1, 2).is_contiguous() for gradient in gradients[:3])

    results = dict(zip(("output", *NAMES), (output, *gradients), strict=True))
    expected = reference(inputs, grad, scaling)
    return {name: relative_error(result, exact) for (name, result), exact in zip(results.items(), expected)}


def multiply_bfloat16():
    """The interpreter keeps bfloat16 as 16-bit integers, and multiplies matrices of them as integers: widen first."""
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    def widened(handle):
        if handle.data.dtype != "uint16":
            return handle
        return TensorHandle((handle.data.astype("uint32") << 16).view("float32"), tl.float32)

    create_dot = InterpreterBuilder.create_dot
    InterpreterBuilder.create_dot = lambda self, a, b, *args: create_dot(self, widened(a), widened(b), *args)


@pytest.fixture(scope="module")
def call():
    """Calls a function where the kernels run: here, on a GPU, or in the interpreter's process."""
    if not importlib.util.find_spec("triton"):
        pytest.skip(NO_TRITON)
    if torch.cuda.is_available():
        yield lambda function, *args: function(*args)
        return
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        with pytest.MonkeyPatch.context() as environment:
            environment.setenv("TRITON_INTERPRET", "1")
            pool.submit(multiply_bfloat16).result()
        try:
            pool.submit(errors, Case(1, 1)).result()
        except Exception as error:
            if "only 0-dimensional arrays" in str(error):
                pytest.skip("the interpreter of this old Triton cannot count with this new numpy")
            raise
        yield lambda function, *args: pool.submit(function, *args).result()


# Rounding of a sum of N float32 numbers grows as the square root of N.
FLOAT32 = [
    *(Case(heads, patches) for heads in (4, 6, 8, 16, 3) for patches in (1, 17)),
    Case(8, 17, 5),
    Case(16, 17, 64),
    Case(4, 70),
    Case(1, 33, 32),
    Case(2, 17, 128),
    Case(4, 17, batch=3),
    *(Case(6, 9, batch=2, layout=layout) for layout in LAYOUTS if layout != "heads last"),
    *(
        pytest.param(case, marks=pytest.mark.slow)
        for case in (Case(4, 196), Case(8, 196), Case(16, 196), Case(16, 196, 64), Case(2, 577))
    ),
    *(
        pytest.param(
            Case(heads, 577, batch=2), marks=pytest.mark.skipif(not torch.cuda.is_available(), reason=MINUTES)
        )
        for heads in (4, 6, 8, 16)
    ),
]


@pytest.mark.parametrize("case", FLOAT32, ids=str)
def test_float32_output_and_gradients(call, case):
    found = call(errors, case)
    assert {name: error for name, error in found.items() if not error <= 1e-6 * case.patches**0.5} == {}


# The mixed probabilities and dS are rounded once to the dtype for their products with V, K and Q (a half of 2^-8 or
# 2^-11), results once more, the operands of the mixings to TF32 (2^-11) on a GPU: a few of these roundings add up.
TOLERANCE = {torch.bfloat16: 1e-2, torch.float16: 2e-3}
HALF = [
    *(Case(heads, 17, dtype=dtype) for heads in (4, 16) for dtype in TOLERANCE),
    *(Case(8, 33, 64, batch=2, dtype=dtype, weight_dtype=dtype) for dtype in TOLERANCE),
    Case(6, 1, dtype=torch.bfloat16, weight_dtype=torch.float64),
    pytest.param(Case(8, 196, dtype=torch.bfloat16), marks=pytest.mark.slow),
    pytest.param(Case(4, 577, dtype=torch.float16), marks=pytest.mark.slow),
]


@pytest.mark.parametrize("case", HALF, ids=str)
def test_half_precision_output_and_gradients(call, case):
    found = call(errors, case)
    assert {name: error for name, error in found.items() if not error <= TOLERANCE[case.dtype]} == {}


@pytest.mark.parametrize("dtype, scale", [(torch.float32, 1e4), (torch.bfloat16, 1e4), (torch.float16, 1e3)])
def test_large_scores_stay_finite(call, dtype, scale):
    found = call(errors, Case(4, 37, dtype=dtype, query_scale=scale))
    assert all(error < float("inf") for error in found.values())  # neither inf nor NaN
    # scores of 1e4 are off by 1e-3 in float32 already, and so are the probabilities
    assert found["output"] < 3e-2


def equal_scores(score: float) -> list[torch.Tensor]:
    """Differences from the mean of the values, which equal scores must give, and whether gradients are finite."""
    (_, key, value, *_), grad = make_inputs(Case(4, 37))
    key = torch.ones_like(key)
    query = torch.full_like(key, score / 48)
    eye, bias = torch.eye(4).to(key), torch.zeros(4).to(key)
    output = attention_triton.forward(query, key, value, eye, eye, bias, 1.0)
    gradients = attention_triton.backward(grad, query, key, value, eye, eye, bias, 1.0)
    mean = value.mean(dim=2)[:, None]
    return [(output - mean).abs().max().item(), *(gradient.isfinite().all().item() for gradient in gradients)]


@pytest.mark.parametrize("score", [-1e4, 0.0, 1e4])
def test_keys_past_the_last_count_for_nothing(call, score):
    """The zeros that fill the last block would win against very negative scores."""
    error, *finite = call(equal_scores, score)
    assert error < 1e-3 and all(finite)


def same_twice() -> bool:
    inputs, grad = make_inputs(Case(6, 33, batch=2, dtype=torch.float16))
    runs = [(attention_triton.forward(*inputs, 0.1), *attention_triton.backward(grad, *inputs, 0.1)) for _ in range(2)]
    return all(torch.equal(first, second) for first, second in zip(*runs, strict=True))


def test_same_bits_in_every_run(call):
    assert call(same_twice)


def expanded_gradient() -> bool:
    inputs, _ = make_inputs(Case(4, 17))
    ones = torch.ones(1, 17, 4, 48).to(inputs[0])
    results = [attention_triton.backward(g, *inputs, 0.1) for g in (ones, ones[:1, :1, :1, :1].expand(ones.shape))]
    return all(torch.equal(first, second) for first, second in zip(*results, strict=True))


def test_gradient_without_memory_of_its_own(call):
    assert call(expanded_gradient)


def available() -> dict[str, bool]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tensors = {
        "float32": torch.empty(1, 4, 5, 48),
        "bfloat16": torch.empty(1, 8, 5, 48, dtype=torch.bfloat16),
        "float64": torch.empty(1, 4, 5, 48, dtype=torch.float64),
        "17 heads": torch.empty(1, 17, 5, 48),
        "129 channels": torch.empty(1, 2, 5, 129),
        "too wide": torch.empty(1, 16, 5, 128),
        "empty": torch.empty(0, 4, 5, 48),
        "3 dimensions": torch.empty(4, 5, 48),
    }
    return {name: attention_triton.is_available(tensor.to(device)) for name, tensor in tensors.items()}


def test_is_available(call):
    assert {name for name, answer in call(available).items() if answer} == {"float32", "bfloat16"}


def test_not_available_on_a_cpu():
    assert not attention_triton.is_available(torch.empty(1, 4, 5, 48))


def test_import_without_triton(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    spec = importlib.util.spec_from_file_location("attention_without_triton", attention_triton.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert not module.is_available(torch.empty(1, 4, 5, 48))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU: the interpreter's memory says nothing")
def test_no_map_in_memory():
    inputs, grad = make_inputs(Case(8, 2048, batch=2, dtype=torch.bfloat16))
    one_map = 2 * 8 * 2048 * 2048 * 2  # bytes
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    attention_triton.forward(*inputs, 0.1)
    attention_triton.backward(grad, *inputs, 0.1)
    torch.cuda.synchronize()
    assert torch.cuda.max_memory_allocated() - before < one_map / 4


class CompilingDriver:
    """As much of a Triton driver as compiling for a GPU needs that is not there."""

    def __init__(self, capability: int):
        self.capability = capability

    def get_current_device(self) -> int:
        return self.capability  # Triton keeps kernels by device

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self):
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.capability, 32)


def compiled(capability: int, shared_memory: int, case: Case) -> list[tuple[str, int, int]]:
    """Name, bytes of shared memory and bytes of spilled registers of each kernel that `forward` and `backward` launch.

    For a process of its own, in which nothing is launched.
    """
    import triton
    from triton.runtime.jit import JITFunction

    kernels = []
    run = JITFunction.run

    def compile_only(self, *args, **kwargs):
        kernel = run(self, *args, **{**kwargs, "warmup": True})
        kernels.append((self.fn.__name__, kernel.metadata.shared, stack_bytes(kernel.asm["cubin"])))

    triton.runtime.driver.set_active(CompilingDriver(capability))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(JITFunction, "run", compile_only)
        patch.setattr(attention_triton, "_shared_memory", lambda device: shared_memory)
        patch.setattr(torch.cuda, "is_available", lambda: False)
        inputs, grad = make_inputs(case)
        attention_triton.forward(*inputs, 0.1)
        attention_triton.backward(grad, *inputs, 0.1)
    return kernels


def stack_bytes(cubin: bytes) -> int:
    """What ptxas spilled: the stack of a kernel without arrays, read with the cuobjdump that Triton brings."""
    import triton

    file = Path(os.environ["TRITON_CACHE_DIR"]) / "kernel.cubin"
    file.write_bytes(cubin)
    program = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    usage = subprocess.run([program, "-res-usage", file], capture_output=True, text=True, check=True).stdout
    return int(re.search(r"STACK:(\d+)", usage).group(1))


@pytest.fixture(scope="module")
def compiler(tmp_path_factory):
    """A process for `compiled`."""
    if not importlib.util.find_spec("triton"):
        pytest.skip(NO_TRITON)
    import triton

    if not (Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump").is_file():
        pytest.skip("this Triton comes without NVIDIA's ptxas and cuobjdump")
    with pytest.MonkeyPatch.context() as environment, ProcessPoolExecutor(1, get_context("spawn")) as pool:
        environment.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        environment.delenv("TRITON_INTERPRET", raising=False)
        yield pool


H100, A100, RTX_4090 = (90, 227 * 1024), (80, 163 * 1024), (89, 99 * 1024)
FLOAT, HALF_DTYPE = torch.float32, torch.bfloat16
COMPILED = [
    (RTX_4090, Case(8, 576, dtype=HALF_DTYPE)),
    *(
        pytest.param(gpu, case, marks=pytest.mark.slow)
        for gpu, case in [
            *((H100, Case(heads, 576, dtype=dtype)) for heads in (4, 6, 8, 16) for dtype in (FLOAT, HALF_DTYPE)),
            (H100, Case(16, 576, 128, dtype=HALF_DTYPE)),
            (H100, Case(8, 576, 128, dtype=FLOAT)),
            (A100, Case(16, 576, dtype=HALF_DTYPE)),
            (A100, Case(8, 576, 128, dtype=HALF_DTYPE)),
            (A100, Case(8, 576, dtype=FLOAT)),
            (A100, Case(4, 576, 128, dtype=FLOAT)),
            (RTX_4090, Case(4, 576, dtype=HALF_DTYPE)),
            (RTX_4090, Case(4, 576, 128, dtype=HALF_DTYPE)),
            (RTX_4090, Case(8, 576, dtype=FLOAT)),
            (RTX_4090, Case(4, 576, 128, dtype=FLOAT)),
        ]
    ),
]


@pytest.mark.parametrize("gpu, case", COMPILED, ids=lambda x: f"sm{x[0]}" if isinstance(x, tuple) else str(x))
def test_compiles_for_real_gpus(compiler, gpu, case):
    capability, shared_memory = gpu
    kernels = compiler.submit(compiled, capability, shared_memory, case).result()

    assert len(kernels) == 5  # the statistics twice: backward finds delta with them
    assert [(name, shared) for name, shared, _ in kernels if shared > shared_memory] == []
    if case.channels == 48:
        assert [(name, spilled) for name, _, spilled in kernels if spilled > 256] == []
