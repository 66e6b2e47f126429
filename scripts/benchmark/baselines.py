# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""The baselines of `run.py`: models and attentions of one shape, with the same weights if they must agree.

`make_step` gives the function that is timed; `EqualityGuard` compares what the baselines compute.
"""

import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from report import BASELINES, RUNTIMES, SCALING_MODEL, Work
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AutoModelForImageClassification, TimmWrapperConfig, ViTConfig

from cait_hf import CHECKPOINTS, CaitConfig
from cait_hf.state_dict import convert_to_official_state_dict
from cait_hf.timm_format import timm_model_args


# By the name of a model, without its resolution: the fields of CaitConfig that make it up.
ARCHITECTURES = {checkpoint.official_name.split("_")[0]: checkpoint.config_kwargs for checkpoint in CHECKPOINTS}
ARCHITECTURES[SCALING_MODEL] = {**ARCHITECTURES["XXS24"], "num_hidden_layers": 4}
for heads in (8, 12, 16):
    sizes = {"num_attention_heads": heads, "hidden_size": 48 * heads, "intermediate_size": 192 * heads}
    ARCHITECTURES[f"heads{heads}"] = ARCHITECTURES[SCALING_MODEL] | sizes
for layers in (8, 16, 32):
    ARCHITECTURES[f"depth{layers}"] = ARCHITECTURES["XXS24"] | {"num_hidden_layers": layers}
ARCHITECTURES["tiny"] = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}


def cait_config(work: Work, **overrides) -> CaitConfig:
    return CaitConfig(**{**ARCHITECTURES[work.model], "image_size": work.image_size, "num_labels": 1000, **overrides})


def attention_config(work: Work) -> CaitConfig:
    return cait_config(work, num_hidden_layers=1, num_class_attention_layers=1)


@dataclass
class Inputs:
    """Random images and labels, or the projected queries, keys and values `(B, N, C)` of one attention."""

    images: torch.Tensor
    labels: torch.Tensor
    qkv: list[torch.Tensor]
    gradient: torch.Tensor | None  # of the attended values

    @classmethod
    def of(cls, work: Work) -> "Inputs":
        config = cait_config(work)
        generator = torch.Generator().manual_seed(1)
        to = {"device": work.device, "dtype": getattr(torch, work.dtype)}
        labels = torch.randint(config.num_labels, (work.batch_size,), generator=generator).to(work.device)
        if not work.is_attention:
            shape = (work.batch_size, config.num_channels, work.image_size, work.image_size)
            return cls(torch.randn(shape, generator=generator).to(**to), labels, [], None)
        shape = (work.batch_size, (work.image_size // config.patch_size) ** 2, config.hidden_size)
        tensors = [torch.randn(shape, generator=generator).to(**to) for _ in range(4)]
        return cls(tensors[0], labels, tensors[:3], tensors[3])

    def first_two(self, dtype: str) -> "Inputs":
        """What concerns the first two images of the batch."""
        images, *qkv = (tensor[:2].to(getattr(torch, dtype)) for tensor in (self.images, *self.qkv))
        return Inputs(images, self.labels[:2], qkv, None)


@torch.no_grad()
def random_state(work: Work) -> dict[str, torch.Tensor]:
    """float32 weights in our names under which every layer, map and talking-heads projection shows in the output."""
    config = attention_config(work) if work.is_attention else cait_config(work)
    with torch.device("meta"):
        model = AutoModelForImageClassification.from_config(config)
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, parameter in model.state_dict().items():
        noise = torch.randn(parameter.shape, generator=generator)
        if "lambda1" in name or "layernorm" in name and name.endswith("weight"):
            state[name] = 0.5 + 0.1 * noise if "lambda1" in name else 1 + 0.1 * noise
        elif parameter.ndim == 1:
            state[name] = 0.02 * noise
        elif parameter.ndim == 3:  # class token and positions
            state[name] = noise
        else:
            gain = 2.0 if "q_proj" in name or "k_proj" in name else 1.0
            state[name] = gain * parameter[0].numel() ** -0.5 * noise
    return state


def make_step(name: str, work: Work, state: dict[str, torch.Tensor], inputs: Inputs) -> Callable[[], torch.Tensor]:
    """A function that does the work once with the baseline called `name` and returns logits or attended values."""
    if name in RUNTIMES:
        exported = export(name, work, state)
        return lambda: torch.as_tensor(exported(pixel_values=inputs.images).logits)
    module = build_attention(name, work, state, inputs) if work.is_attention else build_model(name, work, state)
    module.to(work.device, getattr(torch, work.dtype)).train(work.is_training)
    call = torch.compile(module, dynamic=False) if name.endswith("_compiled") else module

    def inference() -> torch.Tensor:
        with torch.inference_mode(), floor(name, work):
            return tensor_of(call(inputs.images))

    def training() -> torch.Tensor:
        with floor(name, work):
            output = tensor_of(call(inputs.images))
        if work.is_attention:
            output.backward(inputs.gradient)
        else:
            nn.functional.cross_entropy(output.float(), inputs.labels).backward()
        module.zero_grad(set_to_none=True)
        return output.detach()

    return training if work.is_training else inference


FORMATS = {"openvino": "openvino", "onnxruntime": "onnx"}  # of export, for the runtimes


def can_do(name: str, work: Work) -> bool:
    """Whether a baseline knows this kind of work."""
    if name in RUNTIMES:
        return (work.mode, work.dtype, work.device) == ("inference", "float32", "cpu")
    return not (work.is_attention and name == "timm_wrapper")


def export(name: str, work: Work, state: dict[str, torch.Tensor]) -> Callable:
    """Our model in the file of another runtime, loaded by it."""
    from transformers.exporters.base import ExportedModel

    from cait_hf.commands.export import LOAD, quiet, write

    export_format = FORMATS[name]
    with tempfile.TemporaryDirectory() as folder, quiet():
        write(build_model("ours", work, state).eval(), Path(folder), export_format, False, None)
        return ExportedModel.from_pretrained(folder, **LOAD[export_format])


def floor(name: str, work: Work) -> AbstractContextManager:
    """FlashAttention for the ViT where there is one; elsewhere PyTorch chooses the kernel."""
    flash = name == "vit" and work.device == "cuda" and work.dtype != "float32"
    return sdpa_kernel(SDPBackend.FLASH_ATTENTION) if flash else nullcontext()


def tensor_of(output) -> torch.Tensor:
    output = getattr(output, "logits", output)
    return output[0] if isinstance(output, tuple) else output


def build_model(name: str, work: Work, state: dict[str, torch.Tensor]) -> nn.Module:
    """The classifier of this name; it takes the tensors of `state` as its own (a ViT has others)."""
    config = attention_config(work) if work.is_attention else cait_config(work)
    if name == "vit":
        vit = {field: getattr(config, field) for field in SHARED_WITH_VIT}
        return AutoModelForImageClassification.from_config(ViTConfig(**vit), attn_implementation="sdpa")
    with torch.device("meta"):  # `assign` puts the weights in place
        if name.startswith("ours"):
            implementation = "eager" if name == "ours_eager" else "sdpa"
            model = AutoModelForImageClassification.from_config(config, attn_implementation=implementation)
        else:
            import timm

            state = convert_to_official_state_dict(state)
            args = {"architecture": "cait_xxs24_224", "model_args": timm_model_args(config)}
            if name == "timm_wrapper":
                num_labels = args["model_args"].pop("num_classes")
                model = AutoModelForImageClassification.from_config(TimmWrapperConfig(**args, num_labels=num_labels))
            else:
                model = timm.create_model(args["architecture"], **args["model_args"])
    model.load_state_dict(state, strict=True, assign=True)
    return model


SHARED_WITH_VIT = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "hidden_act",
    "layer_norm_eps",
    "image_size",
    "patch_size",
    "num_channels",
    "qkv_bias",
    "num_labels",
)


def build_attention(name: str, work: Work, state: dict[str, torch.Tensor], inputs: Inputs) -> nn.Module:
    """The attention of a patch layer whose projections hand out `inputs.qkv` and leave the result as it is."""
    if name == "vit":
        return PlainAttention(inputs.qkv, attention_config(work).num_attention_heads)
    model = build_model(name, work, state)
    if name.startswith("timm"):
        attention = model.blocks[0].attn
        attention.qkv, attention.proj = Given(torch.cat(inputs.qkv, dim=-1)), nn.Identity()
    else:
        attention = model.cait.layers[0].attention
        attention.q_proj, attention.k_proj, attention.v_proj = map(Given, inputs.qkv)
        attention.o_proj = nn.Identity()
    return attention


class Given(nn.Module):
    """Returns its tensor, which gets a gradient, whatever comes in."""

    def __init__(self, tensor: torch.Tensor):
        super().__init__()
        self.tensor = nn.Parameter(tensor)

    def forward(self, _: torch.Tensor) -> torch.Tensor:
        return self.tensor


class PlainAttention(nn.Module):
    """`scaled_dot_product_attention` from and to the shapes of the other attentions, `(B, N, C)`."""

    def __init__(self, qkv: list[torch.Tensor], num_heads: int):
        super().__init__()
        self.qkv = nn.ParameterList(nn.Parameter(tensor) for tensor in qkv)
        self.num_heads = num_heads

    def forward(self, _: torch.Tensor) -> torch.Tensor:
        query, key, value = (tensor.unflatten(2, (self.num_heads, -1)).transpose(1, 2) for tensor in self.qkv)
        output = nn.functional.scaled_dot_product_attention(query, key, value)  # (B, H, N, D)
        return output.transpose(1, 2).flatten(2)


class EqualityGuard:
    """Stops the benchmark when a baseline computes something else than the plain reference.

    The reference is our eager path in float32 on the first two images. Outputs may differ from it by 1e-4 of its
    largest value, or by three times what the same eager path differs in the dtype that is timed.
    """

    def __init__(self, work: Work, state: dict[str, torch.Tensor], inputs: Inputs):
        def eager_output(dtype: str) -> torch.Tensor:
            forward = replace(work, mode="attention" if work.is_attention else "inference", dtype=dtype)
            return make_step("ours_eager", forward, state, inputs.first_two(dtype))().float()

        self.work = work
        self.expected = eager_output("float32")
        self.allowed = max(1e-4, 3 * self.difference(eager_output(work.dtype)))

    def difference(self, output: torch.Tensor) -> float:
        return ((output[:2].float() - self.expected).abs().max() / self.expected.abs().max()).item()

    def check(self, name: str, output: torch.Tensor) -> float:
        difference = self.difference(output)
        if not difference <= self.allowed:
            raise ValueError(
                f"{BASELINES[name]} differs by {difference:.1e} from the reference in {self.work}, but at most "
                f"{self.allowed:.1e} is allowed: it computes something else, so its time says nothing."
            )
        return difference
