# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""`conversion/verify_checkpoint.py`: the entries of `expected_logits.json`, and a checkpoint that is checked for real.

The weights of that checkpoint are given by a formula (`write_synthetic_checkpoint`), so they are the same everywhere.
`python tests/test_verify_checkpoint.py FOLDER` writes it; `verify_checkpoint.py FOLDER --record` made its entry.
"""

import json
import math
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from random_weights import tiny_config
from safetensors.torch import load_file, save_file
from transformers import ViTConfig, ViTForImageClassification

from cait_hf import CHECKPOINTS, CaitConfig, CaitForImageClassification, CaitImageProcessorPil
from cait_hf.publish import add_remote_code


ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "conversion"))

import verify_checkpoint  # noqa: E402


SYNTHETIC = "synthetic-tiny"
NEEDS_TIMM = "the logits are compared with timm's"


@torch.no_grad()
def formula_weights_(model: torch.nn.Module) -> torch.nn.Module:
    """Element i of parameter k is `((7919 i^2 + 104729 i + 1299709 k) mod 65521) / 65521` on a scale of its kind."""
    for number, (name, parameter) in enumerate(model.named_parameters()):
        index = torch.arange(parameter.numel())
        values = (7919 * index**2 + 104729 * index + 1299709 * number) % 65521
        values = (values.double() / 65521 - 0.5).view(parameter.shape)
        if "lambda1" in name or (parameter.ndim == 1 and name.endswith("weight")):
            parameter.copy_(1.0 + values)
        else:
            scale = {1: 0.3, 3: 3.0}.get(parameter.ndim) or 5.0 * parameter[0].numel() ** -0.5
            parameter.copy_(scale * values)
    return model


def write_synthetic_checkpoint(folder: Path) -> Path:
    config = tiny_config()
    formula_weights_(CaitForImageClassification(config)).save_pretrained(folder)
    CaitImageProcessorPil(size=config.image_size, crop_size=config.image_size).save_pretrained(folder)
    return folder


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    return write_synthetic_checkpoint(tmp_path / "checkpoint")


@pytest.fixture
def expected_file(tmp_path) -> Path:
    """A copy that tests may change."""
    path = tmp_path / "expected.json"
    path.write_bytes(verify_checkpoint.EXPECTED_LOGITS.read_bytes())
    return path


def entries() -> dict:
    return json.loads(verify_checkpoint.EXPECTED_LOGITS.read_text(encoding="utf-8"))["checkpoints"]


def verify(*args) -> int:
    return verify_checkpoint.main([str(arg) for arg in args])


def change_weights(checkpoint: Path, key: str, change) -> None:
    weights = load_file(checkpoint / "model.safetensors")
    changed = change(weights.pop(key))
    weights |= {} if changed is None else {key: changed}
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})


def change_json(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture
def refused(checkpoint, capsys):
    """Checks that the script ends with one error message that contains the texts."""

    def check(*texts: str, options=(), source: Path = checkpoint) -> None:
        assert verify(source, *options) == 1
        printed = capsys.readouterr()
        assert printed.out == "" and printed.err.startswith("error: ") and printed.err.count("\n") == 1
        assert [text for text in texts if text not in printed.err] == []

    return check


# The file


def test_entries_are_the_ten_and_the_synthetic_one():
    configs = {each.hub_name: CaitConfig(**each.config_kwargs, num_labels=1000) for each in CHECKPOINTS}
    expected = {name: verify_checkpoint.architecture(config) for name, config in configs.items()}
    expected[SYNTHETIC] = verify_checkpoint.architecture(tiny_config())
    assert {name: entry["architecture"] for name, entry in entries().items()} == expected


def test_entries_have_logits_or_a_reason():
    for entry in entries().values():
        if entry["logits"] is None:
            assert len(entry["reason"]) > 20 and entry.get("recorded") is None
        else:
            assert np.shape(entry["logits"]) == (2, entry["architecture"]["num_labels"])
            assert 0 < entry["tolerance"] <= 1e-3
            assert {"torch", "timm", "transformers", "pillow"} == entry["recorded"]["versions"].keys()
    assert entries()[SYNTHETIC]["logits"] is not None


def test_formula_of_the_images():
    wide, tall = map(np.asarray, verify_checkpoint.formula_images(tiny_config()))
    assert wide.shape == (40, 48, 3) and tall.shape == (48, 40, 3)
    assert wide[7, 30].tolist() == [(30 + 21 + 13) % 256, (60 + 14 + 13) % 256, (90 + 7 + 13) % 256]
    assert tall[47, 39].tolist() == [(117 + 141 + 114) % 256, (156 + 94 + 114) % 256, (195 + 47 + 114) % 256]


# Against what was recorded


def test_synthetic_checkpoint_has_the_recorded_logits(checkpoint, capsys):
    assert verify(checkpoint) == 0
    assert "the logits differ from those recorded for synthetic-tiny by at most" in capsys.readouterr().out


DIFFERENT = ["differ from those recorded for synthetic-tiny", "than the 1e-04 allowed"]
NO_ENTRY = ["expected_logits.json has no entry for", "num_labels 6", "--against timm"]
OTHER_SIZE = ["makes images of shape (2, 3, 40, 40)", "needs (2, 3, 32, 32)"]
LACKING = ["lacks 1 tensors, the first are cait.layernorm.weight"]
VIT_SIZES = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}


def prepared(**changes):
    return lambda folder: change_json(folder / "preprocessor_config.json", **changes)


def weights(key: str, change=lambda tensor: 1.05 * tensor):
    return lambda folder: change_weights(folder, key, change)


def model(make):
    return lambda folder: make().save_pretrained(folder)


OTHERS = {
    "positions": (weights("cait.embeddings.position_embeddings"), DIFFERENT),
    "talking heads": (weights("cait.layers.1.attention.proj_l_weight"), DIFFERENT),
    "LayerScale": (weights("cait.layers.2.layer_scale1.lambda1"), DIFFERENT),
    "class layers": (weights("cait.class_layers.0.attention.v_proj.bias"), DIFFERENT),
    "classifier": (weights("classifier.weight"), DIFFERENT),
    "not a number": (weights("classifier.bias", lambda tensor: tensor * math.nan), ["by at most nan"]),
    "missing tensor": (weights("cait.layernorm.weight", lambda tensor: None), LACKING),
    "mean": (prepared(image_mean=[0.5, 0.5, 0.5]), DIFFERENT),
    "size": (prepared(size={"shortest_edge": 36}), DIFFERENT),  # as crop ratio 0.9 would have it
    "resample": (prepared(resample=2), DIFFERENT),
    "rescale": (prepared(do_rescale=False), DIFFERENT),
    "crop": (prepared(crop_size={"height": 40, "width": 40}), OTHER_SIZE),
    "labels": (model(lambda: formula_weights_(CaitForImageClassification(tiny_config(num_labels=6)))), NO_ENTRY),
    "ViT": (model(lambda: ViTForImageClassification(ViTConfig(**VIT_SIZES))), ["is a ViTForImageClassification"]),
    "truncated": (lambda folder: os.truncate(folder / "model.safetensors", 1000), ["cannot be loaded"]),
    "absent": (shutil.rmtree, ["checkpoint"]),
}


@pytest.mark.parametrize("damage, texts", OTHERS.values(), ids=OTHERS)
def test_other_checkpoint_is_noticed(checkpoint, damage, texts, refused):
    damage(checkpoint)
    refused(*texts)


def test_remote_code_in_the_folder_is_not_run(checkpoint):
    add_remote_code(checkpoint)
    for file in checkpoint.glob("*.py"):
        file.write_text("raise SystemExit('this ran')")
    assert verify(checkpoint) == 0


# What cannot be compared


def test_official_architecture_without_recorded_logits(tmp_path, refused, monkeypatch):
    """Before anything is computed; with few layers, and the entry made to fit, since the ten are large."""
    config = CaitConfig(num_hidden_layers=1, num_labels=1000)
    CaitForImageClassification(config).save_pretrained(tmp_path)
    content = json.loads(verify_checkpoint.EXPECTED_LOGITS.read_text())
    content["checkpoints"]["cait-xxs24-224"]["architecture"]["num_hidden_layers"] = 1
    (tmp_path / "expected.json").write_text(json.dumps(content))
    monkeypatch.setattr(verify_checkpoint, "prepare_images", None)
    texts = ("has no logits for cait-xxs24-224", "official weights", "pass --against timm.")
    refused(*texts, options=("--expected", tmp_path / "expected.json"), source=tmp_path)


@pytest.mark.parametrize(
    "content",
    ["not JSON", "[" * 100_000, "[]", '{"checkpoints": {"a": {"logits": null}}}', '{"checkpoints": 1}', None],
    ids=["no JSON", "nested", "list", "no architecture", "no entries", "no file"],
)
def test_damaged_file_of_expected_logits(expected_file, content, refused):
    expected_file.write_text(content) if content else expected_file.unlink()
    refused("JSON with an architecture" if content else "expected.json", options=("--expected", expected_file))


@pytest.mark.parametrize("change", [{"logits": [["a"]]}, {"tolerance": None}], ids=lambda change: next(iter(change)))
def test_entry_of_no_numbers(expected_file, change, refused):
    content = json.loads(expected_file.read_text())
    content["checkpoints"][SYNTHETIC] |= change
    expected_file.write_text(json.dumps(content))
    refused("for synthetic-tiny that are not numbers", options=("--expected", expected_file))


# Against timm, and recording


def test_against_timm(checkpoint, capsys):
    pytest.importorskip("timm", reason=NEEDS_TIMM)
    assert verify(checkpoint, "--against", "timm") == 0
    assert "differ from timm's by at most" in capsys.readouterr().out


def test_against_timm_notices_a_wrong_model(refused, monkeypatch):
    """As if the package computed something else than timm with the same weights."""
    pytest.importorskip("timm", reason=NEEDS_TIMM)
    forward = CaitForImageClassification.forward

    def wrong(self, *args, **kwargs):
        outputs = forward(self, *args, **kwargs)
        outputs.logits[1, 2] *= 1.01
        return outputs

    monkeypatch.setattr(CaitForImageClassification, "forward", wrong)
    refused("The logits differ from timm's", options=("--against", "timm"))


def test_timm_that_cannot_be_imported(refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    monkeypatch.setitem(sys.modules, "timm.models.cait", None)
    refused("needs timm, which cannot be imported", options=("--against", "timm"))


def test_record(checkpoint, expected_file):
    pytest.importorskip("timm", reason=NEEDS_TIMM)
    before = json.loads(expected_file.read_text())["checkpoints"]
    change_weights(checkpoint, "classifier.weight", lambda tensor: 1.5 * tensor)
    assert verify(checkpoint, "--expected", expected_file) == 1
    assert verify(checkpoint, "--expected", expected_file, "--record") == 0
    assert verify(checkpoint, "--expected", expected_file) == 0

    after = json.loads(expected_file.read_text())["checkpoints"]
    entry = after.pop(SYNTHETIC)
    assert entry["logits"] != before.pop(SYNTHETIC)["logits"] and entry["recorded"]["checkpoint"] == "checkpoint"
    assert after == before
    assert list(expected_file.parent.glob(".expected.json*")) == []


def test_nothing_is_recorded_of_a_model_that_disagrees(expected_file, refused, monkeypatch):
    pytest.importorskip("timm", reason=NEEDS_TIMM)
    before = expected_file.read_bytes()
    monkeypatch.setattr(verify_checkpoint, "timm_logits", lambda *args: torch.ones(2, 5))
    refused("differ from timm's", options=("--expected", expected_file, "--record"))
    assert expected_file.read_bytes() == before


if __name__ == "__main__":
    write_synthetic_checkpoint(Path(sys.argv[1]))
