# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""Pictures of what a CaiT predicts and of where its class token looks (paper, section 3: class-attention).

Everything takes a model object or arrays; no file of the model is imported. Drawing needs Pillow and numpy only.
"""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps


# Colours of an overlay from the lowest to the highest attention: dark violet, red, orange, pale yellow.
_RAMP = np.array([(48, 18, 96), (176, 38, 84), (240, 110, 40), (255, 238, 150)], dtype=np.float32)
_SEEN, _UNSEEN = 0.7, 0.25  # brightness of a picture under its map, and beside it
_INK, _MUTED, _RIGHT, _WRONG, _PAPER = "#1f2328", "#8a919a", "#1a7f37", "#cf222e", "#ffffff"


def class_attention_maps(
    model: torch.nn.Module, pixel_values: torch.Tensor, interpolate_pos_encoding: bool | None = None
) -> np.ndarray:
    """Where the class token looks in each picture, for every class layer and head.

    Args:
        model: a CaiT, with or without classifier. Run in evaluation mode, without gradients; its mode is restored.
        pixel_values (`torch.Tensor` of shape `(batch, channels, height, width)`): preprocessed pictures.
        interpolate_pos_encoding (`bool`, *optional*): passed to the model, for another resolution than its own.

    Returns:
        float32 array `(batch, class layers, heads, rows, columns)`: the weight of each patch. What is missing to 1 in
        the sum over rows and columns is the weight of the class token itself.

    Raises:
        ValueError: if `pixel_values` is no batch of pictures, or the model has no class-attention.
    """
    if pixel_values.ndim != 4:
        raise ValueError(
            f"pixel_values has shape {tuple(pixel_values.shape)}, but it must be (batch, channels, height, width)."
        )
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            outputs = model(
                pixel_values.to(model.device),
                output_attentions=True,
                interpolate_pos_encoding=interpolate_pos_encoding,
            )
    finally:
        model.train(was_training)
    layers = getattr(outputs, "class_attentions", None)
    if not layers:
        raise ValueError(f"model is a {type(model).__name__}, but only a model with class-attention layers has maps.")

    patch_size = model.config.patch_size
    patch_height, patch_width = (patch_size, patch_size) if isinstance(patch_size, int) else patch_size
    rows, columns = pixel_values.shape[-2] // patch_height, pixel_values.shape[-1] // patch_width
    maps = torch.stack(layers, dim=1)[:, :, :, 0, 1:]  # (B, layers, heads, patches): the class token's own weight cut
    return maps.float().unflatten(-1, (rows, columns)).cpu().numpy()


def overlay_attention(image: Image.Image, attention_map: np.ndarray, strength: float = 0.75) -> Image.Image:
    """Lay an attention map over its picture, at the picture's own size and aspect ratio.

    The map covers the largest centred part of the picture that has the map's aspect ratio: what is left by resizing
    the shortest edge and cropping the centre, CaiT's preprocessing. The rest of the picture, which the model did not
    see, is dimmed. Patches are taken to be square.

    Args:
        image (`PIL.Image.Image`): the picture before preprocessing, any mode.
        attention_map (`np.ndarray` of shape `(rows, columns)`): for example one layer and head of
            [`class_attention_maps`], or a mean of several. Colours run from its lowest to its highest value.
        strength (`float`): how much the colour hides the picture where the map is highest, from 0 to 1.

    Returns:
        `PIL.Image.Image`: RGB, of the size of `image` (after its EXIF rotation).

    Raises:
        ValueError: if `image` is no PIL image, the map is not two-dimensional or not finite, or `strength` is outside
            [0, 1].
    """
    if not isinstance(image, Image.Image):
        raise ValueError(f"image is a {type(image).__name__}, but it must be a PIL image.")
    attention_map = np.asarray(attention_map, dtype=np.float32)
    if attention_map.ndim != 2 or attention_map.size == 0:
        raise ValueError(f"attention_map has shape {attention_map.shape}, but it must be (rows, columns).")
    if not np.isfinite(attention_map).all():
        raise ValueError("attention_map holds NaN or an infinity, but every value must be finite.")
    if not 0 <= strength <= 1:
        raise ValueError(f"strength is {strength}, but it must be from 0 to 1.")

    picture = ImageOps.exif_transpose(image).convert("RGB")
    left, top, width, height = _seen_part(picture.size, attention_map.shape)
    heat = Image.fromarray(_min_max(attention_map)).resize((width, height), Image.Resampling.BICUBIC)
    heat = np.asarray(heat).clip(0, 1)[..., None]  # (height, width, 1)

    pixels = np.asarray(picture, dtype=np.float32) * _UNSEEN
    seen = pixels[top : top + height, left : left + width] * (_SEEN / _UNSEEN)
    pixels[top : top + height, left : left + width] = seen * (1 - strength * heat) + strength * heat * _colour(heat)
    return Image.fromarray(pixels.round().astype(np.uint8))


def prediction_grid(
    images: Sequence[Image.Image],
    predictions: Sequence[Sequence[dict]],
    references: Sequence[str] | None = None,
    overlays: Sequence[Image.Image] | None = None,
    title: str = "",
    columns: int = 4,
    picture_size: int = 128,
) -> Image.Image:
    """Draw pictures with their predictions, and beside each its attention overlay.

    Args:
        images (sequence of `PIL.Image.Image`): the pictures; each is fitted into a square at its own aspect ratio.
        predictions: for each picture what `pipeline("image-classification")` returns: `{"label": ..., "score": ...}`
            dictionaries, best first. The first three are drawn as bars.
        references (sequence of `str`, *optional*): the right labels; the best label is then green or red.
        overlays (sequence of `PIL.Image.Image`, *optional*): one for each picture, from [`overlay_attention`].
        title (`str`): a line above the pictures.
        columns (`int`): pictures in a row.
        picture_size (`int`): edge of a picture's square, in pixels.

    Returns:
        `PIL.Image.Image`: RGB.

    Raises:
        ValueError: if there is no picture, or a sequence is not as long as `images`.
    """
    if not images:
        raise ValueError("images is empty, but the grid needs at least one picture.")
    for name, values in (("predictions", predictions), ("references", references), ("overlays", overlays)):
        if values is not None and len(values) != len(images):
            raise ValueError(f"{name} has {len(values)} entries, but there are {len(images)} images.")

    margin, line = 16, 18
    panels = 2 if overlays is not None else 1
    cell_width, cell_height = panels * (picture_size + 4) - 4, picture_size + 3 * line + 8
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    header = 2 * line if title else 0
    canvas = Image.new(
        "RGB",
        (columns * (cell_width + margin) + margin, header + rows * (cell_height + margin) + margin),
        _PAPER,
    )
    draw = ImageDraw.Draw(canvas)
    draw.text((margin, margin), title, fill=_INK, font=ImageFont.load_default(line))
    for index, image in enumerate(images):
        x = margin + (index % columns) * (cell_width + margin)
        y = header + margin + (index // columns) * (cell_height + margin)
        _paste(canvas, image, (x, y), picture_size)
        if overlays is not None:
            _paste(canvas, overlays[index], (x + picture_size + 4, y), picture_size)
        reference = None if references is None else references[index]
        _draw_bars(draw, predictions[index][:3], reference, (x, y + picture_size + 6), cell_width, line)
    return canvas


def _seen_part(picture_size: tuple[int, int], map_shape: tuple[int, int]) -> tuple[int, int, int, int]:
    """Left, top, width, height of the largest centred part of the picture with the map's aspect ratio."""
    width, height = picture_size
    rows, columns = map_shape
    scale = min(width / columns, height / rows)
    seen_width, seen_height = max(1, round(columns * scale)), max(1, round(rows * scale))
    return (width - seen_width) // 2, (height - seen_height) // 2, seen_width, seen_height


def _min_max(values: np.ndarray) -> np.ndarray:
    low, high = values.min(), values.max()
    return np.zeros_like(values) if low == high else (values - low) / (high - low)


def _colour(heat: np.ndarray) -> np.ndarray:
    """RGB (height, width, 3) in [0, 255] of a heat (height, width, 1) in [0, 1]."""
    stops = np.linspace(0, 1, len(_RAMP))
    return np.concatenate([np.interp(heat, stops, _RAMP[:, channel]) for channel in range(3)], axis=-1)


def _paste(canvas: Image.Image, image: Image.Image, corner: tuple[int, int], size: int):
    fitted = ImageOps.contain(image.convert("RGB"), (size, size), Image.Resampling.BICUBIC)
    canvas.paste(fitted, (corner[0] + (size - fitted.width) // 2, corner[1] + (size - fitted.height) // 2))


def _draw_bars(draw, predictions, reference, corner, width, line):
    x, y = corner
    label_width = width * 2 // 5
    for rank, prediction in enumerate(predictions):
        colour = _INK if rank == 0 else _MUTED
        if rank == 0 and reference is not None:
            colour = _RIGHT if prediction["label"] == reference else _WRONG
        font = ImageFont.load_default(line - 5)
        label = _shorten(draw, prediction["label"], font, label_width - 4)
        draw.text((x, y), label, fill=colour, font=font)
        bar_width = width - label_width - 38
        draw.rectangle(
            (x + label_width, y + 4, x + label_width + bar_width * prediction["score"], y + line - 5), colour
        )
        draw.text((x + width, y), f"{prediction['score']:.0%}", fill=colour, font=font, anchor="ra")
        y += line


def _shorten(draw, text, font, width):
    if draw.textlength(text, font=font) <= width:
        return text
    while text and draw.textlength(text + "...", font=font) > width:
        text = text[:-1]
    return text + "..."
