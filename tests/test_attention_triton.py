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
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from test_scripts import SCRIPTS

from cait_hf import attention_triton


sys.path.append(str(SCRIPTS / "benchmark"))  # to stay there: the interpreter's process looks functions up by name
from attention_kernels import LAYOUTS, Case, device, errors, make_inputs, multiply_bfloat16, too_large


NO_TRITON = "Triton is not installed: PyTorch for CPUs comes without"
MINUTES = "takes minutes in the interpreter: needs an NVIDIA GPU"


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


HALF = [
    *(Case(heads, 17, dtype=dtype) for heads in (4, 16) for dtype in (torch.bfloat16, torch.float16)),
    *(Case(8, 33, 64, batch=2, dtype=dtype, weight_dtype=dtype) for dtype in (torch.bfloat16, torch.float16)),
    Case(6, 1, dtype=torch.bfloat16, weight_dtype=torch.float64),
    pytest.param(Case(8, 196, dtype=torch.bfloat16), marks=pytest.mark.slow),
    pytest.param(Case(4, 577, dtype=torch.float16), marks=pytest.mark.slow),
]


@pytest.mark.parametrize("case", FLOAT32 + HALF, ids=str)
def test_output_and_gradients(call, case):
    assert too_large(call(errors, case), case) == {}


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


tl = attention_triton.tl


@attention_triton.jit
def offsets_kernel(output, strides):
    """Offsets of the first row of a block of 4 heads and 16 channels."""
    offsets, _ = attention_triton._offsets(strides, tl.program_id(0), tl.arange(0, 1), 1, 4, 16, 4, 16)
    place = tl.arange(0, 4)[:, None, None] * 16 + tl.arange(0, 16)[None, None, :]
    tl.store(output + place, offsets)


def far_offsets(head_stride: int, channel_stride: int) -> list[list[int]]:
    output = torch.zeros(4, 16, dtype=torch.int64, device=device())
    offsets_kernel[(1,)](output, (0, head_stride, 0, channel_stride))
    return output.tolist()


@pytest.mark.parametrize("head_stride, channel_stride", [(2**30, 1), (1, 2**29)])
def test_offsets_past_two_billion_numbers(call, head_stride, channel_stride):
    """Heads, or channels, that lie outside the images of a large batch."""
    expected = [[head * head_stride + channel * channel_stride for channel in range(16)] for head in range(4)]
    assert call(far_offsets, head_stride, channel_stride) == expected


@pytest.mark.skipif(not importlib.util.find_spec("triton"), reason=NO_TRITON)
def test_table_of_launches(monkeypatch):
    """Of its key alone, and only where the shared memory is an H100's."""
    query = torch.empty(2, 6, 70, 48, dtype=torch.bfloat16)
    usual = attention_triton._launch(query, "output")
    launch = attention_triton.Launch(outer=32, inner=64, num_warps=4, num_stages=3)
    monkeypatch.setitem(attention_triton.LAUNCHES, ("output", 2, 8, 64), launch)
    grid, options = attention_triton._launch(query, "output")
    assert grid == (2 * 3,)
    assert [options[name] for name in ("BQ", "BK", "num_warps", "num_stages")] == [32, 64, 4, 3]
    assert attention_triton._launch(query, "statistics")[1]["BK"] == 16
    assert attention_triton._launch(query[:, :4], "output")[1]["BK"] == 16
    monkeypatch.setattr(attention_triton, "_shared_memory", lambda device: 163 * 1024)
    assert attention_triton._launch(query, "output")[1]["BK"] == 16 == usual[1]["BK"]


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
