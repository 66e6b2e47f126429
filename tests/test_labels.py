# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""The ImageNet-1k labels, and timm's configuration where they are not installed."""

import pytest
from test_timm_format import HUB_CONFIG

from cait_hf import labels
from cait_hf.labels import imagenet_1k_labels
from cait_hf.timm_format import config_kwargs_from_timm


def test_imagenet_labels():
    labels = imagenet_1k_labels()
    assert list(labels) == list(range(1000))
    assert len(set(labels.values())) == 1000  # id2label and label2id are inverse to each other
    assert labels[0] == "tench, Tinca tinca"
    assert labels[999] == "toilet tissue, toilet paper, bathroom tissue"


def test_imagenet_labels_are_those_of_timm():
    data = pytest.importorskip("timm.data", reason="compares with timm's names")
    descriptions = dict(enumerate(data.ImageNetInfo().label_descriptions()))
    changed = {134: "crane (bird)", 517: "crane (machine)"}
    assert descriptions[134] == descriptions[517] == "crane"
    assert imagenet_1k_labels() == {**descriptions, **changed}


def test_without_the_file_of_labels(tmp_path, monkeypatch):
    """Remote code brings the Python files only."""
    monkeypatch.setattr(labels, "__file__", str(tmp_path / "labels.py"))
    labels._read_imagenet_1k_labels.cache_clear()
    with pytest.raises(FileNotFoundError):
        imagenet_1k_labels()
    assert config_kwargs_from_timm(HUB_CONFIG)["id2label"][999] == "LABEL_999"
