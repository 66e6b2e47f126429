# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""CaitBackbone: feature maps against CaitModel, stages and their refusals, round trips, a model built on it."""

import json
import logging

import pytest
import safetensors
import torch
from official_files import write_xxs24_timm_folder
from random_weights import images, randomize_, tiny_config
from transformers import AutoBackbone, UperNetConfig, UperNetForSemanticSegmentation

from cait_hf import CaitBackbone, CaitConfig, CaitForImageClassification, CaitModel


STAGES = ["stem", "stage1", "stage2", "stage3"]


@pytest.fixture
def classifier() -> CaitForImageClassification:
    return randomize_(CaitForImageClassification(tiny_config()))


@pytest.fixture
def folder(classifier, tmp_path):
    classifier.save_pretrained(tmp_path / "classifier")
    return tmp_path / "classifier"


# --- feature maps


@torch.no_grad()
@pytest.mark.parametrize(("height", "width"), [(32, 32), (24, 48)])
@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize("reshaped", [True, False])
def test_feature_maps_are_the_hidden_states_of_the_model(classifier, folder, height, width, normalized, reshaped):
    backbone = CaitBackbone.from_pretrained(
        folder,
        out_features=STAGES,
        apply_layernorm=normalized,
        reshape_hidden_states=reshaped,
        interpolate_pos_encoding=True,
    )
    x = images(2, height, width)
    reference = classifier.cait(x, interpolate_pos_encoding=True, output_hidden_states=True)
    feature_maps = backbone(x).feature_maps
    for feature_map, expected in zip(feature_maps, reference.hidden_states, strict=True):
        if normalized:
            expected = classifier.cait.layernorm(expected)
        if reshaped:
            assert feature_map.shape == (2, 48, height // 8, width // 8)
            feature_map = feature_map.permute(0, 2, 3, 1).reshape(2, -1, 48)  # row by row
        torch.testing.assert_close(feature_map, expected)
    if normalized and not reshaped:
        torch.testing.assert_close(feature_maps[-1], reference.last_hidden_state[:, 1:])


@torch.no_grad()
def test_recorded_outputs(folder):
    backbone = CaitBackbone.from_pretrained(folder)
    plain = backbone(images(2, 32))
    assert set(plain.keys()) == {"feature_maps"} and len(plain.feature_maps) == 1
    outputs = backbone(images(2, 32), output_hidden_states=True, output_attentions=True)
    assert [state.shape for state in outputs.hidden_states] == [(2, 16, 48)] * 4
    assert [attention.shape for attention in outputs.attentions] == [(2, 4, 16, 16)] * 3
    torch.testing.assert_close(outputs.feature_maps[0], plain.feature_maps[0])
    (feature_maps,) = backbone(images(2, 32), return_dict=False)
    torch.testing.assert_close(feature_maps[0], plain.feature_maps[0])


def test_other_sizes_need_the_flag(folder):
    backbone = CaitBackbone.from_pretrained(folder)
    with pytest.raises(ValueError, match="set it in the configuration"):
        backbone(images(1, 24, 48))
    assert backbone(images(1, 24, 48), interpolate_pos_encoding=True).feature_maps[0].shape == (1, 48, 3, 6)
    resized = CaitBackbone.from_pretrained(folder, image_size=(24, 48))
    assert resized.config.image_size == (24, 48)
    expected = backbone(images(1, 24, 48), interpolate_pos_encoding=True).feature_maps[0]
    torch.testing.assert_close(resized(images(1, 24, 48)).feature_maps[0], expected)


# --- stages


@pytest.mark.parametrize(
    ("asked", "features", "indices"),
    [
        ({}, ["stage3"], [3]),
        ({"out_indices": [0, 2]}, ["stem", "stage2"], [0, 2]),
        ({"out_indices": (-4, 1, -1)}, ["stem", "stage1", "stage3"], [-4, 1, -1]),
        ({"out_features": ["stem", "stage3"]}, ["stem", "stage3"], [0, 3]),
        ({"out_features": ["stage1"], "out_indices": [1]}, ["stage1"], [1]),
        ({"out_features": ("stem", "stage1"), "out_indices": (0, 1)}, ["stem", "stage1"], [0, 1]),
    ],
)
def test_stages(asked, features, indices):
    config = tiny_config(**asked)
    assert config.stage_names == STAGES
    assert (config.out_features, config.out_indices) == (features, indices)
    for name, value in asked.items():
        assigned = tiny_config()
        setattr(assigned, name, value)
        assert assigned.out_features == features
    backbone = AutoBackbone.from_config(config)
    assert type(backbone) is CaitBackbone
    assert backbone.channels == [48] * len(features)
    assert len(backbone(images(1, 32)).feature_maps) == len(features)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"out_indices": [4]}, r"out_indices is \[4\], but it must be .* from 0 \(the stem\) to 3"),
        ({"out_indices": [-5]}, r"out_indices is \[-5\], but it must be .* from -4 to -1"),
        ({"out_features": ["stage4"]}, r"out_features is \['stage4'\], but it must be .* stem, stage1 to stage3"),
        ({"out_features": ["stages1"]}, "out_features is"),
        ({"out_features": "stage1"}, r"out_features is 'stage1', but it must be a list of names from stem, stage1"),
        ({"out_features": [1]}, r"out_features is \[1\], but it must be a list"),
        ({"out_features": []}, r"out_features is \[\], but it must be a list"),
        ({"out_features": ("stage1", "stage4")}, r"out_features is \('stage1', 'stage4'\), but"),
        ({"out_indices": 3}, "out_indices is 3, but it must be a list of integers"),
        ({"out_indices": []}, r"out_indices is \[\], but it must be a list"),
        ({"out_indices": ["1"]}, r"out_indices is \['1'\], but it must be a list"),
        ({"out_indices": [True]}, r"out_indices is \[True\], but it must be a list"),
        ({"out_features": ["stage2", "stage1"]}, "out_features must be in the same order"),
        ({"out_indices": [1, -3]}, "out_indices must not contain any duplicates"),
        ({"out_features": ["stage1"], "out_indices": [2]}, "out_features and out_indices"),
    ],
)
def test_stages_that_do_not_exist(asked, message, folder):
    with pytest.raises(ValueError, match=message):
        tiny_config(**asked)
    with pytest.raises(ValueError, match=message):
        CaitBackbone.from_pretrained(folder, **asked)
    config = tiny_config()
    if len(asked) == 1:
        ((name, value),) = asked.items()
        for target in (config, CaitBackbone(config)):
            with pytest.raises(ValueError, match=message):
                setattr(target, name, value)


# --- configurations and checkpoints


@pytest.mark.parametrize("asked", [{}, {"out_indices": [1, 2]}, {"out_features": ["stem"]}, {"out_indices": [-1]}])
@pytest.mark.parametrize("depth", [3, 24])
def test_round_trip(asked, depth, tmp_path):
    config = tiny_config(num_hidden_layers=depth, apply_layernorm=False, reshape_hidden_states=False, **asked)
    config.save_pretrained(tmp_path)
    loaded = CaitConfig.from_pretrained(tmp_path)
    assert {**loaded.to_dict(), "_name_or_path": ""} == config.to_dict()
    assert (loaded.out_features, loaded.out_indices) == (config.out_features, config.out_indices)
    assert (loaded.apply_layernorm, loaded.reshape_hidden_states) == (False, False)
    # other stages asked for at load replace the stored ones, and a stored default follows another depth
    other = CaitConfig.from_pretrained(tmp_path, out_indices=[2])
    assert (other.out_features, other.out_indices) == (["stage2"], [2])
    if not asked:
        deeper = CaitConfig.from_pretrained(tmp_path, num_hidden_layers=depth + 1)
        assert deeper.out_features == [f"stage{depth + 1}"] and len(deeper.stage_names) == depth + 2


def test_configurations_from_before_the_backbone_load(tmp_path):
    config = tiny_config().to_dict()
    for name in ("out_features", "out_indices", "apply_layernorm", "reshape_hidden_states"):
        config.pop(name)
    config["stage_names"] = ["stem", "stage1"]  # other models write it; here it follows the depth
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = CaitConfig.from_pretrained(tmp_path)
    assert loaded.stage_names == STAGES and loaded.out_features == ["stage3"]


@pytest.mark.parametrize("normalized", [True, False])
def test_checkpoint_of_a_classifier_loads_without_a_warning(folder, caplog, monkeypatch, normalized):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    backbone, info = CaitBackbone.from_pretrained(
        folder, out_indices=[1, 3], apply_layernorm=normalized, output_loading_info=True
    )
    assert not any(info.values()), info
    assert not caplog.records
    assert backbone.out_features == ["stage1", "stage3"]
    names = {name for name, _ in backbone.named_parameters()}
    assert not any("class" in name or "cls" in name for name in names)
    groups = {"embeddings", "layers.0", "layers.1", "layers.2"}
    assert backbone.layer_groups().keys() == groups | ({"head"} if normalized else set())


@torch.no_grad()
def test_backbone_saves_and_loads(folder, tmp_path):
    backbone = CaitBackbone.from_pretrained(folder, out_indices=[1, 3], apply_layernorm=False)
    backbone.save_pretrained(tmp_path / "backbone")
    loaded, info = CaitBackbone.from_pretrained(tmp_path / "backbone", output_loading_info=True)
    assert not any(info.values()), info
    for ours, theirs in zip(backbone(images(1, 32)).feature_maps, loaded(images(1, 32)).feature_maps):
        assert torch.equal(ours, theirs)
    # back into a classifier: what a backbone has no use for starts fresh, and is named
    _, info = CaitForImageClassification.from_pretrained(tmp_path / "backbone", output_loading_info=True)
    fresh = {key.removeprefix("cait.").split(".")[0] for key in info["missing_keys"]}
    assert fresh == {"class_layers", "classifier", "embeddings", "layernorm"}
    assert not info["unexpected_keys"]


@torch.no_grad()
def test_timm_repository_loads_into_a_backbone(tmp_path):
    folder = write_xxs24_timm_folder(tmp_path / "cait_xxs24_224.fb_dist_in1k")
    backbone, info = CaitBackbone.from_pretrained(folder, out_indices=[12, 24], output_loading_info=True)
    assert not any(info.values()), info
    model = CaitModel.from_pretrained(folder)
    expected = model(images(1, 224), output_hidden_states=True)
    for feature_map, index in zip(backbone(images(1, 224)).feature_maps, (12, 24)):
        reference = model.layernorm(expected.hidden_states[index])
        torch.testing.assert_close(feature_map.flatten(2).transpose(1, 2), reference)


# --- a model built on it


def test_upernet_on_cait_trains_a_step(folder, tmp_path):
    backbone_config = CaitConfig.from_pretrained(folder, out_indices=[0, 1, 2, 3], interpolate_pos_encoding=True)
    config = UperNetConfig(
        backbone_config=backbone_config, hidden_size=16, pool_scales=[1, 2], auxiliary_in_channels=48, num_labels=3
    )
    model = UperNetForSemanticSegmentation(config).train()
    assert type(model.backbone) is CaitBackbone
    model.backbone.load_state_dict(CaitBackbone.from_pretrained(folder, config=backbone_config).state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, labels = images(2, 24, 48), torch.arange(3).repeat(2, 24, 16)
    losses = []
    for _ in range(4):
        outputs = model(x, labels=labels)
        assert outputs.logits.shape == (2, 3, 24, 48)
        optimizer.zero_grad()
        outputs.loss.backward()
        for name, parameter in model.backbone.named_parameters():
            if not name.endswith(("proj_l_bias", "k_proj.bias")):  # softmax ignores what is equal over the keys
                assert (parameter.grad != 0).any(), name
        optimizer.step()
        losses.append(outputs.loss.item())
    assert losses[-1] < losses[0]

    model.eval().save_pretrained(tmp_path / "segmenter")
    with safetensors.safe_open(tmp_path / "segmenter" / "model.safetensors", "pt") as file:
        assert set(file.keys()) == set(model.state_dict())  # which Trainer's resume needs
    loaded = UperNetForSemanticSegmentation.from_pretrained(tmp_path / "segmenter")
    assert loaded.config.backbone_config.out_features == STAGES
    with torch.no_grad():
        torch.testing.assert_close(loaded(x).logits, model(x).logits)
