# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""`scripts/benchmark/gpu.sh` without a GPU: every part at a tiny size, the kernels in Triton's interpreter."""

import importlib.metadata
import importlib.util
import inspect
import json
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from test_scripts import SCRIPTS, load_script, load_scripts


FOLDER = SCRIPTS / "benchmark"
report, baselines, benchmark, gpu, training, kernels = load_scripts(
    FOLDER, "report", "baselines", "run", "gpu", "gpu_training", "attention_kernels"
)
NEEDS_TRITON = pytest.mark.skipif(not importlib.util.find_spec("triton"), reason="Triton is not installed")
NEEDS_BASH = pytest.mark.skipif(sys.platform != "linux", reason="the command needs bash, timeout and nproc")


def gpu_sh(out: Path, script: Path = FOLDER / "gpu.sh", **variables: str) -> subprocess.CompletedProcess:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"SIZE": "tiny", "PYTHON": sys.executable, "OUT": str(out), **variables}
    return subprocess.run(["bash", script], env=environment, capture_output=True, text=True)


def parts_of(out: Path) -> dict[str, str]:
    return {letter: part["status"] for letter, part in report.read_json(out / "gpu.json")["parts"].items()}


@pytest.fixture
def fashion_mnist(tmp_path) -> Path:
    """Noise in the place of clothes."""
    prepare = load_script("prepare_fashion_mnist")
    folder, rng = tmp_path / "fashion-mnist", np.random.default_rng(0)
    folder.mkdir()
    for split, count in (("train", 200), ("validation", 20)):
        scans = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        prepare.write_parquet(folder / f"{split}.parquet", scans, np.arange(count) % 10)
    return folder


# The command


@pytest.mark.slow
@NEEDS_TRITON
@NEEDS_BASH
def test_all_parts(tmp_path, fashion_mnist, capsys):
    for package in ("timm", "matplotlib"):
        pytest.importorskip(package, reason=f"part c needs {package}")
    out = tmp_path / "out"
    finished = gpu_sh(out, FASHION_MNIST=str(fashion_mnist))
    assert finished.returncode == 0, finished.stderr + (out / "log.txt").read_text()
    assert parts_of(out) == dict.fromkeys("abcde", "passed")
    names = ["fashion_mnist.json", "fashion_mnist.tar.gz", "gpu.json", "kernels.json", "launches.json", "log.txt"]
    assert sorted(path.name for path in out.iterdir()) == [*names, "models.json", "training.json"]
    benchmark.main(["--tables", str(out)])
    printed = capsys.readouterr().out
    for title in ("Inference", "Largest relative errors", "Launches", "Training scripts", "Fashion-MNIST"):
        assert f"### {title}" in printed
    assert "failed" not in printed


@NEEDS_TRITON
@NEEDS_BASH
def test_kernels_and_the_search_for_launches(tmp_path):
    finished = gpu_sh(tmp_path, PARTS="a b")
    log = (tmp_path / "log.txt").read_text()
    if "only 0-dimensional arrays" in log:
        pytest.skip("the interpreter of this old Triton cannot count with this new numpy")
    assert finished.returncode == 0, finished.stderr + log
    assert parts_of(tmp_path) == {"a": "passed", "b": "passed"}
    kernels = report.read_json(tmp_path / "kernels.json")
    assert [case["dtype"] for case in kernels["cases"]] == ["float32", "bfloat16", "float16"]
    assert all(len(case["errors"]) == 7 and case["failure"] is None for case in kernels["cases"])
    launches = report.read_json(tmp_path / "launches.json")
    assert launches["failed"] == []
    (shape,) = launches["shapes"]
    assert len(shape["kernels"]) == 5
    assert all(len(rows) == 2 and rows[0]["milliseconds"] > 0 for rows in shape["kernels"].values())
    assert shape["forward"].keys() == {"now", "best"}


def stub_python(folder: Path, then: str) -> str:
    """Plays Python: gpu.py runs, each other step notes that it was started, and then does what a `case` says."""
    stub = folder / "python"
    gpu_py = f'case "$1" in *gpu.py) exec {sys.executable} "$@" ;; esac'
    stub.write_text(f'#!/usr/bin/env bash\n{gpu_py}\necho "started $*"\ncase "$*" in {then} ;; esac\n')
    stub.chmod(0o755)
    return str(stub)


@NEEDS_TRITON
@NEEDS_BASH
def test_a_part_that_fails_stops_no_other(tmp_path):
    pytest.importorskip("timm", reason="part c needs it")
    out = tmp_path / "out"
    stub = stub_python(tmp_path, then="*check*) exit 3")
    finished = gpu_sh(out, PYTHON=stub, FASHION_MNIST=str(tmp_path / "missing"))
    assert finished.returncode == 1
    assert parts_of(out) == {"a": "failed", "b": "passed", "c": "passed", "d": "passed", "e": "skipped"}
    assert "part a, kernels against float64: failed after 0 s: exit status 3, see log.txt" in finished.stderr
    assert f"FASHION_MNIST is {tmp_path / 'missing'}, which lacks" in finished.stderr
    log = (out / "log.txt").read_text()
    for step in ("a-kernels", "b-candidates", "b-search", "c-models", "d-training"):
        assert f"===== {step}\nstarted" in log
    assert "e-fashion-mnist" not in log


@NEEDS_TRITON
@NEEDS_BASH
def test_the_scripts_take_what_they_are_given_on_a_gpu(tmp_path, fashion_mnist):
    pytest.importorskip("timm", reason="part c needs it")
    variables = {"SIZE": "full", "TRITON_INTERPRET": "1", "FASHION_MNIST": str(fashion_mnist)}
    assert gpu_sh(tmp_path / "out", PYTHON=stub_python(tmp_path, then="none) exit"), **variables).returncode == 0
    lines = (tmp_path / "out/log.txt").read_text().splitlines()
    started = [line.split()[1:] for line in lines if line.startswith("started")]
    parsers = {"run.py": benchmark, "gpu_training.py": training, "attention_kernels.py": kernels}
    parsed = [(Path(script).name, parsers[Path(script).name].parse_args(argv)) for script, *argv in started]
    assert [name for name, _ in parsed].count("run.py") == 4
    assert sorted(args.what for name, args in parsed if name != "run.py") == [
        *("candidates", "check", "fashion_mnist", "search", "speed", "speed")
    ]
    assert not any(getattr(args, "tiny", False) for _, args in parsed)
    planned = [benchmark.plan(args) for name, args in parsed if name == "run.py"]
    assert planned == [report.cuda_rows()] * 4


@NEEDS_TRITON
@NEEDS_BASH
def test_a_part_that_never_ends_is_stopped(tmp_path):
    script = tmp_path / "repository/scripts/benchmark/gpu.sh"
    script.parent.mkdir(parents=True)
    script.write_text(re.sub(r"TOGETHER=\d+", "TOGETHER=1", (FOLDER / "gpu.sh").read_text()))
    for name in ("gpu.py", "report.py"):
        (script.parent / name).symlink_to(FOLDER / name)
    stub = stub_python(tmp_path, then="*check*) sleep 60")
    assert gpu_sh(tmp_path / "out", script, PARTS="a b", PYTHON=stub).returncode == 1
    assert parts_of(tmp_path / "out") == {"a": "timed out", "b": "passed"}


@NEEDS_BASH
@pytest.mark.parametrize(
    "variables, message", [({"SIZE": "small"}, "SIZE is small"), ({"PARTS": "a x"}, "PARTS has x"), ({}, "OUT is ")]
)
def test_wrong_variables_and_results_of_another_run(variables, message, tmp_path):
    (tmp_path / "gpu.json").write_text("{}")
    finished = gpu_sh(tmp_path / "out" if variables else tmp_path, **variables)
    assert finished.returncode == 2 and f"error: {message}" in finished.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["gpu.json"]
    assert (tmp_path / "gpu.json").read_text() == "{}"


# What is there


def test_missing_and_old_packages(tmp_path, monkeypatch, capsys):
    versions = {"torch": "2.11.0+cu130", "triton": "3.6.0", "transformers": "5.17.0", "timm": "1.0.9"}

    def version(package):
        if package not in versions:
            raise importlib.metadata.PackageNotFoundError(package)
        return versions[package]

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setenv("FASHION_MNIST", str(tmp_path))
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    gpu.main(["plan", str(tmp_path), "a b c d"])
    printed = capsys.readouterr()
    assert printed.out == "a b\n"
    assert "timm 1.0.9, accelerate MISSING" in printed.err
    stored = report.read_json(tmp_path / "gpu.json")
    assert stored["packages"]["datasets"] is None
    reasons = {letter: part["reason"] for letter, part in stored["parts"].items() if part["status"] == "skipped"}
    assert reasons == {"c": "timm is 1.0.9, but it must be 1.0.21 or newer", "d": "accelerate is not installed"}
    assert all(f": SKIPPED, {reason}\n" in printed.err for reason in reasons.values())


def test_no_gpu(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(gpu, "why_not", lambda letter, packages: None)
    gpu.main(["plan", str(tmp_path), "a"])
    printed = capsys.readouterr()
    assert printed.out == "\n" and "SKIPPED, PyTorch sees no NVIDIA GPU: try SIZE=tiny" in printed.err
    with pytest.raises(SystemExit) as stopped:  # nothing could run
        gpu.main(["summary", str(tmp_path), str(tmp_path / "ended")])
    assert stopped.value.code == 1


# Parts d and e: as in the command, but in this process


@pytest.fixture
def in_this_process(monkeypatch):
    def train(script, output_dir, flags):
        load_script(script).main([str(flag) for flag in (*flags, "--output_dir", output_dir, "--disable_tqdm", True)])
        return {"failure": None, **report.read_json(output_dir / "all_results.json")}

    monkeypatch.setattr(training, "train", train)
    monkeypatch.syspath_prepend(str(FOLDER))


def test_training_scripts(tmp_path, in_this_process):
    with pytest.raises(SystemExit) as stopped:
        training.main(["speed", str(tmp_path / "training.json"), "--tiny"])
    assert stopped.value.code == 0
    result = report.read_json(tmp_path / "training.json")
    assert [run["script"] for run in result["runs"]] == [training.TRAINER, training.LOOP]
    assert all(run["failure"] is None and run["train_images_per_second"] > 0 for run in result["runs"])
    assert report.training_table(result).count("\n| `run_image_classification") == 2


def test_fashion_mnist(tmp_path, fashion_mnist, in_this_process):
    pytest.importorskip("timm", reason="random erasing is timm's")
    with pytest.raises(SystemExit) as stopped:
        training.main(["fashion_mnist", str(tmp_path / "result.json"), "--data", str(fashion_mnist), "--tiny"])
    assert stopped.value.code == 0
    result = report.read_json(tmp_path / "result.json")
    for recipe, metrics in (("fashion_mnist_teacher", result["teacher"]), ("fashion_mnist", result)):
        assert metrics["epochs"] == 1 and 0 <= metrics["eval_ema_top1"] <= 1
        with tarfile.open(tmp_path / "result.tar.gz") as archive:
            names = archive.getnames()
        # what the release script reads
        for name in ("ema/config.json", "ema/model.safetensors", "trainer_state.json", "all_results.json"):
            assert f"{recipe}/{name}" in names
        assert not any("checkpoint-" in name for name in names)


def test_a_training_that_fails_says_why(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "SCRIPTS", tmp_path)
    (tmp_path / "script.py").write_text("import sys\nprint('warning')\nsys.exit(f'error: {sys.argv[1:]}')\n")
    result = training.train("script", tmp_path / "out", ["--steps", 3])
    out = str(tmp_path / "out")
    assert result == {"failure": f"error: {['--steps', '3', '--output_dir', out, '--disable_tqdm', 'true']}"}


def test_plan():
    """All pairs of trainings; rows of each goal; at most eight minutes, five seconds more for a step to be killed."""
    assert len(training.RUNS) == len({*training.RUNS}) == 6
    assert {flags for _, _, flags in training.RUNS} == {"--bf16", "--fp16", "--bf16 --torch_compile"}
    rows = dict(report.cuda_rows())
    assert all({goal.numerator, goal.denominator} <= {*rows[goal.work]} for goal in report.cuda_goals())
    assert len(rows) == len(report.cuda_rows()) == 20 and {work.dtype for work in rows} == {"bfloat16"}
    (line,) = [line for line in (FOLDER / "gpu.sh").read_text().splitlines() if line.startswith("TOGETHER=")]
    budgets = [int(item.split("=")[1]) for item in line.split()]
    assert len(budgets) == 4 and sum(budgets) + 4 * 5 <= 8 * 60 + 10


# Part c


TINY = ["--models", "tiny", "--image_sizes", "32", "--batch_sizes", "2", "--repeats", "1"]
TINY += ["--no_charts", "--threads", "1"]


def test_compiling_in_parts(tmp_path, monkeypatch, capsys):
    pytest.importorskip("timm", reason="timm is what is compiled")
    monkeypatch.setattr(torch, "compile", lambda module, dynamic: module)
    flags = [*TINY, "--output_dir", str(tmp_path / "none"), "--modes", "inference,training"]
    flags += ["--baselines", "ours,timm_compiled", "--compile_only"]
    benchmark.main([*flags, "1/1"])
    assert capsys.readouterr().out.count("timm_compiled: first call") == 2
    benchmark.main([*flags, "2/2"])
    printed = capsys.readouterr().out
    assert "training tiny-32 batch 2 float32 cpu timm_compiled: first call" in printed and "inference" not in printed
    assert not (tmp_path / "none").exists()
    with pytest.raises(SystemExit):
        benchmark.main([*flags, "3/2"])
    assert "it must be I/N with I <= N" in capsys.readouterr().err


def test_a_baseline_that_breaks_is_a_failure_of_its_row(tmp_path, monkeypatch):
    original = benchmark.make_step

    def breaking(name, *args):
        if name == "vit":
            raise TypeError("breaks")
        return original(name, *args)

    monkeypatch.setattr(benchmark, "make_step", breaking)
    monkeypatch.setattr(benchmark.EqualityGuard, "check", lambda *_: int("differs"))
    flags = [*TINY, "--output_dir", str(tmp_path), "--modes", "attention", "--baselines", "ours,vit"]
    with pytest.raises((TypeError, SystemExit)):
        benchmark.main(flags)
    assert not (tmp_path / "results.json").exists()
    with pytest.raises(SystemExit, match="error: 2 measurements failed; the tables name them"):
        benchmark.main([*flags, "--keep_going"])
    (row,) = report.read_json(tmp_path / "results.json")["rows"]
    assert row["samples"] == {} and row["failures"]["vit"] == "breaks" and "differs" in row["failures"]["ours"]


def test_memory_on_a_gpu_is_measured_here(monkeypatch):
    """In this process, step by step; a baseline that does not fit is a failure."""
    freed = []

    def memory(work, name):
        if name == "timm":
            raise torch.OutOfMemoryError("CUDA out of memory.\nMore about it")
        return 1000

    monkeypatch.setattr(benchmark, "memory_of_one_step", memory)
    monkeypatch.setattr(benchmark, "free_memory", freed.append)
    args = benchmark.parse_args(["--device", "cuda"])
    row = benchmark.measure_memory(report.cuda_work("training_memory", "S24", 384), ["ours", "timm"], args)
    assert row["samples"] == {"ours": [1000]} and row["failures"] == {"timm": "CUDA out of memory."}
    assert freed == ["cuda", "cuda"]


def test_the_vit_has_flash_attention_on_a_gpu():
    kinds = (("bfloat16", "cuda"), ("float32", "cuda"), ("bfloat16", "cpu"))
    works = [report.Work("inference", "tiny", 32, 1, dtype, device) for dtype, device in kinds]
    flash = torch.nn.attention.SDPBackend.FLASH_ATTENTION
    found = []
    for name, work in [*(("vit", work) for work in works), ("timm", works[0])]:
        with baselines.floor(name, work):
            found.append(torch.nn.attention._cur_sdpa_kernel_backends() == [flash])
    assert found == [True, False, False, False]


@NEEDS_TRITON
def test_do_bench_takes_what_the_search_passes():
    from triton.testing import do_bench

    inspect.signature(do_bench).bind(lambda: None, warmup=5, rep=25, return_mode="median")


# Tables


def test_tables_of_what_is_there(tmp_path, capsys):
    launches = [{"launch": [64, 16, 8, 2], "milliseconds": 2.0}, {"launch": [32, 16, 4, 2], "milliseconds": 1.5}]
    times = {"forward": {"now": 2.0, "best": 1.5}, "backward": {"now": 4.0, "best": 4.0}}
    shape = {"heads": 8, "patches": 196, "batch": 256, "kernels": {"output": launches}, **times}
    parts = {
        "a": {"status": "passed", "reason": None, "seconds": 9},
        "d": {"status": "skipped", "reason": "datasets is not installed", "seconds": 0},
    }
    case = {"architectures": ["S24-224"], "heads": 8, "patches": 196, "dtype": "bfloat16", "tolerance": 0.01}
    case |= {"errors": {"output": 2e-3, "d_query": 3e-3, "d_key": 4e-3}, "failure": None}
    entry = "    ('output', 2, 8, 64): Launch(outer=32, inner=16, num_warps=4, num_stages=2),"
    for name, content in {
        "gpu": {"packages": {"torch": "2.11.0", "datasets": None}, "device": "A GPU", "parts": parts},
        "kernels": {"planned": 2, "cases": [case]},
        "launches": {"shapes": [shape], "entries": [entry], "failed": []},
    }.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    benchmark.main(["--tables", str(tmp_path)])
    printed = capsys.readouterr().out
    assert printed.startswith("A GPU; torch 2.11.0, datasets missing.")
    assert "- training scripts: skipped, datasets is not installed" in printed
    assert "| S24-224 | 8 | 196 | bfloat16 | 2.0e-03 | 4.0e-03 | 1.0e-02 | exact |" in printed
    assert "1 of 2 cases were not reached." in printed
    assert "| 8 | 196 | 256 | 2.00 | 1.50 | 4.00 | 4.00 | output 32/16/4/2 |" in printed
    assert f"```python\n{entry}\n" in printed
    with pytest.raises(SystemExit, match="^error: .*gpu.json"):
        benchmark.main(["--tables", str(tmp_path / "..")])
