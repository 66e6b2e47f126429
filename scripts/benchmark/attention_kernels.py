# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""The Triton kernels of talking-heads attention: whether they are exact on this GPU, and how to launch them.

    python scripts/benchmark/attention_kernels.py check outputs/gpu/kernels.json
    python scripts/benchmark/attention_kernels.py candidates outputs/gpu/candidates.json
    python scripts/benchmark/attention_kernels.py search outputs/gpu/launches.json \\
        --candidates outputs/gpu/candidates.json

`check` compares outputs and gradients with float64, for the shapes of all architectures. `candidates` compiles and
checks other launches than the default ones, in many processes, and `search` times those that were right, alone on the
GPU: it prints the best of each shape and entries for `cait_hf.attention_triton.LAUNCHES`. With `TRITON_INTERPRET=1`
everything runs on the CPU; pass `--tiny` then. What is found is written after each case.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, TimeoutError, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from statistics import geometric_mean

import torch
from report import CUDA_SIZES, read_json

from cait_hf import CHECKPOINTS, attention_triton
from cait_hf.attention_cait import talking_heads_attention_forward
from cait_hf.attention_triton import Launch
from cait_hf.files import write_json


DTYPES = (torch.float32, torch.bfloat16, torch.float16)
GRADIENTS = ("d_query", "d_key", "d_value", "d_proj_l_weight", "d_proj_w_weight", "d_proj_w_bias")
FORWARD, BACKWARD = ("statistics", "output"), ("statistics_with_delta", "query_gradient", "key_value_gradient")
# (factor of the default's outer, inner, num_warps, num_stages), the likeliest first
VARIATIONS = (
    *((1, 16, 8, 1), (1, 32, 8, 2), (0.5, 16, 4, 2), (1, 16, 8, 3), (0.5, 32, 4, 2), (1, 16, 4, 2), (0.5, 16, 8, 2)),
    *((0.5, 32, 8, 2), (1, 32, 8, 1), (2, 16, 8, 1), (0.5, 64, 8, 1)),
)


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

    @property
    def tolerance(self) -> float:
        """Of relative errors.

        Rounding of a sum of N float32 numbers grows as the square root of N. In half precision the mixed probabilities
        and dS are rounded once for their products with V, K and Q (a half of 2^-8 or 2^-11), results once more, the
        operands of the talking-heads projections to TF32 (2^-11) on a GPU: a few of these roundings add up.
        """
        return {torch.bfloat16: 1e-2, torch.float16: 2e-3}.get(self.dtype, 1e-6 * self.patches**0.5)


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


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
    B, H, N, D = case.batch, case.heads, case.patches, case.channels

    def randn(*size: int, dtype: torch.dtype = case.dtype) -> torch.Tensor:
        return torch.randn(size).to(device=device(), dtype=dtype)  # drawn on the CPU: the same numbers everywhere

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


@lru_cache(maxsize=2)
def inputs_and_reference(case: Case) -> tuple[list[torch.Tensor], torch.Tensor, list[torch.Tensor]]:
    inputs, grad = make_inputs(case)
    return inputs, grad, reference(inputs, grad, case.channels**-0.5)


def errors(case: Case) -> dict[str, float]:
    """Relative errors of the output and of all gradients; shapes, dtypes and memory layouts are asserted."""
    inputs, grad, expected = inputs_and_reference(case)
    before = [tensor.clone() for tensor in inputs]
    assert attention_triton.is_available(inputs[0]), "the kernels do not take these tensors here"
    output = attention_triton.forward(*inputs, case.channels**-0.5)
    gradients = attention_triton.backward(grad, *inputs, case.channels**-0.5)

    assert output.is_contiguous() and output.shape == (case.batch, case.patches, case.heads, case.channels)
    assert output.dtype == case.dtype
    assert all(torch.equal(now, then) for now, then in zip(inputs, before))
    for gradient, tensor in zip(gradients, inputs, strict=True):
        assert gradient.shape == tensor.shape and gradient.dtype == tensor.dtype
    assert all(gradient.transpose(1, 2).is_contiguous() for gradient in gradients[:3])

    results = dict(zip(("output", *GRADIENTS), (output, *gradients), strict=True))
    return {name: relative_error(result, exact) for (name, result), exact in zip(results.items(), expected)}


def too_large(found: dict[str, float], case: Case) -> dict[str, float]:
    return {name: error for name, error in found.items() if not error <= case.tolerance}  # NaN is too large


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


def main(argv: list[str] | None = None):
    """Run the script; it exits with 1 if a kernel was wrong or nothing could be measured."""
    args = parse_args(argv)
    prepare()
    ok = {"check": check, "candidates": check_candidates, "search": search}[args.what](args)
    sys.exit(not ok)


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("check", "candidates", "search"))
    parser.add_argument("output", type=Path, help="JSON file to write")
    parser.add_argument("--candidates", type=Path, help="search: the file that `candidates` wrote")
    parser.add_argument("--processes", type=int, default=1, help="that compile and check (default: %(default)s)")
    parser.add_argument("--seconds", type=float, help="candidates: after so many leave the others out")
    parser.add_argument("--tiny", action="store_true", help="few and small shapes, for the interpreter")
    return parser.parse_args(argv)


def in_processes(function: Callable, items: list, processes: int, seconds: float | None = None) -> Iterator[tuple]:
    """(item, its result, what went wrong or None) as they finish: compiling takes most of the time, and one core.

    After `seconds` those that were not begun are left out.
    """
    if processes == 1:
        for item in items:
            yield item, *attempt(function, item)
        return
    with ProcessPoolExecutor(processes, get_context("spawn"), prepare) as pool:
        futures = {pool.submit(attempt, function, item): item for item in items}
        try:
            for future in as_completed(futures, seconds):
                yield futures[future], *future.result()
        except TimeoutError:
            print(f"{sum(not future.done() for future in futures)} of {len(items)} left out", flush=True)
            pool.shutdown(wait=False, cancel_futures=True)


def prepare():
    if not torch.cuda.is_available():
        multiply_bfloat16()


def attempt(function: Callable, item) -> tuple:
    try:
        return function(*item), None
    except Exception as error:  # of the compiler, the driver, an assertion: the other cases continue
        return None, f"{type(error).__name__}: {str(error).strip()[:300]}"


# Exactness


def shapes() -> dict[tuple[int, int], list[str]]:
    """The architectures of each (heads, patches)."""
    names = {}
    for checkpoint in CHECKPOINTS:
        key = (checkpoint.num_attention_heads, (checkpoint.image_size // 16) ** 2)
        names.setdefault(key, []).append(checkpoint.official_name.replace("_", "-"))
    return names


def check(args: argparse.Namespace) -> bool:
    named = {(4, 9): ["tiny"]} if args.tiny else shapes()
    cases = [Case(*shape, batch=2, dtype=dtype) for dtype in DTYPES for shape in named]
    rows = []
    for (case,), found, failure in in_processes(errors, [(case,) for case in cases], args.processes):
        wrong = [] if failure else sorted(too_large(found, case))
        rows.append(
            {
                "architectures": named[case.heads, case.patches],
                "heads": case.heads,
                "patches": case.patches,
                "dtype": str(case.dtype)[6:],
                "tolerance": case.tolerance,
                "errors": found or {},
                "failure": failure or (f"too large: {', '.join(wrong)}" if wrong else None),
            }
        )
        print(f"{case}: {rows[-1]['failure'] or f'exact, largest error {max(found.values()):.1e}'}", flush=True)
        write_json(args.output, {"cases": rows, "planned": len(cases)}, indent=1)
    return not any(row["failure"] for row in rows)


# Launches


def searched_shapes(tiny: bool) -> list[tuple[int, int, int]]:
    """(heads, patches, batch) of the rows that have goals."""
    if tiny:
        return [(4, 9, 1)]
    heads = {checkpoint.official_name.split("_")[0]: checkpoint.num_attention_heads for checkpoint in CHECKPOINTS}
    return [(heads[model], (size // 16) ** 2, batch) for (model, size), (batch, _) in CUDA_SIZES.items()]


def launches(query: torch.Tensor, kernel: str, tiny: bool) -> list[Launch]:
    """The default first, then its variations."""
    default = attention_triton._default_launch(query, kernel)
    found = [default]
    for factor, inner, num_warps, num_stages in VARIATIONS[: 1 if tiny else None]:
        found.append(Launch(max(16, int(factor * default.outer)), inner, num_warps, num_stages))
    return list(dict.fromkeys(found))


@contextmanager
def launched(query: torch.Tensor, choice: dict[str, Launch]) -> Iterator[None]:
    """Kernels like those for `query` are launched as `choice` says, by the names of the kernels."""
    before = dict(attention_triton.LAUNCHES)
    attention_triton.LAUNCHES.update({attention_triton._launch_key(query, name): x for name, x in choice.items()})
    try:
        yield
    finally:
        attention_triton.LAUNCHES.clear()
        attention_triton.LAUNCHES.update(before)


def check_candidate(case: Case, kernel: str, launch: Launch):
    """Raises `ValueError` if the kernel is wrong when it is launched in this way."""
    inputs, grad, expected = inputs_and_reference(case)
    with launched(inputs[0], {kernel: launch}):
        if kernel in FORWARD:
            found = {"output": relative_error(attention_triton.forward(*inputs, case.channels**-0.5), expected[0])}
        else:
            gradients = attention_triton.backward(grad, *inputs, case.channels**-0.5)
            pairs = zip(GRADIENTS, gradients, expected[1:])
            found = {name: relative_error(gradient, exact) for name, gradient, exact in pairs}
    largest = max(found, key=found.get)
    if not found[largest] <= 3 * case.tolerance:  # other tiles round in another order; what is wrong is so by far
        raise ValueError(f"{largest} is off by {found[largest]:.1e}")


def check_candidates(args: argparse.Namespace) -> bool:
    items = []
    for heads, patches, _ in searched_shapes(args.tiny):
        case = Case(heads, patches, dtype=torch.bfloat16)
        query = torch.empty(1, heads, 1, case.channels, dtype=case.dtype, device=device())
        for kernel in FORWARD + BACKWARD:
            items += [(case, kernel, launch) for launch in launches(query, kernel, args.tiny)]
    rows = []
    for (case, kernel, launch), _, failure in in_processes(check_candidate, items, args.processes, args.seconds):
        row = {"heads": case.heads, "patches": case.patches, "kernel": kernel, "launch": launch, "failure": failure}
        rows.append(row)
        print(f"H{case.heads} N{case.patches} {kernel} {launch}: {failure or 'exact'}", flush=True)
        write_json(args.output, rows, indent=1)
    return any(row["failure"] is None for row in rows)


def search(args: argparse.Namespace) -> bool:
    if args.candidates is None or not args.candidates.exists():
        sys.exit("error: --candidates must be the file that `candidates` wrote: run that first.")
    candidates = read_json(args.candidates)
    result = {"shapes": [], "entries": [], "failed": [row for row in candidates if row["failure"]]}
    for heads, patches, batch in searched_shapes(args.tiny):
        case = Case(heads, patches, batch=batch, dtype=torch.bfloat16)
        rights = {}
        for row in candidates:
            if (row["heads"], row["patches"]) == (heads, patches) and row["failure"] is None:
                rights.setdefault(row["kernel"], []).append(Launch(*row["launch"]))
        result["shapes"].append(search_shape(case, rights))
        result["entries"] = entries(result["shapes"])
        write_json(args.output, result, indent=1)
    print("\nFor attention_triton.LAUNCHES:\n" + ("\n".join(result["entries"]) or "nothing: the defaults are fastest"))
    return any(shape["kernels"] for shape in result["shapes"])


def search_shape(case: Case, rights: dict[str, list[Launch]]) -> dict:
    """Milliseconds of the whole forward or backward with each launch of one kernel, and with the best of all."""
    inputs, grad = make_inputs(case)
    query, scaling = inputs[0], case.channels**-0.5
    calls = {
        "forward": lambda: attention_triton.forward(*inputs, scaling),
        "backward": lambda: attention_triton.backward(grad, *inputs, scaling),
    }
    shape = {"heads": case.heads, "patches": case.patches, "batch": case.batch, "kernels": {}}
    best = {}
    for kernel, found in rights.items():
        call = calls["forward" if kernel in FORWARD else "backward"]
        default = attention_triton._default_launch(query, kernel)
        times = []
        for launch in dict.fromkeys([default, *found]):
            with launched(query, {kernel: launch}):
                times.append((milliseconds(call), launch))
        shape["kernels"][kernel] = [{"launch": launch, "milliseconds": time} for time, launch in times]
        best[kernel] = min(times)[1]
        print(
            f"{case} {kernel}: default {times[0][0]:.3f} ms, best {min(times)[0]:.3f} ms by {best[kernel]}", flush=True
        )
    for name, call in calls.items():
        shape[name] = {"now": milliseconds(call)}
        with launched(query, best):
            shape[name]["best"] = milliseconds(call)
    return shape


def milliseconds(call: Callable[[], object]) -> float:
    """Median time of a call on the GPU, with a cold L2 cache; one call by the clock where there is no GPU."""
    if torch.cuda.is_available():
        from triton.testing import do_bench

        return do_bench(call, warmup=5, rep=25, return_mode="median")
    start = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - start)


def entries(shapes: Iterable[dict]) -> list[str]:
    """Lines for `LAUNCHES`: of each kernel and key the launch with the best mean over shapes, if it beats the default.

    Times are taken relative to the default's, which is the first of a shape; 2 % are left to noise.
    """
    ratios = {}
    for shape in shapes:
        query = torch.empty(1, shape["heads"], 1, 48, dtype=torch.bfloat16)
        for kernel, rows in shape["kernels"].items():
            of_key = ratios.setdefault(attention_triton._launch_key(query, kernel), [])
            of_key.append({tuple(row["launch"]): row["milliseconds"] / rows[0]["milliseconds"] for row in rows})
    lines = []
    for key, of_shapes in ratios.items():
        common = set.intersection(*map(set, of_shapes))
        means = {launch: geometric_mean(of_shape[launch] for of_shape in of_shapes) for launch in common}
        launch = min(means, key=means.get, default=None)
        if launch is not None and means[launch] < 0.98:
            lines.append(f"    {key}: {Launch(*launch)},  # {means[launch]:.2f} of the default's time")
    return lines


if __name__ == "__main__":
    main()
