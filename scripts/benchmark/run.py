# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""Measure the speed and the memory of CaiT: this package against timm, transformers' TimmWrapper and a plain ViT.

    python scripts/benchmark/run.py --goals --output_dir outputs/benchmark
    python scripts/benchmark/run.py --models XXS24,S24,M36 --image_sizes 224,384,448 --modes inference,training_memory
    python scripts/benchmark/run.py --scaling
    python scripts/benchmark/run.py --growth
    python scripts/benchmark/run.py --tables outputs/benchmark/results.json > tables.md

All baselines of a row run in this process, one after the other in each round, in alternating order; ratios are taken
round by round. Those that must agree get the same random weights, with LayerScale of order 1 so that every layer
matters, and their outputs are compared before anything is timed. Memory is measured in a process of its own for each
sample. Every sample is written to `results.json` after each row; a row that is there already is kept, so the same
command resumes after an interruption. `report.py` says what exactly each baseline and mode is.
"""

import argparse
import gc
import importlib.metadata
import importlib.util
import itertools
import json
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import torch
from baselines import ARCHITECTURES, FORMATS, EqualityGuard, Inputs, cait_config, can_do, make_step, random_state
from report import (
    BASELINES,
    MODES,
    RUNTIMES,
    SCALING_MODEL,
    SCALING_MODES,
    Work,
    as_row,
    baselines_of,
    cpu_rows,
    cuda_rows,
    draw_charts,
    find_row,
    gpu_tables,
    growth_rows,
    ratio,
    read_json,
    sample_text,
    tables,
    work_of,
)
from tqdm import tqdm
from transformers.utils import logging as transformers_logging

import cait_hf
from cait_hf import attention_backend
from cait_hf.commands.export import PACKAGES
from cait_hf.files import write_json


SCALING_IMAGE_SIZES = (224, 320, 448, 640, 832, 1024)  # 196 to 4096 patches
SCALING_BASELINES = ("ours", "ours_eager", "timm", "vit")
GROWTH_BASELINES = ("ours", "timm", "vit")
MIN_SAMPLE_SECONDS = 0.1  # shorter calls are repeated within a sample
MEMORY_REPEATS = {"cpu": 2, "cuda": 1}  # at most: samples hardly differ, on CUDA not at all
RESULTS = "results.json"


def main(argv: list[str] | None = None):
    """Run the script; wrong input ends it with an error message."""
    transformers_logging.set_verbosity_error()
    args = parse_args(argv)
    try:
        if args.memory_child:
            torch.set_num_threads(args.threads)
            child = json.loads(args.memory_child)
            print(json.dumps(memory_of_one_step(Work(**child["work"]), child["name"])))
        elif args.tables:
            render(args.tables, not args.no_charts)
        else:
            run(args)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    rows = parser.add_argument_group("what to measure: lists separated by commas, every combination a row")
    models, modes, baselines = ", ".join(ARCHITECTURES), ", ".join(MODES), ", ".join(BASELINES)
    rows.add_argument(
        "--models", type=one_of(ARCHITECTURES), help=f"of {models} (XXS24); tiny is for trying the script"
    )
    rows.add_argument("--image_sizes", type=integers, help="pixels, multiples of 16 (224)")
    rows.add_argument("--batch_sizes", type=integers, help="(1,8,32)")
    rows.add_argument("--dtypes", type=one_of(("float32", "bfloat16")), help="float32, bfloat16 (float32)")
    rows.add_argument("--modes", type=one_of(MODES), help=f"of {modes} (inference,training,training_memory)")
    rows.add_argument("--baselines", type=one_of(BASELINES), help=f"of {baselines} (all)")
    rows.add_argument("--goals", action="store_true", help="instead: the rows for which the project has goals")
    rows.add_argument(
        "--scaling", action="store_true", help="instead: one attention and 4 layers, 196 to 4096 patches"
    )
    rows.add_argument("--growth", action="store_true", help="instead: 4 layers as batch, pixels, heads, depth grow")
    how = parser.add_argument_group("how")
    how.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default: %(default)s")
    how.add_argument("--repeats", type=positive, default=15, help="rounds (default: %(default)s)")
    how.add_argument("--max_seconds", type=positive, default=300, help="of rounds in a row (default: 300)")
    how.add_argument("--threads", type=positive, default=available_cores(), help="of PyTorch (all cores)")
    how.add_argument(
        "--compile_only",
        type=part_of,
        metavar="I/N",
        help="only compile what must be compiled for part I of N of the rows, 1/1 for all: PyTorch's caches keep it",
    )
    how.add_argument(
        "--use_compiled", action="store_true", help="take it from there: first calls are not reported then"
    )
    how.add_argument(
        "--keep_going",
        action="store_true",
        help="a baseline that differs from the reference, or breaks, is a failure of its row and not the end",
    )
    how.add_argument("--no_charts", action="store_true", help="tables only; needs no matplotlib")
    how.add_argument("--overwrite", action="store_true", help="measure rows again that are in results.json")
    default_dir = Path(__file__).resolve().parents[2] / "outputs" / "benchmark"
    how.add_argument("--output_dir", type=Path, default=default_dir, help="for results.json and charts")
    tables_help = "only print its tables and draw its charts; of a folder that gpu.sh wrote: all its tables"
    how.add_argument("--tables", type=Path, metavar="RESULTS_JSON", help=tables_help)
    parser.add_argument("--memory_child", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)

    presets = [name for name in ("goals", "scaling", "growth", "tables") if getattr(args, name)]
    grid = ("models", "image_sizes", "batch_sizes", "dtypes", "modes")
    given = [name for name in (*grid, "baselines") if getattr(args, name)]
    if len(presets) > 1:
        parser.error(f"--{presets[0]} and --{presets[1]} exclude each other: pass one of them.")
    if presets and given and not (presets in (["scaling"], ["growth"]) and given == ["baselines"]):
        parser.error(f"--{presets[0]} has rows of its own, but --{given[0]} was passed too: drop one of them.")
    return args


def one_of(allowed) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        names = text.split(",")
        for name in names:
            if name not in allowed:
                raise argparse.ArgumentTypeError(
                    f"it has {name!r}, but each item must be one of {', '.join(allowed)}."
                )
        return list(dict.fromkeys(names))

    return parse


def integers(text: str) -> list[int]:
    return [positive(item) for item in text.split(",")]


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"it has {text!r}, but it must be an integer > 0.")
    return int(text)


def part_of(text: str) -> tuple[int, int]:
    index, _, count = text.partition("/")
    if not positive(index) <= positive(count):
        raise argparse.ArgumentTypeError(f"it is {text!r}, but it must be I/N with I <= N.")
    return int(index), int(count)


def available_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run(args: argparse.Namespace):
    planned = plan(args)
    check_environment(args, planned)
    torch.set_num_threads(args.threads)
    if args.compile_only:
        index, count = args.compile_only
        return compile_baselines(planned[index - 1 :: count])
    results = {"hardware": hardware(args.device, args.threads), "rows": []}
    path = args.output_dir / RESULTS
    if path.exists():
        earlier = read_results(path)
        check_same_machine(path, earlier["hardware"], results["hardware"])
        results["rows"] = earlier["rows"]
    args.output_dir.mkdir(parents=True, exist_ok=True)
    print(f"Talking-heads attention: {results['hardware']['attention']}.", flush=True)

    measured = 0
    try:
        for index, (work, names) in enumerate(planned, start=1):
            print(f"[{index}/{len(planned)}] {work}", flush=True)
            row = find_row(results["rows"], work)
            if row and not args.overwrite and baselines_of(row) >= {*names}:
                print("    kept from an earlier run", flush=True)
                continue
            if row and not args.overwrite:  # a row is always of one run: measure again what it had
                names = [name for name in BASELINES if name in {*names, *baselines_of(row)}]
            new = measure(work, names, args)
            print_row(new)
            results["rows"] = [other for other in results["rows"] if other is not row] + [new]
            write_json(path, results, indent=1)
            measured += 1
    except KeyboardInterrupt:
        sys.exit(f"\nInterrupted: {len(results['rows'])} complete rows, {measured} of them new, are in {path}.")
    report(results, None if args.no_charts else args.output_dir)
    failed = sum(len(row["failures"]) for row in results["rows"])
    if args.keep_going and failed:
        sys.exit(f"error: {failed} measurements failed; the tables name them.")


def compile_baselines(planned: list[tuple[Work, list[str]]]):
    for work, names in planned:
        for name in names:
            if not name.endswith("_compiled"):
                continue
            torch.compiler.reset()
            try:
                seconds, _ = timed(make_step(name, work, random_state(work), Inputs.of(work)), work.device)
                print(f"{work} {name}: first call {seconds:.0f} s", flush=True)
            except Exception as error:  # it comes again when it is measured
                print(f"{work} {name}: {one_line(error)}", flush=True)
            free_memory(work.device)


def plan(args: argparse.Namespace) -> list[tuple[Work, list[str]]]:
    """Every row with its baselines, in the order of measurement."""
    if args.goals:
        return cuda_rows() if args.device == "cuda" else cpu_rows()
    if args.growth:
        works = [replace(work, device=args.device) for works in growth_rows().values() for work in works.values()]
        return [(work, list(args.baselines or GROWTH_BASELINES)) for work in dict.fromkeys(works)]
    if args.scaling:
        dtype = "float32" if args.device == "cpu" else "bfloat16"
        modes = [mode + kind for mode in SCALING_MODES for kind in ("", "_memory")]
        works = [
            Work(mode, SCALING_MODEL, size, 1, dtype, args.device)
            for size, mode in itertools.product(SCALING_IMAGE_SIZES, modes)
        ]
        return [(work, list(args.baselines or SCALING_BASELINES)) for work in works]
    grid = itertools.product(
        args.modes or ("inference", "training", "training_memory"),
        args.models or ("XXS24",),
        args.image_sizes or (224,),
        args.batch_sizes or (1, 8, 32),
        args.dtypes or ("float32",),
    )
    planned = []
    for mode, model, image_size, batch_size, dtype in grid:
        work = Work(mode, model, image_size, batch_size, dtype, args.device)
        cait_config(work)  # raises for a size that no CaiT has
        planned.append((work, [name for name in args.baselines or BASELINES if can_do(name, work)]))
    return planned


def check_environment(args: argparse.Namespace, planned: list[tuple[Work, list[str]]]):
    device = args.device
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device is cuda, but PyTorch sees no CUDA device here: pass --device cpu.")
    if device == "cpu" and sys.platform != "linux" and any(work.is_memory for work, _ in planned):
        raise ValueError(f"memory on the CPU is read from /proc, which {sys.platform} lacks: drop the memory modes.")
    if not args.no_charts:
        require("matplotlib", "the charts need it: or pass --no_charts")
    if any(name.startswith("timm") for _, names in planned for name in names):
        require("timm", "it is one of the --baselines")
    for runtime in RUNTIMES:
        if any(runtime in names for _, names in planned):
            for package in PACKAGES[FORMATS[runtime]]:
                require(package, f"{BASELINES[runtime]} is one of the baselines")


def require(package: str, reason: str):
    if importlib.util.find_spec(package) is None:
        raise ValueError(f"{package} is not installed, but {reason}: pip install {package}.")


def hardware(device: str, threads: int) -> dict:
    cpu = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        cpu = names[0] if names else cpu
    versions = {"cait-hf": cait_hf.__version__, "Python": platform.python_version(), "torch": torch.__version__}
    for package in ("transformers", "timm"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "cpu": cpu,
        "cores": available_cores(),
        "threads": threads,
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
        "attention": attention_backend() if device == "cpu" else "triton",
        "system": f"{platform.system()} {platform.machine()}",
        "versions": versions,
    }


def check_same_machine(path: Path, earlier: dict, now: dict):
    for name, value in now.items():
        if earlier[name] != value:
            raise ValueError(
                f"{path} was measured with {name} {earlier[name]}, but here it is {value}: rows of both cannot be "
                "compared, choose another --output_dir."
            )


def read_results(path: Path) -> dict:
    try:
        results = read_json(path)
        if not results["hardware"]["versions"] or not all(work_of(row) for row in results["rows"]):
            raise ValueError
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a {RESULTS} of this script.") from error
    return results


def render(path: Path, charts: bool):
    """Tables of a results.json, or of the folder that `gpu.sh` wrote."""
    if path.is_dir():
        print(gpu_tables(path))
        return
    if charts:
        require("matplotlib", "the charts need it: or pass --no_charts")
    report(read_results(path), path.parent if charts else None)


def report(results: dict, chart_folder: Path | None):
    print(f"\n{tables(results)}")
    if chart_folder is not None:
        for chart in draw_charts(results, chart_folder):
            print(f"chart: {chart}", file=sys.stderr)


def print_row(row: dict):
    for name in BASELINES:
        if name in row["failures"]:
            print(f"    {name:14} failed: {row['failures'][name]}", flush=True)
        elif name in row["samples"]:
            against = ratio(row, name, "ours")
            relative = f"   {against.median:.2f} of ours" if against else ""
            unit = "GB" if work_of(row).is_memory else "ms an image"
            print(f"    {name:14} {sample_text(row, name)} {unit}{relative}", flush=True)


# A row


def measure(work: Work, names: list[str], args: argparse.Namespace) -> dict:
    load_before = load_average()
    measured = (measure_memory if work.is_memory else measure_times)(work, names, args)
    free_memory(work.device)
    return as_row(
        work, **measured, load_average=[load_before, load_average()], finished=time.strftime("%Y-%m-%d %H:%M")
    )


def free_memory(device: str):
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def load_average() -> float:
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0


def interleave(samplers: dict[str, Callable[[], float]], repeats: int, max_seconds: float) -> dict[str, list[float]]:
    """One sample of each baseline a round, in alternating order; after `max_seconds` no further round starts."""
    samples = {name: [] for name in samplers}
    start = time.perf_counter()
    for index in tqdm(range(repeats), desc="    rounds", leave=False, disable=None):
        if index and time.perf_counter() - start > max_seconds:
            break
        finished = {name: samplers[name]() for name in (list(samplers) if index % 2 == 0 else reversed(samplers))}
        for name, value in finished.items():
            samples[name].append(value)
    return samples


def measure_times(work: Work, names: list[str], args: argparse.Namespace) -> dict:
    """Seconds of one call, for each baseline and round."""
    torch.compiler.reset()
    torch.compiler.config.force_disable_caches = not args.use_compiled  # else compiling takes its whole time
    inputs = Inputs.of(work)
    state = random_state(work)
    guard = EqualityGuard(work, state, inputs)
    # cast once, so that all baselines share them
    state = {key: tensor.to(work.device, getattr(torch, work.dtype)) for key, tensor in state.items()}
    steps, calls, first_call_seconds, differences, failures = {}, {}, {}, {}, {}
    # Compiled ones last: they would be compiled again once a model of a new class has run (transformers keeps a list).
    for name in sorted(names, key=lambda name: name.endswith("_compiled")):
        try:
            step = make_step(name, work, state, inputs)
            seconds, output = timed(step, work.device)
            if name.endswith("_compiled") and not args.use_compiled:
                first_call_seconds[name] = seconds
            if name != "vit":
                differences[name] = guard.check(name, output)
            steps[name] = step
        except Exception as error:
            if not (args.keep_going or isinstance(error, RuntimeError)):  # out of memory, a compiler that gave up
                raise
            failures[name] = one_line(error)
    for name in filter(steps.get, names):
        timed(steps[name], work.device)  # anything that is compiled again is so here
        seconds, _ = timed(steps[name], work.device)
        calls[name] = max(1, math.ceil(MIN_SAMPLE_SECONDS / seconds))
    samplers = {name: sampler(steps[name], calls[name], work.device) for name in calls}
    return {
        "samples": interleave(samplers, args.repeats, args.max_seconds),
        "failures": failures,
        "calls": calls,
        "first_call_seconds": first_call_seconds,
        "differences": differences,
    }


def one_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def timed(step: Callable[[], torch.Tensor], device: str, calls: int = 1) -> tuple[float, torch.Tensor]:
    synchronize = torch.cuda.synchronize if device == "cuda" else lambda: None
    synchronize()
    start = time.perf_counter()
    for _ in range(calls):
        output = step()
    synchronize()
    return (time.perf_counter() - start) / calls, output


def sampler(step: Callable[[], torch.Tensor], calls: int, device: str) -> Callable[[], float]:
    return lambda: timed(step, device, calls)[0]


def measure_memory(work: Work, names: list[str], args: argparse.Namespace) -> dict:
    """Bytes that one step adds, for each baseline and round; on the CPU each in a process of its own."""
    failures = {}

    def here(name: str) -> float:  # what PyTorch allocates on a GPU it counts itself, byte by byte
        try:
            return memory_of_one_step(work, name)
        except RuntimeError as error:
            failures[name] = one_line(error)
            return math.nan
        finally:
            free_memory(work.device)

    def in_child(name: str) -> float:
        if name in failures:
            return math.nan
        child = json.dumps({"work": asdict(work), "name": name})
        command = [sys.executable, __file__, "--threads", str(args.threads), "--memory_child", child]
        finished = subprocess.run(command, capture_output=True, text=True)
        if finished.returncode == 0:
            return json.loads(finished.stdout.splitlines()[-1])
        lines = finished.stderr.strip().splitlines()
        killed = f"killed by signal {-finished.returncode}" if finished.returncode < 0 else None
        failures[name] = killed or (lines[-1] if lines else f"exit status {finished.returncode}")
        return math.nan

    sample = here if work.device == "cuda" else in_child
    samplers = {name: lambda name=name: sample(name) for name in names}
    samples = interleave(samplers, min(args.repeats, MEMORY_REPEATS[work.device]), args.max_seconds)
    samples = {name: values for name, values in samples.items() if name not in failures}
    return {"samples": samples, "failures": failures, "calls": {}, "first_call_seconds": {}, "differences": {}}


def memory_of_one_step(work: Work, name: str) -> int:
    """Peak memory of one step minus the memory in use before it, in bytes; on the CPU in a process of its own."""

    def step_of(work: Work) -> Callable[[], torch.Tensor]:
        return make_step(name, work, random_state(work), Inputs.of(work))

    if not name.endswith("_compiled"):
        # Code is loaded at its first use, which is not the step's memory; a tiny model leaves no large buffers.
        step_of(replace(work, model="tiny", image_size=32, batch_size=1))()
    step = step_of(work)
    if name.endswith("_compiled"):
        step()
    gc.collect()
    if work.device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    give_free_memory_back()
    Path("/proc/self/clear_refs").write_text("5")  # the peak becomes what is resident now (man 5 proc)
    before = resident_bytes("VmRSS")
    step()
    return resident_bytes("VmHWM") - before


def give_free_memory_back():
    """Otherwise the step would use again, unseen, what the building of the model left free."""
    import ctypes

    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc
    if trim:
        trim(0)


def resident_bytes(field: str) -> int:
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith(f"{field}:"))


if __name__ == "__main__":
    main()
