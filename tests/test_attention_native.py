# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""The native attention library: every instruction set of this CPU, and others where an emulator is installed."""

import importlib.util
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

import cait_hf
from cait_hf import attention_native
from cait_hf.attention_cait import talking_heads_attention_forward


ROOT = Path(__file__).resolve().parents[1]
NATIVE = ROOT / "src" / "cait_hf" / "native"
INSTRUCTION_SETS = ("amx", "avx512_bf16", "avx512", "avx2", "neon")
# Largest error over the largest value, against float64. float32: sums of up to 784 products. Half precision: rounding
# of the result (2^-9 and 2^-12), and in bfloat16, with dot products and tiles, of the mixed maps, whose errors add up.
BOUNDS = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 1e-3}
SHAPES = [  # (B, H, N, D): each number of heads and width, each kind of remainder
    *((1, 4, 1, 48), (2, 4, 17, 48), (1, 4, 196, 48), (1, 6, 577, 48), (2, 8, 196, 48), (1, 16, 784, 48)),
    *((1, heads, 33, 16) for heads in (1, 2, 3, 5, 7, 9, 10, 11, 12, 13, 14, 15)),
    *((2, 3, 20, width) for width in (32, 64, 80, 96, 112, 128)),
    (17, 4, 20, 48),
]


def of_dtypes(*dtypes):
    return pytest.mark.parametrize("dtype", dtypes, ids=lambda dtype: str(dtype).removeprefix("torch."))


# amx and avx512_bf16 have kernels of their own only for the forward pass of bfloat16.
in_both_dtypes = of_dtypes(torch.float32, torch.bfloat16)


@pytest.fixture(autouse=True)
def _threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=INSTRUCTION_SETS)
def library(request, monkeypatch):
    """The native path with one instruction set."""
    if isinstance(reason := attention_native._load(), str):
        pytest.skip(f"no native attention: {reason}")
    try:
        library = attention_native._Library(request.param)
    except ValueError as error:
        pytest.skip(str(error))
    monkeypatch.setattr(attention_native, "_load", lambda: library)
    return library


def inputs(batch_size, heads, patches, head_dim, dtype=torch.float32, seed=0):
    """Query, key, value as the linear layers leave them, both projections, far from the identity, and a bias."""
    torch.manual_seed(seed)
    tensors = [torch.randn(batch_size, patches, heads * head_dim).to(dtype) for _ in range(3)]
    tensors = [tensor.view(batch_size, patches, heads, head_dim).transpose(1, 2) for tensor in tensors]
    return *tensors, *(torch.eye(heads) + 0.3 * torch.randn(heads, heads) for _ in range(2)), torch.randn(heads) / 10


def plain(query, key, value, proj_l, proj_w, bias, scaling):
    zero = torch.zeros_like(bias)
    return talking_heads_attention_forward(query, key, value, proj_l, zero, proj_w, bias, scaling)[0]


def in_float64(tensors, grad_output, scaling):
    """Output and gradients of the plain formulas."""
    tensors = [tensor.double().requires_grad_() for tensor in tensors]
    output = plain(*tensors, scaling)
    return output.detach(), *torch.autograd.grad(output, tensors, grad_output.double())


def error(found, expected):
    return ((found.double() - expected).abs().max() / expected.abs().max()).item()


@of_dtypes(*BOUNDS)
def test_output_and_gradients_with_any_number_of_threads(library, dtype):
    for shape in SHAPES:
        tensors = inputs(*shape, dtype)
        scaling = shape[-1] ** -0.5
        grad_output = torch.randn(shape[0], shape[2], shape[1], shape[3]).to(dtype)
        found = {}
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found[threads] = (
                attention_native.forward(*tensors, scaling),
                *attention_native.backward(grad_output, *tensors, scaling),
            )
        assert all(torch.equal(one, two) for one, two in zip(found[1], found[2], strict=True)), shape
        expected = in_float64(tensors, grad_output, scaling)
        for index, (value, reference) in enumerate(zip(found[1], expected, strict=True)):
            # one key: its probability is 1 whatever the scores are, and their gradients are zero
            if reference.abs().max() > 1e-6:
                assert error(value, reference) < BOUNDS[dtype], (shape, index)
            else:
                assert value.abs().max() < 1e-5, (shape, index)


@of_dtypes(*BOUNDS)
def test_inputs_with_any_strides(library, dtype):
    query, key, value, *projections = inputs(2, 4, 21, 48, dtype)
    expected = attention_native.forward(query, key, value, *projections, 0.1)
    storage = torch.randn(2, 4, 21, 3, 49).to(dtype)[..., :48]  # odd strides
    for index, tensor in enumerate((query, key, value)):
        storage[:, :, :, index] = tensor
    assert torch.equal(attention_native.forward(*storage.unbind(3), *projections, 0.1), expected)
    by_channel = (tensor.transpose(2, 3).contiguous().transpose(2, 3) for tensor in (query, key, value))
    assert torch.equal(attention_native.forward(*by_channel, *projections, 0.1), expected)

    expanded = key[:1].expand(2, -1, -1, -1)
    expected = attention_native.forward(query, expanded.contiguous(), value, *projections, 0.1)
    assert torch.equal(attention_native.forward(query, expanded, value, *projections, 0.1), expected)


@of_dtypes(*BOUNDS)
def test_gradients_of_inputs_with_any_strides(library, dtype):
    *states, proj_l, proj_w, bias = inputs(2, 4, 37, 48, dtype)
    grad_output = torch.randn(2, 37, 4, 48).to(dtype)
    contiguous = [tensor.contiguous() for tensor in states]
    expected = attention_native.backward(grad_output, *contiguous, proj_l, proj_w, bias, 0.1)
    # three memory layouts: (B, N, H, D), (H, N, B, D) with odd strides, and (B, H, D, N)
    query, key, value = states
    padded = torch.full((4, 37, 2, 49), float("nan"), dtype=dtype).permute(2, 0, 1, 3)[..., :48].copy_(key)
    by_channel = value.transpose(2, 3).contiguous().transpose(2, 3)
    strided = torch.full((4, 37, 48, 2, 2), float("nan"), dtype=dtype)[..., 0].permute(3, 1, 0, 2).copy_(grad_output)
    assert len({tensor.stride() for tensor in (query, padded, by_channel)}) == 3
    found = attention_native.backward(strided, query, padded, by_channel, proj_l, proj_w, bias, 0.1)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


# As float32: NaN, infinities, and NaNs of other bits, which a kernel that works on the bits could take for numbers. As
# bfloat16, the upper half of each, which is not finite either.
@pytest.mark.parametrize(
    "bits", [0x7FC00000, 0x7F800000, 0xFF800000, 0xFFFFFFFF, 0x7FFFFFFF, 0x7FC00001, 0x7F800001], ids=hex
)
@in_both_dtypes
def test_rows_that_are_not_finite(library, dtype, bits):
    def check(*at):
        """With those bits there: what is finite, and in which rows, is as by the plain formulas."""
        tensors = inputs(1, 4, 37, 48, dtype)
        words = tensors[at[0]].view(torch.int32 if dtype == torch.float32 else torch.int16).numpy()
        words.view(words.dtype.str.replace("i", "u"))[at[1:]] = bits >> (32 - 8 * words.itemsize)
        grad_output = torch.randn(1, 37, 4, 48).to(dtype)
        found = (
            attention_native.forward(*tensors, 0.1),
            *attention_native.backward(grad_output, *tensors, 0.1),
        )
        for index, (value, reference) in enumerate(zip(found, in_float64(tensors, grad_output, 0.1), strict=True)):
            assert torch.equal(value.isfinite(), reference.isfinite()), index
        return found[0].isfinite()

    finite = check(0, 0, 1, 5, 3)
    assert not finite[0, 5].any() and finite[0, :5].all() and finite[0, 6:].all()
    assert not check(1, 0, 2, 7, 0).any()
    finite = check(2, 0, 3, 36, 47)
    assert not finite[..., 3, 47].any() and finite.sum() == finite.numel() - 37


@in_both_dtypes
def test_probabilities_too_small_for_a_float_are_zero(library, dtype):
    # and not denormal: a key of score -200 has the probability 1e-87, which even a value of 1e38 does not bring back
    query, key, value, _, _, _ = inputs(1, 4, 20, 16, dtype)
    query.fill_(1.0)
    key.zero_()[:, :, 7] = -12.5
    value.zero_()[:, :, 7] = 1e38
    output = attention_native.forward(query, key, value, torch.eye(4), torch.eye(4), torch.zeros(4), 1.0)
    assert output.abs().max() == 0


@in_both_dtypes
def test_large_scores(library, dtype):
    query, *others = inputs(1, 4, 196, 48, dtype)
    expected = plain(*(tensor.double() for tensor in (query * 1000, *others)), 0.1)
    # A score of 1e4 has an error of 1e-3, and so have the probabilities. In bfloat16 products are exact and summed in
    # float32, so that roundings of the mixed maps and of the result are added, of 2^-9 = 2e-3 each.
    bound = 1e-3 if dtype == torch.float32 else 5e-3
    assert error(attention_native.forward(query * 1000, *others, 0.1), expected) < bound


@in_both_dtypes
def test_many_calls_at_once(library, dtype):
    tensors = inputs(2, 4, 65, 48, dtype)
    expected = attention_native.forward(*tensors, 0.1)
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda _: attention_native.forward(*tensors, 0.1), range(64)))
    assert all(torch.equal(result, expected) for result in results)


@in_both_dtypes
def test_use_after_fork(library, dtype):
    """As in a DataLoader's worker, which has one thread."""
    tensors = inputs(2, 4, 65, 48, dtype)
    expected = attention_native.forward(*tensors, 0.1)
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)
        os._exit(0 if torch.equal(attention_native.forward(*tensors, 0.1), expected) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_operator_takes_the_native_path(library, monkeypatch):
    calls = []
    for name in ("forward", "backward"):
        function = getattr(attention_native, name)
        monkeypatch.setattr(
            f"cait_hf.attention_fused.native_{name}",
            lambda *args, name=name, function=function: calls.append(name) or function(*args),
        )

    def check(*shape, dtype=torch.float32):
        """The operator's output and gradients are those of the plain formulas."""
        tensors = [tensor.to(dtype).detach().requires_grad_() for tensor in inputs(*shape)]
        query, key, value, proj_l, proj_w, bias = tensors
        output = torch.ops.cait_hf.talking_heads_attention(
            query, key, value, proj_l, torch.zeros_like(bias), proj_w, bias, 0.1
        )
        grad_output = torch.randn_like(output)
        found = output.detach(), *torch.autograd.grad(output, tensors, grad_output)
        for value, reference in zip(found, in_float64(tensors, grad_output, 0.1), strict=True):
            assert error(value, reference) < BOUNDS[torch.float32]

    check(1, 4, 17, 48)
    assert calls == ["forward", "backward"]
    # dtype, width and heads that the library does not have
    check(1, 4, 17, 48, dtype=torch.float64)
    for shape in ((1, 4, 17, 24), (1, 17, 5, 16), (1, 1, 5, 144)):
        check(*shape)
    assert calls == ["forward", "backward"]


@in_both_dtypes
def test_projections_that_are_not_contiguous(library, dtype):
    *states, proj_l, proj_w, bias = inputs(2, 4, 33, 48, dtype)
    grad_output = torch.randn(2, 33, 4, 48).to(dtype)
    expected = attention_native.backward(grad_output, *states, proj_l, proj_w, bias, 0.1)
    transposed = [proj.t().contiguous().t() for proj in (proj_l, proj_w)]
    output = attention_native.forward(*states, proj_l, proj_w, bias, 0.1)
    assert torch.equal(attention_native.forward(*states, *transposed, bias, 0.1), output)
    found = attention_native.backward(grad_output, *states, *transposed, bias, 0.1)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert found[3].stride() == (1, 4)  # as the operator promises to compiled graphs


@pytest.mark.parametrize(
    "index, name", list(enumerate(["key", "value", "proj_l_weight", "proj_w_weight", "proj_w_bias"], 1))
)
def test_tensors_of_other_shapes_are_refused(library, index, name):
    tensors = list(inputs(2, 4, 20, 48))
    tensors[index] = tensors[index][:1]
    with pytest.raises(ValueError, match=f"{name} has shape"):
        attention_native.forward(*tensors, 0.1)
    with pytest.raises(ValueError, match="grad_output has shape"):
        attention_native.backward(torch.randn(2, 10, 4, 48), *inputs(2, 4, 20, 48), 0.1)


def test_products_of_pytorch_in_between(library):
    """PyTorch's products in bfloat16 configure the matrix unit of a CPU that has one; so does the library."""
    tensors = inputs(2, 4, 196, 48, torch.bfloat16)
    linear = torch.nn.Linear(192, 192, dtype=torch.bfloat16)
    with torch.no_grad():
        attended = attention_native.forward(*tensors, 0.1)
        expected = linear(attended.flatten(2))
        for _ in range(3):
            assert torch.equal(attention_native.forward(*tensors, 0.1), attended)
            assert torch.equal(linear(attended.flatten(2)), expected)


@pytest.mark.parametrize("batch_size, patches", [(0, 5), (2, 0)])
@in_both_dtypes
def test_nothing_to_attend_to(library, dtype, batch_size, patches):
    tensors = inputs(batch_size, 4, patches, 48, dtype)
    output = attention_native.forward(*tensors, 0.1)
    assert output.shape == (batch_size, patches, 4, 48)
    gradients = attention_native.backward(output, *tensors, 0.1)
    assert all(gradient.eq(0).all() for gradient in gradients)


@pytest.mark.parametrize(
    "wanted, expected",
    [("0", "blocked (CAIT_HF_NATIVE=0)"), ("sse9", "CAIT_HF_NATIVE is sse9"), ("avx2", "native (avx2)")],
)
def test_environment_variable(wanted, expected, monkeypatch):
    if isinstance(reason := attention_native._load(), str) and wanted != "0":
        pytest.skip(f"no native attention: {reason}")
    monkeypatch.setenv("CAIT_HF_NATIVE", wanted)
    attention_native._load.cache_clear()
    try:
        found = cait_hf.attention_backend()
    except ValueError as message:  # names what this CPU has
        found = str(message)
    finally:
        attention_native._load.cache_clear()
    if wanted == "avx2" and "this CPU has" in found:
        pytest.skip(found)
    assert found.startswith(expected)


def test_remote_code_finds_the_library_of_the_installed_package(library, tmp_path):
    copy = shutil.copy(attention_native.__file__, tmp_path)
    spec = importlib.util.spec_from_file_location("attention_native_beside_a_checkpoint", copy)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.attention_backend().startswith("native")


def run(command, **environment):
    child = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})
    assert child.returncode == 0, f"{child.stdout}\n{child.stderr[-3000:]}"
    return child.stdout


AVX512 = "-mavx512f -mavx512bw -mavx512vl -mavx512dq -mfma -mprefer-vector-width=512"
KERNELS = {
    "kernel_avx2.cpp": "-mavx2 -mfma -mf16c",
    "kernel_avx512.cpp": AVX512,
    "kernel_avx512_bf16.cpp": f"{AVX512} -mavx512bf16",
    "kernel_amx.cpp": f"{AVX512} -mavx512bf16 -mamx-tile -mamx-bf16",
}


def build_check(folder, compiler, kernels, flags):
    """`native_check.cpp` with the library's sources; returns the program."""
    objects = []
    common = f"-std=c++17 -fno-math-errno -fno-strict-aliasing -w {flags}".split()
    for name, of_kernel in {**kernels, "attention.cpp": ""}.items():
        objects.append(str(folder / f"{name}.o"))
        run([compiler, *common, *of_kernel.split(), "-c", str(NATIVE / name), "-o", objects[-1]])
    program = str(folder / "check")
    run([compiler, *common, str(ROOT / "tests" / "native_check.cpp"), *objects, "-pthread", "-o", program])
    return program


@pytest.mark.slow
def test_sanitizers_find_nothing(tmp_path):
    library = attention_native._load()
    if shutil.which("g++") is None or isinstance(library, str) or "avx2" not in library.available:
        pytest.skip("needs g++ and an x86 CPU with AVX2")
    flags = "-O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all"
    program = build_check(tmp_path, "g++", KERNELS, flags)
    for name in library.available:
        run([program, name])


@pytest.mark.slow
def test_neon_in_an_emulator(tmp_path):
    compiler, emulator = shutil.which("aarch64-linux-gnu-g++"), shutil.which("qemu-aarch64")
    if not (compiler and emulator):
        pytest.skip("needs aarch64-linux-gnu-g++ and qemu-aarch64 (Debian: g++-aarch64-linux-gnu, qemu-user)")
    run([emulator, build_check(tmp_path, compiler, {"kernel_neon.cpp": ""}, "-O2 -static"), "neon"])


@pytest.mark.slow
@pytest.mark.parametrize("compiler, tag, backend", [("g++", "linux", "native"), ("false", "py3-none-any", "blocked")])
def test_wheel(tmp_path, compiler, tag, backend):
    """Installed without the source tree; without a compiler it is pure, and says why the library is missing."""
    if shutil.which(compiler) is None:
        pytest.skip(f"needs {compiler}")
    ignored = shutil.ignore_patterns(".*", "build", "outputs", "data", "*.egg-info", "*.so", "__pycache__")
    shutil.copytree(ROOT, tmp_path / "source", ignore=ignored)
    pip = [sys.executable, "-m", "pip", "--quiet"]
    compilers = {} if compiler == "g++" else {"CC": compiler, "CXX": compiler}
    options = ["--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path)]
    run([*pip, "wheel", *options, str(tmp_path / "source")], **compilers)
    (wheel,) = tmp_path.glob("*.whl")
    assert tag in wheel.name and "-py3-none-" in wheel.name
    run([*pip, "install", "--no-deps", "--target", str(tmp_path / "installed"), str(wheel)])
    shutil.rmtree(tmp_path / "source")
    program = "import cait_hf; print(cait_hf.__file__, cait_hf.attention_backend())"
    output = run([sys.executable, "-c", program], PYTHONPATH=str(tmp_path / "installed"), CAIT_HF_NATIVE="")
    assert output.startswith(str(tmp_path)) and f" {backend} (" in output

    def command(line: str) -> str:
        environment = {"PYTHONPATH": str(tmp_path / "installed"), "CAIT_HF_NATIVE": "", "HF_HUB_OFFLINE": "1"}
        return run([sys.executable, "-m", "cait_hf_cli", *line.format(tmp=tmp_path).split()], **environment)

    for name in ("train", "evaluate", "export"):
        assert command(f"{name} --help").startswith(f"usage: cait-hf {name} ")
    flags = "--train_files {tmp}/installed/cait_hf/fashion_mnist/sample.parquet --max_train_samples 60 --max_steps 1"
    flags += " --eval_strategy no --load_best_model_at_end no --save_strategy no --dataloader_num_workers 0 --use_cpu"
    model = "--model_name_or_path fashion_mnist --dataset_name parquet --output_dir {tmp}/trained"
    command(f"train linear_probe {model} {flags}")
    assert "cait-hf train linear_probe" in (tmp_path / "trained" / "README.md").read_text()
    assert "Wrote" in command("export {tmp}/trained {tmp}/exported --format torch")
