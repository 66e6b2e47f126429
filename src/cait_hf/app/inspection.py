# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""What a checkpoint says about one image: its classes, and where it looks. Inputs are bounded; nothing is written."""

import functools
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from huggingface_hub import ModelCard
from PIL import Image, ImageOps, UnidentifiedImageError

from ..checkpoints import resolve_model
from ..configuration_cait import CaitConfig, as_pair
from ..image_input import to_rgb
from ..image_processing_pil_cait import CaitImageProcessorPil
from ..loading import HUB_ERRORS, load_model
from ..modeling_cait import CaitForImageClassification
from ..visualization import attention_fractions, attention_rollout, class_attention_maps, patch_attention_maps


FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")  # no other decoder runs: that of EPS starts Ghostscript
LARGEST_UPLOAD = 16 * 2**20  # bytes of a file
LARGEST_IMAGE = 50 * 10**6  # pixels: a file of a few kB can decode to gigabytes
LARGEST_EDGE_RATIO = 50  # of the longer to the shorter edge
LARGEST_RESOLUTION = 1024
LARGEST_GRID = 64  # patches along an edge: at 64 x 64 attention is most of the time, which grows with their square
SHOWN_EDGE = 640  # pixels of the longer edge of an image on the page
VIEWS = ("class", "patch", "rollout")


def read_image(content: bytes) -> Image.Image:
    """The RGB image in the bytes of a file.

    Raises:
        ValueError: if it is no image in one of `FORMATS`, or one of too many pixels or too long.
    """
    try:
        image = Image.open(io.BytesIO(content), formats=FORMATS)
        width, height = image.size
        allowed = width * height <= LARGEST_IMAGE and max(width, height) <= LARGEST_EDGE_RATIO * min(width, height)
        if allowed:
            image.load()
            return to_rgb(image, name="The image")
    except UnidentifiedImageError as error:
        formats = f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
        raise ValueError(f"The file is not an image that can be read: it must be {formats}, and intact.") from error
    except Exception as error:  # decoders of damaged files raise nearly anything
        raise ValueError(f"The file is not an image that can be read: {error}") from error
    raise ValueError(
        f"The image has {width} x {height} pixels, but at most {LARGEST_IMAGE // 10**6} million are read, and no edge "
        f"longer than {LARGEST_EDGE_RATIO} times the other."
    )


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What the page knows of a model, without its weights: pages that were opened long ago keep this.

    Attributes:
        name: as it was asked for, such as `"XXS24_224"`.
        source: folder or repository that it was loaded from.
        license: as the card states it, if it does.
        card: the card's text, of a checkpoint in a folder.
    """

    name: str
    source: str
    config: CaitConfig
    num_parameters: int
    image_processor: CaitImageProcessorPil
    license: str | None
    card: str | None

    @property
    def patch_size(self) -> int:
        return as_pair(self.config.patch_size)[0]

    @property
    def own_resolution(self) -> int:
        """Pixels along the edge of the images that the model was trained on."""
        return as_pair(self.config.image_size)[0]

    @property
    def largest_resolution(self) -> int:
        allowed = min(LARGEST_RESOLUTION // self.patch_size, LARGEST_GRID) * self.patch_size
        return max(allowed, self.own_resolution)

    @property
    def url(self) -> str | None:
        """Of the card, for a repository."""
        return None if Path(self.source).exists() else f"https://huggingface.co/{self.source}"


@functools.lru_cache(maxsize=2)  # two side by side
def load_checkpoint(name: str) -> tuple[Checkpoint, CaitForImageClassification]:
    """Load a checkpoint by the name that every command takes, to the GPU if there is one, in float32.

    The model belongs to the cache: who needs it later asks again, and keeps its name only.

    Raises:
        ValueError: if it is no classifier of square RGB images, or its weights are damaged.
        OSError: if it does not exist or cannot be fetched.
    """
    source = resolve_model(name)
    model = load_model(source).float().eval().to("cuda" if torch.cuda.is_available() else "cpu")
    for argument, size in (("image_size", model.config.image_size), ("patch_size", model.config.patch_size)):
        if len(set(as_pair(size))) > 1:
            raise ValueError(f"The {argument} of {name} is {size}, but the page shows square images only.")
    if model.config.num_channels != 3:
        raise ValueError(f"The num_channels of {name} is {model.config.num_channels}, but the page shows RGB only.")
    image_processor = CaitImageProcessorPil.from_pretrained(source)
    if not image_processor.size.get("shortest_edge"):
        raise ValueError(f"The image processor of {name} squeezes images, but the page shows their center squares.")
    license, card = read_card(source)
    checkpoint = Checkpoint(
        name=name,
        source=source,
        config=model.config,
        num_parameters=model.num_parameters(),
        image_processor=image_processor,
        license=license,
        card=card if Path(source).exists() else None,
    )
    return checkpoint, model


def read_card(source: str) -> tuple[str | None, str | None]:
    """License and text of a model's card, as far as there is one within reach."""
    file = Path(source, "README.md")
    try:
        card = ModelCard.load(file if file.is_file() else source, ignore_metadata_errors=True)
    except (*HUB_ERRORS, ValueError):
        return None, None
    return card.data.license, card.text.strip()


class Prediction(NamedTuple):
    label: str
    score: float


class Inspection:
    """An image as a checkpoint sees it at one resolution. Maps are computed when they are asked for, and kept.

    Args:
        name (`str`): of the checkpoint.
        resolution (`int`): pixels of the square that the model is given, a multiple of its patch size. At its own
            the image is prepared as its image processor says, else at that ratio to it.

    Attributes:
        pixel_values (`torch.Tensor` of shape `(1, 3, resolution, resolution)`): what the model is given.
        shown (`PIL.Image.Image`): the image for [`overlay_attention`], whose largest centered square is what the model
            sees.
        predictions: the five most probable classes, best first.

    Raises:
        ValueError: if the resolution is not allowed.
    """

    def __init__(self, name: str, image: Image.Image, resolution: int) -> None:
        checkpoint, model = load_checkpoint(name)
        patch, largest = checkpoint.patch_size, checkpoint.largest_resolution
        if resolution % patch or not patch <= resolution <= largest:
            raise ValueError(
                f"The resolution is {resolution}, but for {name} it must be a multiple of {patch} from "
                f"{patch} to {largest}."
            )
        self.checkpoint = checkpoint
        self.resolution = resolution
        self.grid = (resolution // patch, resolution // patch)
        self.pixel_values, self.shown = prepare(checkpoint, image, resolution)
        outputs: list[Any] = []
        hook = model.register_forward_hook(lambda *call: outputs.append(call[-1]))
        try:
            class_maps = class_attention_maps(model, self.pixel_values, True)[0]
        finally:
            hook.remove()
        self.predictions = best_predictions(model, outputs[0].logits[0])
        self._maps: dict[str, tuple[Any, np.ndarray]] = {"class": (None, class_maps)}

    def maps(self, view: str, patch: tuple[int, int] | None = None) -> np.ndarray:
        """float32 `(layers, heads, rows, columns)` of a view, not negative.

        `"class"`: the class token's weights in the class layers. `"patch"`: fractions of the magnitudes by which one
        patch looks at the others, in the patch layers. `"rollout"`: as [`attention_rollout`] has them, with a single
        "head" for all.
        """
        if view != "patch":
            patch = None
        if view not in self._maps or self._maps[view][0] != patch:
            _, model = load_checkpoint(self.checkpoint.name)
            if view == "patch":
                assert patch is not None
                found = attention_fractions(patch_attention_maps(model, self.pixel_values, patch, True)[0])
            else:
                found = attention_rollout(model, self.pixel_values, True)[0][:, None]
            self._maps[view] = (patch, found)
        return self._maps[view][1]


def prepare(checkpoint: Checkpoint, image: Image.Image, resolution: int) -> tuple[torch.Tensor, Image.Image]:
    """What the model is given, and the image to show, without what the crop cuts off from its shorter edge."""
    processor = checkpoint.image_processor
    crop, edge = processor.crop_size["height"], processor.size["shortest_edge"]
    edge_now = round(resolution * edge / crop)
    pixel_values = processor(
        image,
        size={"shortest_edge": edge_now},
        crop_size={"height": resolution, "width": resolution},
        return_tensors="pt",
    ).pixel_values
    cut = max(0, round(min(image.size) * (1 - resolution / edge_now) / 2))
    left, top = (cut if length == min(image.size) else 0 for length in image.size)
    kept = image.crop((left, top, image.width - left, image.height - top))
    return pixel_values, ImageOps.contain(kept, (SHOWN_EDGE, SHOWN_EDGE), Image.Resampling.BICUBIC)


def best_predictions(model: CaitForImageClassification, logits: torch.Tensor, count: int = 5) -> list[Prediction]:
    """The most probable classes of logits `(classes,)`, best first; independent ones for a multi-label model."""
    is_multi_label = model.config.problem_type == "multi_label_classification"
    scores = logits.float().sigmoid() if is_multi_label else logits.float().softmax(-1)
    best = scores.topk(min(count, len(scores)))
    labels = model.config.id2label
    return [Prediction(labels[index], score) for index, score in zip(best.indices.tolist(), best.values.tolist())]


@functools.cache
def examples(count: int = 8) -> list[tuple[str, Image.Image]]:
    """Labels and images of the sample in the package: the first of each of its classes."""
    from ..fashion_mnist import load_sample  # imports datasets

    first: dict[str, Image.Image] = {}
    for image, label in zip(*load_sample()):
        first.setdefault(label, image)
    return list(first.items())[:count]


__all__ = ["Checkpoint", "Inspection", "Prediction", "examples", "load_checkpoint", "read_image"]
