# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""CaiT image processor on Pillow, and what it shares with the torchvision one.

The reference is timm's evaluation transform (`timm.data.create_transform`: shortest edge, center crop, `ToTensor`,
`Normalize`), which the Pillow class repeats bit by bit; crop 1.0, bicubic and the ImageNet mean and standard deviation
are those of the ten official checkpoints (`timm/models/cait.py`). `image_input.py` reads images, this file resizes and
crops, Transformers rescales, normalizes and stacks. Works without torchvision.
"""

import math
import os
from typing import Any

import numpy as np
import PIL.Image
import torch
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_base import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_transforms import get_resize_output_image_size
from transformers.image_utils import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    ChannelDimension,
    SizeDict,
)
from transformers.processing_utils import ImagesKwargs
from transformers.utils import logging

from .image_input import flatten, open_image, require, to_pixels


logger = logging.get_logger(__name__)

_SIZE_KEYS = {"size": ("shortest_edge", "height, width"), "crop_size": ("height, width",)}
# Of one channel of the resized image before the crop; 224 pixels wide, that is a height of 299,593.
_MAX_RESIZED_PIXELS = 2**26


class CaitImageProcessorKwargs(ImagesKwargs, total=False):  # type: ignore[call-arg]  # it is a TypedDict
    """do_exif_transpose (`bool`): see [`CaitImageProcessorPil`]."""

    do_exif_transpose: bool | None


class CaitImageProcessorMixin(BaseImageProcessor):
    """Everything of both CaiT image processors that does not depend on the backend.

    The images between its methods are arrays or tensors (channels, height, width), as the backend has them.
    """

    valid_kwargs = CaitImageProcessorKwargs
    do_exif_transpose = True
    do_convert_rgb = True
    do_resize = True
    size = {"shortest_edge": 224}
    default_to_square = False
    resample = PIL.Image.Resampling.BICUBIC
    do_center_crop = True
    crop_size = {"height": 224, "width": 224}
    do_rescale = True
    do_normalize = True
    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD

    @classmethod
    def get_image_processor_dict(
        cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Read `preprocessor_config.json`, or where there is none timm's `config.json` (`timm/cait_*`).

        Raises:
            OSError: if neither file can be read.
            ValueError: if timm's file is of another architecture or of a preprocessing this class does not have.
        """
        source = pretrained_model_name_or_path
        try:
            arguments, unused = super().get_image_processor_dict(source, **kwargs)
        except OSError as error:
            if "image_processor_filename" in kwargs:
                raise
            kwargs["image_processor_filename"] = "config.json"
            try:
                arguments, unused = super().get_image_processor_dict(source, **kwargs)
            except OSError:
                arguments = {}
            if not _is_timm_config(arguments):
                raise OSError(
                    f"{source} has no preprocessor_config.json and no config.json of timm: {error}"
                ) from error
        if _is_timm_config(arguments):
            arguments = _kwargs_from_timm(arguments)
        return arguments, unused

    def _standardize_kwargs(self, **kwargs: Any) -> dict[str, Any]:
        kwargs = super()._standardize_kwargs(**kwargs)
        for name, allowed in _SIZE_KEYS.items():
            size = {key: value for key, value in dict(kwargs.get(name) or {}).items() if value is not None}
            is_allowed = ", ".join(sorted(size)) in allowed and all(type(n) is int and n >= 1 for n in size.values())
            dicts = " or ".join(f"{{{keys}}}" for keys in allowed)
            require(
                is_allowed or kwargs.get(name) is None,
                f"{name} is {size}, but it must be an int >= 1 or a dict {dicts} of such numbers of pixels.",
            )
        if kwargs.get("resample") is not None:
            kwargs["resample"] = _pil_resampling(kwargs["resample"])
        return kwargs

    def fetch_images(self, image_url_or_urls: Any) -> Any:
        """Open every path, URL or base64 text of a (nested) list as a PIL image; anything else is left as it is."""
        if isinstance(image_url_or_urls, list | tuple):
            return [self.fetch_images(image) for image in image_url_or_urls]
        if isinstance(image_url_or_urls, str | os.PathLike):
            return open_image(image_url_or_urls, "images")
        return image_url_or_urls

    def _prepare_image_like_inputs(self, images: Any, *args: Any, expected_ndims: int = 3, **kwargs: Any) -> list:
        return [self.process_image(image, name=name, **kwargs) for name, image in flatten(images)]

    def process_image(
        self,
        image: Any,
        do_exif_transpose: bool | None = None,
        do_convert_rgb: bool | None = None,
        input_data_format: str | ChannelDimension | None = None,
        device: str | torch.device | None = None,
        name: str = "images",
        **kwargs: Any,
    ) -> Any:
        """Pixels of one image as uint8 or float32 (channels, height, width); `name` is for error messages."""
        pixels = to_pixels(image, name, do_convert_rgb, input_data_format, do_exif_transpose)
        return pixels.cpu().numpy() if self.backend == "pil" else pixels.to(device)

    def _preprocess(self, images: list, **kwargs: Any) -> BatchFeature:
        """Resize as the reference does; the backend does the rest."""
        window = kwargs["crop_size"] if kwargs["do_center_crop"] else None
        white = 255.0 if kwargs["do_rescale"] else 1.0
        prepared = []
        for image in images:
            for name in ("image_mean", "image_std"):
                require(
                    not kwargs["do_normalize"] or np.shape(kwargs[name]) in ((), (len(image),)),
                    f"{name} has {np.size(kwargs[name])} numbers, but the image has {len(image)} channels.",
                )
            if kwargs["do_resize"]:
                pixels = self._resize(torch.as_tensor(image), white, kwargs["size"], window, kwargs["resample"])
                image = self._to_backend(pixels)
            prepared.append(image)
        return super()._preprocess(prepared, **{**kwargs, "do_resize": False})

    def _resize(
        self,
        pixels: torch.Tensor,
        white: float,
        size: SizeDict,
        window: SizeDict | None,
        resample: PIL.Image.Resampling,
    ) -> torch.Tensor:
        """Resize uint8 or float32 (channels, height, width). Floats in [0, white] go through 8 bits: the reference
        clips and rounds after each of its two passes, which resampling the floats themselves would not.
        """
        if pixels.is_floating_point() and 0 <= pixels.min() and (high := pixels.max().item()) <= white:
            if white > 1 and 0 < high <= 1:
                logger.warning_once(
                    "images has float values in [0, 1] and do_rescale=True divides them by 255 once more: pass "
                    "do_rescale=False."
                )
            scale = 255 / white
            return self._resize(pixels.mul(scale).round().to(torch.uint8), white, size, window, resample) / scale
        height, width = size.height, size.width
        if size.shortest_edge:
            height, width = get_resize_output_image_size(
                pixels, size.shortest_edge, False, None, ChannelDimension.FIRST
            )
        if (height, width) == pixels.shape[-2:]:
            return pixels
        if window is not None and height * width > _MAX_RESIZED_PIXELS:
            return _pil_resize_window(pixels, height, width, window, resample)
        return self._resize_full(pixels, height, width, resample)

    def _resize_full(
        self, pixels: torch.Tensor, height: int, width: int, resample: PIL.Image.Resampling
    ) -> torch.Tensor:
        return pil_resize(pixels, height, width, resample)

    def center_crop(self, image: Any, size: SizeDict, **kwargs: Any) -> Any:
        """(..., height, width) -> (..., size.height, size.width), padded with zeros where the image is smaller."""
        pads: list[int] = []
        for length, crop in zip(image.shape[-2:], (size.height, size.width), strict=True):
            before = (crop - length) // 2 if crop > length else -_crop_offset(length, crop)
            pads = [before, crop - length - before, *pads]  # the last axis comes first; negative values cut off
        return self._to_backend(torch.nn.functional.pad(torch.as_tensor(image), pads))

    def _to_backend(self, pixels: torch.Tensor) -> Any:
        return pixels.numpy() if self.backend == "pil" else pixels


class CaitImageProcessorPil(CaitImageProcessorMixin, PilBackend):
    r"""CaiT image processor on Pillow: the shortest edge to `size`, center crop, values to [0, 1], normalization.

    The result equals timm's evaluation transform bit for bit on an 8-bit PIL image of any mode; timm ignores the EXIF
    orientation, so an image with one needs `do_exif_transpose=False`. The output is `pixel_values`, float32
    (batch, 3, crop height, crop width).

    Arguments are those of all image processors of Transformers, for the constructor or for a single call. They differ
    in these:

    Args:
        do_exif_transpose (`bool`, defaults to `True`):
            Whether PIL images and image files are rotated as their EXIF orientation says.
        do_convert_rgb (`bool`, defaults to `True`):
            Whether every image gets three channels. As with `PIL.Image.Image.convert("RGB")`, which timm calls, an
            alpha channel is dropped, not blended. `False` keeps the channels, for models of other `num_channels`;
            `image_mean` and `image_std` then need as many numbers.
        size (`int` or `dict[str, int]`, defaults to `{"shortest_edge": 224}`):
            Pixels of the shortest edge after resizing (also as an `int`); `{"height": h, "width": w}` or `(h, w)`
            squeezes the image to that size instead. `resample` is bicubic by default.
        crop_size (`int` or `dict[str, int]`, defaults to `{"height": 224, "width": 224}`):
            Pixels of the center crop; an `int` is a square. It does not follow `size`: change both. Where the image is
            smaller it is padded with zeros.
        input_data_format (`"channels_first"` or `"channels_last"`, *optional*):
            Where arrays have their channels. By default the axis of length 3, else 4, else 1 (the first one if both
            are) is taken.

    Accepted as `images`: one image or a list, also nested, of

    - PIL images of any mode. Modes with 16 bits (`"I;16"`, ...) become 8 bits by `round(value / 257)`, so that the
      full range stays full range (`convert("RGB")` would clip to 255). Mode `"I"` is taken for 8 bits where no value
      is above 255, else for 16 bits. Mode `"F"` has its fractions cut off, as `convert("RGB")` does, or where no value
      is above 1 becomes `round(value * 255)`.
    - Arrays and tensors, (height, width), (channels, height, width) or (height, width, channels) with 1, 3 or 4
      (RGBA) channels, or a batch with one dimension more. Integers as above (uint16 is 16 bits whatever its values,
      other types go by their largest value); booleans are black and white. Floats are expected in [0, 255] with
      `do_rescale=True` and in [0, 1] with `do_rescale=False`; resizing rounds them to 8 bits. An image with values
      outside that range is resized in float32 and not clipped.
    - Paths, URLs and base64 texts of image files.

    An image so long that it would have more than 2**26 pixels when resized is resampled in the window of the crop
    only; of an enlarged one, single pixels may then differ by 1/255 from the full computation.

    Raises:
        ValueError: if `images` contains something else, an empty list, another shape, NaN or infinite values or
            integers beyond 16 bits, or if an argument has a value that is not allowed.
        OSError: if a file cannot be fetched or read as an image.

    Example:

    ```python
    >>> from cait_hf import CaitImageProcessorPil

    >>> image_processor = CaitImageProcessorPil.from_pretrained("timm/cait_xs24_384.fb_dist_in1k")
    >>> dict(image_processor.crop_size)
    {'height': 384, 'width': 384}
    >>> pixel_values = image_processor("image.jpg", return_tensors="pt").pixel_values  # (1, 3, 384, 384)
    ```"""


def _pil_resampling(resample: Any) -> PIL.Image.Resampling:
    """Pillow's constant, which can be saved, for itself, its number or an `InterpolationMode` of torchvision."""
    filters = {key: filter for filter in PIL.Image.Resampling for key in (filter.name, filter.value)}
    key = resample if isinstance(resample, int) else getattr(resample, "name", "").removesuffix("_EXACT")
    allowed = ", ".join(filter.name for filter in PIL.Image.Resampling)
    require(key in filters, f"resample is {resample!r}, but it must be a PIL.Image.Resampling: {allowed}.")
    return filters[key]


def pil_resize(
    pixels: torch.Tensor,
    height: int,
    width: int,
    resample: PIL.Image.Resampling,
    box: tuple[float, float, float, float] | None = None,
) -> torch.Tensor:
    """Pillow's resampling of uint8 or float32 (channels, height, width), of (left, top, right, bottom) if given."""
    array = pixels.movedim(0, -1).cpu().numpy()
    # Pillow knows three channels of 8 bits; any other it takes one by one.
    channels = [array] if array.shape[-1] == 3 and array.dtype == np.uint8 else np.moveaxis(array, -1, 0)
    resized = [np.array(PIL.Image.fromarray(channel).resize((width, height), resample, box)) for channel in channels]
    array = resized[0] if resized[0].ndim == 3 else np.stack(resized, -1)
    return torch.from_numpy(array).movedim(-1, 0).to(pixels.device)


def _pil_resize_window(
    pixels: torch.Tensor, height: int, width: int, window: SizeDict, resample: PIL.Image.Resampling
) -> torch.Tensor:
    """The center `window` of the image resized to (height, width), from the pixels under it alone."""
    rows, top, bottom, out_height = _source_window(pixels.shape[-2], height, window.height)
    columns, left, right, out_width = _source_window(pixels.shape[-1], width, window.width)
    return pil_resize(pixels[..., rows, columns], out_height, out_width, resample, (left, top, right, bottom))


def _source_window(length: int, new: int, crop: int) -> tuple[slice, float, float, int]:
    """Of one axis: the slice of the source, the window's start and stop counted in it, and its resized length."""
    scale = length / new
    resized = min(crop, new)
    start = _crop_offset(new, resized) * scale
    stop = min(start + resized * scale, length)
    margin = math.ceil(3 * max(scale, 1)) + 1  # Lanczos, the widest filter, reaches 3 pixels far
    first, last = max(0, math.floor(start) - margin), min(length, math.ceil(stop) + margin)
    # Pillow keeps the box in float32: numbers counted from `first` are small, hence nearly exact.
    return slice(first, last), start - first, stop - first, resized


def _crop_offset(length: int, crop: int) -> int:
    return round((length - crop) / 2)  # half to even, the rounding of torchvision's CenterCrop


def _is_timm_config(config: dict[str, Any]) -> bool:
    return "pretrained_cfg" in config or "architecture" in config


def _kwargs_from_timm(config: dict[str, Any]) -> dict[str, Any]:
    """Translate the `config.json` of a timm CaiT into arguments of the image processors.

    Missing entries take timm's defaults (`timm/data/config.py`). `model_args.img_size`, the size for which the weights
    were saved, wins over `input_size`: a CaiT in timm takes no other size.

    Raises:
        ValueError: if the architecture is not a CaiT, or its preprocessing is none of this package.
    """
    # Files of older timm versions have the entries of `pretrained_cfg` at their top level.
    timm = config.get("pretrained_cfg") or config
    architecture = str(config.get("architecture") or timm.get("architecture"))
    channels, height, width = timm.get("input_size") or (3, 224, 224)
    size = (config.get("model_args") or {}).get("img_size") or (height, width)
    height, width = (size, size) if isinstance(size, int) else size
    crop_mode = timm.get("crop_mode") or "center"
    crop_pct = timm.get("crop_pct") or 0.875
    interpolation = timm.get("interpolation") or "bicubic"
    filters = {resampling.name.lower(): resampling for resampling in PIL.Image.Resampling}
    for name, value, is_allowed, allowed in (
        ("architecture", architecture, architecture.startswith("cait_"), "one of cait_*"),
        ("input_size", (channels, height, width), channels == 3 and height == width, "(3, S, S), a square RGB image"),
        ("crop_mode", crop_mode, crop_mode == "center", "'center'"),
        ("crop_pct", crop_pct, crop_pct > 0, "> 0"),
        ("interpolation", interpolation, interpolation in filters, f"one of {', '.join(filters)}"),
    ):
        require(is_allowed, f"{name} is {value!r} in timm's config.json, but a CaiT image processor needs {allowed}.")
    return {
        "size": {"shortest_edge": math.floor(height / crop_pct)},
        "crop_size": {"height": height, "width": width},
        "resample": filters[interpolation],
        "image_mean": list(timm.get("mean") or IMAGENET_DEFAULT_MEAN),
        "image_std": list(timm.get("std") or IMAGENET_DEFAULT_STD),
    }


__all__ = ["CaitImageProcessorPil"]
