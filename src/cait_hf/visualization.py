# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""Images of what a CaiT predicts and of where it looks: class token (paper, section 3: class-attention) and patches.

Maps are numpy arrays; overlays, grids and animations are made of them with Pillow. Everything takes a model object or
arrays; no file of the model is imported. Layers, heads, rows and columns count from 0.

Rollout is "Quantifying Attention Flow in Transformers" (Abnar and Zuidema 2020, arXiv 2005.00928); what it makes of
talking heads and of the class stage is ours, see [`attention_rollout`].
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps

from .attention_cait import talking_heads_attention_forward
from .files import replacing
from .image_input import to_rgb


# Colors of an overlay from the lowest to the highest attention: dark violet, red, orange, pale yellow.
_RAMP = np.array([(48, 18, 96), (176, 38, 84), (240, 110, 40), (255, 238, 150)], dtype=np.float32)
_SEEN, _UNSEEN = 0.7, 0.25  # brightness of an image under its map, and beside it
_MARGIN, _LINE = 16, 18  # pixels around the drawings of a grid, and of a line of text
_INK, _MUTED, _CORRECT, _INCORRECT, _PAPER = "#1f2328", "#8a919a", "#1a7f37", "#cf222e", "#ffffff"


# Maps

_MAP_NUMBERS = 2**20  # of patch-to-patch weights at a time in a rollout: 4 MiB in float32


def class_attention_maps(
    model: torch.nn.Module, pixel_values: torch.Tensor, interpolate_pos_encoding: bool | None = None
) -> np.ndarray:
    """Where the class token looks in each image, for every class layer and head.

    The maps of the patch stage, quadratic in the number of patches, are not recorded for this.

    Args:
        model: a CaiT, with or without classifier. Run in evaluation mode, without gradients; its mode is restored.
        pixel_values (`torch.Tensor` of shape `(batch, channels, height, width)`): preprocessed images.
        interpolate_pos_encoding (`bool`, *optional*): passed to the model, for another resolution than its own.

    Returns:
        float32 array `(batch, class layers, heads, rows, columns)`: the weight of each patch. What is missing to 1 in
        the sum over rows and columns is the weight of the class token itself.

    Raises:
        ValueError: if `pixel_values` is no batch of images, or the model has no class-attention.
    """
    grid = _grid(model, pixel_values)
    outputs = _run(model, pixel_values, interpolate_pos_encoding, output_class_attentions=True)
    maps = np.stack([_array(layer)[:, :, 0, 1:] for layer in _class_layers(model, outputs)], axis=1)
    return maps.reshape(*maps.shape[:3], *grid)  # the class token's own weight is cut off


def patch_attention_maps(
    model: torch.nn.Module,
    pixel_values: torch.Tensor,
    patch: tuple[int, int],
    interpolate_pos_encoding: bool | None = None,
) -> np.ndarray:
    """Where one patch looks in each image, for every layer and head of the patch stage.

    Only this patch's rows are computed, from the input of each layer's attention: memory is linear in the number of
    patches.

    Args:
        model: a CaiT with or without head, or a backbone. Run as in [`class_attention_maps`].
        pixel_values (`torch.Tensor` of shape `(batch, channels, height, width)`): preprocessed images.
        patch (`(row, column)`): the patch that looks, counted from 0 at the top left.
        interpolate_pos_encoding (`bool`, *optional*): passed to the model, for another resolution than its own.

    Returns:
        float32 array `(batch, layers, heads, rows, columns)`: the weights that multiply the values, after the second
        mixing of the heads. They can be negative and need not sum to 1: see [`attention_fractions`].

    Raises:
        ValueError: if `pixel_values` is no batch of images, there is no such patch, or the model has no attention
            from patches to patches.
    """
    rows, columns = _grid(model, pixel_values)
    row, column = patch
    _check_patch(patch, (rows, columns))
    with _patch_layers(model) as layers:
        _run(model, pixel_values, interpolate_pos_encoding)
    index = row * columns + column
    maps = []
    for layer in layers:
        query, key = layer.query_and_key()
        maps.append(layer.weights(query[:, :, index : index + 1], key)[:, :, 0])
    return np.stack(maps, axis=1).reshape(len(pixel_values), len(maps), -1, rows, columns)


def attention_rollout(
    model: torch.nn.Module, pixel_values: torch.Tensor, interpolate_pos_encoding: bool | None = None
) -> np.ndarray:
    """Which patches the class token draws on through all layers: attention rollout, adapted to CaiT.

    Rollout (Abnar and Zuidema 2020, arXiv 2005.00928) takes each layer for `0.5 * attention + 0.5 * identity`, the
    attention being the mean over heads and the identity standing for the residual path, and multiplies the layers.

    Talking heads: after the post-softmax projection the weights of a head are no probabilities. They can be negative,
    and their rows sum to anything. Here the magnitudes of each head's row are divided by their sum
    ([`attention_fractions`]) before the mean over heads, which changes nothing for ordinary attention. Setting
    negative weights to zero instead would make the result depend on what the model's function does not: a head's mixed
    map times any factor, also a negative one, with its values divided by that factor is the same model, and its
    rollout here is the same too.

    Class stage: a class layer changes the class token alone, so there the rows of the patches are the identity, and
    the class token's row is `0.5 * (mean over heads of its attention) + 0.5 * (itself)`. Weight that it puts on itself
    is passed on to what it was after the class layer before.

    What rollout leaves out: the MLPs, the values, and how much of the stream a branch really is. The halves are the
    paper's convention; in CaiT the learned LayerScale factors set that ratio, which differs by layer and channel and
    can be far smaller than one to one. So a rollout shows which patches can be heard, and tends to be too smooth.

    The maps of the patch stage are computed in slices of rows, one image after the other: memory is linear in the
    number of patches.

    Args:
        model, pixel_values, interpolate_pos_encoding: as in [`class_attention_maps`].

    Returns:
        float32 array `(batch, 1 + layers, rows, columns)`, indexed as the model's `hidden_states`: entry 0 is the
        whole rollout, down to the embeddings of the patches; entry l that down to the output of the l-th patch layer;
        the last entry is the class stage alone. What is missing to 1 in the sum over rows and columns is the weight of
        the class token before any class layer, the same in every entry.

    Raises:
        ValueError: if `pixel_values` is no batch of images, or the model has no class-attention.
    """
    grid = _grid(model, pixel_values)
    rollouts = []
    for image in pixel_values.split(1):
        with _patch_layers(model) as layers:
            outputs = _run(model, image, interpolate_pos_encoding, output_class_attentions=True)
        steps = [_class_stage_rollout(_class_layers(model, outputs))]  # (N,)
        for layer in reversed(layers):
            steps.append(_patch_layer_rollout(steps[-1], layer))
        rollouts.append(np.stack(steps[::-1]))
    return np.stack(rollouts).reshape(len(rollouts), -1, *grid)


def _class_stage_rollout(class_layers: Sequence[torch.Tensor]) -> np.ndarray:
    """The class token's weights on the patches `(N,)` after all class layers, from maps `(1, heads, 1, 1 + N)`."""
    rows = [_array(attention[0, :, 0]).mean(axis=0) for attention in class_layers]
    weights = np.zeros_like(rows[0])  # of the class token on [itself before the class stage, patches]
    weights[0] = 1.0
    for row in rows:
        on_itself = 0.5 + 0.5 * row[0]
        weights = on_itself * weights
        weights[1:] += 0.5 * row[1:]
    return weights[1:]


def _patch_layer_rollout(on_patches: np.ndarray, layer: "_PatchLayer") -> np.ndarray:
    """Weights on the input `(N,)` of a patch layer, from those on its output."""
    query, key = layer.query_and_key()
    heads, num_patches = query.shape[1:3]
    before = np.zeros_like(on_patches)
    step = max(1, _MAP_NUMBERS // (heads * num_patches))
    for start in range(0, num_patches, step):
        rows = slice(start, start + step)
        fractions = attention_fractions(layer.weights(query[:, :, rows], key)[0], axis=-1).mean(axis=0)  # (rows, N)
        # rows sum to 1 as they are, except where a head's weights are all zero
        weights = 0.5 * on_patches[rows] / (0.5 * fractions.sum(axis=-1) + 0.5)
        before += weights @ fractions
        before[rows] += weights
    return before


def attention_fractions(weights: np.ndarray, axis: int | tuple[int, ...] = (-2, -1)) -> np.ndarray:
    """Magnitudes of attention weights over their sum, for maps of mixed heads.

    The sign of a mixed head says nothing by itself: with the sign of its values turned too, the model is the same.

    Args:
        weights (`np.ndarray`): of any shape, for example from [`patch_attention_maps`].
        axis (`int` or tuple of `int`): over which the result sums to 1; by default the rows and columns of maps.

    Returns:
        Array of the same shape, not negative. Where all weights are zero it is zero.
    """
    magnitudes = np.abs(weights)
    total = magnitudes.sum(axis=axis, keepdims=True)
    return magnitudes / np.where(total == 0, 1, total)


def _run(
    model: torch.nn.Module, pixel_values: torch.Tensor, interpolate_pos_encoding: bool | None, **record: bool
) -> Any:
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            return model(pixel_values.to(model.device), interpolate_pos_encoding=interpolate_pos_encoding, **record)
    finally:
        model.train(was_training)


def _grid(model: torch.nn.Module, pixel_values: torch.Tensor) -> tuple[int, int]:
    """Rows and columns of patches."""
    if pixel_values.ndim != 4:
        raise ValueError(
            f"pixel_values has shape {tuple(pixel_values.shape)}, but it must be (batch, channels, height, width)."
        )
    patch_height, patch_width = _pair(model.config.patch_size)
    return pixel_values.shape[-2] // patch_height, pixel_values.shape[-1] // patch_width


def _check_patch(patch: tuple[int, int], grid: tuple[int, int]) -> None:
    (row, column), (rows, columns) = patch, grid
    if not (0 <= row < rows and 0 <= column < columns):
        allowed = f"the row must be from 0 to {rows - 1} and the column from 0 to {columns - 1}"
        raise ValueError(f"patch is ({row}, {column}), but {allowed}.")


def _class_layers(model: torch.nn.Module, outputs: Any) -> Sequence[torch.Tensor]:
    layers = getattr(outputs, "class_attentions", None)
    if not layers:
        raise ValueError(f"model is a {type(model).__name__}, but only a model with class-attention layers has maps.")
    return layers


class _PatchLayer:
    """The talking-heads attention of a patch layer, with the hidden states `(B, N, C)` that it was given."""

    def __init__(self, attention: Any, hidden_states: torch.Tensor) -> None:
        self.attention, self.hidden_states = attention, hidden_states

    @torch.no_grad()
    def query_and_key(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Each `(B, H, N, D)`."""
        heads = (-1, self.attention.head_dim)
        query, key = (
            project(self.hidden_states).unflatten(-1, heads).transpose(1, 2)
            for project in (self.attention.q_proj, self.attention.k_proj)
        )
        return query, key

    @torch.no_grad()
    def weights(self, query: torch.Tensor, key: torch.Tensor) -> np.ndarray:
        """By which the patches of some rows `(B, H, rows, D)` of the query look at all patches: `(B, H, rows, N)`."""
        layer = self.attention
        projections = (layer.proj_l_weight, layer.proj_l_bias, layer.proj_w_weight, layer.proj_w_bias)
        return _array(talking_heads_attention_forward(query, key, key, *projections, scaling=layer.scaling)[1])


@contextmanager
def _patch_layers(model: torch.nn.Module) -> Iterator[list[_PatchLayer]]:
    """The patch layers, in order, as they are run within the block."""
    attentions = [module for module in model.modules() if hasattr(module, "proj_l_weight")]
    if not attentions:
        raise ValueError(f"model is a {type(model).__name__}, but only CaiT's patch stage has patch-to-patch maps.")
    layers: list[_PatchLayer] = []
    with ExitStack() as stack:
        for attention in attentions:
            hook = attention.register_forward_pre_hook(lambda module, args: layers.append(_PatchLayer(module, *args)))
            stack.callback(hook.remove)
        yield layers


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.float().cpu().numpy()


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size


# Drawings


def overlay_attention(
    image: Image.Image, attention_map: np.ndarray, strength: float = 0.75, patch_size: int | tuple[int, int] = 1
) -> Image.Image:
    """Lay an attention map over its image, at the image's own size and aspect ratio.

    The map covers the largest centered part of the image that has the map's aspect ratio: what is left by resizing
    the shortest edge and cropping the center, CaiT's preprocessing. The rest of the image, which the model did not
    see, is dimmed.

    Args:
        image (`PIL.Image.Image`): the image before preprocessing, any mode.
        attention_map (`np.ndarray` of shape `(rows, columns)`): for example one layer and head of
            [`class_attention_maps`], or a mean of several. Colors run from its lowest to its highest value.
        strength (`float`): how much the color hides the image where the map is highest, from 0 to 1.
        patch_size (`int` or `(height, width)`): of the model's configuration; only its ratio matters.

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
        raise ValueError("attention_map contains NaN or an infinity, but every value must be finite.")
    if not 0 <= strength <= 1:
        raise ValueError(f"strength is {strength}, but it must be from 0 to 1.")

    image = to_rgb(image)
    left, top, width, height = _seen_part(image.size, attention_map.shape, patch_size)
    resized = Image.fromarray(_min_max(attention_map)).resize((width, height), Image.Resampling.BICUBIC)
    heat = np.asarray(resized).clip(0, 1)[..., None]  # (height, width, 1)

    pixels = np.asarray(image, dtype=np.float32) * _UNSEEN
    seen = pixels[top : top + height, left : left + width] * (_SEEN / _UNSEEN)
    pixels[top : top + height, left : left + width] = seen * (1 - strength * heat) + strength * heat * _color(heat)
    return Image.fromarray(pixels.round().astype(np.uint8))


def prediction_grid(
    images: Sequence[Image.Image],
    predictions: Sequence[Sequence[dict]],
    references: Sequence[str] | None = None,
    overlays: Sequence[Image.Image] | None = None,
    title: str = "",
    columns: int = 4,
    image_size: int = 128,
) -> Image.Image:
    """Draw images with their predictions, and beside each its attention overlay.

    Args:
        images (sequence of `PIL.Image.Image`): the images; each is fitted into a square at its own aspect ratio.
        predictions: for each image what `pipeline("image-classification")` returns: `{"label": ..., "score": ...}`
            dictionaries, best first. The first three are drawn as bars.
        references (sequence of `str`, *optional*): the correct labels, drawn in green; the best is red if it is
            incorrect.
        overlays (sequence of `PIL.Image.Image`, *optional*): one for each image, from [`overlay_attention`].
        title (`str`): a line above the images.
        columns (`int`): images in a row.
        image_size (`int`): edge of an image's square, in pixels.

    Returns:
        `PIL.Image.Image`: RGB.

    Raises:
        ValueError: if there is no image, or a sequence is not as long as `images`.
    """
    _check_lengths("images", images, predictions=predictions, references=references, overlays=overlays)

    panels = 2 if overlays is not None else 1
    cell_width, cell_height = panels * (image_size + 4) - 4, image_size + 3 * _LINE + 8
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    width = columns * (cell_width + _MARGIN) + _MARGIN
    canvas, draw, top = _canvas(title, width, rows * (cell_height + _MARGIN) + _MARGIN)
    for index, image in enumerate(images):
        x = _MARGIN + (index % columns) * (cell_width + _MARGIN)
        y = top + (index // columns) * (cell_height + _MARGIN)
        _paste(canvas, image, (x, y), image_size)
        if overlays is not None:
            _paste(canvas, overlays[index], (x + image_size + 4, y), image_size)
        reference = None if references is None else references[index]
        _draw_bars(draw, predictions[index][:3], reference, (x, y + image_size + 6), cell_width)
    return canvas


def outline_patch(
    image: Image.Image,
    patch: tuple[int, int],
    map_shape: tuple[int, int],
    patch_size: int | tuple[int, int] = 1,
) -> Image.Image:
    """Draw a frame around a patch, where [`overlay_attention`] would light it.

    Args:
        image (`PIL.Image.Image`): an image or its overlay.
        patch (`(row, column)`): counted from 0 at the top left of the part that the model saw.
        map_shape (`(rows, columns)`): of the grid of patches.
        patch_size (`int` or `(height, width)`): as in [`overlay_attention`].

    Returns:
        `PIL.Image.Image`: RGB, of the size of `image` (after its EXIF rotation).

    Raises:
        ValueError: if the grid has no such patch.
    """
    (row, column), (rows, columns) = patch, map_shape
    _check_patch(patch, map_shape)
    image = to_rgb(image).copy()
    left, top, width, height = _seen_part(image.size, map_shape, patch_size)
    x, x_end = (left + round(place * width / columns) for place in (column, column + 1))
    y, y_end = (top + round(place * height / rows) for place in (row, row + 1))
    for distance, color in ((2, "#000000"), (1, "#ffffff")):
        corners = (x - distance, y - distance, max(x, x_end - 1) + distance, max(y, y_end - 1) + distance)
        ImageDraw.Draw(image).rectangle(corners, outline=color)
    return image


def patch_at(
    position: tuple[float, float],
    image_size: tuple[int, int],
    map_shape: tuple[int, int],
    patch_size: int | tuple[int, int] = 1,
) -> tuple[int, int] | None:
    """The patch at a place of an image, as [`overlay_attention`] lays the map over it.

    Args:
        position (`(x, y)`): in pixels of the image, from its top left corner.
        image_size (`(width, height)`): of the image (after its EXIF rotation).
        map_shape (`(rows, columns)`): of the grid of patches.
        patch_size (`int` or `(height, width)`): as in [`overlay_attention`].

    Returns:
        `(row, column)`, or `None` where the model saw nothing.
    """
    left, top, width, height = _seen_part(image_size, map_shape, patch_size)
    rows, columns = map_shape
    column, row = int((position[0] - left) * columns // width), int((position[1] - top) * rows // height)
    return (row, column) if 0 <= row < rows and 0 <= column < columns else None


def attention_grid(
    images: Sequence[Image.Image],
    overlays: Sequence[Sequence[Image.Image]],
    captions: Sequence[str],
    names: Sequence[str] | None = None,
    title: str = "",
    columns: int = 8,
    panel_size: int = 160,
) -> Image.Image:
    """Draw images below each other, and to the right of each its overlays, with captions.

    Args:
        images (sequence of `PIL.Image.Image`): the images, fitted into squares at their own aspect ratio.
        overlays (sequence of sequences of `PIL.Image.Image`): for each image its overlays.
        captions (sequence of `str`): one for each overlay, the same for all images.
        names (sequence of `str`, *optional*): captions above the images.
        title (`str`): a line above everything.
        columns (`int`): overlays in a line; more continue below, beside the same image.
        panel_size (`int`): edge of the square, in pixels.

    Returns:
        `PIL.Image.Image`: RGB.

    Raises:
        ValueError: if there is no image or no overlay, or a sequence is not as long as it has to be.
    """
    _check_lengths("images", images, overlays=overlays, names=names)
    _check_lengths("captions", captions, **{f"overlays[{index}]": row for index, row in enumerate(overlays)})

    gap = 8
    columns = max(1, min(columns, len(captions)))
    panels = [[_fit(panel, panel_size) for panel in (image, *row)] for image, row in zip(images, overlays)]
    heights = [max(panel.height for panel in row) + _LINE + gap for row in panels]  # wide images need less
    lines = -(-len(captions) // columns)
    width = 2 * _MARGIN + (columns + 1) * (panel_size + gap) - gap
    canvas, draw, y = _canvas(title, width, 2 * _MARGIN - gap + lines * sum(heights))
    font = ImageFont.load_default(_LINE - 5)
    for index, (row, height) in enumerate(zip(panels, heights)):
        labels = ["" if names is None else names[index], *captions]
        for position, (panel, label) in enumerate(zip(row, labels)):
            below, right = (0, 0) if position == 0 else divmod(position - 1, columns)
            x = _MARGIN + (right + (position > 0)) * (panel_size + gap)
            corner = (x, y + below * height)
            color = _INK if position == 0 else _MUTED
            draw.text(corner, _shorten(draw, label, font, panel_size), fill=color, font=font)
            canvas.paste(panel, (x, corner[1] + _LINE))
        y += lines * height
    return canvas


def save_drawing(drawing: Image.Image | Sequence[Image.Image], file: str | os.PathLike, duration: int = 700) -> None:
    """Write a PNG, or an animated GIF of several drawings. The file appears whole or not at all.

    Args:
        drawing (`PIL.Image.Image` or a sequence of them): the PNG's image, or the GIF's frames, of one size. Equal
            frames in a row become one that is shown longer.
        file (path): ending in `.png` or `.gif`.
        duration (`int`): milliseconds that each frame is shown; GIF counts in hundredths of a second.

    Raises:
        ValueError: if `file` ends in something else, frames are to become a PNG, or there is none or of several sizes.
        OSError: if the file cannot be written.
    """
    file = Path(file)
    check_drawing_file(file)
    frames = [drawing] if isinstance(drawing, Image.Image) else list(drawing)
    sizes = {frame.size for frame in frames}
    if len(sizes) != 1:
        raise ValueError(f"drawing has {len(frames)} frames of {len(sizes)} sizes, but it must have one size.")
    if file.suffix.lower() == ".png" and len(frames) > 1:
        raise ValueError(f"file is {file}, but {len(frames)} frames need a file that ends in .gif.")
    options: dict[str, Any] = {}
    if file.suffix.lower() == ".gif":
        frames = _with_shared_palette([to_rgb(frame) for frame in frames])
        options = {"save_all": True, "append_images": frames[1:], "duration": duration, "loop": 0}
    with replacing(file) as temporary:
        frames[0].save(temporary, format=file.suffix[1:], **options)


def _with_shared_palette(frames: list[Image.Image]) -> list[Image.Image]:
    """The frames in the 256 colors of a GIF, dithered, the same for all so that what does not move does not flicker.

    The colors are spread over all that occur (maximum coverage): those of a median cut are crowded where most pixels
    are, and the errors that dithering passes on then end in stray dots.
    """
    some = frames[:: -(-len(frames) // 16)]
    samples = np.concatenate([np.asarray(frame.resize((128, 128), Image.Resampling.NEAREST)) for frame in some])
    palette = Image.fromarray(samples).quantize(256, Image.Quantize.MAXCOVERAGE)
    return [frame.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG) for frame in frames]


def check_drawing_file(file: str | os.PathLike) -> None:
    """Raise ValueError unless the name ends as [`save_drawing`] allows."""
    if Path(file).suffix.lower() not in (".png", ".gif"):
        raise ValueError(f"file is {file}, but its name must end in .png or .gif.")


def _seen_part(
    image_size: tuple[int, int], map_shape: tuple[int, int], patch_size: int | tuple[int, int]
) -> tuple[int, int, int, int]:
    """Left, top, width, height of the largest centered part of the image with the map's aspect ratio."""
    width, height = image_size
    rows, columns = (patches * size for patches, size in zip(map_shape, _pair(patch_size)))
    scale = min(width / columns, height / rows)
    seen_width, seen_height = max(1, round(columns * scale)), max(1, round(rows * scale))
    return (width - seen_width) // 2, (height - seen_height) // 2, seen_width, seen_height


def _min_max(values: np.ndarray) -> np.ndarray:
    low, high = values.min(), values.max()
    return np.zeros_like(values) if low == high else (values - low) / (high - low)


def _color(heat: np.ndarray) -> np.ndarray:
    """RGB (height, width, 3) in [0, 255] of a heat (height, width, 1) in [0, 1]."""
    stops = np.linspace(0, 1, len(_RAMP))
    return np.concatenate([np.interp(heat, stops, _RAMP[:, channel]) for channel in range(3)], axis=-1)


def _check_lengths(items: str, values: Sequence, **others: Sequence | None) -> None:
    if not values:
        raise ValueError(f"{items} is empty, but the grid needs at least one.")
    for name, other in others.items():
        if other is not None and len(other) != len(values):
            raise ValueError(f"{name} has {len(other)} entries, but there are {len(values)} {items}.")


def _canvas(title: str, width: int, height: int) -> tuple[Image.Image, ImageDraw.ImageDraw, int]:
    """Paper with a title above `height` pixels; the last number is where the drawings begin."""
    header = 2 * _LINE if title else 0
    canvas = Image.new("RGB", (width, header + height), _PAPER)
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(_LINE)
    draw.text((_MARGIN, _MARGIN), _shorten(draw, title, font, width - 2 * _MARGIN), fill=_INK, font=font)
    return canvas, draw, _MARGIN + header


def _fit(image: Image.Image, size: int) -> Image.Image:
    """The image at its own aspect ratio, its longer edge `size` pixels."""
    return ImageOps.contain(to_rgb(image), (size, size), Image.Resampling.BICUBIC)


def _paste(canvas: Image.Image, image: Image.Image, corner: tuple[int, int], size: int) -> None:
    fitted = _fit(image, size)
    canvas.paste(fitted, (corner[0] + (size - fitted.width) // 2, corner[1] + (size - fitted.height) // 2))


def _draw_bars(
    draw: ImageDraw.ImageDraw,
    predictions: Sequence[dict[str, Any]],
    reference: str | None,
    corner: tuple[int, int],
    width: int,
) -> None:
    x, y = corner
    label_width = width * 2 // 5
    font = ImageFont.load_default(_LINE - 5)
    for rank, prediction in enumerate(predictions):
        color = _INK if rank == 0 else _MUTED
        if prediction["label"] == reference:
            color = _CORRECT
        elif rank == 0 and reference is not None:
            color = _INCORRECT
        label = _shorten(draw, prediction["label"], font, label_width - 4)
        draw.text((x, y), label, fill=color, font=font)
        bar_width = width - label_width - 38
        bar = (x + label_width, y + 4, x + label_width + bar_width * prediction["score"], y + _LINE - 5)
        draw.rectangle(bar, color)
        draw.text((x + width, y), f"{prediction['score']:.0%}", fill=color, font=font, anchor="ra")
        y += _LINE


def _shorten(
    draw: ImageDraw.ImageDraw, text: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, width: int
) -> str:
    if draw.textlength(text, font=font) <= width:
        return text
    while text and draw.textlength(text + "...", font=font) > width:
        text = text[:-1]
    return text + "..."
