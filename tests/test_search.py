# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""`--search`: trials train with the flags that optuna suggests, the best ones are kept; wrong files are refused."""

import csv
import json
from pathlib import Path

import pytest
import torch
import yaml
from test_scripts import TINY, load_script, write_images

from cait_hf.training.arguments import SEARCHES, names_in, parse_arguments
from cait_hf.training.search import SearchSpace
from cait_hf.training.trainer import ImageClassificationTrainer


pytestmark = pytest.mark.usefixtures("no_plots")


@pytest.fixture(scope="module")
def flags(tmp_path_factory) -> list[str]:
    images = write_images(tmp_path_factory.mktemp("images"), range(3), 8)
    flags = f"--train_dir {images} --do_train --do_eval --max_steps 2 --eval_strategy epoch --disable_tqdm true"
    flags += f" --config_overrides {TINY} --use_cpu --load_best_model_at_end --save_strategy epoch --seed 3"
    return f"{flags} --per_device_train_batch_size 16 --metric_for_best_model eval_top1".split()


def write_space(folder: Path, **content) -> str:
    (folder / "space.yaml").write_text(yaml.safe_dump(content))
    return str(folder / "space.yaml")


def read_table(folder: Path) -> list[dict[str, str]]:
    with (folder / "search_results.csv").open() as table:
        return list(csv.DictReader(table))


RANGES = {
    "learning_rate": {"low": "1e-4", "high": "1e-2", "log": True},  # as YAML reads them: text
    "drop_path_rate": [0.0, 0.25],
    "layer_decay": {"low": 0.5, "high": 0.9},
    "per_device_train_batch_size": {"low": 4, "high": 12, "step": 4},
}


@pytest.fixture
def trained(monkeypatch) -> list[dict]:
    """What each training has when it begins to train, and the metrics of its evaluation."""
    seen = []
    create_scheduler, evaluate = ImageClassificationTrainer.create_scheduler, ImageClassificationTrainer.evaluate

    def created(self, *args, **kwargs):
        groups = self.optimizer.param_groups
        seen.append(
            {
                "learning_rate": max(group["lr"] for group in groups),
                "drop_path_rate": self.model.config.drop_path_rate,
                "layer_decay": self.recipe.layer_decay,
                "per_device_train_batch_size": self.get_train_dataloader().total_batch_size,
                "decayed": len({group["lr"] for group in groups}),
            }
        )
        return create_scheduler(self, *args, **kwargs)

    def evaluated(self, *args, **kwargs):
        seen[-1]["metrics"] = evaluate(self, *args, **kwargs)
        return seen[-1]["metrics"]

    monkeypatch.setattr(ImageClassificationTrainer, "create_scheduler", created)
    monkeypatch.setattr(ImageClassificationTrainer, "evaluate", evaluated)
    return seen


def test_search(flags, trained, tmp_path):
    """Each trial has its flags, of Trainer and of others; the best trial's train again with the same result."""
    pytest.importorskip("optuna", reason="--search needs optuna")
    pytest.importorskip("timm", reason="EMA weights are timm's")
    script, out = load_script("run_image_classification"), tmp_path / "out"
    space = write_space(tmp_path, trials=2, metric="eval_ema_loss", ranges=RANGES)
    flags = [*flags, "--ema_decay", "0.5"]
    result = script.main([*flags, "--search", space, "--output_dir", str(out)])
    rows = read_table(out)
    assert [row["state"] for row in rows] == ["complete", "complete"] and len(trained) == 2
    for row, seen in zip(rows, trained):
        assert {name: float(row[name]) for name in RANGES} == pytest.approx({name: seen[name] for name in RANGES})
        assert float(row["eval_ema_loss"]) == seen["metrics"]["eval_ema_loss"] and seen["decayed"] > 2
    assert trained[0]["learning_rate"] != trained[1]["learning_rate"]
    best = min(rows, key=lambda row: float(row["eval_ema_loss"]))
    assert result == {"eval_ema_loss": float(best["eval_ema_loss"])}
    assert sorted(path.name for path in out.iterdir()) == ["best.yaml", "search_results.csv"]

    at = flags.index("--per_device_train_batch_size")
    del flags[at : at + 2]  # they would win
    again = script.main([str(out / "best.yaml"), *flags, "--output_dir", str(tmp_path / "again")])
    assert again["eval_ema_loss"] == pytest.approx(result["eval_ema_loss"], rel=1e-5)


# by trial: flags that are refused when they are read, and by the configuration
REFUSED = {2: {"gradient_accumulation_steps": 0}, 4: {"drop_path_rate": 2.0}, 5: {"config_overrides": "hidden_act=1"}}
ERRORS = {0: FloatingPointError("the loss is nan"), 1: torch.OutOfMemoryError("CUDA out of memory")}


def test_table_of_a_search_with_failures(flags, tmp_path, monkeypatch, capsys):
    """A trial that fails is a row of its own; Ctrl-C ends the search, with the results of the trials before."""
    pytest.importorskip("optuna", reason="--search needs optuna")
    script, out, tables = load_script("run_image_classification"), tmp_path / "out", []

    def training_step(self, *args, compute=ImageClassificationTrainer.training_step, **kwargs):
        tables.append([row["state"] for row in read_table(out)])  # by then that of the trials before
        trial = len(tables[-1]) - 1
        assert (out / "best.yaml").exists() == ("complete" in tables[-1])
        if trial in ERRORS:
            raise ERRORS[trial]
        if tables[-1].count("complete") == 2:
            raise KeyboardInterrupt
        return compute(self, *args, **kwargs)

    def suggest(self, trial):
        return {"learning_rate": 0.01 * (trial.suggest_int("learning_rate", 1, 9)), **REFUSED.get(trial.number, {})}

    monkeypatch.setattr(ImageClassificationTrainer, "training_step", training_step)
    monkeypatch.setattr(SearchSpace, "suggest", suggest)
    space = write_space(tmp_path, ranges={"learning_rate": {"low": 1, "high": 9}})
    command = [*flags, "--search", space, "--output_dir", str(out)]
    with pytest.raises(SystemExit):
        script.main(command)
    states = ["fail", "fail", "fail", "complete", "fail", "fail", "complete"]
    for table in tables:
        assert table == [*states[: len(table) - 1], "running"]
    rows = read_table(out)
    assert [row["state"] for row in rows] == [*states, "fail"]
    assert "from scratch" not in capsys.readouterr().err  # the same command is refused
    best = max(rows, key=lambda row: float(row["eval_top1"] or -1))
    assert yaml.safe_load((out / "best.yaml").read_text()) == {"learning_rate": int(best["learning_rate"])}

    files = {path: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(SystemExit, match="--output_dir .*/out is not empty .* --overwrite_output_dir"):
        script.main(command)
    assert {path: path.read_bytes() for path in out.iterdir()} == files
    monkeypatch.setattr(SearchSpace, "suggest", lambda self, trial: REFUSED[2])
    with pytest.raises(SystemExit, match=r"no trial of --search was complete: see .*search_results\.csv"):
        script.main([*command, "--overwrite_output_dir"])
    assert {row["state"] for row in read_table(out)} == {"fail"} and not (out / "best.yaml").exists()


@pytest.mark.parametrize("ranges, last", [({"drop_path_rate": [0.0]}, "pruned"), ({"max_steps": [2]}, "complete")])
def test_pruning(ranges, last, flags, tmp_path, monkeypatch):
    """The worst trial ends early, from the sixth on, but not where trials may be differently far at a step."""
    pytest.importorskip("optuna", reason="--search needs optuna")
    monkeypatch.setattr(
        ImageClassificationTrainer, "evaluate", lambda self, **kwargs: {"eval_top1": -float(self._trial.number)}
    )
    space, out = write_space(tmp_path, trials=6, ranges=ranges), tmp_path / "out"
    load_script("run_image_classification").main([*flags, "--search", space, "--output_dir", str(out)])
    assert [row["state"] for row in read_table(out)] == [*["complete"] * 5, last]


@pytest.mark.parametrize(
    "flag", ["num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps"]
)
def test_ranges_without_pruning(flag):
    assert SearchSpace({"learning_rate": [1e-4]}).prunes
    assert not SearchSpace({"learning_rate": [1e-4], flag: [1, 2]}).prunes


def test_tracker_of_trials_with_other_image_sizes(flags, tmp_path):
    """Metrics are logged, but no images, which would have the size of the model without the trial's flags."""
    pytest.importorskip("optuna", reason="--search needs optuna")
    pytest.importorskip("tensorboard", reason="--report_to tensorboard needs tensorboard")
    larger = TINY.replace("image_size=16", "image_size=32")
    space, out = write_space(tmp_path, trials=1, ranges={"config_overrides": [larger]}), tmp_path / "out"
    command = [*flags, "--search", space, "--report_to", "tensorboard", "--output_dir", str(out)]
    load_script("run_image_classification").main(command)
    assert [row["state"] for row in read_table(out)] == ["complete"]
    (log,) = (out / "runs").rglob("events.*")
    assert b"eval/top1" in log.read_bytes()


def test_search_leaves_a_training_alone(flags, tmp_path):
    pytest.importorskip("optuna", reason="--search needs optuna")
    script, out = load_script("run_image_classification"), tmp_path / "out"
    script.main([*flags, "--output_dir", str(out)])
    files = {path: path.read_bytes() for path in out.rglob("*.*") if path.is_file()}
    space = write_space(tmp_path, ranges=RANGES)
    for more in ([], ["--max_steps", "4"]):
        with pytest.raises(SystemExit, match=r"--output_dir .*/out has a training, but --search"):
            script.main([*flags, *more, "--search", space, "--output_dir", str(out)])
    assert {path: path.read_bytes() for path in files} == files and json.loads((out / "all_results.json").read_text())
    with pytest.raises(SystemExit, match="metric is eval_top9, but"):
        space = write_space(tmp_path, metric="eval_top9", ranges=RANGES)
        script.main([*flags, "--search", space, "--output_dir", str(tmp_path / "other")])


@pytest.mark.parametrize(
    "content, named",
    [
        ({"trials": 2}, "must hold ranges"),
        ({"ranges": RANGES, "seed": 1}, "must hold ranges, and may hold trials, metric"),
        ({"ranges": RANGES, "trials": 0}, "trials is 0"),
        ({"ranges": {}}, "ranges is {}"),
        ({"ranges": {"lr": [1]}}, "ranges has lr"),
        ({"ranges": {"train_dir": ["a"]}}, "ranges has train_dir"),
        ({"ranges": {"output_dir": ["a"]}}, "ranges has output_dir"),
        ({"ranges": {"search": ["a"]}}, "ranges has search"),
        ({"ranges": {"mixup": []}}, r"mixup is \[\]"),
        ({"ranges": {"mixup": 0.5}}, "mixup is 0.5"),
        ({"ranges": {"mixup": {"low": 0.5}}}, "mixup is .*low"),
        ({"ranges": {"mixup": {"low": 1, "high": 0}}}, "mixup is .*high"),
        ({"ranges": {"mixup": {"low": "a", "high": 1}}}, "mixup is .*'a'"),
        ({"ranges": {"mixup": {"low": 0, "high": 1, "log": True}}}, "mixup is .*a low > 0"),
        ({"ranges": {"mixup": {"low": 0, "high": 1, "q": 1}}}, "mixup is .*'q'"),
        ({"ranges": {"mixup": {"low": 1, "high": 4, "step": 1, "log": True}}}, "mixup is .*step"),
    ],
)
def test_wrong_ranges(content, named, tmp_path):
    with pytest.raises(ValueError, match=named):
        SearchSpace.read(write_space(tmp_path, **content))


@pytest.mark.parametrize("name", names_in(SEARCHES))
def test_files_of_ranges_in_the_package(name):
    pytest.importorskip("optuna", reason="--search needs optuna")
    space = SearchSpace.read(name)
    assert "# Source: " in (SEARCHES / f"{name}.yaml").read_text()
    for end in (0, -1):  # both ends of each range
        values = {
            flag: given[end] if isinstance(given, list) else given["high" if end else "low"]
            for flag, given in space.ranges.items()
        }
        parse_arguments([name, *(f"--{flag}={value}" for flag, value in values.items()), "--output_dir", "x"])
    with pytest.raises(ValueError, match="missing is neither a file .* of searches: finetune"):
        SearchSpace.read("missing")


def test_search_needs(flags, tmp_path, monkeypatch):
    argv = [*flags, "--output_dir", str(tmp_path), "--search", "finetune"]
    monkeypatch.setattr("cait_hf.training.arguments.find_spec", lambda name: None if name == "optuna" else name)
    with pytest.raises(ImportError, match="--search needs the package optuna"):
        parse_arguments(argv)
    monkeypatch.setattr("cait_hf.training.arguments.find_spec", lambda name: name)
    with pytest.raises(SystemExit, match="--search is for run_image_classification.py"):
        load_script("run_image_classification_no_trainer").main(argv)
    with pytest.raises(ValueError, match="--search needs --do_train, --do_eval and one process"):
        parse_arguments(["--do_train", "--train_dir", "x", "--output_dir", "x", "--search", "finetune"])
