# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""Logits compared with those of a reference: timm's CaiT with the same weights, recorded ones, an exported program.

timm is imported only where its logits are asked for.
"""

from pathlib import Path

import torch

from .configuration_cait import CaitConfig, as_pair
from .modeling_cait import CaitForImageClassification
from .state_dict import convert_to_official_state_dict
from .timm_format import timm_model_args


TOLERANCE = 1e-4  # largest difference of two float32 logits, in units of the largest expected logit
TIMM = "timm's"


def compare_logits(
    logits: torch.Tensor,
    expected: torch.Tensor,
    reference: str,
    tolerance: float = TOLERANCE,
    smallest_scale: float = 0.0,
) -> float:
    """Largest absolute difference in units of the largest expected logit, or of `smallest_scale` if that is larger.

    Args:
        logits, expected: of one shape, such as (batch, labels).
        reference: whose logits are expected, for the error message.
        tolerance: largest difference allowed, in the same units.

    Raises:
        ValueError: if the shapes differ, or the difference exceeds `tolerance` or is not a number.
    """
    if logits.shape != expected.shape:
        raise ValueError(f"The logits have shape {tuple(logits.shape)}, but {reference} have {tuple(expected.shape)}.")
    scale = expected.abs().max().clamp(min=smallest_scale)
    difference = ((logits - expected).abs().max() / scale).item()
    if not difference <= tolerance:
        text = difference_text(difference, reference)
        raise ValueError(f"{text[0].upper()}{text[1:]}, more than the {tolerance:.0e} allowed.")
    return difference


def difference_text(difference: float, reference: str = TIMM) -> str:
    """Text for a report of what `compare_logits` returns."""
    return f"the logits differ from {reference} by at most {difference:.1e} of the largest"


def require_timm() -> None:
    """Raise ImportError if timm cannot be imported, before a large model is loaded."""
    try:
        import timm.models.cait  # noqa: F401
    except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision of another torch
        raise ImportError(f"A comparison with timm needs timm, which cannot be imported: {error}") from error


def compare_with_timm(folder: Path, tensors: dict[str, torch.Tensor]) -> float:
    """Compare the logits of a folder just written with those of timm's CaiT with the `tensors` of its source.

    `tensors` is emptied on the way: the weights are in memory twice at most.

    Returns:
        Their largest difference on two random images in float32, as `compare_logits`, and with its errors.
    """
    config = CaitConfig.from_pretrained(folder)
    images = random_images(config)
    expected = timm_logits(config, tensors, images)
    tensors.clear()
    model = CaitForImageClassification.from_pretrained(folder, dtype=torch.float32)
    return compare_logits(logits_of(model, images), expected, TIMM)


def compare_model_with_timm(model: CaitForImageClassification) -> float:
    """The same for a model without a source: timm's CaiT gets its own weights."""
    model, images = model.float(), random_images(model.config)
    expected = timm_logits(model.config, convert_to_official_state_dict(model.state_dict()), images)
    return compare_logits(logits_of(model, images), expected, TIMM)


@torch.no_grad()
def timm_logits(config: CaitConfig, state_dict: dict[str, torch.Tensor], pixel_values: torch.Tensor) -> torch.Tensor:
    """Float32 logits (batch, labels) of timm's CaiT with a plain official `state_dict`, which it loads by itself."""
    from timm.models.cait import Cait

    with torch.device("meta"):
        timm_model = Cait(**timm_model_args(config)).eval()
    timm_model.load_state_dict({key: tensor.float() for key, tensor in state_dict.items()}, assign=True)
    return timm_model(pixel_values)


@torch.no_grad()
def logits_of(model: CaitForImageClassification, pixel_values: torch.Tensor) -> torch.Tensor:
    return model.eval()(pixel_values).logits


def random_images(config: CaitConfig, batch_size: int = 2, patches_more: tuple[int, int] = (0, 0)) -> torch.Tensor:
    """Normal noise (batch, channels, height, width) of the model's own size, or larger by so many patches."""
    sizes = zip(as_pair(config.image_size), as_pair(config.patch_size), patches_more)
    height, width = (size + patch * more for size, patch, more in sizes)
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch_size, config.num_channels, height, width, generator=generator)
