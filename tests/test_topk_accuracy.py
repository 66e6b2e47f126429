# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""The metric, loaded by path without network as the scripts load it, against plain numpy."""

from pathlib import Path

import evaluate
import numpy as np
import pytest
import torch

import cait_hf


FILE = str(Path(cait_hf.__file__).with_name("topk_accuracy.py"))


@pytest.fixture
def metric():
    return evaluate.load(FILE, keep_in_memory=True)


@pytest.fixture(scope="module")
def scores():
    rng = np.random.default_rng(0)
    return rng.standard_normal((500, 20)).astype(np.float32), rng.integers(0, 20, 500)


def top_k(logits: np.ndarray, references: np.ndarray, k: int) -> float:
    order = np.argsort(-logits, axis=1, kind="stable")[:, :k]
    return float((order == references[:, None]).any(axis=1).mean())


def test_equals_sorting(metric, scores):
    logits, references = scores
    result = metric.compute(predictions=logits, references=references)
    assert result == {"top1": top_k(logits, references, 1), "top5": top_k(logits, references, 5)}
    assert 0 < result["top1"] < result["top5"] < 1
    assert metric.compute(predictions=logits, references=references, top_k=[20, 3]) == {
        "top20": 1.0,
        "top3": top_k(logits, references, 3),
    }


def test_batches_add_up(metric, scores):
    logits, references = scores
    for start in range(0, 500, 64):
        rows = slice(start, start + 64)
        metric.add_batch(predictions=torch.tensor(logits[rows]), references=torch.tensor(references[rows]))
    batched = metric.compute()
    assert batched == metric.compute(predictions=logits.tolist(), references=references.tolist())
    for row, reference in zip(logits, references):
        metric.add(prediction=row, reference=reference)
    assert metric.compute() == batched


def test_equal_scores_rank_by_class_index(metric):
    tied = np.zeros((3, 3))
    assert metric.compute(predictions=tied, references=[0, 1, 2], top_k=[1, 2]) == {"top1": 1 / 3, "top2": 2 / 3}
    logits = [[0.0, -np.inf, np.inf], [np.inf, np.inf, 0.0]]
    assert metric.compute(predictions=logits, references=[2, 1], top_k=[1]) == {"top1": 0.5}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_tensors_of_any_float_type(metric, dtype):
    logits = torch.tensor([[1.0, 2.0], [2.0, 1.0]], dtype=dtype, requires_grad=True)
    assert metric.compute(predictions=logits, references=torch.tensor([1, 1]), top_k=[1]) == {"top1": 0.5}


ONES = np.ones((2, 6))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"predictions": ONES[:, :3], "references": [0, 1]}, "top_k contains 5; each k must be from 1 to .*, 3"),
        ({"predictions": ONES, "references": [0, 1], "top_k": [0]}, "top_k contains 0"),
        ({"predictions": ONES, "references": [0, 6]}, "references contains 0 to 6; .* from 0 to 5"),
        ({"predictions": ONES, "references": [-1, 0]}, "references contains -1 to 0"),
        ({"predictions": ONES, "references": [0]}, "one integer for each of the 2 images"),
        ({"predictions": ONES, "references": [0.0, 1.0]}, "dtype float64"),
        ({"predictions": ONES[0], "references": [0, 1]}, r"predictions has shape \(6,\)"),
        ({"predictions": ONES[:0], "references": []}, r"predictions has shape \(0, 6\)"),
        ({"predictions": [[1.0, 2.0], [1.0]], "references": [0, 1]}, "rows of different lengths"),
        ({"predictions": ONES * [1, 1, 1, np.nan, 1, 1], "references": [0, 1]}, "predictions contains NaN"),
    ],
)
def test_wrong_input(metric, arguments, message):
    with pytest.raises(ValueError, match=message):
        metric.compute(**arguments)


def test_batches_of_different_widths(metric):
    """Refused within a result, allowed after one."""
    assert metric.compute(predictions=np.ones((2, 7)), references=[6, 0], top_k=[1]) == {"top1": 0.5}
    metric.add_batch(predictions=ONES, references=[0, 1])
    with pytest.raises(ValueError, match="predictions has 5 classes; the batches before it had 6"):
        metric.add_batch(predictions=ONES[:, :5], references=[0, 1])
