# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""The two-way map between the tensors of an official CaiT checkpoint and those of `CaitForImageClassification`.

Official are the names of facebookresearch/deit (`cait_models.py`), which timm shares. The authors' files hold them as
`{"model": {"module.<key>": tensor}}`, timm's files without the wrapping, and checkpoints that either training code
writes beside EMA weights and states (`official_tensors`). Queries, keys and values of the patch stage are one fused
tensor there and three here; everything else only changes its name.

The tables below are the map, in official order. Shapes are those of the tensors here, in symbols:

    D hidden size    I intermediate size    H heads    N patches    C channels    P, Q patch height, width    L labels
"""

import math
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor, cat

from .timm_format import architecture_kwargs, default_layer_scale_init_value, int_if_square


_EMBEDDINGS = {
    "cls_token": ("cait.embeddings.cls_token", "1 1 D"),
    "pos_embed": ("cait.embeddings.position_embeddings", "1 N D"),
    "patch_embed.proj.weight": ("cait.embeddings.patch_embeddings.projection.weight", "D C P Q"),
    "patch_embed.proj.bias": ("cait.embeddings.patch_embeddings.projection.bias", "D"),
}
_BEFORE_ATTENTION = {
    "gamma_1": ("layer_scale1.lambda1", "D"),
    "gamma_2": ("layer_scale2.lambda1", "D"),
    "norm1.weight": ("layernorm_before.weight", "D"),
    "norm1.bias": ("layernorm_before.bias", "D"),
}
_TALKING_HEADS_ATTENTION = {
    "attn.qkv.weight": ("attention.q_proj.weight attention.k_proj.weight attention.v_proj.weight", "D D"),
    "attn.qkv.bias": ("attention.q_proj.bias attention.k_proj.bias attention.v_proj.bias", "D"),
    "attn.proj.weight": ("attention.o_proj.weight", "D D"),
    "attn.proj.bias": ("attention.o_proj.bias", "D"),
    "attn.proj_l.weight": ("attention.proj_l_weight", "H H"),
    "attn.proj_l.bias": ("attention.proj_l_bias", "H"),
    "attn.proj_w.weight": ("attention.proj_w_weight", "H H"),
    "attn.proj_w.bias": ("attention.proj_w_bias", "H"),
}
_CLASS_ATTENTION = {
    "attn.q.weight": ("attention.q_proj.weight", "D D"),
    "attn.q.bias": ("attention.q_proj.bias", "D"),
    "attn.k.weight": ("attention.k_proj.weight", "D D"),
    "attn.k.bias": ("attention.k_proj.bias", "D"),
    "attn.v.weight": ("attention.v_proj.weight", "D D"),
    "attn.v.bias": ("attention.v_proj.bias", "D"),
    "attn.proj.weight": ("attention.o_proj.weight", "D D"),
    "attn.proj.bias": ("attention.o_proj.bias", "D"),
}
_AFTER_ATTENTION = {
    "norm2.weight": ("layernorm_after.weight", "D"),
    "norm2.bias": ("layernorm_after.bias", "D"),
    "mlp.fc1.weight": ("mlp.fc1.weight", "I D"),
    "mlp.fc1.bias": ("mlp.fc1.bias", "I"),
    "mlp.fc2.weight": ("mlp.fc2.weight", "D I"),
    "mlp.fc2.bias": ("mlp.fc2.bias", "D"),
}
_PATCH_LAYER = _BEFORE_ATTENTION | _TALKING_HEADS_ATTENTION | _AFTER_ATTENTION
_CLASS_LAYER = _BEFORE_ATTENTION | _CLASS_ATTENTION | _AFTER_ATTENTION
_NORM_AND_HEAD = {
    "norm.weight": ("cait.layernorm.weight", "D"),
    "norm.bias": ("cait.layernorm.bias", "D"),
    "head.weight": ("classifier.weight", "L D"),
    "head.bias": ("classifier.bias", "L"),
}
_OPTIONAL = (
    re.compile(r"\.attn\.(qkv|q|k|v)\.bias$|\.attention\.[qkv]_proj\.bias$"),  # absent when qkv_bias is False
    re.compile(r"^(head|classifier)\."),  # absent when there are no labels
)
# Where the training code of deit, and that of timm, stores weights and their exponential moving average.
_WEIGHTS, _EMA_WEIGHTS = ("model", "state_dict"), ("model_ema", "state_dict_ema")
# Of DataParallel and its distributed kin, and of `torch.compile`; one may hold the other.
_WRAPPERS = re.compile(r"^((module|_orig_mod)\.)+")
_SHOWN = 5  # tensors that an error names of each kind of misfit


class _Entry(NamedTuple):
    """One official tensor, and the one or more tensors here that stack along dimension 0 to it. Shapes in symbols."""

    official: str
    official_shape: str
    native: tuple[str, ...]
    native_shape: str


def convert_official_state_dict(state_dict: Mapping[str, Any]) -> dict[str, Tensor]:
    """Rename the tensors of an official CaiT checkpoint to those of `CaitForImageClassification`.

    Args:
        state_dict: the authors' `{"model": {"module.<key>": tensor}}`, the plain keys of timm, or what
            `official_tensors` takes. The classifier may be absent, and the biases of all queries, keys and values.

    Returns:
        Native key -> tensor, with dtype and values untouched. Nothing is copied: queries, keys and values of a patch
        layer are views of the fused tensor.

    Raises:
        ValueError: if this is not a CaiT, or tensors are missing, unknown or of a wrong shape; the first are named.
    """
    official = _official_tensors(state_dict)
    entries = _official_entries(official)
    _check(official, {entry.official: entry.official_shape for entry in entries})
    converted: dict[str, Tensor] = {}
    for entry in entries:
        if entry.official in official:
            converted.update(zip(entry.native, official[entry.official].chunk(len(entry.native))))
    return converted


def convert_to_official_state_dict(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of a `CaitForImageClassification` to those of deit and timm, in their order.

    The exact inverse of `convert_official_state_dict`; only the fused tensors are copies.

    Raises:
        ValueError: if tensors are missing, unknown or of a wrong shape; the first are named.
    """
    entries = _entries(_depth(state_dict, "cait.layers"), _depth(state_dict, "cait.class_layers"))
    _check(state_dict, {key: entry.native_shape for entry in entries for key in entry.native})
    converted = {}
    for entry in entries:
        if entry.native[0] in state_dict:
            parts = [state_dict[key] for key in entry.native]
            converted[entry.official] = cat(parts) if len(parts) > 1 else parts[0]
    return converted


def infer_config_kwargs(official_state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Read the arguments of `CaitConfig` that the weights determine off an official CaiT checkpoint.

    The grid of patches is taken to be square. LayerScale at the start of training, which the weights no longer show,
    is that of the official checkpoints with this architecture, else the paper's by depth.

    Args:
        official_state_dict: as for `convert_official_state_dict`.

    Returns:
        hidden_size, num_hidden_layers, num_class_attention_layers, num_attention_heads, intermediate_size, image_size,
        patch_size, num_channels, qkv_bias, num_labels, layer_scale_init_value.

    Raises:
        ValueError: as `convert_official_state_dict`, or if the number of patches is not a square.
    """
    official = _official_tensors(official_state_dict)
    sizes = _check(official, {entry.official: entry.official_shape for entry in _official_entries(official)})
    side = math.isqrt(sizes["N"])
    if side**2 != sizes["N"]:
        raise ValueError(f"pos_embed has {sizes['N']} patches, but the number must be a square: height = width.")
    architecture = {
        "hidden_size": sizes["D"],
        "num_hidden_layers": _depth(official, "blocks"),
        "num_class_attention_layers": _depth(official, "blocks_token_only"),
        "num_attention_heads": sizes["H"],
        "intermediate_size": sizes["I"],
    }
    return architecture | {
        "image_size": int_if_square((side * sizes["P"], side * sizes["Q"])),
        "patch_size": int_if_square((sizes["P"], sizes["Q"])),
        "num_channels": sizes["C"],
        "qkv_bias": "blocks.0.attn.qkv.bias" in official,
        "num_labels": sizes.get("L", 0),
        "layer_scale_init_value": _layer_scale_init_value(architecture),
    }


def official_tensors(checkpoint: Any, ema: bool = False) -> dict[str, Any]:
    """The weights in a checkpoint of deit or timm, by their plain official names.

    Args:
        checkpoint: tensors by themselves; or the dictionary that a training writes, with `model` or `state_dict`,
            perhaps `model_ema` or `state_dict_ema`, and states of the training, which are left out.
        ema: whether to take the EMA weights.

    Raises:
        ValueError: if it contains no tensors, or not those that `ema` asks for.
    """
    if not isinstance(checkpoint, Mapping):
        checkpoint = {}
    tensors = _first_group(checkpoint, _EMA_WEIGHTS if ema else _WEIGHTS)
    if tensors is None:
        if ema:
            raise ValueError(f"--ema is given, but the checkpoint has no EMA weights: {_contents(checkpoint)}.")
        if has_ema_weights(checkpoint):
            raise ValueError(f"The checkpoint has EMA weights only, pass --ema: {_contents(checkpoint)}.")
        tensors = checkpoint
    if not isinstance(tensors, Mapping) or not tensors:
        raise ValueError(
            'A checkpoint must be a dictionary of tensors, by itself or under "model" or "state_dict", and not be '
            "empty."
        )
    plain = {_WRAPPERS.sub("", str(key)): tensor for key, tensor in tensors.items()}
    if len(plain) != len(tensors):
        raise ValueError("The checkpoint has tensors with and without the prefix of a wrapper (module., _orig_mod.).")
    return plain


def has_ema_weights(checkpoint: Any) -> bool:
    """Whether `official_tensors` finds EMA weights in it."""
    return isinstance(checkpoint, Mapping) and _first_group(checkpoint, _EMA_WEIGHTS) is not None


def _first_group(checkpoint: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    """deit and timm leave out what a training does not have; others store `None` for it."""
    return next((checkpoint[name] for name in names if checkpoint.get(name) is not None), None)


def _contents(checkpoint: Mapping[str, Any]) -> str:
    return f"it contains {_first([str(key) for key in checkpoint]) or 'nothing'}"


def _official_tensors(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """The tensors without the authors' wrapping, once it is clear that they are those of a CaiT."""
    tensors = official_tensors(state_dict)
    for part, pattern in {
        "class-attention layers (blocks_token_only.*)": r"blocks_token_only\.\d+\.",
        "talking heads (blocks.*.attn.proj_l and proj_w)": r"blocks\.\d+\.attn\.proj_[lw]\.",
    }.items():
        if not any(re.match(pattern, key) for key in tensors):
            raise ValueError(
                f"This is not a CaiT checkpoint in the official format: it has no {part}, which tell a CaiT from a "
                f"ViT or DeiT. Its first keys are {', '.join(list(tensors)[:_SHOWN])}."
            )
    return tensors


def _official_entries(official: Mapping[str, Any]) -> list[_Entry]:
    return _entries(_depth(official, "blocks"), _depth(official, "blocks_token_only"))


def _entries(num_hidden_layers: int, num_class_attention_layers: int) -> list[_Entry]:
    """All entries of a CaiT of these depths in official order, the optional ones included."""
    parts = [(_EMBEDDINGS, "", "")]
    parts += [(_PATCH_LAYER, f"blocks.{i}.", f"cait.layers.{i}.") for i in range(num_hidden_layers)]
    parts += [
        (_CLASS_LAYER, f"blocks_token_only.{i}.", f"cait.class_layers.{i}.") for i in range(num_class_attention_layers)
    ]
    parts += [(_NORM_AND_HEAD, "", "")]
    entries = []
    for table, official_prefix, native_prefix in parts:
        for official, (names, shape) in table.items():
            native = tuple(native_prefix + name for name in names.split())
            official_shape = f"{len(native)}{shape}" if len(native) > 1 else shape
            entries.append(_Entry(official_prefix + official, official_shape, native, shape))
    return entries


def _depth(tensors: Mapping[str, Any], prefix: str) -> int:
    """Number of layers under `prefix` on which most tensor names agree, so that a stray or a lost one is found out."""
    names = (re.fullmatch(rf"{re.escape(prefix)}\.\d+\.(.+)", key) for key in tensors)
    layers_with_name = Counter(match[1] for match in names if match)
    return Counter(layers_with_name.values()).most_common(1)[0][0] if layers_with_name else 0


def _check(tensors: Mapping[str, Any], expected: Mapping[str, str]) -> dict[str, int]:
    """Compare names and shapes with the `expected` ones in symbols; return the size that each symbol denotes."""
    for pattern in _OPTIONAL:
        group = {key for key in expected if pattern.search(key)}
        if group.isdisjoint(tensors):
            expected = {key: shape for key, shape in expected.items() if key not in group}
    sizes = _sizes(tensors, expected)
    shapes = {key: tuple(_size(symbol, sizes) for symbol in shape.split()) for key, shape in expected.items()}
    misfits = {
        "missing": [f"{key} {_text(shape)}" for key, shape in shapes.items() if key not in tensors],
        "unknown": [key for key in tensors if key not in shapes],
        "of another shape": [
            f"{key} {_text(_shape(tensors[key]))} instead of {_text(shape)}"
            for key, shape in shapes.items()
            if key in tensors and _shape(tensors[key]) != shape
        ],
    }
    if any(misfits.values()):
        found = "; ".join(f"{len(keys)} {kind}: {_first(keys)}" for kind, keys in misfits.items() if keys)
        raise ValueError(f"The tensors do not fit a CaiT: {found}.")
    return sizes


def _sizes(tensors: Mapping[str, Any], expected: Mapping[str, str]) -> dict[str, int]:
    """Size of each symbol by a vote of the tensors, so that one of a wrong shape is found out and not followed."""
    votes: dict[str, Counter] = {}
    for key, shape in expected.items():
        symbols = shape.split()
        if key not in tensors or len(_shape(tensors[key])) != len(symbols):
            continue
        for symbol, size in zip(symbols, _shape(tensors[key])):
            factor, symbol = _split_symbol(symbol)
            votes.setdefault(symbol, Counter())[size // factor] += 1
    return {symbol: counter.most_common(1)[0][0] for symbol, counter in votes.items()}


def _split_symbol(symbol: str) -> tuple[int, str]:
    """`"3D"` -> (3, "D"), `"D"` -> (1, "D"), and `"1"` -> (1, "")."""
    name = symbol.lstrip("0123456789")
    return int(symbol.removesuffix(name) or 1), name


def _size(symbol: str, sizes: Mapping[str, int]) -> int | str:
    """Size of a dimension, or its symbol where no tensor determines it."""
    factor, name = _split_symbol(symbol)
    if not name:
        return factor
    return factor * sizes[name] if name in sizes else symbol


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(value.shape) if isinstance(value, Tensor) else ()


def _text(shape: tuple[int | str, ...]) -> str:
    return f"({', '.join(map(str, shape))})"


def _first(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")


def _layer_scale_init_value(architecture: Mapping[str, int]) -> float:
    xxs36 = architecture_kwargs("cait_xxs36_224")  # the one that departs from the rule
    if architecture.items() <= xxs36.items():
        return xxs36["layer_scale_init_value"]
    return default_layer_scale_init_value(architecture["num_hidden_layers"])


__all__ = [
    "convert_official_state_dict",
    "convert_to_official_state_dict",
    "has_ema_weights",
    "infer_config_kwargs",
    "official_tensors",
]
