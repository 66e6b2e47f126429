# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""`scripts/benchmark/run.py` at a tiny size: what it writes, keeps, refuses and computes. No time is judged."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from test_scripts import SCRIPTS, load_scripts


report, baselines, benchmark = load_scripts(SCRIPTS / "benchmark", "report", "baselines", "run")
Work = report.Work

TINY = ["--models", "tiny", "--image_sizes", "32", "--batch_sizes", "3", "--threads", "1", "--repeats", "2"]
TIMED_MODES = ("inference", "training", "attention", "attention_training")
UNCOMPILED = ("ours", "ours_eager", "timm", "timm_wrapper", "vit")


@pytest.fixture
def needs_matplotlib():
    pytest.importorskip("matplotlib", reason="the benchmark draws charts")


@pytest.fixture
def needs_timm(needs_matplotlib):
    pytest.importorskip("timm", reason="timm is one of the baselines")


@pytest.fixture(autouse=True)
def short_samples(monkeypatch):
    monkeypatch.setattr(benchmark, "MIN_SAMPLE_SECONDS", 1e-4)


def run(output_dir: Path, *flags: str) -> dict:
    threads = torch.get_num_threads()
    try:
        benchmark.main([*TINY, *flags, "--output_dir", str(output_dir)])
    finally:
        torch.set_num_threads(threads)
    return json.loads((output_dir / "results.json").read_text())


def synthetic_row(work: Work, failures=(), **samples) -> dict:
    failures = dict.fromkeys(failures, "out of memory")
    measured = {"failures": failures, "calls": {}, "first_call_seconds": {}, "differences": {}}
    return report.as_row(work, samples=samples, **measured, load_average=[0.5, 1.5])


def synthetic_results(*rows: dict) -> dict:
    hardware = {
        "cpu": "A CPU",
        "cores": 2,
        "threads": 2,
        "gpu": None,
        "attention": "native (avx2)",
        "system": "Linux",
        "versions": {"torch": "2"},
    }
    return {"hardware": hardware, "rows": list(rows)}


# A whole run


def test_run_writes_every_sample_and_its_tables_come_again_from_the_file(tmp_path, needs_timm, capsys):
    flags = ("--modes", ",".join(TIMED_MODES), "--baselines", ",".join(UNCOMPILED))
    results = run(tmp_path, *flags)
    printed = capsys.readouterr().out

    assert [row["mode"] for row in results["rows"]] == list(TIMED_MODES)
    for row in results["rows"]:
        names = [name for name in UNCOMPILED if not (name == "timm_wrapper" and "attention" in row["mode"])]
        assert list(row["samples"]) == list(row["calls"]) == names
        assert all(len(samples) == 2 and min(samples) > 0 for samples in row["samples"].values())
        assert sorted(row["differences"]) == sorted(set(names) - {"vit"})
        assert max(row["differences"].values()) < 1e-5
        assert row["failures"] == row["first_call_seconds"] == {}
        assert len(row["load_average"]) == 2 and row["finished"]
    assert results["hardware"]["threads"] == 1
    assert results["hardware"]["cpu"] and results["hardware"]["versions"]["torch"] == torch.__version__

    charts = sorted(tmp_path.glob("*.png"))
    assert [chart.name for chart in charts] == sorted(f"{mode}_cpu_float32.png" for mode in TIMED_MODES)
    for chart in charts:
        with Image.open(chart) as image:
            assert min(image.size) > 300
        chart.unlink()

    benchmark.main(["--tables", str(tmp_path / "results.json")])
    again = capsys.readouterr().out
    assert again.strip() in printed
    assert again.count("\n### ") == 4 and again.count("| tiny-32 | 3 |") == 4
    assert sorted(tmp_path.glob("*.png")) == charts


def test_bfloat16(tmp_path, needs_timm):
    (row,) = run(tmp_path, "--modes", "inference", "--baselines", "ours,timm", "--dtypes", "bfloat16")["rows"]
    assert row["dtype"] == "bfloat16" and 0 < row["differences"]["timm"] < 0.2


def test_other_runtimes(tmp_path, needs_matplotlib):
    pytest.importorskip("openvino", reason="a baseline is OpenVINO")
    pytest.importorskip("onnxscript", reason="a baseline is ONNX Runtime")
    (row,) = run(tmp_path, "--modes", "inference", "--baselines", "ours,openvino,onnxruntime")["rows"]
    assert max(row["differences"][name] for name in ("openvino", "onnxruntime")) < 1e-5
    names = [name for name in report.BASELINES if baselines.can_do(name, Work("training", "tiny", 32, 1))]
    assert not {*report.RUNTIMES} & {*names}


@pytest.mark.slow
def test_compiled(tmp_path, needs_timm):
    (row,) = run(tmp_path, "--modes", "inference", "--baselines", "ours,ours_compiled,timm_compiled")["rows"]
    assert row["failures"] == {}
    assert sorted(row["first_call_seconds"]) == ["ours_compiled", "timm_compiled"]
    assert max(row["differences"].values()) < 1e-5
    # without what compiling takes
    assert all(max(row["samples"][name]) < row["first_call_seconds"][name] for name in row["first_call_seconds"])


@pytest.mark.skipif(sys.platform != "linux", reason="memory on the CPU is read from /proc")
def test_memory_is_that_of_the_maps(tmp_path, needs_matplotlib):
    """1,024 patches, 4 heads: the eager forward holds 2 to 5 maps of 16.8 MB at once, as nothing else is as large."""
    flags = ("--modes", "attention_memory", "--baselines", "ours_eager", "--image_sizes", "512")
    (row,) = run(tmp_path, *flags, "--batch_sizes", "1", "--repeats", "1")["rows"]
    one_map = 4 * 1024**2 * 4
    (peak,) = row["samples"]["ours_eager"]
    assert 2 * one_map <= peak <= 5 * one_map


@pytest.mark.skipif(sys.platform != "linux", reason="memory on the CPU is read from /proc")
def test_memory_child_that_dies_is_a_failure(tmp_path, needs_matplotlib, monkeypatch):
    dying = tmp_path / "dying.py"
    dying.write_text("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n")
    monkeypatch.setattr(benchmark, "__file__", str(dying))
    flags = ("--modes", "training_memory", "--baselines", "ours,vit")
    (row,) = run(tmp_path / "results", *flags)["rows"]
    assert row["samples"] == {}
    assert row["failures"] == {"ours": "killed by signal 9", "vit": "killed by signal 9"}


# Baselines


@pytest.mark.parametrize("name", ["timm", "timm_wrapper"])
@pytest.mark.parametrize("part", ["attn.proj_w.weight", "attn.proj_l.weight", "gamma_1"])
def test_guard_stops_when_a_weight_differs(name, part, tmp_path, needs_timm, monkeypatch):
    original = baselines.build_model

    def altered(asked, work, state):
        model = original(asked, work, state)
        if asked == name:
            parameters = dict(model.named_parameters())
            (parameter,) = [parameters[key] for key in parameters if key.endswith(f"blocks.1.{part}")]
            parameter.data = parameter.data * 1.1
        return model

    monkeypatch.setattr(baselines, "build_model", altered)
    with pytest.raises(SystemExit, match=r"(timm|TimmWrapper) differs by .* from the reference in inference tiny-32"):
        run(tmp_path, "--modes", "inference", "--baselines", "ours," + name)
    assert not (tmp_path / "results.json").exists()


def test_guard_stops_at_nan():
    work = Work("inference", "tiny", 32, 2)
    guard = baselines.EqualityGuard(work, baselines.random_state(work), baselines.Inputs.of(work))
    assert guard.check("ours", guard.expected) == 0
    with pytest.raises(ValueError, match="cait-hf .*nan"):
        guard.check("ours", guard.expected * float("nan"))


def test_baseline_that_fails_is_recorded_and_the_others_measured(tmp_path, needs_matplotlib, monkeypatch, capsys):
    original = benchmark.make_step

    def failing(name, *args):
        if name == "vit":
            raise torch.OutOfMemoryError("CUDA out of memory.\nMore about it")
        return original(name, *args)

    monkeypatch.setattr(benchmark, "make_step", failing)
    (row,) = run(tmp_path, "--modes", "inference", "--baselines", "ours,vit")["rows"]
    assert list(row["samples"]) == ["ours"]
    assert row["failures"] == {"vit": "CUDA out of memory."}
    assert "| failed |" in capsys.readouterr().out


@pytest.mark.parametrize("model", ["XXS24", "S24", "M36", "tiny"])
def test_vit_has_the_shape_of_cait(model):
    with torch.device("meta"):
        config = baselines.build_model("vit", Work("inference", model, 384, 1), {}).config
    cait = baselines.cait_config(Work("inference", model, 384, 1))
    for field in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "num_labels"):
        assert getattr(config, field) == getattr(cait, field)
    assert config.image_size == 384 and config.patch_size == 16
    assert config._attn_implementation == "sdpa"


def test_ours_is_the_default_and_eager_is_eager():
    work = Work("inference", "tiny", 32, 1)
    state = baselines.random_state(work)
    for name, expected in (("ours", "sdpa"), ("ours_eager", "eager"), ("ours_compiled", "sdpa")):
        assert baselines.build_model(name, work, state).config._attn_implementation == expected


@pytest.mark.parametrize("name", ["ours", "timm", "vit"])
def test_training_step_of_an_attention_reaches_queries_keys_and_values(name, request):
    if name == "timm":
        request.getfixturevalue("needs_timm")
    work = Work("attention_training", "tiny", 32, 2)
    inputs, state = baselines.Inputs.of(work), baselines.random_state(work)
    module = baselines.build_attention(name, work, state, inputs)
    baselines.tensor_of(module(inputs.images)).backward(inputs.gradient)
    given = [parameter for key, parameter in module.named_parameters() if "tensor" in key or "qkv" in key]
    assert sum(parameter.numel() for parameter in given) == sum(tensor.numel() for tensor in inputs.qkv)
    assert all(parameter.grad.abs().sum() > 0 for parameter in given)


# From samples to metrics


def test_ratio_is_taken_round_by_round():
    """The machine slows down tenfold in the third round: the ratio does not see it, a ratio of medians would."""
    row = synthetic_row(Work("inference", "tiny", 32, 1), timm=[2.0, 3.0, 30.0, 2.2], ours=[1.0, 2.0, 10.0, 1.0])
    assert report.ratio(row, "timm", "ours") == pytest.approx((1.65, 2.1, 2.76))  # rounds: 2, 1.5, 3, 2.2
    assert report.ratio(row, "ours", "timm").median == pytest.approx((1 / 2 + 1 / 2.2) / 2)
    assert report.ratio(row, "ours", "vit") is None
    row = synthetic_row(Work("attention_memory", "tiny", 32, 1), ours=[8], vit=[0])
    assert report.ratio(row, "ours", "vit") is None


def test_goals_are_judged_by_the_median():
    first, second = Work("inference", "XXS24", 224, 1), Work("training_memory", "S24", 224, 8)
    rows = [
        synthetic_row(first, ours=[1.0, 1.0, 1.0], timm=[1.2, 1.4, 1.5], vit=[0.9, 0.9, 0.95]),
        synthetic_row(second, ours=[66], vit=[60], failures=["timm"]),
    ]
    lines = report.goal_table(rows).splitlines()[4:]
    assert [line.split(" | ")[1:] for line in lines] == [
        ["timm / cait-hf", "1.40 (1.24 to 1.48)", ">= 1.35", "reached |"],
        ["cait-hf / ViT, SDPA", "1.11 (1.06 to 1.11)", "<= 1.04", "**not reached** |"],
        ["cait-hf / timm", "failed", "<= 0.65", "**not reached** |"],
        ["cait-hf / ViT, SDPA", "1.10 (1.10 to 1.10)", "<= 1.20", "reached |"],
    ]


def test_goal_rows():
    """As many as the project's goals: for the CPU 18 of inference, 2 compiled, 4 of training, 4 of memory."""
    goals = report.cpu_goals()
    assert len(goals) == len(set(goals)) == 28
    assert sum(goal.numerator == "timm_compiled" for goal in goals) == 2
    assert all((goal.at_least is None) != (goal.at_most is None) for goal in goals + report.cuda_goals())
    planned = dict(benchmark.plan(benchmark.parse_args(["--goals"])))
    assert len(planned) == 22  # 12 of goals at inference, 4 of the largest models, 2 of training, 4 of memory
    assert planned[Work("inference", "S24", 384, 2, "bfloat16")] == ["ours", "timm", "vit"]
    assert planned[Work("inference", "S24", 224, 8)] == ["ours", "timm", "openvino", "onnxruntime", "vit"]
    assert planned[Work("inference", "XXS24", 384, 4)] == ["ours", "ours_compiled", "timm", "timm_compiled", "vit"]
    assert planned[Work("training_memory", "XXS24", 384, 4)] == ["ours", "timm", "vit"]
    on_cuda = dict(benchmark.plan(benchmark.parse_args(["--goals", "--device", "cuda"])))
    assert on_cuda[Work("inference", "S24", 224, 256, "bfloat16", "cuda")] == ["ours", "timm", "timm_compiled", "vit"]


def test_units():
    for mode, samples, text in (
        ("inference", [0.2, 0.1, 0.4], "50.0 (20.0/s)"),
        ("training", [0.2], "50.0"),
        ("training_memory", [1_234_000_000], "1.23"),
    ):
        assert report.sample_text(synthetic_row(Work(mode, "tiny", 32, 4), ours=samples), "ours") == text
    assert [report.digits(value) for value in (0, 0.012345, 9.999, 12345.6)] == ["0", "0.0123", "10.00", "12346"]


def test_rounds_alternate_and_end_in_time():
    order = []
    samplers = {name: lambda name=name: order.append(name) or float(len(order)) for name in ("a", "b", "c")}
    samples = benchmark.interleave(samplers, repeats=3, max_seconds=60)
    assert "".join(order) == "abccbaabc"
    assert samples == {"a": [1, 6, 7], "b": [2, 5, 8], "c": [3, 4, 9]}
    assert benchmark.interleave(samplers, repeats=3, max_seconds=0) == {"a": [10], "b": [11], "c": [12]}


def test_scaling_rows_and_chart(tmp_path, needs_matplotlib):
    planned = benchmark.plan(benchmark.parse_args(["--scaling"]))
    rows = [synthetic_row(work, **{name: [1.0, 2.0] for name in names}) for work, names in planned]
    assert {(work.image_size // 16) ** 2 for work, _ in planned} == {196, 400, 784, 1600, 2704, 4096}
    assert {name for _, names in planned for name in names} == {"ours", "ours_eager", "timm", "vit"}
    written = report.draw_charts(synthetic_results(*rows), tmp_path)
    assert written == list(tmp_path.iterdir()) == [tmp_path / "scaling_cpu_float32.png"]


def test_growth_rows_and_chart(tmp_path, needs_matplotlib):
    planned = benchmark.plan(benchmark.parse_args(["--growth"]))
    assert len(planned) == len({work for work, _ in planned}) == 6 + 3 + 3 + 3
    assert all(names == ["ours", "timm", "vit"] for _, names in planned)
    assert {baselines.cait_config(work).num_attention_heads for work, _ in planned} == {4, 8, 12, 16}
    assert {baselines.cait_config(work).num_hidden_layers for work, _ in planned} == {4, 8, 16, 32}
    rows = [synthetic_row(work, **{name: [1.0, 2.0] for name in names}) for work, names in planned]
    written = report.draw_charts(synthetic_results(*rows), tmp_path)
    assert written == list(tmp_path.iterdir()) == [tmp_path / "growth_cpu_float32.png"]


# What is kept


@pytest.fixture
def measured(monkeypatch, needs_matplotlib):
    """Stands in for `measure`: returns a row of synthetic samples and notes the baselines asked for."""
    calls = []

    def measure(work, names, args):
        calls.append((work.mode, names))
        if work.mode == "training":
            raise KeyboardInterrupt
        return synthetic_row(work, **{name: [float(len(calls))] for name in names})

    monkeypatch.setattr(benchmark, "measure", measure)
    return calls


def test_interrupted_run_keeps_complete_rows(tmp_path, measured):
    with pytest.raises(SystemExit, match="Interrupted: 1 complete rows, 1 of them new"):
        run(tmp_path, "--modes", "inference,training", "--baselines", "ours,vit")
    results = json.loads((tmp_path / "results.json").read_text())
    assert [row["mode"] for row in results["rows"]] == ["inference"]
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_rows_are_kept_completed_or_overwritten(tmp_path, measured):
    flags = ("--modes", "inference", "--baselines")
    run(tmp_path, *flags, "ours,vit")
    run(tmp_path, *flags, "vit")
    assert len(measured) == 1
    (row,) = run(tmp_path, *flags, "ours_eager")["rows"]  # all in one run again
    assert measured[1:] == [("inference", ["ours", "ours_eager", "vit"])]
    assert row["samples"] == {"ours": [2], "ours_eager": [2], "vit": [2]}
    (row,) = run(tmp_path, *flags, "ours", "--overwrite")["rows"]
    assert row["samples"] == {"ours": [3]}


def test_results_of_another_machine_are_not_mixed(tmp_path, measured):
    (tmp_path / "results.json").write_text(json.dumps(synthetic_results()))
    with pytest.raises(SystemExit, match="was measured with cpu A CPU, but here it is .*choose another --output_dir"):
        run(tmp_path, "--modes", "inference", "--baselines", "ours")
    assert measured == []


# Wrong input


@pytest.mark.parametrize(
    "flags, message",
    [
        ("--models XXS42", "it has 'XXS42', but each item must be one of XXS24,"),
        ("--baselines ours,timn", "it has 'timn', but each item must be one of ours, ours_eager"),
        ("--modes memory", "it has 'memory', but each item must be one of inference"),
        ("--dtypes float64", "it has 'float64', but each item must be one of float32, bfloat16"),
        ("--batch_sizes 1,0", "it has '0', but it must be an integer > 0"),
        ("--repeats -1", "it has '-1', but it must be an integer > 0"),
        ("--goals --scaling", "--goals and --scaling exclude"),
        ("--goals --models XXS24", "--goals has rows of its own, but --models"),
        ("--scaling --modes inference", "--scaling has rows of its own, but --modes"),
        ("--device cuda", "--device is cuda"),
        ("--baselines ours,timm", "timm is not installed"),
        ("--image_sizes 225", "image_size is 225, but it must be a multiple of patch_size"),
        ("--output_dir {file} --baselines ours", "{file}"),
        ("--tables {file}", "{file} is not a results.json"),
        ("--tables {file}.none", "{file}.none"),
    ],
)
def test_wrong_arguments(flags, message, tmp_path, monkeypatch, capsys, request):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    if "installed" in message:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "timm" else True)
    elif "cuda" not in message:
        request.getfixturevalue("needs_matplotlib")
    file = tmp_path / "file"
    file.write_text('{"rows": [{"mode": "inference"}]}')
    with pytest.raises(SystemExit) as stopped:
        benchmark.main(flags.format(file=file).split())
    assert message.format(file=file) in f"{stopped.value} {capsys.readouterr().err}"
    assert stopped.value.code == 2 or str(stopped.value).startswith("error: ")
