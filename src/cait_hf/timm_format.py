# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""timm's configuration of a CaiT as arguments of `CaitConfig`, and back.

The name of a timm model, such as `"cait_xxs24_224"`, contains its architecture: width, depth and image size. Widths
and LayerScale values are those of facebookresearch/deit (`cait_models.py`), which timm shares. Names of weights are in
`state_dict.py`, preprocessing is in `image_processing_pil_cait.py`.
"""

import re
from typing import Any

from .labels import IMAGENET_1K_CLASSES, imagenet_1k_labels, label_kwargs


_NAME = re.compile(r"cait_(xxs|xs|s|m)(\d{1,4})_(\d{1,4})")
_WIDTHS = {"xxs": 192, "xs": 288, "s": 384, "m": 768}
_HEAD_WIDTH = 48


def default_layer_scale_init_value(num_hidden_layers: int) -> float:
    """LayerScale at the start of training by the depth of the patch stage, one value for all layers of both stages.

    The paper's rule as its first author restates it in facebookresearch/deit issue 122.
    """
    if num_hidden_layers <= 18:
        return 0.1
    return 1e-5 if num_hidden_layers <= 24 else 1e-6


def architecture_kwargs(timm_name: str) -> dict[str, Any]:
    """Arguments of `CaitConfig` that the name of a timm model contains, such as `"cait_xxs24_224"`.

    Raises:
        ValueError: if it is not the name of a CaiT.
    """
    match = _NAME.fullmatch(timm_name)
    if match is None:
        raise ValueError(
            f"architecture is {timm_name!r}, but it must be cait_<width><depth>_<pixels> with a width of "
            f"{', '.join(_WIDTHS)}, such as cait_xxs24_224."
        )
    hidden_size, num_hidden_layers = _WIDTHS[match[1]], int(match[2])
    is_xxs36 = (match[1], num_hidden_layers) == ("xxs", 36)  # 1e-5 in the official code, where the rule says 1e-6
    return {
        "hidden_size": hidden_size,
        "num_hidden_layers": num_hidden_layers,
        "num_class_attention_layers": 2,
        "num_attention_heads": hidden_size // _HEAD_WIDTH,
        "intermediate_size": 4 * hidden_size,
        "image_size": int(match[3]),
        "layer_scale_init_value": 1e-5 if is_xxs36 else default_layer_scale_init_value(num_hidden_layers),
    }


# Arguments of timm's Cait that a CaitConfig field denotes, under another name or the same.
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

    The name of the model gives its architecture; `pretrained_cfg` (input size) and `model_args` override it with the
    precedence that timm gives them. ImageNet-1k weights without label names of their own get the ImageNet-1k names.

    Args:
        timm_config: the parsed file, with `architecture` and `pretrained_cfg` and optionally `num_classes`,
            `global_pool`, `model_args`, `label_names` and `label_descriptions`.

    Raises:
        ValueError: if the architecture is not a CaiT, or has an option for which this package has no counterpart.
    """
    kwargs = architecture_kwargs(str(timm_config.get("architecture")).partition(".")[0])
    pretrained_cfg = timm_config.get("pretrained_cfg") or {}
    model_args = {name: value for name, value in (timm_config.get("model_args") or {}).items() if value is not None}
    _check_timm_options({"global_pool": timm_config.get("global_pool", "token"), **model_args})

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
    """(height, width) in the form in which `CaitConfig` contains it: one number where both are equal."""
    if isinstance(size, int):
        return size
    height, width = size
    return height if height == width else (height, width)


__all__ = [
    "architecture_kwargs",
    "config_kwargs_from_timm",
    "default_layer_scale_init_value",
    "int_if_square",
    "timm_model_args",
]
