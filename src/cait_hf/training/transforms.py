# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""From an image to what the model gets, and from such items to batches: augmentation, mixup, smoothed labels.

The defaults of crop and flip are timm's, which facebookresearch/deit (`datasets.py`, `main.py`) keeps. So is the
order: crop, flip, RandAugment, normalization, random erasing, mixup of whole batches. RandAugment, erasing and mixup
are timm's. All random numbers come from [`Randomness`].
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from transformers.image_processing_utils import BaseImageProcessor

from ..image_input import to_rgb
from .arguments import RecipeArguments
from .randomness import Randomness


CROP_RATIO = (3 / 4, 4 / 3)  # width / height


class TrainTransform:
    """A random crop, resized, mirrored at random, perhaps RandAugment, the model's own normalization, perhaps erasing.

    Args:
        image_processor: of the model; gives the size of the images and normalizes them.
        randomness ([`Randomness`]): the numbers of an image depend on seed, epoch and key.
        recipe ([`RecipeArguments`], *optional*): which augmentations, and how strong.

    Raises:
        ValueError: if a probability is outside [0, 1], the area outside (0, 1], or timm does not have the policy.
        ImportError: if timm is needed and not installed.
    """

    def __init__(
        self, image_processor: BaseImageProcessor, randomness: Randomness, recipe: RecipeArguments | None = None
    ) -> None:
        self.recipe = recipe = recipe or RecipeArguments()
        if not 0 < recipe.crop_area <= 1:
            raise ValueError(f"--crop_area is {recipe.crop_area}, but it must be above 0 and at most 1.")
        check_ranges(recipe, {"flip_probability": 1, "random_erasing": 1})
        self.randomness, self.size = randomness, input_size(image_processor)
        self._rescale_factor, self._mean, self._std = _normalization_of(image_processor)
        self.augment = _auto_augment(recipe.auto_augment, image_processor, min(self.size))
        self.erase = _random_erasing(recipe.random_erasing)

    def __call__(self, image: Image.Image, key: int) -> torch.Tensor:
        """`(channels, height, width)` of an image."""
        rng = self.randomness.generator(key)
        image = to_rgb(image)
        width, height = image.size
        part = random_part(width, height, rng, self.recipe.crop_area)
        image = image.resize(self.size[::-1], Image.Resampling.BICUBIC, box=part)
        if rng.random() < self.recipe.flip_probability:
            image = ImageOps.mirror(image)
        if self.augment is None and self.erase is None:
            return self._normalize(image)
        with self.randomness.seeded(key):
            image = self.augment(image) if self.augment else image
            pixel_values = self._normalize(image)
            return self.erase(pixel_values) if self.erase else pixel_values

    def _normalize(self, image: Image.Image) -> torch.Tensor:
        return _normalized(image, self._rescale_factor, self._mean, self._std)


def _normalized(image: Image.Image, rescale_factor: float, mean: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
    pixels = (
        torch.from_numpy(np.array(image)).permute(2, 0, 1).to(torch.float32, memory_format=torch.contiguous_format)
    )
    return pixels.mul_(rescale_factor).sub_(mean).div_(std)


def _normalization_of(image_processor: BaseImageProcessor) -> tuple[float, torch.Tensor, torch.Tensor]:
    """Rescale factor, mean and deviation, (3, 1, 1), of what a processor does to an image that is cut to size.

    It takes ten times as long itself.

    Raises:
        ValueError: if the processor does something else with pixels.
    """
    mean, std = (torch.tensor(values)[:, None, None] for values in normalization(image_processor))
    rescale_factor = 1 / 255 if hasattr(image_processor, "data_config") else _rescale_factor(image_processor)
    height, width = input_size(image_processor)
    ramp = Image.fromarray(np.linspace(0, 255, 3 * height * width).astype(np.uint8).reshape(height, width, 3))
    processed = image_processor(ramp, return_tensors="pt")["pixel_values"][0]
    expected = _normalized(ramp, rescale_factor, mean, std)
    if processed.shape != expected.shape or not torch.allclose(processed, expected, atol=1e-4):
        name = type(image_processor).__name__
        raise ValueError(f"the image processor {name} does more than to resize, crop and normalize: training cannot.")
    return rescale_factor, mean, std


def _rescale_factor(image_processor: BaseImageProcessor) -> float:
    return image_processor.rescale_factor if getattr(image_processor, "do_rescale", True) else 1.0


def _auto_augment(
    policy: str | None, image_processor: BaseImageProcessor, size: int
) -> Callable[[Image.Image], Image.Image] | None:
    if not policy:
        return None
    from timm.data import auto_augment

    makers = {"rand": "rand_augment_transform", "augmix": "augment_and_mix_transform"}
    make = getattr(auto_augment, makers.get(policy.split("-")[0], "auto_augment_transform"))
    mean = normalization(image_processor)[0]
    # what an operation leaves empty gets the mean color, and images move by less than half their size
    options = {
        "translate_const": int(0.45 * size),
        "img_mean": tuple(min(255, round(255 * value)) for value in mean),
        "interpolation": Image.Resampling.BICUBIC,
    }
    try:
        transform = make(policy, options)
    except (AssertionError, ValueError, KeyError) as error:
        raise ValueError(f"--auto_augment is {policy}, but timm has no such policy ({error}).") from error
    for operation in getattr(transform, "ops", None) or [op for policy in transform.policy for op in policy]:
        if operation.name.startswith("Posterize"):
            operation.aug_fn = _posterize
    return transform


def _posterize(image: Image.Image, bits: int, **kwargs: Any) -> Image.Image:
    """timm's, whose strongest level keeps no bits at all: black, which Pillow 13 refuses to make."""
    if bits == 0:
        return Image.new(image.mode, image.size)
    return image if bits >= 8 else ImageOps.posterize(image, bits)


def _random_erasing(probability: float) -> Callable[[torch.Tensor], torch.Tensor] | None:
    if not probability:
        return None
    from timm.data.random_erasing import RandomErasing

    return RandomErasing(probability, mode="pixel", device="cpu")


class EvalTransform:
    """The model's own preprocessing."""

    def __init__(self, image_processor: BaseImageProcessor) -> None:
        self.image_processor = image_processor

    def __call__(self, image: Image.Image, key: int) -> torch.Tensor:
        """`(channels, height, width)` of an image."""
        return self.image_processor(to_rgb(image), return_tensors="pt").pixel_values[0]


def collate(items: list[dict]) -> dict[str, torch.Tensor]:
    """Items of [`LabeledImages`] as `pixel_values` `(batch, channels, height, width)` and `labels` `(batch,)`."""
    return {
        "pixel_values": torch.stack([item["pixel_values"] for item in items]),
        "labels": torch.tensor([item["labels"] for item in items]),
    }


class TrainCollator:
    """Batches whose labels are classes or, with mixup, cutmix or smoothing, `(batch, classes)` fractions of each.

    Args:
        num_labels (`int`): number of classes.
        randomness ([`Randomness`]): the mixing of a batch depends on seed, epoch and the keys of its images.
        label_smoothing (`float`): this fraction of a label is spread over all classes, in [0, 1].
        recipe ([`RecipeArguments`], *optional*): mixup and cutmix.

    Raises:
        ValueError: if one of these is outside its range.
        ImportError: if images are to be mixed and timm is not installed.
    """

    def __init__(
        self,
        num_labels: int,
        randomness: Randomness,
        label_smoothing: float = 0.0,
        recipe: RecipeArguments | None = None,
    ) -> None:
        recipe = recipe or RecipeArguments()
        if not 0 <= label_smoothing <= 1:
            raise ValueError(f"--label_smoothing_factor is {label_smoothing}, but it must be from 0 to 1.")
        check_ranges(recipe, {"mixup": math.inf, "cutmix": math.inf, "mixup_prob": 1, "mixup_switch_prob": 1})
        if recipe.mixup_mode not in ("batch", "pair", "elem"):
            raise ValueError(f"--mixup_mode is {recipe.mixup_mode}, but it must be batch, pair or elem.")
        self.num_labels, self.randomness, self.label_smoothing = num_labels, randomness, label_smoothing
        self.mix = None
        if recipe.mixup or recipe.cutmix:
            from timm.data.mixup import Mixup

            self.mix = Mixup(
                mixup_alpha=recipe.mixup,
                cutmix_alpha=recipe.cutmix,
                prob=recipe.mixup_prob,
                switch_prob=recipe.mixup_switch_prob,
                mode=recipe.mixup_mode,
                label_smoothing=label_smoothing,
                num_classes=num_labels,
            )

    def __call__(self, items: list[dict]) -> dict[str, torch.Tensor]:
        batch = collate(items)
        if self.mix is None and not self.label_smoothing:
            return batch
        pixel_values, labels = batch["pixel_values"], smooth(batch["labels"], self.num_labels, self.label_smoothing)
        if self.mix is not None:
            even = len(items) // 2 * 2  # timm pairs the images: the last of an odd number stays as it is
            with self.randomness.seeded(*(item["key"] for item in items)):
                mixed = self.mix(pixel_values[:even], batch["labels"][:even]) if even else None
            if mixed is not None:
                pixel_values[:even], labels[:even] = mixed
        return {"pixel_values": pixel_values, "labels": labels}


def check_ranges(recipe: RecipeArguments, highest: dict[str, float]) -> None:
    """Raise ValueError unless each of these flags is from 0 to its highest value."""
    for flag, most in highest.items():
        if not 0 <= getattr(recipe, flag) <= most:
            allowed = "0 or more" if most == math.inf else f"from 0 to {most}"
            raise ValueError(f"--{flag} is {getattr(recipe, flag)}, but it must be {allowed}.")


def smooth(labels: torch.Tensor, num_labels: int, label_smoothing: float) -> torch.Tensor:
    """`(batch,)` classes as `(batch, classes)` fractions that sum to 1, `label_smoothing` of it spread over all."""
    one_hot = torch.nn.functional.one_hot(labels, num_labels).float()
    return one_hot * (1 - label_smoothing) + label_smoothing / num_labels


def random_part(
    width: int, height: int, rng: np.random.Generator, least_area: float = 0.08
) -> tuple[float, float, float, float]:
    """Left, top, right, bottom of a part of random area, aspect ratio and place of an image."""
    for _ in range(10):
        area = width * height * rng.uniform(least_area, 1.0)
        ratio = math.exp(rng.uniform(*map(math.log, CROP_RATIO)))
        part_width, part_height = math.sqrt(area * ratio), math.sqrt(area / ratio)
        if part_width <= width and part_height <= height:
            left, top = rng.uniform(0, width - part_width), rng.uniform(0, height - part_height)
            return left, top, min(left + part_width, width), min(top + part_height, height)
    # such a long image seldom contains a part of an allowed ratio: take the largest one, in its middle
    ratio = min(max(width / height, CROP_RATIO[0]), CROP_RATIO[1])
    part_width, part_height = min(width, height * ratio), min(height, width / ratio)
    left, top = (width - part_width) / 2, (height - part_height) / 2
    return left, top, min(left + part_width, width), min(top + part_height, height)


def input_size(image_processor: BaseImageProcessor) -> tuple[int, int]:
    """(height, width) of the images that the model gets."""
    cropped = getattr(image_processor, "do_center_crop", None) and image_processor.crop_size
    size = cropped or getattr(image_processor, "size", None) or {}
    shortest = size.get("shortest_edge")
    height, width = size.get("height") or shortest, size.get("width") or shortest
    if height is None or width is None:
        raise ValueError(
            f"the image processor {type(image_processor).__name__} has no size that this script supports."
        )
    return height, width


def normalization(image_processor: BaseImageProcessor) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel, for pixels from 0 to 1; timm's processors keep them elsewhere."""
    timm_config = getattr(image_processor, "data_config", None)
    if timm_config is not None:
        return list(timm_config["mean"]), list(timm_config["std"])
    if not getattr(image_processor, "do_normalize", True):
        return [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]
    return list(image_processor.image_mean), list(image_processor.image_std)
