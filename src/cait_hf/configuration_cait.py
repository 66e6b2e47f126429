# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""CaiT configuration: architecture and regularization of "Going deeper with Image Transformers" (arXiv 2103.17239).

Defaults are those of the smallest official checkpoint, `XXS24_224` (facebookresearch/deit, `cait_models.py`).
"""

import math
from collections.abc import Sequence
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers.activations import ACT2FN
from transformers.backbone_utils import BackboneConfigMixin
from transformers.configuration_utils import PreTrainedConfig
from transformers.utils.generic import is_timm_config_dict

from .timm_format import config_kwargs_from_timm, default_layer_scale_init_value


class _CustomPipelines:
    """The attribute `custom_pipelines` of a configuration without tasks of its own: an empty dictionary.

    `pipeline` asks for its length before all else. It does not hand its configuration on to the Auto classes, which
    take a repository of timm's for TimmWrapper, so it is refused one that was read from there.
    """

    # only __get__: an attribute of that name, of a file with such tasks, comes first
    def __get__(self, config: "CaitConfig | None", owner: type) -> dict[str, Any]:
        if config is None or not config._read_from_timm or config.architectures is not None:
            return {}
        return _NotForPipeline(config.name_or_path)  # never saved with a model, which would be ours


class _NotForPipeline(dict[str, Any]):
    def __init__(self, source: str) -> None:
        self.source = source

    def __len__(self) -> int:
        raise ValueError(
            f"config is that of {self.source or 'a file'}, in timm's format, which pipeline() would load as timm's "
            "own model: leave config out, and pass model and image_processor as cait_hf.from_pretrained returns them."
        )


@strict
class CaitConfig(BackboneConfigMixin, PreTrainedConfig):
    r"""Configuration of a [`CaitModel`], of the models with a head and of a [`CaitBackbone`].

    Args:
        hidden_size (`int`, defaults to 192):
            Width of the patch and class embeddings. A multiple of `num_attention_heads` (48 channels a head in every
            official checkpoint).
        num_hidden_layers (`int`, defaults to 24):
            Depth of the patch stage: layers of talking-heads self-attention and MLP over the patches.
        num_class_attention_layers (`int`, defaults to 2):
            Depth of the class stage: layers in which only the class token is updated.
        num_attention_heads (`int`, defaults to 4):
            Heads of both stages.
        intermediate_size (`int`, defaults to 768):
            Hidden width of the MLPs of both stages.
        hidden_act (`str`, defaults to `"gelu"`):
            Activation of the MLPs, a name in `transformers.activations.ACT2FN`. `"gelu"` is the exact (erf) form.
        hidden_dropout_prob (`float`, defaults to 0.0):
            Dropout after the position embeddings, the attention output and both MLP linears of the patch stage. The
            class stage has none.
        attention_probs_dropout_prob (`float`, defaults to 0.0):
            Dropout on the patch stage's attention maps, after the post-softmax projection (where the official code has
            it).
        drop_path_rate (`float`, defaults to 0.0):
            Stochastic depth of both residual branches of every patch layer: the same rate at all depths (paper,
            section 4), none in the class stage. In [0, 1).
        layer_scale_init_value (`float`, *optional*):
            Initial value of the LayerScale vectors of both stages. `None` takes the rule of the paper by
            `num_hidden_layers`: 0.1 up to 18, 1e-5 up to 24, 1e-6 deeper; the number found is what is saved.
        initializer_range (`float`, defaults to 0.02):
            Standard deviation of the truncated normal that draws linears, talking-heads projections, class token and
            positions.
        layer_norm_eps (`float`, defaults to 1e-6):
            Epsilon of every LayerNorm.
        image_size (`int` or `(height, width)`, defaults to 224):
            Pixels of the images whose patches the position embeddings cover. A multiple of `patch_size`.
        patch_size (`int` or `(height, width)`, defaults to 16):
            Pixels of a patch.
        num_channels (`int`, defaults to 3):
            Channels of the images.
        qkv_bias (`bool`, defaults to `True`):
            Whether queries, keys and values of both stages have a bias.
        interpolate_pos_encoding (`bool`, defaults to `False`):
            Whether the model resizes its position embeddings when an image has another size than `image_size`; the
            argument of the same name of `forward` overrides it for one call.
        out_features (list or tuple of `str`, *optional*):
            Stages whose feature maps a [`CaitBackbone`] returns, in the order of `stage_names`: `"stem"` (the patch
            embeddings with their positions) and `"stage1"` to `"stage<num_hidden_layers>"` (the output of each patch
            layer). `None` takes those of `out_indices`; where both are `None`, the last stage.
        out_indices (list or tuple of `int`, *optional*):
            The same stages by their index in `stage_names`, 0 being the stem; negative indices count from the end.
        apply_layernorm (`bool`, defaults to `True`):
            Whether a [`CaitBackbone`] normalizes its feature maps with the model's final LayerNorm, see there.
        reshape_hidden_states (`bool`, defaults to `True`):
            Whether the feature maps of a [`CaitBackbone`] have the shape `(batch, hidden_size, rows, columns)`;
            otherwise it is `(batch, patches, hidden_size)`.

    Raises:
        ValueError: for a value or a combination no CaiT can have; the message names field, value and what is allowed.
        StrictDataclassFieldValidationError: (of `huggingface_hub`) for a field of the wrong type.

    Example:

    ```python
    >>> from cait_hf import CaitConfig, CaitModel

    >>> config = CaitConfig(num_hidden_layers=12)  # XXS width, 12 layers
    >>> config.layer_scale_init_value
    0.1
    >>> model = CaitModel(config)  # random weights
    ```"""

    model_type = "cait"
    # FSDP2: every layer is gathered when it runs; the final norm, whose output each head reads, stays gathered.
    base_model_fsdp_plan = {
        "layers.*": "free_full_weight",
        "class_layers.*": "free_full_weight",
        "layernorm": "keep_full_weight",
    }
    # Tensor parallelism splits the MLPs alone. Attention is usually split by heads, but the talking-heads projections
    # mix all heads before and after the softmax: processes would have to exchange complete maps.
    base_model_tp_plan = {
        "layers.*.mlp.fc1": "colwise",
        "layers.*.mlp.fc2": "rowwise",
        "class_layers.*.mlp.fc1": "colwise",
        "class_layers.*.mlp.fc2": "rowwise",
    }

    hidden_size: int = 192
    num_hidden_layers: int = 24
    num_class_attention_layers: int = 2
    num_attention_heads: int = 4
    intermediate_size: int = 768
    hidden_act: str = "gelu"
    hidden_dropout_prob: float | int = 0.0
    attention_probs_dropout_prob: float | int = 0.0
    drop_path_rate: float | int = 0.0
    layer_scale_init_value: float | int | None = None
    initializer_range: float | int = 0.02
    layer_norm_eps: float | int = 1e-6
    image_size: int | list[int] | tuple[int, int] = 224
    patch_size: int | list[int] | tuple[int, int] = 16
    num_channels: int = 3
    qkv_bias: bool = True
    interpolate_pos_encoding: bool = False
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None
    apply_layernorm: bool = True
    reshape_hidden_states: bool = True
    problem_type: str | None = None  # of the base class, which in Transformers 5.17 refuses in its own words

    custom_pipelines = _CustomPipelines()
    _read_from_timm = False  # no field, and in no file

    def __post_init__(self, **kwargs: Any) -> None:
        self._check_labels(kwargs.get("num_labels"))
        for name, largest in _LARGEST.items():
            self._require(name, 1 <= getattr(self, name) <= largest, f"an integer from 1 to {largest}")
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "drop_path_rate"):
            self._require(name, 0 <= getattr(self, name) < 1, "a rate in [0, 1)")
        for name in ("initializer_range", "layer_norm_eps"):
            self._require(name, 0 < getattr(self, name) < math.inf, "a finite number > 0")
        for name in ("image_size", "patch_size"):
            pair = as_pair(getattr(self, name))
            self._require(name, len(pair) == 2 and min(pair) >= 1, "a number of pixels >= 1 or (height, width)")
            if not isinstance(getattr(self, name), int):
                setattr(self, name, pair)
        if self.layer_scale_init_value is None:
            self.layer_scale_init_value = default_layer_scale_init_value(self.num_hidden_layers)

        heads, image, patch = self.num_attention_heads, as_pair(self.image_size), as_pair(self.patch_size)
        rows, columns = image[0] // patch[0], image[1] // patch[1]
        divisible = image == (rows * patch[0], columns * patch[1])
        scale, types = self.layer_scale_init_value, (None, *PROBLEM_TYPES)
        for name, condition, allowed in (
            ("hidden_size", self.hidden_size % heads == 0, f"a multiple of num_attention_heads ({heads})"),
            ("hidden_act", self.hidden_act in ACT2FN, f"one of {', '.join(sorted(ACT2FN))}"),
            ("patch_size", max(patch) <= _LARGEST_PATCH, f"at most {_LARGEST_PATCH} pixels"),
            ("image_size", divisible, f"a multiple of patch_size ({self.patch_size}) in height and width"),
            ("image_size", rows * columns <= _MOST_PATCHES, f"of at most {_MOST_PATCHES} patches"),
            ("problem_type", self.problem_type in types, f"one of {', '.join(map(str, types))}"),
            ("layer_scale_init_value", 0 <= scale < math.inf, "a finite number >= 0, or None for the rule by depth"),
        ):
            self._require(name, condition, allowed)

        kwargs.pop("stage_names", None)  # of a configuration file: they follow the depth
        self.set_output_features_output_indices(
            out_features=kwargs.pop("out_features", None), out_indices=kwargs.pop("out_indices", None)
        )
        super().__post_init__(**kwargs)
        if self.label2id is None:
            self.label2id: dict[str, int] = {label: index for index, label in self.id2label.items()}

    def _require(self, name: str, condition: bool, allowed: str) -> None:
        if not condition:
            raise ValueError(_message(name, getattr(self, name), allowed))

    def _check_labels(self, num_labels: int | None) -> None:
        """Raise ValueError unless those of `num_labels`, `id2label` and `label2id` that are given fit each other."""
        if num_labels is not None and not 0 <= num_labels <= 2**20:
            raise ValueError(_message("num_labels", num_labels, f"from 0 to {2**20}"))
        if self.id2label is None:
            return
        if num_labels not in (None, len(self.id2label)):
            allowed = f"the number of labels in id2label ({len(self.id2label)}), or left out"
            raise ValueError(_message("num_labels", num_labels, allowed))
        fits = self.label2id is None or _is_inverse(self.label2id, self.id2label)
        self._require("label2id", fits, f"the inverse of id2label ({self.id2label}), or left out")

    @property
    def stage_names(self) -> list[str]:
        """`list[str]`: the stages of a [`CaitBackbone`], the patch embeddings and every patch layer."""
        return ["stem"] + [f"stage{number}" for number in range(1, self.num_hidden_layers + 1)]

    @property
    def out_indices(self) -> list[int] | None:
        """`list[int]`: the stages of a [`CaitBackbone`], see the argument; setting them sets `out_features` too."""
        return self._out_indices

    @out_indices.setter
    def out_indices(self, out_indices: Sequence[int] | None) -> None:
        # not the setter of the base class, which makes a list of whatever is given
        self.set_output_features_output_indices(out_features=None, out_indices=out_indices)

    def set_output_features_output_indices(
        self, out_features: Sequence[str] | None, out_indices: Sequence[int] | None
    ) -> None:
        """Set both, given as lists or tuples, one by the other where that is `None`; the last stage if both are.

        Raises:
            ValueError: unless they name stages of this model, at least one, in order and the same.
        """
        last = self.num_hidden_layers
        for name, value, is_stage, allowed in (
            ("out_features", out_features, self.stage_names.__contains__, f"names from stem, stage1 to stage{last}"),
            (
                "out_indices",
                out_indices,
                # the base class lets a negative index pass that counts beyond the first stage
                lambda index: type(index) is int and -last - 1 <= index <= last,
                f"integers from 0 (the stem) to {last}, or from {-last - 1} to -1 counted from the end",
            ),
        ):
            is_list = isinstance(value, list | tuple) and len(value) > 0
            if not (value is None or (is_list and all(map(is_stage, value)))):
                raise ValueError(_message(name, value, f"a list of {allowed}"))
        super().set_output_features_output_indices(
            out_features=None if out_features is None else list(out_features),
            out_indices=None if out_indices is None else list(out_indices),
        )

    @property
    def output_attentions(self) -> bool | None:
        """`bool`: whether every call returns the attention maps."""
        return self._output_attentions

    @output_attentions.setter
    def output_attentions(self, value: bool | None) -> None:
        self._output_attentions = value

    def validate_output_attentions(self) -> None:
        """Accept `output_attentions` with every attention implementation, as the setter does.

        The base class requires "eager"; CaiT's layers compute the maps eagerly whenever they are requested.
        """

    def to_dict(self) -> dict[str, Any]:
        """All fields, as they are saved: without where they were read from."""
        content = super().to_dict()
        content.pop("_read_from_timm", None)
        return content

    @classmethod
    def get_config_dict(cls, *args: Any, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """The base class's dictionary of a configuration file, with the fields of this class where the file is timm's.

        Raises:
            ValueError: if timm's file is that of another model.
        """
        config_dict, unused = super().get_config_dict(*args, **kwargs)
        if is_timm_config_dict(config_dict):
            source = args[0] if args else kwargs["pretrained_model_name_or_path"]
            marks = {"name_or_path": str(source), "_read_from_timm": True}
            config_dict = {**config_kwargs_from_timm(config_dict), **marks}
        return config_dict, unused

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> "CaitConfig":
        """Build the configuration from a dictionary, also timm's; `kwargs` that are fields override it.

        Raises:
            ValueError: if the dictionary is the configuration of another model, or with the overrides no CaiT's.
        """
        if is_timm_config_dict(config_dict):
            config_dict = {**config_kwargs_from_timm(config_dict), "_read_from_timm": True}
        model_type = config_dict.get("model_type", cls.model_type)
        if model_type != cls.model_type:
            raise ValueError(
                f"The configuration has model_type={model_type!r}, but {cls.__name__} reads only {cls.model_type!r} "
                "and timm's cait_* configurations."
            )
        depth = config_dict.get("num_hidden_layers", cls.num_hidden_layers)
        new_depth = kwargs.get("num_hidden_layers", depth)
        stages = {"out_features", "out_indices"}
        # Stored stages give way to those asked for; the stored default, the last stage, follows the depth.
        if stages & kwargs.keys() or (new_depth != depth and config_dict.get("out_indices") == [depth]):
            config_dict = {key: value for key, value in config_dict.items() if key not in stages}
        # The base class would assign overrides after the checks of __post_init__.
        config_dict, kwargs = _with_labels_asked_for(config_dict, kwargs)
        own_fields = cls.__dataclass_fields__.keys() - PreTrainedConfig.__dataclass_fields__.keys() | stages
        overrides = {name: kwargs.pop(name) for name in own_fields.intersection(kwargs)}
        return super().from_dict({**config_dict, **overrides}, **kwargs)


def _with_labels_asked_for(
    config_dict: dict[str, Any], kwargs: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Both dictionaries, with the labels of `kwargs` in the first, where they are checked together.

    Stored labels give way to another number of labels and to another `id2label`. A stored `label2id` that does not fit
    its `id2label` is left out: Transformers saves it so where the latter alone was assigned.
    """
    stored, kwargs = dict(config_dict), dict(kwargs)
    num_labels, id2label = kwargs.get("num_labels"), stored.get("id2label")
    if kwargs.get("id2label") is not None or (num_labels is not None and num_labels != len(id2label or ())):
        id2label = stored.pop("id2label", None)
        stored.pop("num_labels", None)
        stored.pop("label2id", None)
    elif id2label and stored.get("label2id") and not _is_inverse(stored["label2id"], id2label):
        del stored["label2id"]
    asked = {name: kwargs.pop(name) for name in ("id2label", "label2id") if kwargs.get(name) is not None}
    return {**stored, **asked}, kwargs


def _is_inverse(label2id: dict[str, Any], id2label: dict[Any, str]) -> bool:
    """Whether they say the same. Keys of JSON are strings, and of labels that occur twice either index will do."""
    names = {int(index): label for index, label in id2label.items()}
    same = all(names.get(int(index)) == label for label, index in label2id.items())
    return same and label2id.keys() == set(names.values())


# Far above any model, and low enough that a damaged or hostile file is refused before memory is asked for.
_LARGEST = {
    **dict.fromkeys(("hidden_size", "num_attention_heads", "intermediate_size", "num_channels"), 2**20),
    **dict.fromkeys(("num_hidden_layers", "num_class_attention_layers"), 2**10),
}
_LARGEST_PATCH = 2**10
_MOST_PATCHES = 2**20
PROBLEM_TYPES = ("single_label_classification", "multi_label_classification", "regression")


def as_pair(size: int | Sequence[int]) -> tuple[int, int]:
    """(height, width) of a size in pixels that was given as one number for both or as the two."""
    # of the right length, as CaitConfig checks
    return (size, size) if isinstance(size, int) else tuple(size)  # type: ignore[return-value]


def _message(name: str, value: Any, allowed: str) -> str:
    return f"CaitConfig: {name} is {value!r}, but it must be {allowed}."


__all__ = ["CaitConfig"]
