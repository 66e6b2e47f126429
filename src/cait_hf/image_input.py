# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""Any image as pixels: files, URLs and base64, every PIL mode, 16 bits, EXIF orientation, layouts of arrays.

Transformers reads images otherwise: it clips 16 bits to 8, blends alpha with white, and always rotates files by EXIF.
"""

import base64
import io
import os
import urllib.request
from collections.abc import Iterator
from typing import Any

import numpy as np
import PIL.ExifTags
import PIL.Image
import PIL.ImageOps
import torch
from transformers.image_utils import ChannelDimension, infer_channel_dimension_format


_CHANNELS = (3, 4, 1)  # in the order in which an axis of that length is taken for the channels
_KINDS = "a PIL image, an array or tensor, the path, URL or base64 text of an image file, or a list of such images"
_SHAPES = (
    "(height, width), (channels, height, width) or (height, width, channels) with 1, 3 or 4 channels and at least one "
    "pixel, or a batch of them with one dimension more"
)
_FETCH_TIMEOUT_SECONDS = 60


def require(condition: bool, message: str) -> None:
    """Raise ValueError(message) unless `condition` holds."""
    if not condition:
        raise ValueError(message)


def flatten(images: Any, name: str = "images") -> Iterator[tuple[str, Any]]:
    """Every image of lists and batches in order, with the words that name it in an error message."""
    if isinstance(images, list | tuple) or (isinstance(images, np.ndarray | torch.Tensor) and images.ndim == 4):
        require(len(images) > 0, f"{name} is empty, but it must hold at least one image.")
        for index, image in enumerate(images):
            yield from flatten(image, f"{name}[{index}]")
    else:
        yield name, images


def to_rgb(image: PIL.Image.Image, do_exif_transpose: bool = True, name: str = "image") -> PIL.Image.Image:
    """A PIL image of any mode as 8-bit RGB without an EXIF orientation, with the pixels that [`to_pixels`] gives.

    Training, evaluation and visualization convert with it, so that they see what the image processors see.

    Args:
        do_exif_transpose: whether the image is rotated as its EXIF orientation says, instead of ignoring that.
        name: of the image in error messages.

    Raises:
        ValueError: if the image has no pixels, or values that are not finite or beyond 16 bits.
        OSError: if Pillow cannot read or convert it.
    """
    is_plain_gray = image.mode == "L" and 0 not in image.size and "transparency" not in image.info
    if (image.mode == "RGB" or is_plain_gray) and image.getexif().get(PIL.ExifTags.Base.Orientation, 1) == 1:
        # as nearly all are; the way through tensors takes long for small gray images
        return image.convert("RGB") if is_plain_gray else image
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
        image = _array_of_image(image, name, do_convert_rgb, do_exif_transpose)
        input_data_format = ChannelDimension.LAST
    if isinstance(image, np.ndarray):
        is_number = image.dtype.kind in "buif"
        require(
            is_number, f"{name} is an array of dtype {image.dtype}, but its values must be integer, float or bool."
        )
        dtype = np.dtype(np.float32) if image.dtype.kind == "f" else image.dtype.newbyteorder("=")
        with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite, which is refused below
            image = torch.from_numpy(np.require(image, dtype, ["C", "W"]))
    is_tensor = isinstance(image, torch.Tensor) and not image.is_complex()
    require(is_tensor, f"{name} is of type {type(image).__name__}, but it must be {_KINDS}.")

    pixels = _channels_first(image.detach(), name, input_data_format)
    if pixels.is_floating_point():
        pixels = pixels.to(torch.float32)
        is_finite = bool(pixels.isfinite().all())
        require(is_finite, f"{name} has values that are NaN or infinite, but every pixel must be a finite number.")
    else:
        pixels = _to_8_bits(pixels, name)
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


def _array_of_image(
    image: PIL.Image.Image, name: str, do_convert_rgb: bool | None, do_exif_transpose: bool | None
) -> np.ndarray:
    """(height, width) or (height, width, channels) of a PIL image; more than 8 bits only in one channel."""
    require(
        0 not in image.size, f"{name} is an image of {image.width} x {image.height} pixels, but it must have some."
    )
    try:
        image = PIL.ImageOps.exif_transpose(image) if do_exif_transpose else image.copy()
        image.info.pop("transparency", None)  # would make convert() warn that it is dropped
        if do_convert_rgb and not image.mode.startswith(("I", "F")):
            image = image.convert("RGB")
    except Exception as error:  # as in open_image: the file may be read only now
        raise OSError(
            f"{name} is an image of mode {image.mode} which Pillow cannot read or convert to RGB: {error}"
        ) from error
    array = np.array(image)
    if image.mode == "F":
        low, high = array.min(), array.max()
        require(
            0 <= low and high <= 255,
            f"{name} is an image of mode F with values from {low} to {high}, but they must lie in [0, 255] or [0, 1]; "
            "pass other values as an array.",
        )
        array = (np.round(array * 255) if high <= 1 else array).astype(np.uint8)
    return array


def _channels_first(values: torch.Tensor, name: str, data_format: str | ChannelDimension | None) -> torch.Tensor:
    """(height, width) or channels first or last -> (channels, height, width)."""
    shape = tuple(values.shape)
    hint = "" if data_format is None else f" with input_data_format={str(data_format)!r}"
    if len(shape) == 2:
        values, data_format = values[None], ChannelDimension.FIRST
    elif len(shape) == 3 and data_format is None:
        for channels in _CHANNELS:
            if data_format is None and channels in (shape[0], shape[-1]):
                data_format = infer_channel_dimension_format(values, channels)  # warns if both are
    axis = -1 if data_format is not None and ChannelDimension(data_format) == ChannelDimension.LAST else 0
    is_image = values.ndim == 3 and values.numel() > 0 and values.shape[axis] in _CHANNELS
    require(is_image, f"{name} has the shape {shape}{hint}, but it must be {_SHAPES}.")
    return values.movedim(axis, 0)


def _to_8_bits(values: torch.Tensor, name: str) -> torch.Tensor:
    """Integers or booleans -> uint8, as the docstring of [`CaitImageProcessorPil`] says."""
    if values.dtype == torch.uint8:
        return values
    if values.dtype == torch.bool:
        return values.to(torch.uint8) * 255
    is_16_bit = values.dtype == torch.uint16
    values = values.to(torch.int64 if values.dtype.itemsize > 2 else torch.int32)
    low, high = values.min().item(), values.max().item()
    require(
        0 <= low and high <= 65535,
        f"{name} has integers from {low} to {high}, but they must lie in [0, 255] (8 bits) or [0, 65535] (16 bits).",
    )
    if is_16_bit or high > 255:
        values = (values + 128) // 257  # round(value / 257): no value lies halfway
    return values.to(torch.uint8)
