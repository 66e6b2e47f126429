# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""The ten official CaiT checkpoints, and timm's description of a CaiT read as arguments of `CaitConfig`.

Geometry, LayerScale values and file names are those of facebookresearch/deit (`cait_models.py`); names on the Hub
those of timm (`timm/models/cait.py`). Published accuracies and multiply-adds come from deit's `README_cait.md`,
measured accuracies from timm's `results/results-*.csv`, timm's multiply-adds from its
`benchmark-infer-amp-*-rtx3090.csv`. A figure that was only found at second hand says so in the field named
`*_source`; one that was not found is None.

Nothing here needs torch.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple


OFFICIAL_URL = "https://dl.fbaipublicfiles.com/deit/"
README = "deit README_cait.md"
SECOND_HAND = "quoted by others, not in the authors' own files"
IMAGENET_1K_CLASSES = 1000


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
        image_size: height and width of the pictures in pixels.
        hidden_size: width; `num_attention_heads` heads of 48 channels each.
        num_hidden_layers: depth of the patch stage.
        layer_scale_init_value: LayerScale at the start of training in the official code. The XXS36 models have 1e-5
            there, where the paper's rule by depth gives 1e-6.
        num_parameters: exact count, with the classifier.
        published_gmacs: published multiply-adds of one image in units of 1e9 (papers call them FLOPs).
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
    published_gmacs: float
    published_gmacs_source: str = README
    timm_gmacs: float
    published_top1: float | None = None
    published_top1_source: str | None = None
    published_top5: float | None = None
    timm_accuracy: TimmAccuracy
    timm_file_megabytes: float | None = None
    timm_file_sha256: str | None = None
    timm_file_sha256_source: str | None = None
    num_class_attention_layers: int = 2

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


CHECKPOINTS: tuple[CaitCheckpoint, ...] = (
    CaitCheckpoint(
        official_name="XXS24_224",
        image_size=224,
        hidden_size=192,
        num_hidden_layers=24,
        num_attention_heads=4,
        layer_scale_init_value=1e-5,
        num_parameters=11_956_264,
        published_gmacs=2.5,
        published_gmacs_source=SECOND_HAND,
        timm_gmacs=2.53,
        timm_accuracy=TimmAccuracy(
            imagenet=(78.400, 94.326),
            real=(85.240, 96.714),
            v2=(67.290, 87.510),
            a=(14.880, 44.627),
            r=(41.430, 57.580),
            sketch=(29.309, 48.525),
        ),
        timm_file_megabytes=47.9,
        timm_file_sha256="396b92244e28808d4bd719d7e7a9d7ca13ac903686ed4d218504a40a4d70080c",
        timm_file_sha256_source="the Hub's page of the file",
    ),
    CaitCheckpoint(
        official_name="XXS24_384",
        image_size=384,
        hidden_size=192,
        num_hidden_layers=24,
        num_attention_heads=4,
        layer_scale_init_value=1e-5,
        num_parameters=12_029_224,
        published_gmacs=9.5,
        published_gmacs_source=SECOND_HAND,
        timm_gmacs=9.63,
        timm_accuracy=TimmAccuracy(
            imagenet=(80.954, 95.638),
            real=(87.414, 97.619),
            v2=(70.550, 89.770),
            a=(29.653, 63.613),
            r=(42.153, 57.503),
            sketch=(29.386, 48.743),
        ),
    ),
    CaitCheckpoint(
        official_name="XXS36_224",
        image_size=224,
        hidden_size=192,
        num_hidden_layers=36,
        num_attention_heads=4,
        layer_scale_init_value=1e-5,
        num_parameters=17_299_720,
        published_gmacs=3.8,
        published_gmacs_source=SECOND_HAND,
        timm_gmacs=3.77,
        timm_accuracy=TimmAccuracy(
            imagenet=(79.750, 94.866),
            real=(86.323, 97.113),
            v2=(68.370, 88.600),
            a=(18.080, 49.267),
            r=(43.800, 58.800),
            sketch=(31.272, 50.624),
        ),
        timm_file_megabytes=69.3,
    ),
    CaitCheckpoint(
        official_name="XXS36_384",
        image_size=384,
        hidden_size=192,
        num_hidden_layers=36,
        num_attention_heads=4,
        layer_scale_init_value=1e-5,
        num_parameters=17_372_680,
        published_gmacs=14.2,
        published_gmacs_source=SECOND_HAND,
        timm_gmacs=14.35,
        published_top1=82.2,
        published_top1_source=SECOND_HAND,
        timm_accuracy=TimmAccuracy(
            imagenet=(82.204, 96.148),
            real=(88.161, 97.899),
            v2=(72.140, 90.780),
            a=(36.093, 67.413),
            r=(44.757, 59.427),
            sketch=(32.549, 52.257),
        ),
    ),
    CaitCheckpoint(
        official_name="XS24_384",
        image_size=384,
        hidden_size=288,
        num_hidden_layers=24,
        num_attention_heads=6,
        layer_scale_init_value=1e-5,
        num_parameters=26_670_088,
        published_gmacs=19.3,
        timm_gmacs=19.28,
        published_top1=84.1,
        published_top1_source=README,
        timm_accuracy=TimmAccuracy(
            imagenet=(84.064, 96.888),
            real=(89.169, 98.285),
            v2=(74.110, 91.920),
            a=(43.627, 74.893),
            r=(49.507, 64.837),
            sketch=(36.409, 56.920),
        ),
        timm_file_megabytes=107,
    ),
    CaitCheckpoint(
        official_name="S24_224",
        image_size=224,
        hidden_size=384,
        num_hidden_layers=24,
        num_attention_heads=8,
        layer_scale_init_value=1e-5,
        num_parameters=46_916_200,
        published_gmacs=9.4,
        timm_gmacs=9.35,
        published_top1=83.5,
        published_top1_source=README,
        timm_accuracy=TimmAccuracy(
            imagenet=(83.484, 96.586),
            real=(88.447, 97.950),
            v2=(73.010, 91.200),
            a=(31.187, 64.253),
            r=(50.243, 65.003),
            sketch=(37.153, 56.716),
        ),
        timm_file_megabytes=187.709078,
        timm_file_sha256="ec4c0b0e1851c9b1850709caf5cbbcb0ecf121efb4317eedd99ceb0e0e0f4ddb",
        timm_file_sha256_source=SECOND_HAND,
    ),
    CaitCheckpoint(
        official_name="S24_384",
        image_size=384,
        hidden_size=384,
        num_hidden_layers=24,
        num_attention_heads=8,
        layer_scale_init_value=1e-5,
        num_parameters=47_062_120,
        published_gmacs=32.2,
        timm_gmacs=32.17,
        published_top1=85.1,
        published_top1_source=README,
        published_top5=97.3,
        timm_accuracy=TimmAccuracy(
            imagenet=(85.048, 97.350),
            real=(89.510, 98.362),
            v2=(75.380, 92.520),
            a=(49.413, 78.653),
            r=(51.730, 66.317),
            sketch=(37.908, 58.068),
        ),
    ),
    CaitCheckpoint(
        official_name="S36_384",
        image_size=384,
        hidden_size=384,
        num_hidden_layers=36,
        num_attention_heads=8,
        layer_scale_init_value=1e-6,
        num_parameters=68_366_632,
        published_gmacs=48.0,
        timm_gmacs=47.99,
        published_top1=85.4,
        published_top1_source=README,
        timm_accuracy=TimmAccuracy(
            imagenet=(85.458, 97.480),
            real=(89.829, 98.431),
            v2=(76.010, 92.920),
            a=(54.213, 81.253),
            r=(53.520, 68.010),
            sketch=(39.767, 60.469),
        ),
    ),
    CaitCheckpoint(
        official_name="M36_384",
        image_size=384,
        hidden_size=768,
        num_hidden_layers=36,
        num_attention_heads=16,
        layer_scale_init_value=1e-6,
        num_parameters=271_221_352,
        published_gmacs=173.3,
        timm_gmacs=173.11,
        published_top1=86.1,
        published_top1_source=README,
        timm_accuracy=TimmAccuracy(
            imagenet=(86.060, 97.732),
            real=(90.049, 98.484),
            v2=(76.370, 93.040),
            a=(57.667, 84.707),
            r=(57.417, 72.313),
            sketch=(42.392, 63.350),
        ),
    ),
    CaitCheckpoint(
        official_name="M48_448",
        image_size=448,
        hidden_size=768,
        num_hidden_layers=48,
        num_attention_heads=16,
        layer_scale_init_value=1e-6,
        num_parameters=356_460_520,
        published_gmacs=329.6,
        timm_gmacs=329.41,
        published_top1=86.5,
        published_top1_source=README,
        published_top5=97.7,
        timm_accuracy=TimmAccuracy(
            imagenet=(86.480, 97.748),
            real=(90.181, 98.480),
            v2=(76.840, 93.350),
            a=(62.067, 86.467),
            r=(57.433, 71.787),
            sketch=(44.251, 64.704),
        ),
        timm_file_megabytes=1425.928240,
        timm_file_sha256="460cbe2667f0208bd39ea38f981e5d83b41bfec33ed8cefab3460ae65f4788ed",
        timm_file_sha256_source=SECOND_HAND,
    ),
)


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


def default_layer_scale_init_value(num_hidden_layers: int) -> float:
    """LayerScale at the start of training by the depth of the patch stage, one value for all layers of both stages.

    The paper's rule as its first author restates it in facebookresearch/deit issue 122.
    """
    if num_hidden_layers <= 18:
        return 0.1
    return 1e-5 if num_hidden_layers <= 24 else 1e-6


@cache
def _read_imagenet_1k_labels() -> tuple[str, ...]:
    file = Path(__file__).with_name("imagenet_1k_labels.json")
    return tuple(json.loads(file.read_text(encoding="utf-8"))["labels"])


def imagenet_1k_labels() -> dict[int, str]:
    """Names of the 1000 ImageNet-1k classes by class index (`id2label`), all different.

    Raises:
        FileNotFoundError: if `imagenet_1k_labels.json` was not installed beside this module.
    """
    return dict(enumerate(_read_imagenet_1k_labels()))


def label_kwargs(labels: Iterable[str] | dict[int, str]) -> dict[str, Any]:
    """`id2label` and `label2id` for `CaitConfig` from the class names in their order, or by class index."""
    id2label = dict(labels) if isinstance(labels, dict) else dict(enumerate(labels))
    return {"id2label": id2label, "label2id": {label: index for index, label in id2label.items()}}


# Arguments of timm's Cait that a CaitConfig field stands for under another name, or under the same.
_TIMM_TO_CONFIG = {
    "embed_dim": "hidden_size",
    "depth": "num_hidden_layers",
    "depth_token_only": "num_class_attention_layers",
    "num_heads": "num_attention_heads",
    "img_size": "image_size",
    "patch_size": "patch_size",
    "in_chans": "num_channels",
    "qkv_bias": "qkv_bias",
    "init_values": "layer_scale_init_value",
    "attn_drop_rate": "attention_probs_dropout_prob",
    "drop_path_rate": "drop_path_rate",
}
# Arguments that are read, or whose only value a CaiT of this package can have is checked, below.
_TIMM_HANDLED = {
    *_TIMM_TO_CONFIG,
    "num_classes",
    "global_pool",
    "mlp_ratio",
    "mlp_ratio_token_only",
    "drop_rate",
    "pos_drop_rate",
    "proj_drop_rate",
}


def config_kwargs_from_timm(timm_config: dict[str, Any]) -> dict[str, Any]:
    """Translate the `config.json` of a timm CaiT on the Hub into arguments of `CaitConfig`.

    The architecture's name gives the geometry; `pretrained_cfg` (input size) and `model_args` override it with the
    precedence that timm gives them. ImageNet-1k weights without label names of their own get the ImageNet-1k names.

    Args:
        timm_config: the parsed file, with `architecture` and `pretrained_cfg` and optionally `num_classes`,
            `global_pool`, `model_args`, `label_names` and `label_descriptions`.

    Raises:
        ValueError: if the architecture is not a CaiT, or has an option for which this package has no counterpart.
    """
    architecture = str(timm_config.get("architecture"))
    if not architecture.startswith("cait_"):
        raise ValueError(f"architecture is {architecture!r} in the timm configuration, but it must be one of cait_*.")
    pretrained_cfg = timm_config.get("pretrained_cfg") or {}
    model_args = {name: value for name, value in (timm_config.get("model_args") or {}).items() if value is not None}
    _check_timm_options({"global_pool": timm_config.get("global_pool", "token"), **model_args})

    kwargs = find_checkpoint(architecture.partition(".")[0]).config_kwargs
    if pretrained_cfg.get("input_size"):
        kwargs["num_channels"], height, width = pretrained_cfg["input_size"]
        kwargs["image_size"] = (height, width)
    kwargs |= {_TIMM_TO_CONFIG[name]: value for name, value in model_args.items() if name in _TIMM_TO_CONFIG}
    kwargs["intermediate_size"] = int(kwargs["hidden_size"] * model_args.get("mlp_ratio", 4.0))
    kwargs["hidden_dropout_prob"] = model_args.get("proj_drop_rate", 0.0)
    for name in {"image_size", "patch_size"} & kwargs.keys():
        kwargs[name] = int_if_square(kwargs[name])

    num_classes = timm_config.get("num_classes", pretrained_cfg.get("num_classes", IMAGENET_1K_CLASSES))
    num_classes = model_args.get("num_classes", num_classes)
    if not isinstance(num_classes, int) or not 0 <= num_classes <= 2**20:
        raise ValueError(f"num_classes is {num_classes} in the timm configuration, but it must be from 0 to {2**20}.")
    return kwargs | label_kwargs(_timm_labels(timm_config, num_classes))


def timm_model_args(config: Any) -> dict[str, Any]:
    """All arguments of timm's `Cait` for the network of a `CaitConfig`, equal to timm's defaults or not.

    Raises:
        ValueError: if the network has an option that timm's CaiT lacks.
    """
    for name, allowed in (("hidden_act", "gelu"), ("layer_norm_eps", 1e-6)):
        if getattr(config, name) != allowed:
            raise ValueError(
                f"{name} is {getattr(config, name)!r} in the configuration, but timm only has {allowed!r}."
            )
    mlp_ratio = config.intermediate_size / config.hidden_size
    if int(config.hidden_size * mlp_ratio) != config.intermediate_size:  # timm rounds the product down
        mlp_ratio = (config.intermediate_size + 0.5) / config.hidden_size
    model_args = {timm_name: getattr(config, name) for timm_name, name in _TIMM_TO_CONFIG.items()}
    return model_args | {
        "img_size": int_if_square(config.image_size),
        "patch_size": int_if_square(config.patch_size),
        "num_classes": config.num_labels,
        "mlp_ratio": mlp_ratio,
        "mlp_ratio_token_only": mlp_ratio,
        "proj_drop_rate": config.hidden_dropout_prob,
        "pos_drop_rate": config.hidden_dropout_prob,
    }


def _check_timm_options(options: dict[str, Any]) -> None:
    """Raise for options of timm's Cait that would change the function the network computes and that ours lacks."""
    unknown = sorted(options.keys() - _TIMM_HANDLED)
    if unknown:
        raise ValueError(
            f"model_args has {', '.join(unknown)} in the timm configuration, but only "
            f"{', '.join(sorted(_TIMM_HANDLED))} can be carried over."
        )
    mlp_ratio, proj_drop_rate = options.get("mlp_ratio", 4.0), options.get("proj_drop_rate", 0.0)
    for name, value, allowed in (
        ("global_pool", options["global_pool"], "token"),
        ("drop_rate", options.get("drop_rate", 0.0), 0.0),
        ("mlp_ratio_token_only", options.get("mlp_ratio_token_only", 4.0), mlp_ratio),
        ("pos_drop_rate", options.get("pos_drop_rate", 0.0), proj_drop_rate),
    ):
        if value != allowed:
            raise ValueError(
                f"{name} is {value!r} in the timm configuration, but CaitConfig can only have {allowed!r}."
            )


def _timm_labels(timm_config: dict[str, Any], num_classes: int) -> dict[int, str]:
    """Class names by index: the file's own, else those of ImageNet-1k where its tag says so, else `LABEL_<index>`."""
    pretrained_cfg = timm_config.get("pretrained_cfg") or {}
    names = timm_config.get("label_names") or pretrained_cfg.get("label_names")
    if names:
        # timm writes a list, or a dictionary by index, of unique names such as synset ids.
        names = {int(index): name for index, name in (names.items() if isinstance(names, dict) else enumerate(names))}
        if len(names) != num_classes:
            raise ValueError(
                f"label_names has {len(names)} names in the timm configuration, but there must be {num_classes}, "
                "the number of classes."
            )
        descriptions = timm_config.get("label_descriptions") or pretrained_cfg.get("label_descriptions") or {}
        described = {index: descriptions.get(name, name) for index, name in names.items()}
        return described if len(set(described.values())) == len(described) else names
    if num_classes == IMAGENET_1K_CLASSES and "in1k" in (pretrained_cfg.get("tag") or ""):
        try:
            return imagenet_1k_labels()
        except FileNotFoundError:  # only the Python files travel with weights that are loaded as remote code
            pass
    return {index: f"LABEL_{index}" for index in range(num_classes)}


def int_if_square(size: int | list[int] | tuple[int, int]) -> int | tuple[int, int]:
    """(height, width) in the form in which `CaitConfig` holds it: one number where both are equal."""
    if isinstance(size, int):
        return size
    height, width = size
    return height if height == width else (height, width)


__all__ = [
    "CHECKPOINTS",
    "CaitCheckpoint",
    "TimmAccuracy",
    "config_kwargs_from_timm",
    "default_layer_scale_init_value",
    "find_checkpoint",
    "imagenet_1k_labels",
    "int_if_square",
    "label_kwargs",
    "timm_model_args",
]
