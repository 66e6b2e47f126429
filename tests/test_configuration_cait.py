# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""CaitConfig: defaults, the LayerScale rule, what is refused and in which words, and the round trip to disk."""

import json

import pytest
from huggingface_hub.errors import StrictDataclassFieldValidationError
from transformers import AutoConfig, ViTConfig

from cait_hf import CaitConfig


@pytest.mark.parametrize(("depth", "value"), [(1, 0.1), (18, 0.1), (19, 1e-5), (24, 1e-5), (25, 1e-6), (48, 1e-6)])
def test_layer_scale_follows_the_depth_rule(depth, value):
    assert CaitConfig(num_hidden_layers=depth).layer_scale_init_value == value


def test_resolved_layer_scale_is_saved_and_an_explicit_one_kept(tmp_path):
    CaitConfig(num_hidden_layers=36).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["layer_scale_init_value"] == 1e-6
    # the saved value wins over the rule when the depth is overridden
    assert CaitConfig.from_pretrained(tmp_path, num_hidden_layers=12).layer_scale_init_value == 1e-6
    assert CaitConfig(num_hidden_layers=36, layer_scale_init_value=0.3).layer_scale_init_value == 0.3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"num_attention_heads": 5}, ["hidden_size is 192", "multiple of num_attention_heads (5)"]),
        ({"image_size": 230}, ["image_size is 230", "multiple of patch_size (16)"]),
        ({"image_size": (224, 230)}, ["image_size is (224, 230)", "multiple of patch_size (16)"]),
        ({"image_size": 0}, ["image_size is 0", ">= 1"]),
        ({"patch_size": (16, -16)}, ["patch_size is (16, -16)", ">= 1"]),
        ({"image_size": [224]}, ["image_size is [224]", "(height, width)"]),
        ({"num_hidden_layers": 0}, ["num_hidden_layers is 0", "from 1 to"]),
        ({"num_hidden_layers": 10**9}, ["num_hidden_layers is 1000000000", "from 1 to 1024"]),
        ({"num_class_attention_layers": 0}, ["num_class_attention_layers is 0", "from 1 to"]),
        ({"hidden_size": -192}, ["hidden_size is -192", "from 1 to"]),
        ({"num_channels": 0}, ["num_channels is 0", "from 1 to"]),
        ({"drop_path_rate": 1.0}, ["drop_path_rate is 1.0", "[0, 1)"]),
        ({"drop_path_rate": -0.1}, ["drop_path_rate is -0.1", "[0, 1)"]),
        ({"hidden_dropout_prob": float("nan")}, ["hidden_dropout_prob is nan", "[0, 1)"]),
        ({"attention_probs_dropout_prob": 2}, ["attention_probs_dropout_prob is 2", "[0, 1)"]),
        ({"layer_norm_eps": 0.0}, ["layer_norm_eps is 0.0", "> 0"]),
        ({"initializer_range": float("inf")}, ["initializer_range is inf", "> 0"]),
        ({"layer_scale_init_value": -1.0}, ["layer_scale_init_value is -1.0", ">= 0"]),
        ({"layer_scale_init_value": float("nan")}, ["layer_scale_init_value is nan", ">= 0"]),
        ({"num_labels": 10**9}, ["num_labels is 1000000000", "from 0 to"]),
        ({"num_labels": -1}, ["num_labels is -1", "from 0 to"]),
        ({"num_labels": 3, "id2label": {0: "cat", 1: "dog"}}, ["num_labels is 3", "labels in id2label (2)"]),
        (
            {"id2label": {0: "cat", 1: "dog"}, "label2id": {"cat": 1, "dog": 0}},
            ["label2id is {'cat': 1, 'dog': 0}", "the inverse of id2label ({0: 'cat', 1: 'dog'})"],
        ),
        ({"id2label": {0: "cat", 1: "dog"}, "label2id": {"cat": 0}}, ["label2id is {'cat': 0}", "inverse"]),
        ({"id2label": {0: "cat"}, "label2id": {"cat": 0, "dog": 1}}, ["label2id is", "inverse"]),
        ({"image_size": 2**24, "patch_size": 2**24}, ["patch_size is 16777216", "at most"]),
        ({"image_size": 160000000}, ["image_size is 160000000", "patches"]),
        ({"problem_type": "multilabel"}, ["problem_type", "multilabel"]),
        ({"hidden_act": "gelo"}, ["hidden_act is 'gelo'", "gelu"]),
    ],
)
def test_wrong_value_is_refused_with_an_error_message(arguments, words):
    with pytest.raises(ValueError) as error:
        CaitConfig(**arguments)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize("arguments", [{"hidden_size": "192"}, {"qkv_bias": "no"}, {"image_size": (1, 2, 3)}])
def test_wrong_type_is_refused(arguments):
    (name,) = arguments
    with pytest.raises(StrictDataclassFieldValidationError, match=name):
        CaitConfig(**arguments)


def test_overrides_at_load_are_checked_together(tmp_path):
    CaitConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="num_attention_heads"):
        CaitConfig.from_pretrained(tmp_path, num_attention_heads=5)
    config = CaitConfig.from_pretrained(tmp_path, hidden_size=240, num_attention_heads=5, num_labels=7)
    assert (config.hidden_size, config.num_attention_heads, config.num_labels) == (240, 5, 7)
    config, unused = CaitConfig.from_pretrained(tmp_path, image_size=384, color="red", return_unused_kwargs=True)
    assert config.image_size == 384
    assert unused == {"color": "red"}


@pytest.mark.parametrize("image_size", [224, (224, 192)])
def test_round_trip(tmp_path, image_size):
    config = CaitConfig(image_size=image_size, drop_path_rate=0.1, id2label={0: "cat", 1: "dog", 2: "owl"})
    config.save_pretrained(tmp_path)
    for loaded in (CaitConfig.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
        assert isinstance(loaded, CaitConfig)
        assert {**loaded.to_dict(), "_name_or_path": ""} == config.to_dict()
        assert loaded.image_size == image_size
        assert loaded.id2label == {0: "cat", 1: "dog", 2: "owl"}


def test_subclasses_are_checked_at_load_too():
    class Relative(CaitConfig):
        model_type = "cait_relative"

    with pytest.raises(ValueError, match="hidden_size is 193"):
        Relative.from_dict({"model_type": "cait_relative"}, hidden_size=193)
    assert Relative.from_dict({}, num_hidden_layers=36).layer_scale_init_value == 1e-6


def test_label2id_follows_id2label():
    assert CaitConfig(id2label={0: "cat", 1: "dog"}).label2id == {"cat": 0, "dog": 1}
    assert CaitConfig(num_labels=2).label2id == {"LABEL_0": 0, "LABEL_1": 1}
    twice = {0: "crane", 1: "crane", 2: "dog"}
    for label2id in ({"crane": 0, "dog": 2}, {"crane": 1, "dog": 2}):
        assert CaitConfig(id2label=twice, label2id=label2id).num_labels == 3


def test_labels_asked_for_at_load_replace_the_stored_ones(tmp_path, caplog):
    CaitConfig(id2label={0: "cat", 1: "dog"}).save_pretrained(tmp_path)
    for load in (CaitConfig.from_pretrained, AutoConfig.from_pretrained):
        assert load(tmp_path, num_labels=2).id2label == {0: "cat", 1: "dog"}
        other = load(tmp_path, num_labels=3)
        assert (other.num_labels, other.label2id) == (3, {"LABEL_0": 0, "LABEL_1": 1, "LABEL_2": 2})
        named = load(tmp_path, id2label={"0": "ant", "1": "bee", "2": "elk"})  # strings, as many scripts have them
        assert (named.num_labels, named.label2id) == (3, {"ant": 0, "bee": 1, "elk": 2})
        named = load(tmp_path, num_labels=1, id2label={0: "ant"}, label2id={"ant": "0"})
        assert (named.num_labels, named.id2label) == (1, {0: "ant"})
        config, unused = load(tmp_path, id2label={0: "ant"}, color="red", return_unused_kwargs=True)
        assert (config.num_labels, unused) == (1, {"color": "red"})
        for wrong in ({"num_labels": 3, "id2label": {0: "ant"}}, {"label2id": {"cat": 1, "dog": 0}}):
            with pytest.raises(ValueError, match="num_labels is 3|label2id is"):
                load(tmp_path, **wrong)
    assert not caplog.records


def test_labels_assigned_one_by_one_load(tmp_path):
    """Transformers saves a `label2id` that nobody assigned as it was."""
    config = CaitConfig(num_labels=1)
    config.id2label = {0: "cat"}
    config.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["label2id"] == {"LABEL_0": 0}
    assert CaitConfig.from_pretrained(tmp_path).label2id == {"cat": 0}


def test_configuration_of_another_model_is_refused(tmp_path):
    ViTConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="model_type='vit'"):
        CaitConfig.from_pretrained(tmp_path)


def test_default_logs_nothing(caplog):
    CaitConfig()
    assert not caplog.records
