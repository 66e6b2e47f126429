# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""CaiT image processor on Pillow, and what it shares with the torchvision one: which images are accepted and how
they become pixels, the resized window of a long strip, timm's configuration.

The reference is timm's evaluation transform (`timm.data.create_transform`: shortest edge, center crop, `ToTensor`,
`Normalize`), which the Pillow class repeats bit by bit; crop 1.0, bicubic and the ImageNet mean and standard deviation
are those of the ten official checkpoints (`timm/models/cait.py`). Works without torchvision.
"""

import base64
import io
import math
import os
import urllib.request
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import PIL.ExifTags
import PIL.Image
import PIL.ImageOps
import torch
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_base import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_utils import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    ChannelDimension,
    SizeDict,
)
from transformers.processing_utils import ImagesKwargs
from transformers.utils import logging


logger = logging.get_logger(__name__)

_CHANNELS = (3, 4, 1)  # in the order in which an axis of that length is taken for the channels
_KINDS = "a PIL image, an array or tensor, the path, URL or base64 text of an image file, or a list of such images"
_SHAPES = (
    "(height, width), (channels, height, width) or (height, width, channels) with 1, 3 or 4 channels and at least one "
    "pixel, or a batch of them with one dimension more"
)
# Of one channel of the resized image before the crop; 224 pixels wide, that is a height of 299,593.
_MAX_RESIZED_PIXELS = 2**26
_FETCH_TIMEOUT_SECONDS = 60


class CaitImageProcessorKwargs(ImagesKwargs, total=False):  # type: ignore[call-arg]  # it is a TypedDict
    """do_exif_transpose (`bool`): see [`CaitImageProcessorPil`]."""

    do_exif_transpose: bool | None


class CaitImageProcessorMixin(BaseImageProcessor):
    """Everything of both CaiT image processors that does not depend on the backend.

    A backend class adds `process_image` (any image -> its pixels in the backend's type), `_from_tensor` (a tensor in
    that type) and `_resize_full` (the resampling of a whole image).
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
        except OSError:
            if "image_processor_filename" in kwargs:
                raise
            try:
                timm = {**kwargs, "image_processor_filename": "config.json"}
                arguments, unused = super().get_image_processor_dict(source, **timm)
            except OSError as error:
                raise OSError(
                    f"{source} has no preprocessor_config.json and no config.json of timm: {error}"
                ) from error
            if not _is_timm_config(arguments):
                raise
        if _is_timm_config(arguments):
            arguments = image_processor_kwargs_from_timm(arguments)
        return arguments, unused

    def _standardize_kwargs(self, **kwargs: Any) -> dict[str, Any]:
        kwargs = super()._standardize_kwargs(**kwargs)
        for name, allowed in (("size", _SIZE_KEYS), ("crop_size", _SIZE_KEYS[1:])):
            _check_size(name, kwargs.get(name), allowed)
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

    def _preprocess(self, images: list, **kwargs: Any) -> BatchFeature:
        """Resize and crop as the reference does; the backend does the rest."""
        window = kwargs["crop_size"] if kwargs["do_center_crop"] else None
        white = 255.0 if kwargs["do_rescale"] else 1.0
        prepared = []
        for image in images:
            pixels = torch.as_tensor(image)
            if kwargs["do_normalize"]:
                _check_statistics(len(pixels), **{name: kwargs[name] for name in ("image_mean", "image_std")})
            if kwargs["do_resize"]:
                pixels = self._resize_image(pixels, white, kwargs["size"], window, kwargs["resample"])
            if window is not None:
                pixels = center_crop(pixels, window)
            prepared.append(self._from_tensor(pixels))
        return super()._preprocess(prepared, **{**kwargs, "do_resize": False, "do_center_crop": False})

    def _resize_image(
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
        if not pixels.is_floating_point():
            return self._resize_pixels(pixels, size, window, resample)
        low, high = pixels.min().item(), pixels.max().item()
        if low < 0 or high > white:
            return self._resize_pixels(pixels, size, window, resample)
        if white > 1 and 0 < high <= 1:
            logger.warning_once(
                "images has float values in [0, 1] and do_rescale=True divides them by 255 once more: pass "
                "do_rescale=False."
            )
        scale = 255 / white
        return self._resize_pixels(pixels.mul(scale).round().to(torch.uint8), size, window, resample) / scale

    def _resize_pixels(
        self, pixels: torch.Tensor, size: SizeDict, window: SizeDict | None, resample: PIL.Image.Resampling
    ) -> torch.Tensor:
        height, width = pixels.shape[-2:]
        new_height, new_width = resized_size(height, width, size)
        if (new_height, new_width) == (height, width):
            return pixels
        if window is not None and new_height * new_width > _MAX_RESIZED_PIXELS:
            return _pil_resize_window(pixels, new_height, new_width, window, resample)
        return self._resize_full(pixels, new_height, new_width, resample)


class CaitImageProcessorPil(CaitImageProcessorMixin, PilBackend):
    r"""CaiT image processor on Pillow: the shortest edge to `size`, center crop, values to [0, 1], normalization.

    The result equals timm's evaluation transform bit for bit on an 8-bit PIL image of any mode; timm ignores the EXIF
    orientation, so an image with one needs `do_exif_transpose=False`. The output is `pixel_values`, float32
    (batch, 3, crop height, crop width).

    Every argument of the constructor can also be given to a call, for that call alone.

    Args:
        do_exif_transpose (`bool`, defaults to `True`):
            Whether PIL images and image files are rotated as their EXIF orientation says.
        do_convert_rgb (`bool`, defaults to `True`):
            Whether every image gets three channels. As with `PIL.Image.Image.convert("RGB")`, which timm calls, an
            alpha channel is dropped, not blended. `False` keeps the channels, for models of other `num_channels`;
            `image_mean` and `image_std` then need as many numbers.
        do_resize (`bool`, defaults to `True`):
            Whether to resize.
        size (`int` or `dict[str, int]`, defaults to `{"shortest_edge": 224}`):
            Pixels of the shortest edge after resizing (also as an `int`); `{"height": h, "width": w}` or `(h, w)`
            squeezes the image to that size instead.
        resample (`PIL.Image.Resampling`, defaults to `BICUBIC`):
            The filter.
        do_center_crop (`bool`, defaults to `True`):
            Whether to crop. Where the image is smaller than the crop it is padded with zeros.
        crop_size (`int` or `dict[str, int]`, defaults to `{"height": 224, "width": 224}`):
            Pixels of the crop; an `int` is a square. It does not follow `size`: change both.
        do_rescale (`bool`, defaults to `True`), rescale_factor (`float`, defaults to 1/255):
            Whether the values are multiplied by `rescale_factor`.
        do_normalize (`bool`, defaults to `True`), image_mean, image_std (`float` or one for each channel):
            Whether the mean is subtracted and the result divided by the standard deviation. Defaults are ImageNet's.
        input_data_format (`"channels_first"` or `"channels_last"`, *optional*):
            Where arrays have their channels. By default the axis of length 3, else 4, else 1 (the first one if both
            are) is taken.

    Accepted as `images`: one image or a list, also nested, of

    - PIL images of any mode. Modes with 16 bits (`"I;16"`, ...) become 8 bits by
      `round(value / 257)`, so that the full range stays full range (`convert("RGB")` would clip to 255). Mode `"I"` is
      taken for 8 bits where no value is above 255, else for 16 bits. Mode `"F"` has its fractions cut off, as
      `convert("RGB")` does, or where no value is above 1 becomes `round(value * 255)`.
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

    def process_image(
        self,
        image: Any,
        do_exif_transpose: bool | None = None,
        do_convert_rgb: bool | None = None,
        input_data_format: str | ChannelDimension | None = None,
        name: str = "images",
        **kwargs: Any,
    ) -> np.ndarray:
        """Pixels of one image as uint8 or float32 (channels, height, width); `name` is for error messages."""
        return to_pixels(image, name, do_convert_rgb, input_data_format, do_exif_transpose).cpu().numpy()

    def _from_tensor(self, pixels: torch.Tensor) -> np.ndarray:
        return pixels.numpy()

    def _resize_full(
        self, pixels: torch.Tensor, height: int, width: int, resample: PIL.Image.Resampling
    ) -> torch.Tensor:
        return pil_resize(pixels, height, width, resample)


def flatten(images: Any, name: str = "images") -> Iterator[tuple[str, Any]]:
    """Every image of lists and batches in order, with the words that name it in an error message."""
    is_list = isinstance(images, list | tuple)
    if is_list or (isinstance(images, np.ndarray | torch.Tensor) and images.ndim == 4):
        if len(images) == 0:
            raise ValueError(f"{name} is empty, but it must hold at least one image.")
        for index, image in enumerate(images):
            yield from flatten(image, f"{name}[{index}]")
    else:
        yield name, images


def to_rgb(image: PIL.Image.Image, do_exif_transpose: bool = True, name: str = "image") -> PIL.Image.Image:
    """A PIL image of any mode as 8-bit RGB without an EXIF orientation, with the pixels that [`to_pixels`] gives.

    This is the only conversion to RGB of the package: the image processors, training, evaluation and visualization
    agree on palettes, CMYK and 16 bits.

    Args:
        do_exif_transpose: whether the image is rotated as its EXIF orientation says, instead of ignoring that.
        name: of the image in error messages.

    Raises:
        ValueError: if the image has no pixels, or values that are not finite or beyond 16 bits.
        OSError: if Pillow cannot read or convert it.
    """
    if image.mode == "RGB" and image.getexif().get(PIL.ExifTags.Base.Orientation, 1) == 1:
        return image  # as nearly all are
    pixels = to_pixels(image, name, do_exif_transpose=do_exif_transpose)
    return PIL.Image.fromarray(pixels.permute(1, 2, 0).numpy())


def to_pixels(
    image: Any,
    name: str = "images",
    do_convert_rgb: bool | None = True,
    input_data_format: str | ChannelDimension | None = None,
    do_exif_transpose: bool | None = True,
) -> torch.Tensor:
    """Any accepted image as uint8 or float32 (channels, height, width), on the device of the tensor it came as."""
    if isinstance(image, str | os.PathLike):
        image = open_image(image, name)
    if isinstance(image, PIL.Image.Image):
        values = _values_of_image(image, name, do_convert_rgb, do_exif_transpose)
        input_data_format = ChannelDimension.LAST
    elif isinstance(image, np.ndarray):
        values = _values_of_array(image, name)
    elif isinstance(image, torch.Tensor) and not image.is_complex():
        values = image.detach()
    else:
        raise ValueError(f"{name} is of type {type(image).__name__}, but it must be {_KINDS}.")

    pixels = _channels_first(values, name, input_data_format)
    pixels = _finite_float32(pixels, name) if pixels.is_floating_point() else _to_8_bits(pixels, name)
    if do_convert_rgb:
        pixels = pixels.expand(3, -1, -1) if len(pixels) == 1 else pixels[:3]
    return pixels


def open_image(source: str | os.PathLike, name: str) -> PIL.Image.Image:
    """The image in a file, behind a URL or in a base64 text (also `data:image/...;base64,...`), read completely.

    Raises:
        OSError: if the file or the answer is not an image that Pillow can read.
        ValueError: if the text is neither a path, nor a URL, nor an image in base64.
    """
    text = os.fspath(source)
    is_url = text.startswith(("http://", "https://"))
    is_file = not is_url and os.path.isfile(text)
    try:
        if is_url:
            request = urllib.request.Request(text, headers={"User-Agent": "cait-hf"})
            with urllib.request.urlopen(request, timeout=_FETCH_TIMEOUT_SECONDS) as answer:
                file: io.BytesIO | str = io.BytesIO(answer.read())
        elif is_file:
            file = text
        else:
            file = io.BytesIO(base64.b64decode("".join(text.rpartition(",")[2].split()), validate=True))
        image = PIL.Image.open(file)
        image.load()
        return image
    except Exception as error:  # decoders of damaged files raise nearly anything
        if is_url or is_file:
            raise OSError(f"{name} is {text}, from which no image could be read: {error}") from error
        shown = text if len(text) <= 80 else f"{text[:80]}..."
        raise ValueError(
            f"{name} is {shown!r}, but a text must be the path of an existing image file, a URL or an image in base64."
        ) from error


def _values_of_image(
    image: PIL.Image.Image, name: str, do_convert_rgb: bool | None, do_exif_transpose: bool | None
) -> torch.Tensor:
    """Values of a PIL image, (height, width) or (height, width, channels); more than 8 bits only in one channel."""
    if 0 in image.size:
        raise ValueError(f"{name} is an image of {image.width} x {image.height} pixels, but it must have some.")
    try:
        image = PIL.ImageOps.exif_transpose(image) if do_exif_transpose else image.copy()
        image.info.pop("transparency", None)  # would make convert() warn that it is dropped
        if do_convert_rgb and not image.mode.startswith(("I", "F")):
            image = image.convert("RGB")
    except Exception as error:  # as in open_image: the file may be read only now
        raise OSError(
            f"{name} is an image of mode {image.mode} which Pillow cannot read or convert to RGB: {error}"
        ) from error
    values = _values_of_array(np.array(image), name)
    if image.mode != "F":
        return values
    values = _finite_float32(values, name)
    low, high = values.min().item(), values.max().item()
    if low < 0 or high > 255:
        raise ValueError(
            f"{name} is an image of mode F with values from {low} to {high}, but they must lie in [0, 255] or "
            "[0, 1]; pass other values as an array."
        )
    return (values.mul(255).round() if high <= 1 else values).to(torch.uint8)


def _values_of_array(array: np.ndarray, name: str) -> torch.Tensor:
    """The array as a tensor, sharing memory where torch can."""
    if array.dtype.kind not in "buif":
        raise ValueError(f"{name} is an array of dtype {array.dtype}, but its values must be integer, float or bool.")
    dtype = np.dtype(np.float32) if array.dtype.kind == "f" else array.dtype.newbyteorder("=")
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite, which is refused later
        return torch.from_numpy(np.require(array, dtype, ["C", "W"]))


def _channels_first(values: torch.Tensor, name: str, data_format: str | ChannelDimension | None) -> torch.Tensor:
    """(height, width) or channels first or last -> (channels, height, width)."""
    shape = tuple(values.shape)
    if len(shape) == 2 and 0 not in shape:
        return values[None]
    channels_axis = None
    if len(shape) == 3 and 0 not in shape:
        channels_axis = _infer_channels_axis(shape) if data_format is None else _channels_axis(data_format)
    if channels_axis is None or shape[channels_axis] not in _CHANNELS:
        hint = "" if data_format is None else f" with input_data_format={str(data_format)!r}"
        raise ValueError(f"{name} has the shape {shape}{hint}, but it must be {_SHAPES}.")
    return values.movedim(channels_axis, 0)


def _infer_channels_axis(shape: tuple[int, int, int]) -> int | None:
    for channels in _CHANNELS:
        if channels == shape[0] == shape[-1]:
            logger.warning_once(
                f"The shape {shape} can be (channels, height, width) or (height, width, channels): the first is "
                "taken, pass input_data_format to choose."
            )
        if channels in (shape[0], shape[-1]):
            return 0 if channels == shape[0] else -1
    return None


def _channels_axis(data_format: str | ChannelDimension) -> int:
    return 0 if ChannelDimension(data_format) == ChannelDimension.FIRST else -1


def _finite_float32(values: torch.Tensor, name: str) -> torch.Tensor:
    values = values.to(torch.float32)
    if not values.isfinite().all():
        raise ValueError(f"{name} has values that are NaN or infinite, but every pixel must be a finite number.")
    return values


def _to_8_bits(values: torch.Tensor, name: str) -> torch.Tensor:
    """Integers or booleans -> uint8, as the docstring of [`CaitImageProcessorPil`] says."""
    if values.dtype == torch.uint8:
        return values
    if values.dtype == torch.bool:
        return values.to(torch.uint8) * 255
    is_16_bit = values.dtype == torch.uint16
    values = values.to(torch.int64 if values.dtype.itemsize > 2 else torch.int32)
    low, high = values.min().item(), values.max().item()
    if low < 0 or high > 65535:
        raise ValueError(
            f"{name} has integers from {low} to {high}, but they must lie in [0, 255] (8 bits) or [0, 65535] "
            "(16 bits)."
        )
    if is_16_bit or high > 255:
        values = (values + 128) // 257  # round(value / 257): no value lies halfway
    return values.to(torch.uint8)


def resized_size(height: int, width: int, size: SizeDict) -> tuple[int, int]:
    """(height, width) after resizing; the longer edge is rounded down, as torchvision does for timm."""
    if not size.shortest_edge:
        return size.height, size.width
    short = size.shortest_edge
    return (int(short * height / width), short) if width <= height else (short, int(short * width / height))


def _crop_offset(length: int, crop: int) -> int:
    return round((length - crop) / 2)  # half to even, the rounding of torchvision's CenterCrop


def center_crop(pixels: torch.Tensor, size: SizeDict) -> torch.Tensor:
    """(..., height, width) -> (..., size.height, size.width), padded with zeros where the image is smaller."""
    pads: list[int] = []
    for length, crop in zip(pixels.shape[-2:], (size.height, size.width), strict=True):
        before = (crop - length) // 2 if crop > length else -_crop_offset(length, crop)
        pads = [before, crop - length - before, *pads]  # the last axis comes first; negative values cut off
    return torch.nn.functional.pad(pixels, pads)


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


_SIZE_KEYS = ({"shortest_edge"}, {"height", "width"})


def _check_size(name: str, size: SizeDict | None, allowed: tuple[set[str], ...]) -> None:
    if size is None:
        return
    size = {key: value for key, value in dict(size).items() if value is not None}
    if set(size) not in allowed or not all(isinstance(value, int) and value >= 1 for value in size.values()):
        keys = " or ".join(f"{{{', '.join(sorted(keys))}}}" for keys in allowed)
        raise ValueError(f"{name} is {size}, but it must be an int >= 1 or a dict {keys} of such numbers of pixels.")


def _pil_resampling(resample: Any) -> PIL.Image.Resampling:
    """Pillow's constant, which can be saved, for itself, its number or an `InterpolationMode` of torchvision."""
    try:
        if isinstance(resample, int):
            return PIL.Image.Resampling(resample)
        return PIL.Image.Resampling[resample.name.removesuffix("_EXACT")]
    except (AttributeError, KeyError, ValueError):
        allowed = ", ".join(filter.name for filter in PIL.Image.Resampling)
        raise ValueError(f"resample is {resample!r}, but it must be a PIL.Image.Resampling: {allowed}.") from None


def _check_statistics(channels: int, **statistics: float | Sequence[float]) -> None:
    for name, values in statistics.items():
        if not isinstance(values, float | int) and len(values) != channels:
            raise ValueError(f"{name} has {len(values)} numbers, but the image has {channels} channels.")


def _is_timm_config(config: dict[str, Any]) -> bool:
    return "pretrained_cfg" in config or "architecture" in config


def image_processor_kwargs_from_timm(config: dict[str, Any]) -> dict[str, Any]:
    """Translate the `config.json` of a timm CaiT into arguments of the image processors.

    Missing entries take timm's defaults (`timm/data/config.py`). `model_args.img_size`, the size for which the weights
    were saved, wins over `input_size`: a CaiT in timm takes no other size.

    Raises:
        ValueError: if the architecture is not a CaiT, or its preprocessing is none of this package.
    """
    # Files of older timm versions have the entries of `pretrained_cfg` at their top level.
    pretrained_cfg = config.get("pretrained_cfg") or config
    architecture = str(config.get("architecture") or pretrained_cfg.get("architecture"))
    _require_timm(architecture.startswith("cait_"), "architecture", repr(architecture), "one of cait_*")

    channels, height, width = pretrained_cfg.get("input_size") or (3, 224, 224)
    size = (config.get("model_args") or {}).get("img_size") or (height, width)
    height, width = (size, size) if isinstance(size, int) else size
    _require_timm(
        channels == 3 and height == width, "input_size", (channels, height, width), "(3, S, S), a square RGB image"
    )
    crop_mode = pretrained_cfg.get("crop_mode") or "center"
    _require_timm(crop_mode == "center", "crop_mode", repr(crop_mode), "'center'")
    interpolation = pretrained_cfg.get("interpolation") or "bicubic"
    filters = {resampling.name.lower(): resampling for resampling in PIL.Image.Resampling}
    _require_timm(interpolation in filters, "interpolation", repr(interpolation), f"one of {', '.join(filters)}")
    crop_pct = pretrained_cfg.get("crop_pct") or 0.875
    _require_timm(0 < crop_pct, "crop_pct", crop_pct, "> 0")
    return {
        "size": {"shortest_edge": math.floor(height / crop_pct)},
        "crop_size": {"height": height, "width": width},
        "resample": filters[interpolation],
        "image_mean": list(pretrained_cfg.get("mean") or IMAGENET_DEFAULT_MEAN),
        "image_std": list(pretrained_cfg.get("std") or IMAGENET_DEFAULT_STD),
    }


def _require_timm(condition: bool, name: str, value: Any, allowed: str) -> None:
    if not condition:
        raise ValueError(f"{name} is {value} in timm's config.json, but a CaiT image processor needs {allowed}.")


__all__ = ["CaitImageProcessorPil"]
