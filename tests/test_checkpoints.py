# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""The table of the ten official checkpoints."""

import re
from dataclasses import replace

import pytest

from cait_hf import CHECKPOINTS, CaitConfig, find_checkpoint
from cait_hf.cards.checkpoint import render_model_card


every_checkpoint = pytest.mark.parametrize("checkpoint", CHECKPOINTS, ids=lambda checkpoint: checkpoint.official_name)


def test_names_are_the_official_ones():
    assert [checkpoint.official_function for checkpoint in CHECKPOINTS] == [
        "cait_XXS24_224",
        "cait_XXS24",
        "cait_XXS36_224",
        "cait_XXS36",
        "cait_XS24",
        "cait_S24_224",
        "cait_S24",
        "cait_S36",
        "cait_M36",
        "cait_M48",
    ]
    m48 = CHECKPOINTS[-1]
    assert m48.filename == "M48_448.pth"
    assert m48.url == "https://dl.fbaipublicfiles.com/deit/M48_448.pth"
    assert m48.timm_repo == "timm/cait_m48_448.fb_dist_in1k"
    assert m48.hub_name == "cait-m48-448"


@every_checkpoint
def test_names_and_sizes_are_those_of_timm(checkpoint):
    timm = pytest.importorskip("timm", reason="compares with timm's registry")
    pretrained_cfg = timm.get_pretrained_cfg(checkpoint.timm_repo.removeprefix("timm/"))
    assert pretrained_cfg.url == checkpoint.url
    assert pretrained_cfg.input_size == (3, checkpoint.image_size, checkpoint.image_size)
    assert len(timm.list_models("cait_*")) == len(CHECKPOINTS)


@every_checkpoint
def test_accuracies_agree_with_each_other(checkpoint):
    assert checkpoint.timm_gmacs == pytest.approx(checkpoint.published_gmacs, rel=0.02)
    assert (checkpoint.published_top1 is None) == (checkpoint.published_top1_source is None)
    if checkpoint.published_top1:
        assert checkpoint.timm_accuracy.imagenet[0] == pytest.approx(checkpoint.published_top1, abs=0.1)
    if checkpoint.published_top5:
        assert checkpoint.timm_accuracy.imagenet[1] == pytest.approx(checkpoint.published_top5, abs=0.1)
    assert all(top1 < top5 < 100 for top1, top5 in checkpoint.timm_accuracy)
    assert (checkpoint.timm_file_sha256 is None) == (checkpoint.timm_file_sha256_source is None)
    if checkpoint.timm_file_sha256:
        assert re.fullmatch("[0-9a-f]{64}", checkpoint.timm_file_sha256)
    if checkpoint.timm_file_megabytes:
        assert checkpoint.timm_file_megabytes == pytest.approx(4e-6 * checkpoint.num_parameters, rel=0.005)


@every_checkpoint
def test_find_checkpoint_knows_every_name(checkpoint):
    names = ("official_name", "filename", "official_function", "timm_name", "timm_repo", "hub_name")
    for name in names:
        assert find_checkpoint(getattr(checkpoint, name)) is checkpoint
        assert find_checkpoint(getattr(checkpoint, name).upper()) is checkpoint


@pytest.mark.parametrize("name", ["XXS24", "cait_xxs12_224", "", "timm/vit_tiny_patch16_224"])
def test_find_checkpoint_lists_what_it_knows(name):
    with pytest.raises(ValueError, match=rf"name is '{name}'.*XXS24_224 .*M48_448 \(timm/cait_m48_448"):
        find_checkpoint(name)


def test_xxs36_keeps_the_layer_scale_of_the_official_code():
    assert [checkpoint.layer_scale_init_value for checkpoint in CHECKPOINTS] == [1e-5] * 7 + [1e-6] * 3


def test_a_checkpoint_that_was_not_measured_has_a_card():
    bare = {"timm_accuracy": None, "published_gmacs": None, "published_gmacs_source": None, "timm_gmacs": None}
    checkpoint = replace(CHECKPOINTS[0], official_name="XXS12_224", **bare)
    card = render_model_card(CaitConfig(**checkpoint.config_kwargs, num_labels=1000), "me/cait", checkpoint=checkpoint)
    assert "timm/cait_xxs12_224" in card and "| None" not in card and "By timm's results" not in card
