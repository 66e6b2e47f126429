# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""An [`Inspection`] as HTML: the overlay, its layers or heads beside each other, the classes, the model's card.

Images are part of the HTML, as data URLs, so that none is written to a file.
"""

import base64
import io
from html import escape

import numpy as np
from PIL import Image, ImageOps

from ..visualization import outline_patch, overlay_attention
from .inspection import Checkpoint, Inspection, Prediction


THUMBNAIL_EDGE = 72  # pixels
MEAN = -1  # of all heads, in the place of one


def panel(inspection: Inspection, view: str, layer: int, head: int, patch: tuple[int, int]) -> str:
    """All that is shown of one checkpoint.

    Args:
        view (`str`): `"class"`, `"patch"` or `"rollout"`, see [`Inspection.maps`].
        layer (`int`): counted from 0; one that the model does not have is taken for its last.
        head (`int`): counted from 0, or -1 for the mean of all, as is one that the model does not have.
        patch (`(row, column)`): the one that looks, where the view is `"patch"`.
    """
    maps = inspection.maps(view, patch)  # (layers, heads, rows, columns)
    layer = min(layer, len(maps) - 1)
    head = head if head < maps.shape[1] and view != "rollout" else MEAN
    overlay = overlay_attention(inspection.shown, of_head(maps[layer], head))
    if view == "patch":
        overlay = outline_patch(overlay, patch, inspection.grid)
    caption = escape(caption_of(view, layer, head, patch))
    rows, columns = inspection.grid
    return f"""<article class="cait-panel">
<figure>
  <div class="cait-image" role="button" tabindex="0" aria-label="Click on a patch, or move with the arrow keys">
    <img alt="{caption}" src="{data_url(overlay)}">
  </div>
  <figcaption>{caption} <span>low <i></i> high</span></figcaption>
</figure>
<div class="cait-facts">
  <p class="cait-tokens">{inspection.resolution} × {inspection.resolution} pixels in {rows} × {columns} patches:
    <b>{rows * columns:,} tokens</b></p>
  {bars(inspection.predictions)}
  {about(inspection.checkpoint)}
</div>
{strip(inspection, view, maps, layer, head)}
</article>"""


def of_head(maps: np.ndarray, head: int) -> np.ndarray:
    """`(rows, columns)` of maps `(heads, rows, columns)`."""
    return maps.mean(axis=0) if head == MEAN else maps[head]


def caption_of(view: str, layer: int, head: int, patch: tuple[int, int]) -> str:
    heads = "mean of its heads" if head == MEAN else f"head {head}"
    if view == "class":
        return f"What the class token looks at: class layer {layer}, {heads}"
    if view == "patch":
        return f"What the patch in row {patch[0]}, column {patch[1]} looks at: layer {layer}, {heads}"
    back_to = f"the patches after {layer} layers" if layer else "the embeddings"
    return f"What the class token draws on: rollout back to {back_to}"


def strip(inspection: Inspection, view: str, maps: np.ndarray, layer: int, head: int) -> str:
    """Buttons with small overlays: the heads of a class layer, else the layers."""
    if view == "class":
        kind, title, chosen = "head", f"The heads of class layer {layer}", head
        small = {index: of_head(maps[layer], index) for index in range(MEAN, maps.shape[1])}
    else:
        kind, title, chosen = (
            "layer",
            "Layer by layer" if view == "patch" else "Back to the start, or to what comes after so many layers",
            layer,
        )
        small = {index: of_head(each, head) for index, each in enumerate(maps)}
    image = ImageOps.fit(inspection.shown, (THUMBNAIL_EDGE, THUMBNAIL_EDGE), Image.Resampling.BICUBIC)
    buttons = "".join(
        f'<button type="button" data-{kind}="{index}" aria-pressed="{str(index == chosen).lower()}">'
        f'<img alt="" src="{data_url(overlay_attention(image, each))}">'
        f"<span>{name_of(view, index)}</span></button>"
        for index, each in small.items()
    )
    return f'<div class="cait-strip"><p>{title}</p><div>{buttons}</div></div>'


def name_of(view: str, index: int) -> str:
    """Of a button of the strip."""
    if view == "rollout":
        return f"after {index}" if index else "start"
    kind = "head" if view == "class" else "layer"
    return "mean" if index == MEAN else f"{kind} {index}"


def bars(predictions: list[Prediction]) -> str:
    rows = "".join(
        f"<li><span>{escape(label)}</span><b>{score:.1%}</b>"
        f'<i aria-hidden="true"><i style="width: {score:.2%}"></i></i></li>'
        for label, score in predictions
    )
    return f'<ol class="cait-bars" aria-label="The most probable classes">{rows}</ol>'


def about(checkpoint: Checkpoint) -> str:
    """Name, size, license and card of the model."""
    config = checkpoint.config
    facts = (
        f"{checkpoint.num_parameters:,} parameters · {config.num_hidden_layers} + "
        f"{config.num_class_attention_layers} layers of {config.num_attention_heads} heads · license: "
        f"{escape(checkpoint.license or 'not stated')}"
    )
    if checkpoint.url:
        card = f'<a href="{escape(checkpoint.url)}" target="_blank" rel="noopener noreferrer">model card</a>'
    elif checkpoint.card:
        card = f"<details><summary>model card</summary><pre>{escape(checkpoint.card)}</pre></details>"
    else:
        card = "no model card"
    return f'<div class="cait-about"><b>{escape(checkpoint.name)}</b> · {facts} · {card}</div>'


def example_buttons(examples: list[tuple[str, Image.Image]]) -> str:
    buttons = "".join(
        f'<button type="button" data-example="{index}" title="{escape(label)}">'
        f'<img alt="{escape(label)}" src="{data_url(image)}"></button>'
        for index, (label, image) in enumerate(examples)
    )
    return f'<div class="cait-examples"><p>Or take an example</p><div>{buttons}</div></div>'


def message(text: str) -> str:
    """An error message, or nothing."""
    return f'<div class="cait-message" role="alert">{escape(text)}</div>' if text else ""


def data_url(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, format="JPEG", quality=88)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
