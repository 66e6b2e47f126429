# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""The two-way map between official tensors and ours: names, shapes, values, and what is refused."""

import math

import pytest
import torch
from random_weights import tiny_config

from cait_hf import CHECKPOINTS, CaitConfig, CaitForImageClassification
from cait_hf.state_dict import convert_official_state_dict, convert_to_official_state_dict, infer_config_kwargs


every_checkpoint = pytest.mark.parametrize("checkpoint", CHECKPOINTS, ids=lambda checkpoint: checkpoint.official_name)


def official_shapes(config: CaitConfig) -> dict[str, tuple[int, ...]]:
    """Names, order and shapes of the official tensors, written down from facebookresearch/deit's `cait_models.py`."""
    width, hidden, heads = config.hidden_size, config.intermediate_size, config.num_attention_heads
    patches = (config.image_size // config.patch_size) ** 2
    norms = {"weight": (width,), "bias": (width,)}
    square = {"weight": (width, width), "bias": (width,)}
    heads_squared = {"weight": (heads, heads), "bias": (heads,)}
    fc1, fc2 = {"weight": (hidden, width), "bias": (hidden,)}, {"weight": (width, hidden), "bias": (width,)}
    qkv = {"weight": (3 * width, width), "bias": (3 * width,)}
    talking_heads = {"attn.qkv": qkv, "attn.proj": square, "attn.proj_l": heads_squared, "attn.proj_w": heads_squared}
    class_attention = {"attn.q": square, "attn.k": square, "attn.v": square, "attn.proj": square}

    patch_size = config.patch_size
    shapes = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, patches, width),
        "patch_embed.proj.weight": (width, config.num_channels, patch_size, patch_size),
        "patch_embed.proj.bias": (width,),
    }
    for stage, depth, attention in (
        ("blocks", config.num_hidden_layers, talking_heads),
        ("blocks_token_only", config.num_class_attention_layers, class_attention),
    ):
        for index in range(depth):
            shapes |= {f"{stage}.{index}.gamma_1": (width,), f"{stage}.{index}.gamma_2": (width,)}
            for module, tensors in {
                "norm1": norms,
                **attention,
                "norm2": norms,
                "mlp.fc1": fc1,
                "mlp.fc2": fc2,
            }.items():
                shapes |= {f"{stage}.{index}.{module}.{name}": shape for name, shape in tensors.items()}
    shapes |= {"norm.weight": (width,), "norm.bias": (width,)}
    shapes |= {"head.weight": (config.num_labels, width), "head.bias": (config.num_labels,)}
    if not config.qkv_bias:
        shapes = {key: s for key, s in shapes.items() if not key.endswith(("qkv.bias", "q.bias", "k.bias", "v.bias"))}
    return {key: shape for key, shape in shapes.items() if config.num_labels or not key.startswith("head.")}


def random_official(config: CaitConfig, dtype=torch.float32, seed=0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {key: torch.randn(shape, generator=generator).to(dtype) for key, shape in official_shapes(config).items()}


def shapes_of(tensors) -> dict[str, tuple[int, ...]]:
    return {key: tuple(tensor.shape) for key, tensor in tensors.items()}


@pytest.fixture
def official():
    return random_official(tiny_config())


@every_checkpoint
def test_names_and_shapes_of_the_ten(checkpoint):
    config = CaitConfig(**checkpoint.config_kwargs, num_labels=1000)
    expected = official_shapes(config)
    assert len(expected) == checkpoint.num_tensors
    assert sum(map(math.prod, expected.values())) == checkpoint.num_parameters
    with torch.device("meta"):
        native = CaitForImageClassification(config).state_dict()

    official = convert_to_official_state_dict(native)
    assert list(shapes_of(official).items()) == list(expected.items())  # the order, too
    assert shapes_of(convert_official_state_dict(official)) == shapes_of(native)
    kwargs = infer_config_kwargs(official)
    assert CaitConfig(**kwargs).to_dict() == config.to_dict()
    assert checkpoint.config_kwargs.items() <= kwargs.items()


@every_checkpoint
def test_round_trip_of_the_ten_is_bit_exact(checkpoint):
    """All names at the depth of the checkpoint, at a small width: values do not depend on it."""
    kwargs = {**checkpoint.config_kwargs, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
    official = random_official(CaitConfig(**{**kwargs, "image_size": 32}, num_labels=3))
    back = convert_to_official_state_dict(convert_official_state_dict(official))
    assert list(back) == list(official)
    assert all(torch.equal(back[key], official[key]) for key in official)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_dtype_is_kept_and_nothing_changed_in_place(dtype):
    official = random_official(tiny_config(), dtype)
    before = {key: tensor.clone() for key, tensor in official.items()}
    native = convert_official_state_dict(official)
    assert {tensor.dtype for tensor in native.values()} == {dtype}
    back = convert_to_official_state_dict(native)
    assert list(back) == list(official) == list(before)
    for key, tensor in before.items():
        assert back[key].dtype == dtype and torch.equal(back[key], tensor) and torch.equal(official[key], tensor)


@pytest.mark.parametrize("overrides", [{"qkv_bias": False}, {"num_labels": 0}, {"num_channels": 1, "patch_size": 16}])
def test_optional_tensors(overrides):
    config = tiny_config(**overrides)
    official = random_official(config)
    native = convert_official_state_dict(official)
    assert shapes_of(native) == shapes_of(CaitForImageClassification(config).state_dict())
    back = convert_to_official_state_dict(native)
    assert list(back) == list(official) and all(torch.equal(back[key], official[key]) for key in official)
    assert {name: infer_config_kwargs(official)[name] for name in overrides} == overrides


def test_every_value_arrives_where_it_belongs(official):
    native = convert_official_state_dict(official)
    expected = {
        "cait.embeddings.cls_token": official["cls_token"],
        "cait.embeddings.position_embeddings": official["pos_embed"],
        "cait.embeddings.patch_embeddings.projection.weight": official["patch_embed.proj.weight"],
        "cait.layers.2.attention.o_proj.weight": official["blocks.2.attn.proj.weight"],
        "cait.layers.2.attention.proj_l_weight": official["blocks.2.attn.proj_l.weight"],
        "cait.layers.2.attention.proj_w_bias": official["blocks.2.attn.proj_w.bias"],
        "cait.layers.2.layer_scale1.lambda1": official["blocks.2.gamma_1"],
        "cait.layers.2.layer_scale2.lambda1": official["blocks.2.gamma_2"],
        "cait.layers.2.layernorm_before.weight": official["blocks.2.norm1.weight"],
        "cait.layers.2.layernorm_after.bias": official["blocks.2.norm2.bias"],
        "cait.layers.2.mlp.fc1.weight": official["blocks.2.mlp.fc1.weight"],
        "cait.class_layers.1.attention.q_proj.weight": official["blocks_token_only.1.attn.q.weight"],
        "cait.class_layers.1.attention.v_proj.bias": official["blocks_token_only.1.attn.v.bias"],
        "cait.class_layers.1.layer_scale2.lambda1": official["blocks_token_only.1.gamma_2"],
        "cait.layernorm.weight": official["norm.weight"],
        "classifier.bias": official["head.bias"],
    }
    for kind in ("weight", "bias"):
        for name, part in zip("qkv", official[f"blocks.2.attn.qkv.{kind}"].split(48)):
            expected[f"cait.layers.2.attention.{name}_proj.{kind}"] = part
    for key, tensor in expected.items():
        assert torch.equal(native[key], tensor), key


def test_layout_of_the_authors_file(official):
    wrapped = {"model": {f"module.{key}": tensor for key, tensor in official.items()}}
    native, expected = convert_official_state_dict(wrapped), convert_official_state_dict(official)
    assert native.keys() == expected.keys()
    assert all(torch.equal(native[key], expected[key]) for key in expected)
    assert infer_config_kwargs(wrapped) == infer_config_kwargs(official)


def test_inferred_layer_scale():
    """The table where the architecture is an official one, at any image size; else the rule by depth."""
    xxs36 = {"hidden_size": 192, "num_hidden_layers": 36, "num_attention_heads": 4, "intermediate_size": 768}
    for changes, value in ({}, 1e-5), ({"image_size": 64}, 1e-5), ({"intermediate_size": 384}, 1e-6):
        kwargs = {**xxs36, "image_size": 224, "num_labels": 2, **changes}
        tensors = {
            key: torch.empty(shape, device="meta") for key, shape in official_shapes(CaitConfig(**kwargs)).items()
        }
        assert infer_config_kwargs(tensors)["layer_scale_init_value"] == value
    assert infer_config_kwargs(random_official(tiny_config()))["layer_scale_init_value"] == 0.1


def drop(*keys):
    return lambda official: {key: tensor for key, tensor in official.items() if key not in keys}


def put(**tensors):
    return lambda official: {**official, **{key.replace("__", "."): tensor for key, tensor in tensors.items()}}


@pytest.mark.parametrize(
    "change, message",
    [
        (drop("cls_token"), r"1 missing: cls_token \(1, 1, 48\)"),
        (drop("pos_embed"), r"1 missing: pos_embed \(1, N, 48\)"),
        (drop("head.bias"), r"1 missing: head.bias \(5\)"),
        (drop("blocks.1.attn.qkv.bias"), r"1 missing: blocks.1.attn.qkv.bias \(144\)"),
        (drop("blocks_token_only.0.attn.k.bias"), r"1 missing: blocks_token_only.0.attn.k.bias \(48\)"),
        (drop("blocks.0.attn.proj_w.bias", "norm.weight"), "2 missing: blocks.0.attn.proj_w.bias .*, norm.weight"),
        (put(extra=torch.zeros(1)), "1 unknown: extra"),
        (put(head_dist__weight=torch.zeros(5, 48)), "1 unknown: head_dist.weight"),
        (put(blocks__99__gamma_1=torch.zeros(48)), "1 unknown: blocks.99.gamma_1"),
        (put(blocks__99999999999__gamma_1=torch.zeros(48)), "1 unknown: blocks.99999999999.gamma_1"),
        (put(cls_token=torch.zeros(1, 1, 40)), r"cls_token \(1, 1, 40\) instead of \(1, 1, 48\)"),
        (put(cls_token=torch.zeros(1, 2, 48)), r"cls_token \(1, 2, 48\) instead of \(1, 1, 48\)"),
        (put(pos_embed=torch.zeros(16, 48)), r"pos_embed \(16, 48\) instead of \(1, N, 48\)"),
        (put(head__bias=torch.zeros(4)), r"head.bias \(4\) instead of \(5\)"),
        (
            put(blocks__0__attn__qkv__weight=torch.zeros(145, 48)),
            r"1 of another shape: blocks.0.attn.qkv.weight \(145, 48\) instead of \(144, 48\)",
        ),
        (put(blocks__0__attn__proj_l__weight=torch.zeros(8, 8)), r"\(8, 8\) instead of \(4, 4\)"),
        (put(norm__weight="not a tensor"), r"norm.weight \(\) instead of \(48\)"),
    ],
)
@pytest.mark.parametrize("read", [convert_official_state_dict, infer_config_kwargs])
def test_tensors_that_do_not_fit_are_named(official, change, message, read):
    with pytest.raises(ValueError, match=message):
        read(change(official))


def test_only_the_first_five_are_named(official):
    norms = [key for key in official if "norm1" in key]
    with pytest.raises(ValueError) as error:
        convert_official_state_dict(drop(*norms)(official))
    assert f"{len(norms)} missing: " in str(error.value)
    assert [key in str(error.value) for key in norms] == [True] * 5 + [False] * (len(norms) - 5)


@pytest.mark.parametrize("deit", [False, True], ids=["ViT", "distilled DeiT"])
def test_vit_and_deit_are_recognised(official, deit):
    """Their names are CaiT's without the class stage, LayerScale and talking heads."""
    vit = {
        key: t for key, t in official.items() if not any(p in key for p in ("token_only", "gamma", "proj_l", "proj_w"))
    }
    vit["pos_embed"] = torch.zeros(1, 18 if deit else 17, 48)
    if deit:
        vit |= {"dist_token": torch.zeros(1, 1, 48), "head_dist.weight": torch.zeros(5, 48)}
    for layout in (vit, {"model": {f"module.{key}": tensor for key, tensor in vit.items()}}):
        with pytest.raises(ValueError, match="not a CaiT checkpoint.*ViT or DeiT.*keys are cls_token"):
            convert_official_state_dict(layout)


@pytest.mark.parametrize("checkpoint", [{}, {"model": {}}, {"model": 3}, [], None, {"epoch": 3}], ids=str)
def test_what_is_no_checkpoint(checkpoint):
    with pytest.raises(ValueError, match="dictionary of tensors|not a CaiT checkpoint"):
        convert_official_state_dict(checkpoint)


def test_neither_format_is_taken_for_the_other(official):
    with pytest.raises(ValueError, match="not a CaiT checkpoint in the official format.*cait.embeddings.cls_token"):
        convert_official_state_dict(convert_official_state_dict(official))
    with pytest.raises(ValueError, match="missing: cait.embeddings.cls_token"):
        convert_to_official_state_dict(official)


def test_patches_that_are_no_square(official):
    official["pos_embed"] = torch.zeros(1, 15, 48)
    convert_official_state_dict(official)
    with pytest.raises(ValueError, match="pos_embed has 15 patches"):
        infer_config_kwargs(official)


@pytest.mark.parametrize(
    "change, message",
    [
        (drop("cait.layers.0.attention.k_proj.bias"), r"1 missing: cait.layers.0.attention.k_proj.bias \(48\)"),
        (drop("cait.layernorm.bias"), r"1 missing: cait.layernorm.bias \(48\)"),
        (put(head__weight=torch.zeros(5, 48)), "1 unknown: head.weight"),
        (put(cait__layernorm__bias=torch.zeros(47)), r"cait.layernorm.bias \(47\) instead of \(48\)"),
    ],
)
def test_the_way_back_names_what_does_not_fit(official, change, message):
    with pytest.raises(ValueError, match=message):
        convert_to_official_state_dict(change(convert_official_state_dict(official)))
