# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""From the Hub into every class: ours and timm's format, whole and sharded, online and offline, and into timm.

The real client asks the loopback Hub. Remote code is loaded in `test_publish.py`.
"""

import copy
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import HfApi
from huggingface_hub.constants import HF_HUB_CACHE
from official_files import TINY_TIMM, official_tensors, write_timm_folder
from PIL import Image
from random_weights import images, randomize_, tiny_config
from transformers import AutoConfig, AutoModel, AutoModelForImageClassification, pipeline
from transformers.models.auto.image_processing_auto import AutoImageProcessor

import cait_hf
from cait_hf import (
    CHECKPOINTS,
    CaitCheckpoint,
    CaitConfig,
    CaitForImageClassification,
    CaitImageProcessorPil,
    CaitModel,
)
from cait_hf.publish import push_folder


CONVERSION = Path(__file__).parent.parent / "conversion"
sys.path.insert(0, str(CONVERSION))
import convert_hf_to_timm  # noqa: E402


def save_model(folder, config, **kwargs) -> CaitForImageClassification:
    model = randomize_(CaitForImageClassification(config))
    model.save_pretrained(folder, **kwargs)
    size = config.image_size
    CaitImageProcessorPil(size={"shortest_edge": size}, crop_size=size).save_pretrained(folder)
    return model


def upload(folder, repo_id):
    HfApi().create_repo(repo_id)
    HfApi().upload_folder(repo_id=repo_id, folder_path=folder)


@torch.no_grad()
def logits_of(model, size) -> torch.Tensor:
    output = model(images(1, size))
    return getattr(output, "logits", output)


def assert_equal(found, expected):
    """Up to the rounding of float32, which differs between equal tensors at other places in memory."""
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def image(size) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (size + 7, size + 20, 3), dtype=np.uint8))


def check_every_class(repo_id, model):
    """Everything that Transformers offers for a classifier gives what `model` gives."""
    config, size = model.config, model.config.image_size
    assert type(AutoConfig.from_pretrained(repo_id)) is CaitConfig
    classifier = AutoModelForImageClassification.from_pretrained(repo_id)
    assert type(classifier) is CaitForImageClassification and classifier.config.id2label == config.id2label
    expected = logits_of(model, size)
    assert_equal(logits_of(classifier, size), expected)
    base = AutoModel.from_pretrained(repo_id)
    assert type(base) is CaitModel
    with torch.no_grad():
        assert_equal(model.classifier(base(images(1, size)).pooler_output), expected)

    processor = AutoImageProcessor.from_pretrained(repo_id)
    assert type(processor).__name__ in ("CaitImageProcessorPil", "CaitImageProcessor")
    assert processor.crop_size["height"] == processor.size["shortest_edge"] == size
    with torch.no_grad():
        logits = model(processor(image(size), return_tensors="pt").pixel_values).logits
    best = pipeline("image-classification", model=repo_id, top_k=1)(image(size))[0]
    assert best["label"] == config.id2label[logits.argmax().item()]
    assert best["score"] == pytest.approx(logits.softmax(-1).max().item(), rel=1e-3)


@pytest.mark.parametrize(
    "checkpoint",
    [CHECKPOINTS[0], *(pytest.param(checkpoint, marks=pytest.mark.slow) for checkpoint in CHECKPOINTS[1:])],
    ids=lambda checkpoint: checkpoint.official_name,
)
def test_ten_checkpoints(checkpoint, hub, repo_id, tmp_path):
    """The M models only 2 layers deep."""
    depth = 2 if checkpoint.official_name.startswith("M") else checkpoint.num_hidden_layers
    config = CaitConfig(**checkpoint.config_kwargs | {"num_hidden_layers": depth}, num_labels=1000)
    model = save_model(tmp_path / "model", config)
    push_folder(tmp_path / "model", repo_id)
    check_every_class(repo_id, model)


def test_sharded(hub, repo_id, tmp_path):
    model = save_model(tmp_path / "model", tiny_config(), max_shard_size="100KB")
    assert not (tmp_path / "model" / "model.safetensors").exists()
    push_folder(tmp_path / "model", repo_id)
    check_every_class(repo_id, model)
    assert hub.count(r"GET .*resolve/.*model-\d+-of-\d+\.safetensors") > 2


def test_shards_that_are_missing_or_outside(hub, repo_id, tmp_path):
    """What an index names outside the folder is neither asked from the Hub nor written outside the cache."""
    save_model(tmp_path / "model", tiny_config(), max_shard_size="100KB")
    next((tmp_path / "model").glob("model-00002-*")).unlink()
    upload(tmp_path / "model", repo_id)
    with pytest.raises(OSError, match="model-00002"):
        AutoModelForImageClassification.from_pretrained(repo_id)
    index = tmp_path / "model" / "model.safetensors.index.json"
    index.write_text(index.read_text().replace("model-00001", "../../../../evil-00001"))
    HfApi().upload_folder(repo_id=repo_id, folder_path=tmp_path / "model")
    with pytest.raises((OSError, ValueError)):
        AutoModelForImageClassification.from_pretrained(repo_id)
    assert list(Path(HF_HUB_CACHE).parent.rglob("evil*")) == []


@pytest.mark.parametrize("field", ["num_hidden_layers", "num_class_attention_layers", "hidden_size"])
def test_configuration_of_a_billion(field, hub, repo_id):
    hub.create(repo_id)
    config = tiny_config().to_dict() | {field: 10**9}
    hub.write(repo_id, {"config.json": json.dumps(config).encode(), "model.safetensors": b"never read"})
    with pytest.raises(ValueError, match=f"{field} is 1000000000"):
        AutoModelForImageClassification.from_pretrained(repo_id)


OFFLINE = """
import sys
import cait_hf
from transformers import AutoModel, AutoModelForImageClassification, pipeline
from transformers.models.auto.image_processing_auto import AutoImageProcessor
ours, timms = sys.argv[1:]
AutoModel.from_pretrained(ours)
model = AutoModelForImageClassification.from_pretrained(ours)
AutoImageProcessor.from_pretrained(ours)
print(type(model).__name__, type(cait_hf.CaitForImageClassification.from_pretrained(timms)).__name__)
cait_hf.CaitImageProcessorPil.from_pretrained(timms)
try:
    AutoModel.from_pretrained("tester/never-seen")
except OSError:
    print("refused")
"""


def test_offline_from_the_cache(hub, repo_id, tmp_path):
    """In a process with HF_HUB_OFFLINE=1, after an online load; the Hub is not asked anything."""
    save_model(tmp_path / "model", tiny_config())
    push_folder(tmp_path / "model", repo_id)
    upload(write_timm_folder(tmp_path / "timm", official_tensors(tiny_config())), f"{repo_id}-timm")
    AutoModelForImageClassification.from_pretrained(repo_id)
    AutoImageProcessor.from_pretrained(repo_id)
    CaitForImageClassification.from_pretrained(f"{repo_id}-timm")
    hub.requests.clear()
    command, offline = [sys.executable, "-c", OFFLINE, repo_id, f"{repo_id}-timm"], {"HF_HUB_OFFLINE": "1"}
    child = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **offline})
    assert child.returncode == 0, child.stderr
    assert child.stdout.split() == ["CaitForImageClassification", "CaitForImageClassification", "refused"]
    assert hub.requests == []


def test_timm_format_straight_from_the_hub(hub, repo_id, tmp_path):
    official = official_tensors(tiny_config())
    upload(write_timm_folder(tmp_path / "timm", official, label_names=list("abcde")), repo_id)
    config = CaitConfig.from_pretrained(repo_id)
    assert config.num_hidden_layers == TINY_TIMM["depth"] and list(config.id2label.values()) == list("abcde")
    model = randomize_(CaitForImageClassification(tiny_config()))
    loaded = CaitForImageClassification.from_pretrained(repo_id)
    assert_equal(logits_of(loaded, 32), logits_of(model, 32))
    base = CaitModel.from_pretrained(repo_id)
    with torch.no_grad():
        assert_equal(model.classifier(base(images(1, 32)).pooler_output), logits_of(model, 32))
    processor = CaitImageProcessorPil.from_pretrained(repo_id)
    assert processor(image(32), return_tensors="pt").pixel_values.shape == (1, 3, 32, 32)
    revision = HfApi().model_info(repo_id).sha
    hub.write(repo_id, {"config.json": b"{}"})
    loaded = CaitForImageClassification.from_pretrained(repo_id, revision=revision)
    assert_equal(logits_of(loaded, 32), logits_of(model, 32))


def test_short_names(hub, repo_id, tmp_path, monkeypatch):
    """An official name is timm's repository, here under an id of the test's own."""
    model, image_processor = cait_hf.from_pretrained("fashion_mnist")
    assert model.config.num_labels == 10 and image_processor.crop_size["height"] == 28 and not model.training
    upload(write_timm_folder(tmp_path / "timm", official_tensors(tiny_config())), repo_id)
    monkeypatch.setattr(CaitCheckpoint, "timm_repo", repo_id)
    expected = logits_of(randomize_(CaitForImageClassification(tiny_config())), 32)
    for name in ("XXS24_224", repo_id, tmp_path / "timm"):
        model, image_processor = cait_hf.from_pretrained(str(name), dtype=torch.float64)
        assert model.dtype == torch.float64 and image_processor.crop_size["height"] == 32
        assert_equal(logits_of(model.float(), 32), expected)
    revision = HfApi().model_info(repo_id).sha
    hub.write(repo_id, {"config.json": b"{}"})
    model, image_processor = cait_hf.from_pretrained("XXS24_224", revision=revision)
    assert_equal(logits_of(model, 32), expected)
    with pytest.raises(FileNotFoundError, match="XXS25"):
        cait_hf.from_pretrained("XXS25")


def test_auto_classes_on_a_timm_repository_with_our_configuration(hub, repo_id, tmp_path, caplog):
    """They take it and give our classes; `pipeline` would not hand it on to them, so it is refused."""
    folder = write_timm_folder(tmp_path / "timm", official_tensors(tiny_config()))
    upload(folder, repo_id)
    config = CaitConfig.from_pretrained(repo_id)
    assert "timm_wrapper" not in caplog.text
    model = AutoModelForImageClassification.from_pretrained(repo_id, config=config)
    image_processor = AutoImageProcessor.from_pretrained(repo_id, config=config)
    assert type(model) is CaitForImageClassification
    assert type(image_processor).__name__ in ("CaitImageProcessorPil", "CaitImageProcessor")
    for source in (repo_id, str(folder)):
        with pytest.raises(ValueError, match=rf"{repo_id}, in timm's format.*cait_hf\.from_pretrained"):
            pipeline("image-classification", model=source, config=config)
    from_dict = CaitConfig.from_dict(json.loads((folder / "config.json").read_text()))
    for copied in (copy.deepcopy(config), pickle.loads(pickle.dumps(config)), from_dict):
        with pytest.raises(ValueError, match=r"in timm's format.*cait_hf\.from_pretrained"):
            pipeline("image-classification", model=repo_id, config=copied)
    logits = model(image_processor(image(32), return_tensors="pt").pixel_values).logits
    classify = pipeline("image-classification", model=model, image_processor=image_processor)
    assert classify(image(32))[0]["label"] == config.id2label[logits.argmax().item()]


def test_pipeline_takes_our_configuration_of_our_format(tmp_path):
    """Also once it is saved after reading timm's, with a model or by itself; tasks of a configuration's own stay."""
    folder = write_timm_folder(tmp_path / "timm", official_tensors(tiny_config()))
    model, image_processor = cait_hf.from_pretrained(str(folder))
    for saved in (model, image_processor):
        saved.save_pretrained(tmp_path / "ours")
    stored = CaitConfig.from_pretrained(tmp_path / "ours")
    for config in (model.config, stored):
        classify = pipeline("image-classification", model=str(tmp_path / "ours"), config=config)
        assert type(classify.model) is CaitForImageClassification
    CaitConfig.from_pretrained(folder).save_pretrained(tmp_path / "ours")  # by itself: without architectures
    written = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert "architectures" not in written and not [name for name in written if "timm" in name]
    for config in ({}, {"config": CaitConfig.from_pretrained(tmp_path / "ours")}):
        classify = pipeline("image-classification", model=str(tmp_path / "ours"), **config)
        assert type(classify.model) is CaitForImageClassification
    assert "custom_pipelines" not in stored.to_dict()
    stored.custom_pipelines = {"task": {"impl": "file.Class"}}
    stored.save_pretrained(tmp_path / "with_tasks")
    assert CaitConfig.from_pretrained(tmp_path / "with_tasks").custom_pipelines == stored.custom_pipelines


def test_round_trip_through_timm(hub, repo_id, tmp_path):
    """Ours, converted, into timm by `hf-hub:`; pushed again by timm, into ours."""
    timm = pytest.importorskip("timm", reason="the other end is timm")
    from timm.models import push_to_hf_hub

    model = save_model(tmp_path / "model", tiny_config())
    expected = logits_of(model, 32)
    arguments = ["--source", str(tmp_path / "model"), "--output_dir", str(tmp_path / "timm")]
    assert convert_hf_to_timm.main(arguments) == 0
    upload(tmp_path / "timm", repo_id)
    timm_model = timm.create_model(f"hf-hub:{repo_id}", pretrained=True).eval()
    assert_equal(logits_of(timm_model, 32), expected)

    again = f"{repo_id}-again"
    push_to_hf_hub(timm_model, again, model_config={"model_args": {**TINY_TIMM, "mlp_ratio": 2.0}})
    shutil.rmtree(tmp_path / "timm")
    assert_equal(logits_of(CaitForImageClassification.from_pretrained(again), 32), expected)
