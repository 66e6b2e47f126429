# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""Top-k accuracy as a metric of the `evaluate` library, in one file that loads without network.

`evaluate.load("accuracy")` downloads its script from the Hub; `evaluate.load("path/to/topk_accuracy.py")` copies this
file. `evaluate` finds the packages a metric needs by reading its import lines one by one, hence one import a line.
"""

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate
import numpy as np


_DESCRIPTION = """
Fraction of images whose class is among the k classes with the highest scores, for each k asked for.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions: floats (images, classes), logits or any other score that grows with belief, as nested lists, numpy
        array or torch tensor; all in one call, or batch by batch with `add_batch`. A batch is reduced to one rank an
        image at once, so memory does not grow with the number of classes.
    references: integers (images,), the index of the correct class.
    top_k: integers, each from 1 to the number of classes. Defaults to (1, 5).

Returns:
    dict with a float in [0, 1] for each k: {"top1": ..., "top5": ...}. Equal scores rank by class index, the lower
    index first, so "top1" is the accuracy of `argmax`.

Raises:
    ValueError: no image, predictions that are not (images, classes), another number of classes than in the batch
        before, a reference that is no class index, a score that is NaN, a k outside 1 to the number of classes.

Example:
    >>> metric = evaluate.load("src/cait_hf/topk_accuracy.py")
    >>> metric.compute(predictions=[[0.1, 0.7, 0.2], [0.5, 0.3, 0.2]], references=[1, 1], top_k=[1, 2])
    {'top1': 0.5, 'top2': 1.0}
"""


class TopKAccuracy(evaluate.Metric):
    """Top-k accuracy; `evaluate.load(...).inputs_description` describes arguments, result and errors."""

    num_classes: int | None = None  # of the batches added since the last result

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_KWARGS_DESCRIPTION,
            # What is kept of a batch: the rank of each image's correct class takes the place of its scores.
            features=datasets.Features(
                {"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}
            ),
            format="numpy",
        )

    # `evaluate` appends `inputs_description` to the docstrings of these two.
    def add_batch(self, *, predictions: Any, references: Any) -> None:
        """Add a batch of images."""
        scores, references = _as_array("predictions", predictions), _as_array("references", references)
        _check(scores, references, self.num_classes)
        self.num_classes = scores.shape[1]
        super().add_batch(predictions=rank_of_reference(scores, references), references=references)

    def add(self, *, prediction: Any, reference: Any) -> None:
        """Add one image."""
        self.add_batch(predictions=_as_array("prediction", prediction)[None], references=[int(reference)])

    def _compute(
        self, predictions: np.ndarray, references: np.ndarray, top_k: Sequence[int] = (1, 5)
    ) -> dict[str, float]:
        num_classes, self.num_classes = self.num_classes, None
        assert num_classes is not None  # `evaluate` computes nothing without a batch
        for k in top_k:
            if not 1 <= k <= num_classes:
                raise ValueError(f"top_k contains {k}; each k must be from 1 to the number of classes, {num_classes}.")
        return topk_of_ranks(predictions, top_k)


def topk_of_ranks(ranks: np.ndarray, top_k: Sequence[int] = (1, 5)) -> dict[str, float]:
    """The fraction of `ranks` (images,), as of [`rank_of_reference`], below each k: {"top1": ..., "top5": ...}."""
    return {f"top{k}": float((ranks < k).mean()) for k in top_k}


def rank_of_reference(scores: np.ndarray, references: np.ndarray) -> np.ndarray:
    """How many classes rank before the correct one, 0 where it is the first: (images,) integers."""
    own = np.take_along_axis(scores, references[:, None], axis=1)  # (images, 1)
    lower_index = np.arange(scores.shape[1]) < references[:, None]
    return ((scores > own) | ((scores == own) & lower_index)).sum(axis=1)


def _as_array(name: str, values: Any) -> np.ndarray:
    if hasattr(values, "detach"):  # a torch tensor; numpy has no bfloat16
        values = values.detach().cpu()
        values = values.float() if values.is_floating_point() else values
    try:
        return np.asarray(values)
    except ValueError as error:
        raise ValueError(
            f"{name} has rows of different lengths; each image must have as many as the others."
        ) from error


def _check(scores: np.ndarray, references: np.ndarray, num_classes: int | None) -> None:
    if scores.ndim != 2 or scores.size == 0:
        raise ValueError(
            f"predictions has shape {scores.shape}; it must be (images, classes) with at least one of each."
        )
    if num_classes is not None and scores.shape[1] != num_classes:
        raise ValueError(f"predictions has {scores.shape[1]} classes; the batches before it had {num_classes}.")
    if np.isnan(scores).any():
        raise ValueError("predictions contains NaN; each score must be a number or an infinity.")
    check_references(references, *scores.shape)


def check_references(references: np.ndarray, num_images: int, num_classes: int) -> None:
    """Raise ValueError unless `references` contains a class index for each image."""
    if references.shape != (num_images,) or not np.issubdtype(references.dtype, np.integer):
        raise ValueError(
            f"references has shape {references.shape} and dtype {references.dtype}; it must hold one integer for "
            f"each of the {num_images} images."
        )
    if references.min() < 0 or references.max() >= num_classes:
        raise ValueError(
            f"references contains {references.min()} to {references.max()}; each must be a class index from 0 to "
            f"{num_classes - 1}."
        )
