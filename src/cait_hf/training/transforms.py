# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""From an image to what the model gets, and from such items to batches: augmentation, mixup, smoothed labels.

The defaults of crop and flip are timm's, which facebookresearch/deit (`datasets.py`, `main.py`) keeps. So is the
order: crop, flip, RandAugment, normalization, random erasing, mixup of whole batches. RandAugment, erasing and mixup
are timm's. All random numbers come from [`Randomness`].
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

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
        ValueError: if a probability is outside [0, 1], the area outside (0, 1], if timm does not have the policy, or
            if the processor does more than to resize, crop and normalize.
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
        normalization = measure_normalization(image_processor)
        self._order = None if normalization.order == [0, 1, 2] else normalization.order
        self._mean, self._std = (torch.tensor(values)[:, None, None] for values in normalization[:2])
        self.augment = _auto_augment(recipe.auto_augment, normalization, min(self.size))
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
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        pixels = pixels if self._order is None else pixels[self._order]
        pixels = pixels.to(torch.float32, memory_format=torch.contiguous_format)
        return pixels.mul_(1 / 255).sub_(self._mean).div_(self._std)


def _auto_augment(
    policy: str | None, normalization: "Normalization", size: int
) -> Callable[[Image.Image], Image.Image] | None:
    if not policy:
        return None
    from timm.data import auto_augment

    makers = {"rand": "rand_augment_transform", "augmix": "augment_and_mix_transform"}
    make = getattr(auto_augment, makers.get(policy.split("-")[0], "auto_augment_transform"))
    mean = [normalization.mean[normalization.order.index(channel)] for channel in range(3)]  # of red, green and blue
    # what an operation leaves empty gets the mean color, and images move by less than half their size
    options = {
        "translate_const": int(0.45 * size),
        "img_mean": tuple(min(max(0, round(255 * value)), 255) for value in mean),
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
        return _preprocess(self.image_processor, to_rgb(image))


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
    """(height, width) of what an image processor makes of every RGB image.

    Raises:
        ValueError: if it makes something else, or images of several sizes, which no batch can hold.
    """
    name = type(image_processor).__name__
    wide, tall = (_preprocess(image_processor, Image.new("RGB", size)).shape for size in ((400, 300), (300, 400)))
    if len(wide) != 3 or wide[0] != 3:
        raise ValueError(
            f"the image processor {name} makes values of shape {tuple(wide)} of an RGB image, but training needs "
            "(3, height, width)."
        )
    if wide != tall:
        sizes = " or ".join(f"{height} x {width}" for _, height, width in (wide, tall))
        raise ValueError(
            f"the image processor {name} makes images of {sizes} (height x width), depending on their shape, but "
            "training needs one size: let it crop (do_center_crop), or resize to a height and a width."
        )
    return wide[1], wide[2]


class Normalization(NamedTuple):
    """What an image processor does to pixels from 0 to 1: channel c of its result is `(pixels[order[c]] - mean[c]) /
    std[c]`, `pixels` having red, green and blue."""

    mean: list[float]
    std: list[float]
    order: list[int]


def measure_normalization(image_processor: BaseImageProcessor) -> Normalization:
    """What an image processor does to pixels, to six digits.

    Classes of processors have attributes of its own for it, so it is measured by images of one color, which resizing
    and cropping leave as they are.

    Raises:
        ValueError: if it does something else with pixels, too.
    """
    colors = [(0, 0, 0), (255, 255, 255), (255, 0, 0), (0, 255, 0), (0, 0, 255), (100, 150, 200)]
    height, width = input_size(image_processor)
    images = torch.stack([_preprocess(image_processor, Image.new("RGB", (width, height), color)) for color in colors])
    found = images[:, :, height // 2, width // 2].double()  # (colors, channels)
    black, white = found[:2]
    order = (found[2:5] - black).abs().argmax(dim=0).tolist()
    expected = torch.tensor(colors, dtype=torch.float64)[:, order] / 255 * (white - black) + black
    difference = (images - expected[:, :, None, None]).abs().max()
    if not difference <= 1e-4 * found.abs().max() or sorted(order) != [0, 1, 2]:
        raise ValueError(
            f"the image processor {type(image_processor).__name__} does more than to resize, crop and normalize, such "
            "as padding to a crop_size above its size: training cannot."
        )
    span = white - black
    mean, std = ([float(f"{value:.6g}") for value in values.tolist()] for values in (-black / span, 1 / span))
    return Normalization(mean, std, order)


def _preprocess(image_processor: BaseImageProcessor, image: Image.Image) -> torch.Tensor:
    """The model's input of an RGB image: float32 `(channels, height, width)`.

    Raises:
        ValueError: if the processor fails.
    """
    try:
        return image_processor(image, return_tensors="pt")["pixel_values"][0].float()
    except (ValueError, KeyError, TypeError, IndexError, RuntimeError) as error:
        name = type(image_processor).__name__
        raise ValueError(f"the image processor {name} does not make pixel values of an RGB image: {error}") from error
