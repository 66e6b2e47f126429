# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""CaiT, "Going deeper with Image Transformers" (Touvron et al. 2021, arXiv 2103.17239), as a Transformers model.

Same mathematics as `cait_models.py` of facebookresearch/deit and timm's `cait.py`, in the names and with the
mechanisms of Transformers' own vision models. Shapes in comments: B images, N patches, C `hidden_size`.

The authors advise float32 for M48. In half precision queries are scaled before their products with keys, so that
float16 does not overflow, and every softmax, the resizing of position embeddings and the loss run in float32 or wider.
What is rounded is the residual stream, which `torch.autocast` over float32 weights keeps in float32 too;
`tests/test_precision.py` bounds the difference.
"""

import copy
import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any, TypeVar

import torch
from torch import nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.backbone_utils import BackboneMixin
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import (
    BackboneOutput,
    BaseModelOutputWithPooling,
    ImageClassifierOutput,
    MaskedImageModelingOutput,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel, load_state_dict
from transformers.processing_utils import Unpack
from transformers.utils import (
    TransformersKwargs,
    cached_file,
    find_adapter_config_file,
    is_peft_available,
)
from transformers.utils.generic import can_return_tuple, is_timm_config_dict, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .attention_cait import class_attention_forward, is_transformed, talking_heads_attention_forward
from .attention_fused import fused_talking_heads_attention_forward
from .configuration_cait import CaitConfig, as_pair
from .losses import image_classification_loss, masked_l1_loss
from .state_dict import convert_official_state_dict


@dataclass
class CaitModelOutput(BaseModelOutputWithPooling):
    """Output of [`CaitModel`].

    Args:
        last_hidden_state (`torch.FloatTensor` of shape `(batch, 1 + patches, hidden_size)`):
            The class token, then the patches, after the final LayerNorm. The patches alone without a class stage.
        pooler_output (`torch.FloatTensor` of shape `(batch, hidden_size)`):
            The class token after the final LayerNorm. `None` without a class stage.
        hidden_states (`tuple(torch.FloatTensor)`, with `output_hidden_states=True`):
            `num_hidden_layers + 1` tensors `(batch, patches, hidden_size)`: the embeddings and the output of every
            patch layer, before the final LayerNorm.
        attentions (`tuple(torch.FloatTensor)`, with `output_attentions=True`):
            `num_hidden_layers` maps `(batch, heads, patches, patches)`: the weights that multiply the values, after
            the post-softmax projection; their rows need not sum to 1.
        class_attentions (`tuple(torch.FloatTensor)`, with `output_attentions=True` or `output_class_attentions=True`):
            `num_class_attention_layers` maps `(batch, heads, 1, 1 + patches)`: the attention of the class token.
        class_hidden_states (`tuple(torch.FloatTensor)`, with `output_class_hidden_states=True`):
            `num_class_attention_layers` tensors `(batch, 1, hidden_size)`: the class token after every class layer.
    """

    class_attentions: tuple[torch.FloatTensor, ...] | None = None
    class_hidden_states: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class CaitForImageClassificationOutput(ImageClassifierOutput):
    """Output of [`CaitForImageClassification`].

    Args:
        loss (`torch.FloatTensor` of shape `()`, with `labels`): the loss, in float32 or wider.
        logits (`torch.FloatTensor` of shape `(batch, num_labels)`): class scores before any softmax or sigmoid.
        hidden_states, attentions, class_attentions, class_hidden_states: as in [`CaitModelOutput`].
    """

    class_attentions: tuple[torch.FloatTensor, ...] | None = None
    class_hidden_states: tuple[torch.FloatTensor, ...] | None = None


class CaitPatchEmbeddings(nn.Module):
    """Non-overlapping patches, each projected linearly: `(B, channels, height, width)` to `(B, N, C)`."""

    def __init__(self, config: CaitConfig) -> None:
        super().__init__()
        self.num_channels = config.num_channels
        self.patch_size = as_pair(config.patch_size)
        self.projection = nn.Conv2d(
            config.num_channels, config.hidden_size, kernel_size=self.patch_size, stride=self.patch_size
        )

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        shape = None if pixel_values is None else tuple(pixel_values.shape)
        if shape is None or len(shape) != 4 or shape[1] != self.num_channels:
            raise ValueError(
                f"pixel_values {'is None' if shape is None else f'has shape {shape}'}, but it must be a tensor "
                f"(batch, {self.num_channels}, height, width)."
            )
        if shape[2] % self.patch_size[0] or shape[3] % self.patch_size[1]:
            raise ValueError(
                f"pixel_values has height and width {shape[2]} x {shape[3]}, but both must be multiples of the patch "
                f"size {self.patch_size[0]} x {self.patch_size[1]}."
            )
        patches = self.projection(pixel_values.to(self.projection.weight.dtype)).flatten(2).transpose(1, 2)
        # Every residual would inherit the layout of the convolution, in which the channels of a patch lie far apart.
        return patches.contiguous()


class CaitEmbeddings(nn.Module):
    """Patch embeddings with learned positions, and the class token, which has no position (paper, section 3).

    A mask token takes the place of masked patches before the positions are added, as in SimMIM (arXiv 2111.09886) and
    Transformers' ViT.
    """

    def __init__(self, config: CaitConfig, use_class_token: bool = True, use_mask_token: bool = False) -> None:
        super().__init__()
        self.config = config
        self.image_size = as_pair(config.image_size)
        self.patch_size = as_pair(config.patch_size)
        self.patch_embeddings = CaitPatchEmbeddings(config)
        num_patches = math.prod(self.grid_size)
        self.position_embeddings = nn.Parameter(torch.zeros(1, num_patches, config.hidden_size))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size)) if use_class_token else None
        self.mask_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size)) if use_mask_token else None
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    @property
    def grid_size(self) -> tuple[int, int]:
        """Rows and columns of patches that the stored position embeddings cover."""
        return self.image_size[0] // self.patch_size[0], self.image_size[1] // self.patch_size[1]

    def interpolate_pos_encoding(self, height: int, width: int) -> torch.Tensor:
        """The position embeddings `(1, N, C)` for images of `height` x `width` pixels.

        Bicubic, `align_corners=False`, as the official fine-tuning does (facebookresearch/deit, `main.py`); computed
        in float32 or wider, returned in the dtype of the parameter.
        """
        table = self.position_embeddings
        grid = (height // self.patch_size[0], width // self.patch_size[1])
        # Exported, the comparison would restrict dynamic sizes; bicubic to the same grid changes nothing.
        if not torch.compiler.is_exporting() and grid == self.grid_size:
            return table
        resized = table.to(torch.promote_types(table.dtype, torch.float32))
        resized = resized.unflatten(1, self.grid_size).permute(0, 3, 1, 2)  # (1, C, rows, columns)
        resized = nn.functional.interpolate(resized, size=grid, mode="bicubic", align_corners=False)
        return resized.flatten(2).transpose(1, 2).to(table.dtype).contiguous()

    def forward(
        self,
        pixel_values: torch.Tensor,
        interpolate_pos_encoding: bool | None = None,
        bool_masked_pos: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        hidden_states = self.patch_embeddings(pixel_values)
        if bool_masked_pos is not None:
            if self.mask_token is None:
                raise ValueError("bool_masked_pos is given, but this model has no mask token: build it with one.")
            if bool_masked_pos.shape != hidden_states.shape[:2]:
                raise ValueError(
                    f"bool_masked_pos has shape {tuple(bool_masked_pos.shape)}, but it must be (batch, patches), here "
                    f"{tuple(hidden_states.shape[:2])}."
                )
            hidden_states = torch.where(bool_masked_pos.bool()[..., None], self.mask_token, hidden_states)

        height, width = pixel_values.shape[-2:]
        if interpolate_pos_encoding is None:
            interpolate_pos_encoding = self.config.interpolate_pos_encoding
        if interpolate_pos_encoding:
            position_embeddings = self.interpolate_pos_encoding(height, width)
        elif (height, width) == self.image_size:
            position_embeddings = self.position_embeddings
        else:
            raise ValueError(
                f"pixel_values has height and width {height} x {width}, but the model's image_size is "
                f"{self.image_size[0]} x {self.image_size[1]}; pass interpolate_pos_encoding=True, or "
                "set it in the configuration, to resize the position embeddings."
            )
        class_token = None
        if self.cls_token is not None:
            # A copy, not a view: FSDP2 frees the memory of this module's parameters when its forward ends.
            class_token = self.cls_token.expand(pixel_values.shape[0], -1, -1).clone()
        return self.dropout(hidden_states + position_embeddings), class_token


class CaitSelfAttention(nn.Module):
    """Talking-heads self-attention over the patches (`Attention_talking_head` of the official code)."""

    def __init__(self, config: CaitConfig) -> None:
        super().__init__()
        self.config = config
        heads = config.num_attention_heads
        self.head_dim = config.hidden_size // heads
        self.scaling = self.head_dim**-0.5
        self.attention_dropout = config.attention_probs_dropout_prob

        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=config.qkv_bias)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size)
        # The talking-heads projections are (heads, heads) parameters, not `nn.Linear`s, so that quantizers and
        # adapters, which replace linears by name or type, leave these few numbers alone.
        self.proj_l_weight = nn.Parameter(torch.zeros(heads, heads))  # mixes the scores ("logits")
        self.proj_l_bias = nn.Parameter(torch.zeros(heads))
        self.proj_w_weight = nn.Parameter(torch.zeros(heads, heads))  # mixes the probabilities ("weights")
        self.proj_w_bias = nn.Parameter(torch.zeros(heads))

    def forward(
        self,
        hidden_states: torch.Tensor,
        output_attentions: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        input_shape = hidden_states.shape[:-1]
        hidden_shape = (*input_shape, self.config.num_attention_heads, self.head_dim)

        query_states = self.q_proj(hidden_states).view(hidden_shape).transpose(1, 2)
        key_states = self.k_proj(hidden_states).view(hidden_shape).transpose(1, 2)
        value_states = self.v_proj(hidden_states).view(hidden_shape).transpose(1, 2)

        # No stock kernel can mix heads: every implementation but the eager one means ours, which returns no maps.
        attention_interface: Callable = fused_talking_heads_attention_forward
        if output_attentions or self.config._attn_implementation == "eager":
            attention_interface = talking_heads_attention_forward
        attn_output, attn_weights = attention_interface(
            query_states,
            key_states,
            value_states,
            self.proj_l_weight,
            self.proj_l_bias,
            self.proj_w_weight,
            self.proj_w_bias,
            scaling=self.scaling,
            dropout=self.attention_dropout if self.training else 0.0,
        )
        attn_output = self.o_proj(attn_output.flatten(2))
        return attn_output, attn_weights


class CaitClassAttention(nn.Module):
    """Attention from the class token to [class token, patches] (`Class_Attention` of the official code)."""

    def __init__(self, config: CaitConfig) -> None:
        super().__init__()
        self.config = config
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = False

        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=config.qkv_bias)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self,
        hidden_states: torch.Tensor,
        output_attentions: bool | None = None,
        output_class_attentions: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        batch_size = hidden_states.shape[0]  # hidden_states: (B, 1 + N, C), the class token first
        hidden_shape = (batch_size, hidden_states.shape[1], self.config.num_attention_heads, self.head_dim)

        query_states = self.q_proj(hidden_states[:, :1]).view(batch_size, 1, *hidden_shape[2:]).transpose(1, 2)
        key_states = self.k_proj(hidden_states).view(hidden_shape).transpose(1, 2)
        value_states = self.v_proj(hidden_states).view(hidden_shape).transpose(1, 2)

        # Other implementations than the eager one return no map, so asking for maps means eager here; PyTorch's own
        # (SDPA) has neither forward-mode nor second derivatives.
        attention_interface: Callable = class_attention_forward
        if not (output_class_attentions or is_transformed(query_states, key_states, value_states)):
            attention_interface = ALL_ATTENTION_FUNCTIONS.get_interface(
                self.config._attn_implementation, class_attention_forward
            )
        attn_output, attn_weights = attention_interface(
            self, query_states, key_states, value_states, None, scaling=self.scaling, **kwargs
        )
        attn_output = self.o_proj(attn_output.flatten(2))
        return attn_output, attn_weights


class CaitMLP(nn.Module):
    def __init__(self, config: CaitConfig, dropout: float) -> None:
        super().__init__()
        self.activation_fn = ACT2FN[config.hidden_act]
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden_states = self.dropout(self.activation_fn(self.fc1(hidden_states)))
        return self.dropout(self.fc2(hidden_states))


class CaitLayerScale(nn.Module):
    """Adds a residual branch, each channel times a learned factor (paper, section 2, equation 4)."""

    def __init__(self, config: CaitConfig) -> None:
        super().__init__()
        assert config.layer_scale_init_value is not None  # the configuration replaces None by the rule
        self.lambda1 = nn.Parameter(torch.full((config.hidden_size,), float(config.layer_scale_init_value)))

    def forward(self, hidden_states: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        return torch.addcmul(residual, hidden_states, self.lambda1)


class CaitDropPath(nn.Module):
    """Stochastic depth (arXiv 1603.09382): in training, drops a residual branch for complete images of the batch."""

    def __init__(self, drop_prob: float) -> None:
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if self.drop_prob == 0.0 or not self.training:
            return hidden_states
        keep_prob = 1.0 - self.drop_prob
        kept = hidden_states.new_empty(hidden_states.shape[0], 1, 1).bernoulli_(keep_prob)
        return hidden_states * (kept / keep_prob)

    def extra_repr(self) -> str:
        return f"drop_prob={self.drop_prob}"


class CaitLayer(GradientCheckpointingLayer):
    """A layer of the patch stage: talking-heads self-attention and MLP (`LayerScale_Block` of the official code)."""

    def __init__(self, config: CaitConfig) -> None:
        super().__init__()
        self.layernorm_before = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = CaitSelfAttention(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.layer_scale1 = CaitLayerScale(config)
        self.layernorm_after = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = CaitMLP(config, dropout=config.hidden_dropout_prob)
        self.layer_scale2 = CaitLayerScale(config)
        self.drop_path = CaitDropPath(config.drop_path_rate)

    def forward(self, hidden_states: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> torch.Tensor:
        residual = hidden_states
        hidden_states, _ = self.attention(self.layernorm_before(hidden_states), **kwargs)
        hidden_states = self.layer_scale1(self.drop_path(self.dropout(hidden_states)), residual)

        residual = hidden_states
        hidden_states = self.mlp(self.layernorm_after(hidden_states))
        return self.layer_scale2(self.drop_path(hidden_states), residual)


class CaitClassLayer(GradientCheckpointingLayer):
    """A layer of the class stage: only the class token changes (`LayerScale_Block_CA` of the official code)."""

    def __init__(self, config: CaitConfig) -> None:
        super().__init__()
        self.layernorm_before = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = CaitClassAttention(config)
        self.layer_scale1 = CaitLayerScale(config)
        self.layernorm_after = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = CaitMLP(config, dropout=0.0)
        self.layer_scale2 = CaitLayerScale(config)

    def forward(
        self, class_token: torch.Tensor, hidden_states: torch.Tensor, **kwargs: Unpack[TransformersKwargs]
    ) -> torch.Tensor:
        # class_token: (B, 1, C); hidden_states: (B, N, C), the same for every class layer
        sequence = self.layernorm_before(torch.cat((class_token, hidden_states), dim=1))
        attn_output, _ = self.attention(sequence, **kwargs)
        class_token = self.layer_scale1(attn_output, class_token)
        return self.layer_scale2(self.mlp(self.layernorm_after(class_token)), class_token)


def _patch_layers(config: CaitConfig) -> nn.ModuleList:
    return nn.ModuleList([CaitLayer(config) for _ in range(config.num_hidden_layers)])


_Model = TypeVar("_Model", bound="CaitPreTrainedModel")


class CaitPreTrainedModel(PreTrainedModel):
    """Base class: initialization, loading (timm's format included) and parameter groups."""

    config: CaitConfig
    base_model_prefix = "cait"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["CaitEmbeddings", "CaitLayer", "CaitClassLayer"]
    _supports_sdpa = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {
        "hidden_states": CaitLayer,
        "attentions": CaitSelfAttention,
        "class_attentions": CaitClassAttention,
        "class_hidden_states": CaitClassLayer,
    }
    # The loss is the mean over the batch: Trainer must average it over accumulated batches itself.
    accepts_loss_kwargs = False

    def post_init(self) -> None:
        super().post_init()
        if not any(isinstance(module, CaitClassLayer) for module in self.modules()):
            # The configuration's plans are those of a complete model: Transformers warns of a rule that fits nothing.
            for name in ("_tp_plan", "_fsdp_plan"):
                plan = getattr(self, name)
                setattr(self, name, {rule: style for rule, style in plan.items() if "class_layers." not in rule})

    def _check_and_adjust_attn_implementation(self, attn_implementation: str | None, *args: Any, **kwargs: Any) -> str:
        """Refuse, with an error message, what Transformers does not have or talking heads cannot use."""
        known = ["eager", *(key for key in ALL_ATTENTION_FUNCTIONS.valid_keys() if not _why_unusable(key))]
        if attn_implementation is not None and attn_implementation not in known:
            quoted = f'"{attn_implementation}"' if isinstance(attn_implementation, str) else repr(attn_implementation)
            why = _why_unusable(str(attn_implementation))
            raise ValueError(
                f"Specified `attn_implementation={quoted}` is not supported, it must be one of {', '.join(known)}"
                f"{': ' if why else ''}{why}."
            )
        return super()._check_and_adjust_attn_implementation(attn_implementation, *args, **kwargs)

    def get_input_embeddings(self) -> nn.Conv2d:
        """The projection of the patches."""
        return self.base_model.embeddings.patch_embeddings.projection

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the projection of the patches."""
        self.base_model.embeddings.patch_embeddings.projection = value

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Official initialization (facebookresearch/deit, `cait_models.py`): truncated normals and zeros, LayerScale
        constant, convolutions (the patch projection) at PyTorch's default."""
        std = self.config.initializer_range
        if isinstance(module, nn.Linear):
            init.trunc_normal_(module.weight, std=std)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d):
            bound = module.weight[0].numel() ** -0.5
            init.kaiming_uniform_(module.weight, a=math.sqrt(5))
            if module.bias is not None:
                init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, CaitEmbeddings):
            for parameter in module.parameters(recurse=False):  # positions, class token, mask token
                init.trunc_normal_(parameter, std=std)
        elif isinstance(module, CaitSelfAttention):
            init.trunc_normal_(module.proj_l_weight, std=std)
            init.zeros_(module.proj_l_bias)
            init.trunc_normal_(module.proj_w_weight, std=std)
            init.zeros_(module.proj_w_bias)
        elif isinstance(module, CaitLayerScale):
            init.constant_(module.lambda1, self.config.layer_scale_init_value)
        else:
            super()._init_weights(module)

    @classmethod
    def from_pretrained(
        cls: type[_Model],
        pretrained_model_name_or_path: str | os.PathLike | None,
        *model_args: Any,
        config: CaitConfig | str | os.PathLike | None = None,
        **kwargs: Any,
    ) -> _Model:
        """Load a checkpoint in this package's format or in timm's (the files of the `timm/cait_*` repositories).

        Takes all arguments of [`~transformers.PreTrainedModel.from_pretrained`]. With another `image_size` than the
        checkpoint's (as an argument or in `config`) the weights are loaded at the stored size and the position
        embeddings are then resized, see [`~CaitPreTrainedModel.resize_position_embeddings`].

        Raises:
            ValueError: if the checkpoint's configuration is another model's, or timm's weights do not fit a CaiT.
            RuntimeError: if stored tensors have other shapes, as a classifier's with another number of labels, and
                `ignore_mismatched_sizes` is not set.
            OSError: if the folder, repository or one of its files does not exist.
        """
        source = pretrained_model_name_or_path
        hub_kwargs = {name: kwargs[name] for name in _HUB_KWARGS if name in kwargs}
        given: CaitConfig | None = (
            cls.config_class.from_pretrained(config, **hub_kwargs) if isinstance(config, str | os.PathLike) else config
        )
        # By model type, not by class: remote code may hold the class a second time.
        if given is not None and getattr(given, "model_type", None) != cls.config_class.model_type:
            raise ValueError(f"config is a {type(given).__name__}, but it must be a CaitConfig, a path or a Hub id.")
        if source is None:  # a bare state dict
            return super().from_pretrained(None, *model_args, config=given, **kwargs)
        try:
            config_dict, _ = PreTrainedConfig.get_config_dict(source, **hub_kwargs)
        except OSError:
            config_dict = {}
        if not config_dict:  # adapters, or nothing: the base class loads them or says what is wrong
            base = _timm_base_of_adapter(source, hub_kwargs)
            if base is None:
                return super().from_pretrained(source, *model_args, config=given, **kwargs)
            loaded = cls.from_pretrained(base, *model_args, config=given, **kwargs)
            (loaded[0] if isinstance(loaded, tuple) else loaded).load_adapter(source)
            return loaded

        stored = cls.config_class.from_dict(config_dict)
        if given is None:
            held_back = {name: kwargs.pop(name) for name in _NOT_OF_THE_CONFIG if name in kwargs}
            given, kwargs = cls.config_class.from_pretrained(source, return_unused_kwargs=True, **kwargs)
            kwargs |= held_back | hub_kwargs
        to_load: CaitConfig = copy.deepcopy(given)
        requested_size = kwargs.pop("image_size", to_load.image_size)
        to_load.image_size = stored.image_size
        is_timm = is_timm_config_dict(config_dict)
        if is_timm:
            refused = [name for name in ("state_dict", "gguf_file", "variant") if kwargs.get(name) is not None]
            if refused:
                raise ValueError(f"{refused[0]} is given, but timm's repositories load without it.")
            kwargs["state_dict"] = _load_timm_state_dict(source, kwargs.pop("use_safetensors", None), hub_kwargs)
        try:
            loaded = super().from_pretrained(None if is_timm else source, *model_args, config=to_load, **kwargs)
        except RuntimeError as error:
            if to_load.num_labels == stored.num_labels or "ignore_mismatched_sizes" not in str(error):
                raise
            raise RuntimeError(  # the class that Transformers' shared tests ask for
                f"num_labels is {to_load.num_labels}, but {source} contains {stored.num_labels} labels: pass "
                "ignore_mismatched_sizes=True to start with a new classifier."
            ) from error

        model = loaded[0] if isinstance(loaded, tuple) else loaded  # a tuple with output_loading_info=True
        if is_timm:
            model.name_or_path = model.config.name_or_path = str(source)
        if as_pair(requested_size) != as_pair(stored.image_size):
            model.resize_position_embeddings(requested_size)
        return loaded

    @torch.no_grad()
    def resize_position_embeddings(self, image_size: int | tuple[int, int]) -> None:
        """Resize the stored position embeddings to another image size, and set `config.image_size`.

        See [`~CaitEmbeddings.interpolate_pos_encoding`]. They are a new parameter: make an optimizer afterwards.

        Args:
            image_size (`int` or `(height, width)`): pixels, multiples of the patch size.

        Raises:
            ValueError: if `image_size` is not a multiple of the patch size, or the position embeddings are offloaded.
        """
        embeddings = self.base_model.embeddings
        new_config = CaitConfig(image_size=image_size, patch_size=self.config.patch_size)  # validates the size
        height, width = as_pair(new_config.image_size)
        table = embeddings.position_embeddings
        if table.device.type == "meta":
            raise ValueError("The position embeddings are offloaded: load the model without offloading first.")
        resized = embeddings.interpolate_pos_encoding(height, width)
        embeddings.position_embeddings = nn.Parameter(resized, requires_grad=table.requires_grad)
        embeddings.image_size = (height, width)
        self.config.image_size = new_config.image_size

    def get_position_embeddings(self) -> nn.Parameter:
        """The position embeddings `(1, patches, hidden_size)`."""
        return self.base_model.embeddings.position_embeddings

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters with two or more axes that the official recipe exempts from weight decay.

        These are the position embeddings and the class token (`no_weight_decay` of the official code), and the mask
        token, as in SimMIM's code. Parameters with one axis (LayerScale, LayerNorm, biases) are exempt as well.
        Transformers' `Trainer` follows neither rule, the one of `cait_hf.training` both.
        """
        exempt = (".position_embeddings", ".cls_token", ".mask_token")
        return {name for name, _ in self.named_parameters() if name.endswith(exempt)}

    def layer_groups(self) -> dict[str, dict[str, nn.Parameter]]:
        """All parameters in the order in which an image meets them, every one in exactly one group.

        The groups are `"embeddings"`, `"layers.0"`, ..., `"class_layers.0"`, ..., `"head"` (final LayerNorm and
        classifier), each a dictionary from the names of `named_parameters()` to the parameters; empty ones are left
        out. Freeze the first groups, or give a group `decay ** (groups after it)` of the learning rate. The class
        token belongs to the first class layer, where it enters; timm groups it with the embeddings.
        """
        config = self.config
        groups: dict[str, dict[str, nn.Parameter]] = {"embeddings": {}}
        groups |= {f"layers.{index}": {} for index in range(config.num_hidden_layers)}
        groups |= {f"class_layers.{index}": {} for index in range(config.num_class_attention_layers)}
        groups["head"] = {}
        for name, parameter in self.named_parameters():
            stage, *rest = name.removeprefix(f"{self.base_model_prefix}.").split(".")
            if rest[:1] == ["cls_token"]:
                group = "class_layers.0"
            elif stage in ("layers", "class_layers"):
                group = f"{stage}.{rest[0]}"
            else:
                group = stage if stage in groups else "head"
            groups[group][name] = parameter
        return {group: parameters for group, parameters in groups.items() if parameters}


def _why_unusable(attn_implementation: str) -> str:
    """Why CaiT cannot use an implementation of this name, empty where nothing speaks against it."""
    if "paged" in attn_implementation:
        return "paged attention reads keys and values of earlier tokens, and CaiT generates none and keeps no cache"
    if any(sign in attn_implementation for sign in ("flash", "flex", "/")):  # with a slash: a repository of kernels
        return (
            "talking heads mix the attention maps of all heads before and after the softmax, but such kernels process "
            "each head separately"
        )
    return ""


# What the checkpoint of a classifier contains beyond the patch stage.
_KEYS_BEYOND_THE_PATCH_STAGE = [r"(^|\.)class_layers\.", r"(^|\.)embeddings\.cls_token$", r"^classifier\."]

_HUB_KWARGS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")
# Arguments of `from_pretrained` that a configuration would take for its own.
_NOT_OF_THE_CONFIG = ("dtype", "torch_dtype", "quantization_config")


def _load_timm_state_dict(
    name_or_path: str | os.PathLike, use_safetensors: bool | None, hub_kwargs: dict
) -> dict[str, torch.Tensor]:
    """The weights of a timm repository in our names; `use_safetensors` `True` or `False` allows one file alone."""
    filenames = ["model.safetensors"] if use_safetensors is not False else []
    filenames += ["pytorch_model.bin"] if not use_safetensors else []
    for filename in filenames:
        path = cached_file(name_or_path, filename, _raise_exceptions_for_missing_entries=False, **hub_kwargs)
        if path is not None:
            weights = convert_official_state_dict(load_state_dict(path))
            # Queries, keys and values as tensors of their own: views of a fused one look shared to Accelerate, which
            # would save the first of them only.
            return {
                name: tensor.clone() if tensor.untyped_storage().nbytes() != tensor.nbytes else tensor
                for name, tensor in weights.items()
            }
    raise OSError(f"{name_or_path} contains timm's config.json but neither {' nor '.join(filenames)}.")


def _timm_base_of_adapter(name_or_path: str | os.PathLike, hub_kwargs: dict) -> str | None:
    """Where a PEFT adapter was trained on a timm repository: that repository, which the base class cannot read."""
    if not is_peft_available():
        return None
    adapter_config = find_adapter_config_file(name_or_path, **hub_kwargs)
    if adapter_config is None:
        return None
    with open(adapter_config, encoding="utf-8") as file:
        base = json.load(file).get("base_model_name_or_path")
    try:
        config_dict, _ = PreTrainedConfig.get_config_dict(base)
    except OSError:
        return None
    return base if is_timm_config_dict(config_dict) else None


def _class_attentions_with_attentions(forward: Callable[..., CaitModelOutput]) -> Callable[..., CaitModelOutput]:
    """Make `output_attentions=True`, of the call or of the config, ask for the maps of both stages."""

    @wraps(forward)
    def wrapper(self: "CaitModel", *args: Any, **kwargs: Any) -> CaitModelOutput:
        if kwargs.get("output_attentions") is None:
            kwargs["output_attentions"] = self.config.output_attentions
        if kwargs.get("output_class_attentions") is None:
            in_config = getattr(self.config, "output_class_attentions", False)
            kwargs["output_class_attentions"] = kwargs["output_attentions"] or in_config
        return forward(self, *args, **kwargs)

    return wrapper


class CaitModel(CaitPreTrainedModel):
    """CaiT without a head: a stage of patch layers, then a stage of class layers that update the class token alone.

    Args:
        config ([`CaitConfig`]): architecture and regularization.
        add_class_stage (`bool`, defaults to `True`): whether there are a class token and class layers.
        use_mask_token (`bool`, defaults to `False`): whether there is a token for masked patches.

    Example:

    ```python
    >>> import torch
    >>> from cait_hf import CaitConfig, CaitModel

    >>> model = CaitModel(CaitConfig(num_hidden_layers=2)).eval()
    >>> outputs = model(torch.zeros(1, 3, 224, 224))
    >>> outputs.last_hidden_state.shape, outputs.pooler_output.shape
    (torch.Size([1, 197, 192]), torch.Size([1, 192]))
    ```"""

    def __init__(self, config: CaitConfig, add_class_stage: bool = True, use_mask_token: bool = False) -> None:
        super().__init__(config)
        self.embeddings = CaitEmbeddings(config, use_class_token=add_class_stage, use_mask_token=use_mask_token)
        self.layers = _patch_layers(config)
        num_class_layers = config.num_class_attention_layers if add_class_stage else 0
        self.class_layers = nn.ModuleList([CaitClassLayer(config) for _ in range(num_class_layers)])
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    @_class_attentions_with_attentions
    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        interpolate_pos_encoding: bool | None = None,
        bool_masked_pos: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> CaitModelOutput:
        r"""
        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch, channels, height, width)`):
                Images as the image processor returns them; cast to the dtype of the weights.
            interpolate_pos_encoding (`bool`, *optional*):
                Whether to resize the position embeddings to an image of another size than `config.image_size`. `None`
                takes the configuration's value.
            bool_masked_pos (`torch.BoolTensor` of shape `(batch, patches)`, *optional*):
                Patches, row by row, that the mask token replaces, in a model that has one.
            output_attentions, output_class_attentions, output_class_hidden_states (`bool`, *optional*):
                What to record, see [`CaitModelOutput`]; `output_attentions` records both kinds of maps.
            output_hidden_states (`bool`, `int` or `list[int]`, *optional*):
                Whether to record the hidden states, or which of them; 0 means the embeddings (before Transformers 5.23
                the first layer).
            return_dict (`bool`, *optional*):
                Whether to return a [`CaitModelOutput`] (the default) or a tuple.

        Output-capturing hooks are installed on the first call that requests outputs, under a lock that
        `torch.compile(fullgraph=True)` cannot trace: run one such call before compiling. Afterwards the model can no
        longer be pickled, only its `state_dict`.

        Raises:
            ValueError: if `pixel_values` is missing, or has a shape or a size that does not fit the model.
        """
        hidden_states, class_token = self.embeddings(pixel_values, interpolate_pos_encoding, bool_masked_pos)
        for layer in self.layers:
            hidden_states = layer(hidden_states, **kwargs)
        if class_token is None:
            return CaitModelOutput(last_hidden_state=self.layernorm(hidden_states))
        for class_layer in self.class_layers:
            class_token = class_layer(class_token, hidden_states, **kwargs)

        sequence_output = self.layernorm(torch.cat((class_token, hidden_states), dim=1))
        return CaitModelOutput(last_hidden_state=sequence_output, pooler_output=sequence_output[:, 0])


class CaitForImageClassification(CaitPreTrainedModel):
    """CaiT with a linear classifier on the normalized class token.

    Example:

    ```python
    >>> import torch
    >>> from cait_hf import CaitConfig, CaitForImageClassification

    >>> model = CaitForImageClassification(CaitConfig(num_hidden_layers=2, num_labels=10))
    >>> outputs = model(torch.zeros(1, 3, 224, 224), labels=torch.tensor([3]))
    >>> outputs.logits.shape
    torch.Size([1, 10])
    ```"""

    def __init__(self, config: CaitConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.cait = CaitModel(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels) if config.num_labels > 0 else nn.Identity()
        # Set here because Transformers would choose the loss by the name of the class, which subclasses change.
        self.loss_function = image_classification_loss
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        interpolate_pos_encoding: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> CaitForImageClassificationOutput:
        r"""
        Args:
            pixel_values, interpolate_pos_encoding: as in [`CaitModel.forward`], like what to record.
            labels (`torch.Tensor`, *optional*):
                Class indices `(batch,)`, soft labels `(batch, num_labels)`, multi-label or regression targets, see
                [`image_classification_loss`].

        Raises:
            ValueError: as [`CaitModel.forward`], and if `labels` fits no loss.
        """
        outputs: CaitModelOutput = self.cait(pixel_values, interpolate_pos_encoding=interpolate_pos_encoding, **kwargs)
        logits = self.classifier(outputs.pooler_output)
        loss = None
        if labels is not None:
            loss = self.loss_function(labels, logits, self.config, **kwargs)
        return CaitForImageClassificationOutput(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            class_attentions=outputs.class_attentions,
            class_hidden_states=outputs.class_hidden_states,
        )


class CaitForMaskedImageModeling(CaitPreTrainedModel):
    """CaiT that reconstructs the pixels of masked patches: SimMIM (arXiv 2111.09886), as Transformers' ViT has it.

    A linear layer predicts the pixels of every patch from its final hidden state; the loss is the mean absolute error
    over the masked patches. The class stage, which does not change the patches, is not built, so that every parameter
    gets a gradient, as DistributedDataParallel requires. Loaded from the checkpoint of a classifier, mask token and
    decoder start from scratch; so does the class stage of a classifier that is loaded from this model's checkpoint.

    Example:

    ```python
    >>> import torch
    >>> from cait_hf import CaitConfig, CaitForMaskedImageModeling

    >>> model = CaitForMaskedImageModeling(CaitConfig(num_hidden_layers=2))
    >>> masked = torch.rand(1, 196) < 0.6
    >>> outputs = model(torch.zeros(1, 3, 224, 224), bool_masked_pos=masked)
    >>> outputs.reconstruction.shape
    torch.Size([1, 3, 224, 224])
    ```"""

    _keys_to_ignore_on_load_unexpected = _KEYS_BEYOND_THE_PATCH_STAGE

    def __init__(self, config: CaitConfig) -> None:
        super().__init__(config)
        self.cait = CaitModel(config, add_class_stage=False, use_mask_token=True)
        self.decoder = nn.Linear(config.hidden_size, config.num_channels * math.prod(as_pair(config.patch_size)))
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        bool_masked_pos: torch.Tensor | None = None,
        interpolate_pos_encoding: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MaskedImageModelingOutput:
        r"""
        Args:
            pixel_values, interpolate_pos_encoding: as in [`CaitModel.forward`], like what to record.
            bool_masked_pos (`torch.BoolTensor` of shape `(batch, patches)`, *optional*):
                Patches, row by row, to hide and to reconstruct. Without it nothing is hidden and there is no loss.

        Returns:
            `loss`, a scalar in float32 or wider, and `reconstruction`, of the shape of `pixel_values`.

        Raises:
            ValueError: as [`CaitModel.forward`], and if `bool_masked_pos` has another shape.
        """
        outputs: CaitModelOutput = self.cait(
            pixel_values,
            interpolate_pos_encoding=interpolate_pos_encoding,
            bool_masked_pos=bool_masked_pos,
            **kwargs,
        )
        assert pixel_values is not None  # refused by the embeddings
        height, width = as_pair(self.config.patch_size)
        rows = pixel_values.shape[-2] // height
        patches = self.decoder(outputs.last_hidden_state)  # (B, N, channels * height * width of a patch)
        patches = patches.unflatten(2, (-1, height, width)).unflatten(1, (rows, -1))
        reconstruction = patches.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)  # (B, channels, height, width)
        loss = None
        if bool_masked_pos is not None:
            masked = bool_masked_pos.unflatten(1, (rows, -1))
            masked = masked.repeat_interleave(height, 1).repeat_interleave(width, 2)[:, None]
            loss = masked_l1_loss(pixel_values, reconstruction, masked)
        return MaskedImageModelingOutput(
            loss=loss,
            reconstruction=reconstruction,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class CaitBackbone(BackboneMixin, CaitPreTrainedModel):
    """The patch stage of CaiT as the backbone of models for dense prediction, such as Transformers' UperNet.

    Feature maps are those of `config.out_features`: the patch embeddings (`"stem"`) and the output of any patch layer
    (`"stage1"`, ...), all of one resolution. The class stage, which does not change the patches, is not built, and
    that of a checkpoint is left out. Models that expect a class token in every feature map (DPT, Depth Anything)
    cannot use this backbone.

    With `config.apply_layernorm` (the default, as in DINOv2) every map goes through the final LayerNorm: the last map
    contains the patches of [`CaitModel`]'s `last_hidden_state`. A classifier trained that norm on the class token
    alone. Without it the maps are the hidden states, and no norm is built.

    Images of another size than `config.image_size` need `config.interpolate_pos_encoding`, since the models around
    a backbone pass pixels alone. Load local folders with `CaitBackbone.from_pretrained(folder, out_indices=...)`:
    `AutoBackbone.from_pretrained` takes a folder for the name of a repository on the Hub.

    Example:

    ```python
    >>> import torch
    >>> from cait_hf import CaitBackbone, CaitConfig

    >>> model = CaitBackbone(CaitConfig(num_hidden_layers=4, out_features=["stage2", "stage4"]))
    >>> outputs = model(torch.zeros(1, 3, 224, 224))
    >>> [feature_map.shape for feature_map in outputs.feature_maps]
    [torch.Size([1, 192, 14, 14]), torch.Size([1, 192, 14, 14])]
    ```"""

    _can_record_outputs = {"hidden_states": CaitLayer, "attentions": CaitSelfAttention}
    _keys_to_ignore_on_load_unexpected = _KEYS_BEYOND_THE_PATCH_STAGE

    def __init__(self, config: CaitConfig) -> None:
        super().__init__(config)
        self.num_features = [config.hidden_size] * len(config.stage_names)
        self.embeddings = CaitEmbeddings(config, use_class_token=False)
        self.layers = _patch_layers(config)
        if config.apply_layernorm:
            self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        else:
            self.layernorm = nn.Identity()
            self._keys_to_ignore_on_load_unexpected = [*_KEYS_BEYOND_THE_PATCH_STAGE, r"^(cait\.)?layernorm\."]
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values: torch.Tensor,
        interpolate_pos_encoding: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BackboneOutput:
        r"""
        Args:
            pixel_values, interpolate_pos_encoding, output_attentions, output_hidden_states, return_dict:
                As in [`CaitModel.forward`]; hidden states are those before any LayerNorm.

        Returns:
            `feature_maps`, a tuple with one tensor for each of `config.out_features`, of shape
            `(batch, hidden_size, rows, columns)`, or `(batch, patches, hidden_size)` without
            `config.reshape_hidden_states`.

        Raises:
            ValueError: as [`CaitModel.forward`].
        """
        hidden_states = self.embeddings(pixel_values, interpolate_pos_encoding)[0]
        stages = [hidden_states]
        for layer in self.layers:
            hidden_states = layer(hidden_states, **kwargs)
            stages.append(hidden_states)

        feature_maps = [self.layernorm(stages[index]) for index in self.out_indices]  # (B, N, C)
        if self.config.reshape_hidden_states:
            rows = pixel_values.shape[-2] // self.embeddings.patch_size[0]
            feature_maps = [x.transpose(1, 2).unflatten(2, (rows, -1)).contiguous() for x in feature_maps]
        return BackboneOutput(feature_maps=tuple(feature_maps))


__all__ = [
    "CaitBackbone",
    "CaitForImageClassification",
    "CaitForImageClassificationOutput",
    "CaitForMaskedImageModeling",
    "CaitModel",
    "CaitModelOutput",
    "CaitPreTrainedModel",
]
