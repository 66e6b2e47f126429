# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""The losses of the models, which are those of training too; computed in float32 or wider."""

from typing import Any

import torch
from torch import nn
from transformers.configuration_utils import PreTrainedConfig

from .configuration_cait import PROBLEM_TYPES


def image_classification_loss(
    labels: torch.Tensor, logits: torch.Tensor, config: PreTrainedConfig, reduction: str = "mean", **kwargs: Any
) -> torch.Tensor:
    """The loss of a batch, chosen by `config.problem_type` and the labels; the config is never changed.

    Of the config of any image classifier only `problem_type` and `num_labels` are read.

    Args:
        labels (`torch.Tensor`): one of
            - integers `(batch,)` in [0, num_labels), -100 is ignored: cross-entropy;
            - floats `(batch, num_labels)`, each row a distribution over the classes: soft-target cross-entropy (mixup,
              cutmix, distillation);
            - `(batch, num_labels)` of 0 and 1 with `problem_type="multi_label_classification"`: binary cross-entropy;
            - numbers of the shape of the logits, or `(batch,)` when `num_labels` is 1, with
              `problem_type="regression"` or `num_labels=1`: mean squared error.
        logits (`torch.Tensor` of shape `(batch, num_labels)`):
            of any float dtype; the loss is computed in float32 or wider.
        reduction (`str`): of torch's losses: "mean" returns a scalar, "none" with class indices or soft labels the
            loss of each image, of shape `(batch,)`.

    Transformers' generic loss takes floats for multi-hot labels; here `problem_type` must say so.

    Raises:
        ValueError: if there is no classifier, the labels' shape or dtype fits none of these or, on a CPU, a class
            index is out of range or a row of floats no distribution. On a GPU the last two are assertions of the
            device, for which nothing waits; in compiled and exported code a row is a `RuntimeError`.
    """
    if config.num_labels == 0:
        raise ValueError("labels are given, but num_labels is 0, a model without classifier: it must be at least 1.")
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    batch_size, num_labels = logits.shape
    if config.problem_type == "regression" or (config.problem_type is None and num_labels == 1):
        if labels.shape == logits.shape or (num_labels == 1 and labels.shape == (batch_size,)):
            return nn.functional.mse_loss(logits, labels.view(logits.shape).to(logits), reduction=reduction)
        allowed = f"({batch_size}, {num_labels})"
    elif config.problem_type == "multi_label_classification":
        if labels.shape == logits.shape:
            return nn.functional.binary_cross_entropy_with_logits(logits, labels.to(logits), reduction=reduction)
        allowed = f"({batch_size}, {num_labels}) for multi-label classification"
    elif config.problem_type not in (None, "single_label_classification"):
        raise ValueError(f"config.problem_type is {config.problem_type!r}, but it must be one of {PROBLEM_TYPES}.")
    else:
        if labels.is_floating_point() and labels.shape == logits.shape:
            _check_distributions(labels)
            return nn.functional.cross_entropy(logits, labels.to(logits), reduction=reduction)
        if not labels.is_floating_point() and labels.shape == (batch_size,):
            try:
                return nn.functional.cross_entropy(logits, labels.to(logits.device).long(), reduction=reduction)
            except IndexError as error:  # of the kernel for CPUs; a check here would let a GPU wait
                wrong = labels[(labels != -100) & ((labels < 0) | (labels >= num_labels))]
                raise ValueError(
                    f"labels contains {wrong[0].item()}, but it must be in [0, {num_labels}) or -100."
                ) from error
        allowed = f"({batch_size},) for class indices or, as floats, ({batch_size}, {num_labels}) for soft labels"
        if labels.shape == logits.shape:
            allowed += "; several classes an image need problem_type 'multi_label_classification'"
    raise ValueError(f"labels has shape {tuple(labels.shape)} and dtype {labels.dtype}, but it must be {allowed}.")


def _check_distributions(labels: torch.Tensor) -> None:
    """Raise ValueError if a row `(num_labels,)` has a negative number or does not sum to 1, but for rounding."""
    if labels.device.type not in ("cpu", "cuda") or torch._C._are_functorch_transforms_active():
        return  # the assertion is an operator of these devices, without a rule for `vmap`
    sums = labels.sum(1, dtype=torch.promote_types(labels.dtype, torch.float32))
    # 0.01: what smoothing and mixing in bfloat16, with eight bits, may lose
    are_distributions = ((sums - 1).abs() <= 0.01) & (labels >= 0).all(1)
    try:
        # No `if`, for which a GPU would wait, a compiled graph break, and an exported one have no value.
        torch._assert_async(
            are_distributions.all(),
            "a row of the float labels is no distribution over the classes, without negative numbers and of sum 1. "
            "Set problem_type to 'multi_label_classification' for several classes an image, or to 'regression'.",
        )
    except RuntimeError as error:
        row = int(are_distributions.int().argmin())
        raise ValueError(f"labels[{row}] sums to {sums[row].item():g}: {error}") from error


def masked_l1_loss(pixel_values: torch.Tensor, reconstruction: torch.Tensor, masked: torch.Tensor) -> torch.Tensor:
    """Mean absolute error over the masked pixels, in float32 or wider; zero where nothing is masked.

    Args:
        pixel_values, reconstruction (`torch.Tensor` of shape `(batch, channels, height, width)`).
        masked (`torch.Tensor` of shape `(batch, 1, height, width)`): true or 1 where a pixel counts.
    """
    dtype = torch.promote_types(reconstruction.dtype, torch.float32)
    error = (pixel_values.to(reconstruction.device, dtype) - reconstruction.to(dtype)).abs()
    masked = masked.to(reconstruction.device, dtype)
    return (error * masked).sum() / (masked.sum().clamp(min=1) * pixel_values.shape[1])
