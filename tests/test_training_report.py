# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""`cait_hf.evaluation.metrics` and `training.report`: metrics against scikit-learn and the metric, files as read."""

import importlib.metadata
import json
import sys
from types import SimpleNamespace

import evaluate
import numpy as np
import pytest
import torch
from PIL import Image
from random_weights import images, randomize_, tiny_config
from transformers import Trainer, TrainerState, TrainingArguments

from cait_hf import CaitForImageClassification, topk_accuracy
from cait_hf.evaluation.metrics import (
    ClassificationMetrics,
    best_classes,
    classification_metrics,
    scalars,
)
from cait_hf.training import report
from cait_hf.training.best_model import is_best, saved_step
from cait_hf.training.report import write_report


def random_logits(num_images: int, num_classes: int, seed: int = 0) -> tuple[torch.Tensor, np.ndarray]:
    """Coarse scores, so that many are equal, and labels that are often among the best."""
    rng = np.random.default_rng(seed)
    logits = rng.integers(0, 2 * num_classes, (num_images, num_classes)).astype(np.float32)
    labels = rng.integers(0, num_classes, num_images)
    logits[np.arange(num_images), labels] += rng.integers(0, 2 * num_classes, num_images)
    return torch.tensor(logits), labels


def result_of(labels: list[int], predicted: list[int], num_classes: int) -> dict:
    logits = torch.nn.functional.one_hot(torch.tensor(predicted), num_classes).float()
    return classification_metrics(best_classes(logits), np.array(labels), num_classes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_images, num_classes", [(2500, 20), (300, 6), (300, 5), (300, 3), (400, 1000)])
def test_equals_the_metric_on_whole_logits(num_images, num_classes, dtype):
    logits, labels = random_logits(num_images, num_classes)
    logits = logits.to(dtype)
    top_k = [1, 5] if num_classes > 5 else [1]
    metric = evaluate.load(topk_accuracy.__file__, keep_in_memory=True)
    expected = metric.compute(predictions=logits, references=labels, top_k=top_k)
    best = torch.cat([best_classes(rows) for rows in logits.split(64)])
    assert best.shape == (num_images, min(5, num_classes))
    result = classification_metrics(best, torch.tensor(labels), num_classes)
    assert {name: result[name] for name in result if name.startswith("top")} == expected
    assert 0.1 < expected["top1"] < 0.95 and expected["top1"] <= expected.get("top5", 1)


def test_equal_scores_and_zeros_of_both_signs_rank_by_index():
    logits = torch.tensor([[-0.0, 0.0, -0.0, 1.0, 0.0, -0.0], [-np.inf, 2.0, np.inf, 2.0, -np.inf, 2.0]])
    assert best_classes(logits).tolist() == [[3, 0, 1, 2, 4], [2, 1, 3, 5, 0]]
    assert torch.equal(best_classes((logits, images(2, 4)), labels=None), best_classes(logits))


def test_classes_against_scikit_learn():
    sklearn = pytest.importorskip("sklearn.metrics", reason="scikit-learn is the reference")
    logits, labels = random_logits(500, 7)
    result = classification_metrics(best_classes(logits), labels, 7)
    predicted = logits.argmax(dim=1).numpy()
    assert np.array_equal(result["confusion_matrix"], sklearn.confusion_matrix(labels, predicted))
    assert result["confusion_matrix"].dtype == np.int64
    np.testing.assert_allclose(result["class_accuracy"], sklearn.recall_score(labels, predicted, average=None))
    assert result["mean_class_accuracy"] == pytest.approx(sklearn.balanced_accuracy_score(labels, predicted))
    assert result["top1"] == pytest.approx(sklearn.accuracy_score(labels, predicted))


def test_class_without_images_has_no_accuracy():
    result = result_of(labels=[0, 0, 2, 2], predicted=[0, 1, 2, 2], num_classes=4)
    assert result["class_accuracy"] == [0.5, None, 1.0, None]
    assert result["confusion_matrix"].tolist() == [[1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 2, 0], [0, 0, 0, 0]]
    assert scalars(result) == {"top1": 0.75, "mean_class_accuracy": 0.75}


def test_refuses_nan_and_labels_that_are_no_class():
    logits, labels = random_logits(9, 6)
    logits[4, 2] = np.nan
    assert (best_classes(logits) == -1).all(dim=1).tolist() == [row == 4 for row in range(9)]
    with pytest.raises(ValueError, match="NaN for 1 of 9 images"):
        classification_metrics(best_classes(logits), labels, 6)
    best = best_classes(logits.nan_to_num())
    for wrong in (-1, 6):
        with pytest.raises(ValueError, match=f"references contains .*{wrong}"):
            classification_metrics(best, np.where(np.arange(9) == 3, wrong, labels), 6)
    with pytest.raises(ValueError, match="labels has no image"):
        classification_metrics(best[:0], labels[:0], 6)


def test_trainer_evaluates_with_the_best_classes_alone(tmp_path):
    model = randomize_(CaitForImageClassification(tiny_config(num_labels=6)))
    pixel_values = images(22, 32)
    labels = [0, 1, 2, 3, 4] * 4 + [0, 1]
    trainer = Trainer(
        model=model,
        args=TrainingArguments(tmp_path, per_device_eval_batch_size=8, report_to=[], use_cpu=True, disable_tqdm=True),
        eval_dataset=[{"pixel_values": row, "labels": label} for row, label in zip(pixel_values, labels)],
        compute_metrics=(metrics := ClassificationMetrics(6)),
        preprocess_logits_for_metrics=best_classes,
    )
    assert metrics.last is None
    logged = trainer.evaluate()
    with torch.no_grad():
        best = best_classes(model(pixel_values).logits)
    expected = classification_metrics(best, np.array(labels), 6)
    assert {name: logged[f"eval_{name}"] for name in scalars(expected)} == scalars(expected)
    assert not any(isinstance(value, list) for value in logged.values())
    assert np.array_equal(metrics.last["confusion_matrix"], expected["confusion_matrix"])
    assert metrics.last["class_accuracy"] == expected["class_accuracy"] and expected["class_accuracy"][5] is None


LOG = [
    {"step": 5, "epoch": 0.5, "loss": 2.0, "learning_rate": 1e-4},
    {"step": 10, "epoch": 1.0, "eval_loss": 1.5, "eval_top1": 0.4, "eval_ema_loss": 1.75, "eval_ema_top1": 0.25},
    {"step": 15, "epoch": 1.5, "loss": float("inf"), "learning_rate": 1e-5},
    {"step": 20, "epoch": 2.0, "eval_loss": 1.0, "eval_top1": 0.5, "eval_ema_loss": 1.25, "eval_ema_top1": 0.375},
    {"step": 20, "epoch": 2.0, "train_runtime": 7.0, "train_loss": 1.8},
]
NAMES = [r"$\frac$", "crane", "crane"]  # not a formula; and WordNet has two cranes


@pytest.fixture
def results() -> dict:
    raw = result_of(labels=[0, 0, 0, 1, 1], predicted=[0, 0, 2, 1, 0], num_classes=3)
    ema = result_of(labels=[0, 0, 0, 1, 1], predicted=[0, 0, 0, 1, 1], num_classes=3)
    return {"raw": {**raw, "loss": 0.5}, "ema": {**ema, "loss": float("nan")}}


def test_metrics_file(tmp_path, results):
    write_report(
        tmp_path / "new", results=results, class_names=NAMES, train_metrics={"train_loss": 1.8}, num_processes=3
    )
    text = (tmp_path / "new/metrics.json").read_text()

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    metrics = json.loads(text, parse_constant=refuse)
    assert metrics["results"] == {
        "raw": {"top1": 0.6, "mean_class_accuracy": pytest.approx(7 / 12), "loss": 0.5},
        "ema": {"top1": 1.0, "mean_class_accuracy": 1.0, "loss": None},
    }
    assert metrics["train"] == {"train_loss": 1.8}
    assert metrics["classes"] == [
        {"name": NAMES[0], "images": 3, "accuracy": pytest.approx(2 / 3), "ema_accuracy": 1.0},
        {"name": "crane", "images": 2, "accuracy": 0.5, "ema_accuracy": 1.0},
        {"name": "crane", "images": 0, "accuracy": None, "ema_accuracy": None},
    ]
    assert metrics["confusion_matrix"]["raw"] == [[2, 0, 1], [1, 1, 0], [0, 0, 0]]
    assert metrics["hardware"]["processes"] == 3 and metrics["hardware"]["cores"] >= 1
    assert metrics["versions"]["torch"] == importlib.metadata.version("torch")
    assert "\n      [2, 0, 1],\n" in text  # a line a row


def test_json_of_anything():
    value = {"a": [], "b": {}, "c": ["x]", 'é"'], "d": [[1, 2], []], 5: np.float32(0.5), "e": (True, None)}
    assert json.loads(report.to_json(value)) == {
        **{name: value[name] for name in "abcd"},
        "5": 0.5,
        "e": [True, None],
    }


def test_images_are_written_and_replaced(tmp_path, results):
    pytest.importorskip("matplotlib", reason="draws the images")
    for _ in range(2):
        written = write_report(tmp_path, results=results, class_names=NAMES, log_history=LOG)
        assert sorted(path.name for path in written) == sorted(path.name for path in tmp_path.iterdir())
    assert {path.name for path in written} == {"metrics.json", "learning_curves.png", "confusion_matrix.png"}
    for path in written[1:]:
        with Image.open(path) as image:
            assert image.format == "PNG" and min(image.size) > 300 and len(np.unique(image.convert("L"))) > 20


def test_curves_show_what_was_logged():
    pytest.importorskip("matplotlib", reason="draws the images")
    losses, accuracies = report.draw_learning_curves(LOG).axes
    lines = {line.get_label(): (line.get_xdata().tolist(), line.get_ydata().tolist()) for line in losses.lines}
    x, y = lines.pop("training: nan")
    assert (x, y[0]) == ([0.5, 1.5], 2.0) and np.isnan(y[1])
    assert lines == {
        "evaluation: 1": ([1.0, 2.0], [1.5, 1.0]),
        "evaluation, EMA: 1.25": ([1.0, 2.0], [1.75, 1.25]),
    }
    lines = {line.get_label(): line.get_ydata().tolist() for line in accuracies.lines}
    assert lines == {"top-1: 50": [40.0, 50.0], "top-1, EMA: 37.5": [25.0, 37.5]}
    assert losses.get_xlabel() == "epoch"

    without_epochs = [{name: value for name, value in entry.items() if name != "epoch"} for entry in LOG]
    assert report.draw_learning_curves(without_epochs).axes[0].lines[0].get_xdata().tolist() == [5, 15]
    assert report.draw_learning_curves([]) is None
    assert report.draw_learning_curves(LOG[:1]) is None


def test_curves_mark_the_model():
    pytest.importorskip("matplotlib", reason="draws the images")
    for axes in report.draw_learning_curves(LOG, saved=(10, 1.0)).axes:
        assert {line.get_label(): line.get_xdata() for line in axes.lines}["model: epoch 1"] == [1.0, 1.0]


def test_few_steps_of_training_draw_no_curves_and_say_so(tmp_path, results, caplog):
    pytest.importorskip("matplotlib", reason="draws the images")
    caplog.set_level("INFO")
    for train_metrics in ({}, {"train_loss": 1.8}):  # of an evaluation alone nobody expects curves
        written = write_report(
            tmp_path, results=results, class_names=NAMES, log_history=LOG[:1], train_metrics=train_metrics
        )
        assert [path.name for path in written] == ["metrics.json", "confusion_matrix.png"]
        assert ("No learning_curves.png" in caplog.text) == bool(train_metrics)


# Metrics of evaluations one after another, and which of them is the best.
EVALUATIONS = [
    ([("top1", 0.5, 2.0), ("top1", 0.5, 1.0), ("top1", 0.5, 1.5)], 1),
    ([("top1", 0.5, 1.0), ("top1", 0.5, 2.0), ("top1", 0.75, 3.0), ("top1", 0.25, 0.5)], 2),
    ([("top1", 0.5, float("nan")), ("top1", 0.5, 1.0)], 0),
    ([("loss", 1.0, 1.0), ("loss", 1.0, 1.0), ("loss", 0.5, 0.5)], 2),
    ([("ema_top1", 0.5, 1.0), ("ema_top1", 0.5, 0.5)], 1),
    ([("", 0.5, 1.0)], None),
]


@pytest.mark.parametrize("evaluations, best", EVALUATIONS)
def test_best_evaluation(evaluations, best):
    """Of equal ones the lower loss."""
    metric = evaluations[0][0]
    args = SimpleNamespace(
        metric_for_best_model=metric or None, greater_is_better=metric != "loss", load_best_model_at_end=True
    )
    state = TrainerState(epoch=9.0)
    for state.global_step, (name, value, loss) in enumerate(evaluations):
        prefix = "eval_ema_" if name.startswith("ema") else "eval_"
        metrics = {f"{prefix}loss": loss, f"eval_{name}": value}
        state.log_history.append({**metrics, "step": state.global_step, "epoch": state.global_step / 2})
        if is_best(metrics, args, state):
            state.best_model_checkpoint = f"checkpoint-{state.global_step}"
    assert state.best_global_step == best
    assert saved_step(args, state) == ((0, 9.0) if best is None else (best, best / 2))


@pytest.mark.filterwarnings("error::RuntimeWarning")  # of a class without images
@pytest.mark.parametrize("num_classes, counts", [(3, True), (40, True), (100, False)])
def test_confusion_matrix_shows_what_fits(num_classes, counts):
    pytest.importorskip("matplotlib", reason="draws the images")
    matrix = np.diag(np.full(num_classes, 7))
    matrix[0, 1] = 21  # three quarters of the first row
    matrix[2] = 0
    axes = report.draw_confusion_matrix(matrix, [f"{index} " + 30 * "x" for index in range(num_classes)]).axes[0]
    fractions = axes.images[0].get_array()
    assert (fractions[0, 0], fractions[0, 1], fractions[1, 1]) == (0.25, 0.75, 1.0)
    assert fractions.mask[2].all() and fractions.mask[1, 0]  # white: never happened, no image
    texts = {(int(y), int(x)): text.get_text() for text in axes.texts for x, y in [text.get_position()]}
    assert texts == ({(int(y), int(x)): str(matrix[y, x]) for y, x in zip(*matrix.nonzero())} if counts else {})
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert len(labels) == num_classes and labels[1] == "1 " + 21 * "x" + "…"
    assert labels == [label.get_text() for label in axes.get_xticklabels()]


def test_confusion_matrix_of_many_classes_has_indices():
    pytest.importorskip("matplotlib", reason="draws the images")
    axes = report.draw_confusion_matrix(np.eye(1000, dtype=int), [str(index) for index in range(1000)]).axes[0]
    assert axes.get_ylabel() == "index of the true class" and len(axes.get_yticks()) < 20


def test_without_matplotlib_there_is_one_warning(tmp_path, results, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    written = write_report(tmp_path, results=results, class_names=NAMES, log_history=LOG)
    assert [path.name for path in written] == [path.name for path in tmp_path.iterdir()] == ["metrics.json"]
    assert len(caplog.records) == 1 and caplog.text.count("matplotlib is not installed") == 1


def test_number_of_names_must_be_that_of_classes(tmp_path, results):
    with pytest.raises(ValueError, match=r"class_names has 2 names, but results\['raw'\] has 3 classes"):
        write_report(tmp_path / "out", results=results, class_names=NAMES[:2])
    assert not (tmp_path / "out").exists()
