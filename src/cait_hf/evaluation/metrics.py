# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""Accuracy of an image classifier: top-1, top-5, the accuracy of each class and the confusion matrix.

Top-1 and top-5 are those of `topk_accuracy.py`. Of the logits only the five best classes of an image are kept, so that
50,000 images of 1000 classes take 2 MB instead of 200 MB; ranked as that metric ranks them, equal scores by class
index, they give the same numbers to the last bit.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from transformers import EvalPrediction

from ..topk_accuracy import check_references, topk_of_ranks


TOP_K = (1, 5)
METRICS = {"top1": "top-1 accuracy", "top5": "top-5 accuracy", "mean_class_accuracy": "mean accuracy of the classes"}
NOT_A_NUMBER = -1  # in the place of the best classes of an image that has a score of NaN


def best_classes(logits: torch.Tensor | tuple, labels: torch.Tensor | None = None) -> torch.Tensor:
    """The best five classes of each image, best first; `Trainer(preprocess_logits_for_metrics=best_classes)`.

    Args:
        logits: (images, classes), floating point, any device; of a tuple (logits, hidden states, ...) the first.
        labels: not used; `Trainer` gives them.

    Returns:
        (images, min(5, classes)) int64. Of equal scores the lower class index comes first. An image with a score
        of NaN has -1 throughout, which [`classification_metrics`] refuses: there all processes stop together.
    """
    logits = logits[0] if isinstance(logits, tuple) else logits
    ranked = logits.sort(dim=1, descending=True, stable=True).indices[:, : max(TOP_K)]
    return ranked.masked_fill(logits.isnan().any(dim=1, keepdim=True), NOT_A_NUMBER)


def classification_metrics(
    best: np.ndarray | torch.Tensor, labels: np.ndarray | torch.Tensor, num_classes: int
) -> dict:
    """All metrics of the [`best_classes`] of all images and their labels.

    Args:
        best: (images, min(5, num_classes)) integers, of [`best_classes`].
        labels: (images,) integers, the correct classes.
        num_classes: of the model; the labels need not hold each of them.

    Returns:
        dict with
        - `top1`, with more than five classes `top5`, and `mean_class_accuracy`, the mean over the classes that have
          images: floats in [0, 1];
        - `class_accuracy`: a list with the accuracy of each class, `None` for a class without images;
        - `confusion_matrix`: int64 array (num_classes, num_classes), by true (rows) and predicted class.

    Raises:
        ValueError: no image, a score of NaN, a label that is no class index.
    """
    best, labels = (np.asarray(values.cpu() if torch.is_tensor(values) else values) for values in (best, labels))
    if len(best) == 0:
        raise ValueError("labels has no image; there must be at least one to evaluate on.")
    if (best == NOT_A_NUMBER).any():
        broken = int((best == NOT_A_NUMBER).any(axis=1).sum())
        raise ValueError(f"logits hold NaN for {broken} of {len(best)} images; each score must be a number.")
    check_references(labels, len(best), num_classes)
    is_label = best == labels[:, None]
    ranks = np.where(is_label.any(axis=1), is_label.argmax(axis=1), best.shape[1])  # any rank that does not count

    pairs = np.bincount(labels * num_classes + best[:, 0], minlength=num_classes**2)
    confusion_matrix = pairs.reshape(num_classes, num_classes)
    right, images = confusion_matrix.diagonal(), confusion_matrix.sum(axis=1)
    class_accuracy = [float(hits / count) if count else None for hits, count in zip(right, images)]
    return {
        **topk_of_ranks(ranks, [k for k in TOP_K if k == 1 or k < num_classes]),
        "mean_class_accuracy": float(np.mean([value for value in class_accuracy if value is not None])),
        "class_accuracy": class_accuracy,
        "confusion_matrix": confusion_matrix,
    }


def scalars(result: dict) -> dict[str, float]:
    """The floats of a result of [`classification_metrics`], for logs."""
    return {name: value for name, value in result.items() if isinstance(value, float)}


@dataclass
class ClassificationMetrics:
    """`Trainer(compute_metrics=ClassificationMetrics(num_classes), preprocess_logits_for_metrics=best_classes)`.

    A call returns floats only. `last` is the whole result of the last evaluation, for the report.
    """

    num_classes: int
    last: dict | None = field(default=None, init=False)

    def __call__(self, prediction: EvalPrediction) -> dict[str, float]:
        self.last = classification_metrics(prediction.predictions, prediction.label_ids, self.num_classes)
        return scalars(self.last)
