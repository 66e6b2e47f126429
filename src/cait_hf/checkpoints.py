# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""The official CaiT checkpoints: `checkpoints.json` beside this file, which states its sources.

Width, depth, image size and LayerScale follow from the name, as timm and facebookresearch/deit (`cait_models.py`) have
it; the file contains what was counted and measured. Nothing here needs torch.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from .timm_format import architecture_kwargs


OFFICIAL_URL = "https://dl.fbaipublicfiles.com/deit/"
README = "deit README_cait.md"
SECOND_HAND = "quoted by others, not in the authors' own files"


class TimmAccuracy(NamedTuple):
    """(top-1, top-5) in percent by timm's evaluation (crop 1.0, bicubic) on each test set.

    `v2` is ImageNet-V2 matched frequency; `a` (ImageNet-A) and `r` (ImageNet-R) use 200 of the 1000 classes.
    """

    imagenet: tuple[float, float]
    real: tuple[float, float]
    v2: tuple[float, float]
    a: tuple[float, float]
    r: tuple[float, float]
    sketch: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class CaitCheckpoint:
    """One official checkpoint: ImageNet-1k, distilled, 16-pixel patches, 1000 classes, two class-attention layers.

    Attributes:
        official_name: stem of the official file, such as `"XXS24_224"`.
        image_size: height and width of the images in pixels.
        hidden_size: width; `num_attention_heads` heads of 48 channels each.
        num_hidden_layers: depth of the patch stage.
        layer_scale_init_value: LayerScale at the start of training in the official code. The XXS36 models have 1e-5
            there, where the paper's rule by depth gives 1e-6.
        num_parameters: exact count, with the classifier.
        published_gmacs: published MACs of one image in units of 1e9 (papers call them FLOPs).
        timm_gmacs: the same as timm counts it.
        published_top1: published ImageNet-1k accuracy in percent.
        published_top5: the same for the top 5 (deit `README_deit.md`).
        timm_accuracy: accuracies that timm measured.
        timm_file_megabytes: size of timm's `model.safetensors` in units of 1e6 bytes.
        timm_file_sha256: SHA-256 of that file (not of the official `.pth`).
    """

    official_name: str
    image_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    layer_scale_init_value: float
    num_parameters: int
    num_class_attention_layers: int = 2
    published_gmacs: float | None = None
    published_gmacs_source: str | None = None
    timm_gmacs: float | None = None
    published_top1: float | None = None
    published_top1_source: str | None = None
    published_top5: float | None = None
    timm_accuracy: TimmAccuracy | None = None
    timm_file_megabytes: float | None = None
    timm_file_sha256: str | None = None
    timm_file_sha256_source: str | None = None

    @property
    def official_function(self) -> str:
        """Name of the function in the official `cait_models.py`; the larger resolution of a model has no suffix."""
        return "cait_" + self.official_name.removesuffix("_384").removesuffix("_448")

    @property
    def filename(self) -> str:
        """Official file: a pickled `{"model": {"module.<key>": tensor}}`."""
        return self.official_name + ".pth"

    @property
    def url(self) -> str:
        """Where the authors publish the file."""
        return OFFICIAL_URL + self.filename

    @property
    def timm_name(self) -> str:
        """Name of the architecture in timm."""
        return "cait_" + self.official_name.lower()

    @property
    def timm_repo(self) -> str:
        """Repository of timm's copy of the weights on the Hub."""
        return f"timm/{self.timm_name}.fb_dist_in1k"

    @property
    def hub_name(self) -> str:
        """Proposed repository name, without its owner, for the weights in this package's format."""
        return self.timm_name.replace("_", "-")

    @property
    def num_tensors(self) -> int:
        """Tensors in the official file: 18 in each layer of both stages, 8 outside them."""
        return 18 * (self.num_hidden_layers + self.num_class_attention_layers) + 8

    @property
    def config_kwargs(self) -> dict[str, Any]:
        """Arguments of `CaitConfig` that differ between the checkpoints, labels not included."""
        return {
            "hidden_size": self.hidden_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_class_attention_layers": self.num_class_attention_layers,
            "num_attention_heads": self.num_attention_heads,
            "intermediate_size": 4 * self.hidden_size,
            "image_size": self.image_size,
            "layer_scale_init_value": self.layer_scale_init_value,
        }


def _read_checkpoints() -> tuple[CaitCheckpoint, ...]:
    content = json.loads(Path(__file__).with_name("checkpoints.json").read_text(encoding="utf-8"))
    checkpoints = []
    for official_name, entry in content["checkpoints"].items():
        architecture = architecture_kwargs(f"cait_{official_name.lower()}")
        del architecture["intermediate_size"]
        accuracy = entry.pop("timm_accuracy", None)
        if accuracy is not None:
            entry["timm_accuracy"] = TimmAccuracy(**{test_set: tuple(pair) for test_set, pair in accuracy.items()})
        checkpoints.append(CaitCheckpoint(official_name=official_name, **architecture, **entry))
    return tuple(checkpoints)


CHECKPOINTS = _read_checkpoints()


def find_checkpoint(name: str) -> CaitCheckpoint:
    """Return the official checkpoint called `name`, in any case of letters.

    Known are the official name (`"XXS24_224"`), file (`"XXS24_224.pth"`) and function (`"cait_XXS24_224"`), timm's
    name (`"cait_xxs24_224"`) and repository, and the repository name proposed here (`"cait-xxs24-224"`).

    Raises:
        ValueError: if none of the ten has that name.
    """
    for checkpoint in CHECKPOINTS:
        names = (
            checkpoint.official_name,
            checkpoint.filename,
            checkpoint.official_function,
            checkpoint.timm_name,
            checkpoint.timm_repo,
            checkpoint.timm_repo.removeprefix("timm/"),
            checkpoint.hub_name,
        )
        if name.lower() in {known.lower() for known in names}:
            return checkpoint
    known = ", ".join(f"{checkpoint.official_name} ({checkpoint.timm_repo})" for checkpoint in CHECKPOINTS)
    raise ValueError(f"name is {name!r}, but the official CaiT checkpoints are {known}.")


FASHION_MNIST = "fashion_mnist"  # name and folder of the checkpoint in this package


def resolve_model(name: str) -> str:
    """What `from_pretrained` loads for the name of a model that every command takes.

    A path that exists is itself, `"fashion_mnist"` is the folder of the checkpoint in this package, and a name that
    [`find_checkpoint`] knows, such as `"S24_224"`, is timm's repository. Any other name is returned as it is.
    """
    if Path(name).exists():
        return name
    if name.lower() == FASHION_MNIST:
        return str(Path(__file__).resolve().with_name(FASHION_MNIST))
    try:
        return find_checkpoint(name).timm_repo
    except ValueError:
        return name


__all__ = ["CHECKPOINTS", "FASHION_MNIST", "CaitCheckpoint", "TimmAccuracy", "find_checkpoint", "resolve_model"]
