# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""timm's configurations read as CaitConfig, and back."""

import json

import pytest
import torch

from cait_hf import CHECKPOINTS, CaitConfig, CaitForImageClassification
from cait_hf.labels import imagenet_1k_labels
from cait_hf.timm_format import (
    architecture_kwargs,
    config_kwargs_from_timm,
    timm_model_args,
)


every_checkpoint = pytest.mark.parametrize("checkpoint", CHECKPOINTS, ids=lambda checkpoint: checkpoint.official_name)

# config.json of timm/cait_xxs24_224.fb_dist_in1k, in the form that timm uploaded it in 2023
HUB_CONFIG = {
    "architecture": "cait_xxs24_224",
    "num_classes": 1000,
    "num_features": 192,
    "global_pool": "token",
    "pretrained_cfg": {
        "tag": "fb_dist_in1k",
        "custom_load": False,
        "input_size": [3, 224, 224],
        "fixed_input_size": True,
        "interpolation": "bicubic",
        "crop_pct": 1.0,
        "crop_mode": "center",
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "num_classes": 1000,
        "pool_size": None,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
    },
}


def hub_config(pretrained_cfg=(), **changes):
    return {**HUB_CONFIG, "pretrained_cfg": {**HUB_CONFIG["pretrained_cfg"], **dict(pretrained_cfg)}, **changes}


def test_timm_config_of_the_hub():
    config = CaitConfig(**config_kwargs_from_timm(HUB_CONFIG))
    assert {name: getattr(config, name) for name in CHECKPOINTS[0].config_kwargs} == CHECKPOINTS[0].config_kwargs
    assert config.num_channels == 3 and config.patch_size == 16 and config.qkv_bias
    assert config.id2label == imagenet_1k_labels()
    assert config.label2id["tench, Tinca tinca"] == 0


@every_checkpoint
def test_timm_config_by_architecture_alone(checkpoint):
    kwargs = config_kwargs_from_timm({"architecture": checkpoint.timm_name, "pretrained_cfg": {}})
    assert checkpoint.config_kwargs.items() <= kwargs.items()


@pytest.mark.parametrize(
    "model_args, expected",
    [
        ({"img_size": 384}, {"image_size": 384}),
        ({"img_size": [384, 384]}, {"image_size": 384}),
        ({"img_size": [160, 224]}, {"image_size": (160, 224)}),
        ({"patch_size": 32}, {"patch_size": 32}),
        ({"patch_size": [16, 32]}, {"patch_size": (16, 32)}),
        ({"in_chans": 1}, {"num_channels": 1}),
        ({"embed_dim": 96}, {"hidden_size": 96, "intermediate_size": 384}),
        ({"depth": 36}, {"num_hidden_layers": 36, "layer_scale_init_value": 1e-5}),  # timm keeps the architecture's
        ({"num_heads": 8}, {"num_attention_heads": 8}),
        ({"mlp_ratio": 3.0, "mlp_ratio_token_only": 3.0}, {"intermediate_size": 576}),
        ({"qkv_bias": False}, {"qkv_bias": False}),
        ({"init_values": 0.5}, {"layer_scale_init_value": 0.5}),
        ({"depth_token_only": 3}, {"num_class_attention_layers": 3}),
        ({"proj_drop_rate": 0.1, "pos_drop_rate": 0.1}, {"hidden_dropout_prob": 0.1}),
        ({"attn_drop_rate": 0.2}, {"attention_probs_dropout_prob": 0.2}),
        ({"drop_path_rate": 0.3}, {"drop_path_rate": 0.3}),
        ({"drop_path_rate": None}, {}),
        ({"num_classes": 7, "global_pool": "token", "drop_rate": 0.0}, {"num_labels": 7}),
    ],
    ids=str,
)
def test_timm_model_args(model_args, expected):
    config = CaitConfig(**config_kwargs_from_timm(hub_config(model_args=model_args)))
    unchanged = CaitConfig(**config_kwargs_from_timm(HUB_CONFIG))
    names = {name for name in CaitConfig.__annotations__ if not name.startswith("_")}  # stages follow the depth
    names.add("num_labels")
    assert {name: getattr(config, name) for name in names} == {
        name: expected.get(name, getattr(unchanged, name)) for name in names
    }


def test_input_size_of_the_pretrained_cfg_wins_over_the_architecture():
    kwargs = config_kwargs_from_timm(hub_config({"input_size": [1, 64, 96]}))
    assert kwargs["num_channels"] == 1 and kwargs["image_size"] == (64, 96)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"architecture": None}, "architecture is 'None'"),
        ({"global_pool": "avg"}, "global_pool is 'avg'"),
        ({"model_args": {"global_pool": "avg"}}, "global_pool is 'avg'"),
        ({"model_args": {"drop_rate": 0.1}}, "drop_rate is 0.1"),
        ({"model_args": {"mlp_ratio": 3.0}}, "mlp_ratio_token_only is 4.0 .* only have 3.0"),
        ({"model_args": {"pos_drop_rate": 0.1}}, "pos_drop_rate is 0.1 .* only have 0.0"),
        ({"model_args": {"proj_drop_rate": 0.1}}, "pos_drop_rate is 0.0 .* only have 0.1"),
        ({"model_args": {"norm_layer": "rmsnorm", "act_layer": "silu"}}, "model_args has act_layer, norm_layer"),
        ({"label_names": ["cat", "dog"]}, "label_names has 2 names .* must be 1000"),
        ({"label_names": ["cat", "dog"], "num_classes": 1}, "label_names has 2 names .* must be 1"),
    ],
    ids=str,
)
def test_timm_config_that_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        config_kwargs_from_timm(hub_config(**changes))


@pytest.mark.parametrize("names", [["n1", "n2"], {"0": "n1", "1": "n2"}], ids=["list", "dictionary"])
@pytest.mark.parametrize("place", ["top level", "pretrained_cfg"])
def test_label_names_and_descriptions(names, place):
    entries = {"label_names": names, "label_descriptions": {"n1": "cat"}}
    config = hub_config(num_classes=2, **entries) if place == "top level" else hub_config(entries, num_classes=2)
    kwargs = config_kwargs_from_timm(config)
    assert kwargs["id2label"] == {0: "cat", 1: "n2"}
    assert kwargs["label2id"] == {"cat": 0, "n2": 1}


def test_descriptions_that_are_not_unique_are_left_alone():
    entries = {"label_names": ["n1", "n2"], "label_descriptions": {"n1": "crane", "n2": "crane"}}
    assert config_kwargs_from_timm(hub_config(num_classes=2, **entries))["id2label"] == {0: "n1", 1: "n2"}


def test_other_classes_get_no_imagenet_labels():
    assert config_kwargs_from_timm(hub_config(num_classes=3))["id2label"] == {i: f"LABEL_{i}" for i in range(3)}
    assert config_kwargs_from_timm(hub_config({"tag": "mine"}))["id2label"][0] == "LABEL_0"
    assert config_kwargs_from_timm(hub_config(num_classes=0))["id2label"] == {}


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"img_size": 64, "depth": 2, "num_classes": 10},
        {"img_size": (32, 64), "in_chans": 1, "patch_size": 8, "depth": 1, "depth_token_only": 1, "qkv_bias": False},
        {"embed_dim": 40, "num_heads": 5, "depth": 1, "mlp_ratio": 2.5, "mlp_ratio_token_only": 2.5, "num_classes": 0},
    ],
    ids=str,
)
def test_config_that_timm_saves(overrides, tmp_path):
    timm = pytest.importorskip("timm", reason="timm writes the file")
    from timm.models._hub import save_config_for_hf

    with torch.device("meta"):
        timm_model = timm.create_model("cait_xxs24_224", **overrides)
        save_config_for_hf(timm_model, tmp_path / "config.json")
        config = CaitConfig(**config_kwargs_from_timm(json.loads((tmp_path / "config.json").read_text())))
        model = CaitForImageClassification(config)
    assert model.num_parameters() == sum(parameter.numel() for parameter in timm_model.parameters())
    assert config.num_labels == overrides.get("num_classes", 1000)


@pytest.mark.parametrize("hidden_size, intermediate_size", [(192, 768), (64, 100), (11, 15), (55, 29)])
def test_timm_model_args_are_the_inverse(hidden_size, intermediate_size):
    """(11, 15): 11 * (15 / 11) is 14.999... in floating point, and timm rounds it down."""
    config = CaitConfig(
        hidden_size=hidden_size,
        num_attention_heads=1,
        intermediate_size=intermediate_size,
        image_size=(32, 64),
        hidden_dropout_prob=0.1,
        attention_probs_dropout_prob=0.2,
        drop_path_rate=0.3,
        qkv_bias=False,
        num_labels=3,
    )
    model_args = json.loads(json.dumps(timm_model_args(config)))
    back = CaitConfig(**config_kwargs_from_timm(hub_config(model_args=model_args)))
    assert back.to_dict() == config.to_dict()


@pytest.mark.parametrize("option", [{"hidden_act": "relu"}, {"layer_norm_eps": 1e-5}], ids=str)
def test_options_that_timm_lacks(option):
    name, value = next(iter(option.items()))
    with pytest.raises(ValueError, match=f"{name} is {value!r}"):
        timm_model_args(CaitConfig(**option))


def test_a_name_of_another_depth_contains_its_architecture():
    config = CaitConfig(**config_kwargs_from_timm({"architecture": "cait_s12_160.mine", "pretrained_cfg": {}}))
    assert (config.hidden_size, config.num_attention_heads, config.intermediate_size) == (384, 8, 1536)
    assert (config.num_hidden_layers, config.image_size, config.layer_scale_init_value) == (12, 160, 0.1)


NO_CAIT = ["vit_tiny_patch16_224", "cait_xxl24_224", "cait_s24", "cait_s24_224_v2", "CAIT_S24_224", ""]


@pytest.mark.parametrize("name", NO_CAIT)
def test_a_name_that_is_refused(name):
    with pytest.raises(ValueError, match=rf"architecture is '{name}'.*xxs, xs, s, m"):
        architecture_kwargs(name)
