# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""`conversion/verify_checkpoint.py`: the entries of `expected_logits.json`, and a checkpoint that is checked for real.

The weights of that checkpoint are given by a formula (`write_synthetic_checkpoint`), so they are the same everywhere.
`python tests/test_verify_checkpoint.py FOLDER` writes it; `verify_checkpoint.py FOLDER --record` made its entry.
"""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from random_weights import tiny_config
from safetensors.torch import load_file, save_file

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
            values = 1.0 + values
        elif parameter.ndim == 1:
            values = 0.3 * values
        elif parameter.ndim == 3:
            values = 3.0 * values
        else:
            values = 5.0 * parameter[0].numel() ** -0.5 * values
        parameter.copy_(values)
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
    weights[key] = change(weights[key])
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})


def change_json(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def assert_refused(exit_code: int, capsys, *texts: str) -> None:
    printed = capsys.readouterr()
    assert exit_code == 1 and printed.out == ""
    assert printed.err.startswith("error: ") and printed.err.count("\n") == 1
    for text in texts:
        assert text in printed.err


# The file


def test_entries_are_the_ten_and_the_synthetic_one():
    architectures = {
        checkpoint.hub_name: verify_checkpoint.architecture(CaitConfig(**checkpoint.config_kwargs, num_labels=1000))
        for checkpoint in CHECKPOINTS
    }
    assert {name: entry["architecture"] for name, entry in entries().items()} == {
        **architectures,
        SYNTHETIC: verify_checkpoint.architecture(tiny_config()),
    }


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


@pytest.mark.parametrize(
    "key",
    [
        "cait.embeddings.position_embeddings",
        "cait.layers.1.attention.proj_l_weight",
        "cait.layers.2.layer_scale1.lambda1",
        "cait.class_layers.0.attention.v_proj.bias",
        "classifier.weight",
    ],
)
def test_other_weights_are_noticed(checkpoint, key, capsys):
    change_weights(checkpoint, key, lambda tensor: 1.05 * tensor)
    assert_refused(
        verify(checkpoint), capsys, "differ from those recorded for synthetic-tiny", "than the 1e-04 allowed"
    )


def test_weights_that_are_not_numbers_are_noticed(checkpoint, capsys):
    change_weights(checkpoint, "classifier.bias", lambda tensor: tensor * float("nan"))
    assert_refused(verify(checkpoint), capsys, "by at most nan")


@pytest.mark.parametrize(
    "changes",
    [
        {"image_mean": [0.5, 0.5, 0.5]},
        {"size": {"shortest_edge": 36}},  # as crop ratio 0.9 would have it
        {"resample": 2},
        {"do_rescale": False},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_other_preprocessing_is_noticed(checkpoint, changes, capsys):
    change_json(checkpoint / "preprocessor_config.json", **changes)
    assert_refused(verify(checkpoint), capsys, "differ from those recorded")


def test_images_of_another_size_are_refused(checkpoint, capsys):
    change_json(checkpoint / "preprocessor_config.json", crop_size={"height": 40, "width": 40})
    assert_refused(verify(checkpoint), capsys, "makes images of shape (2, 3, 40, 40)", "needs (2, 3, 32, 32)")


def test_remote_code_in_the_folder_is_not_run(checkpoint):
    add_remote_code(checkpoint)
    for file in checkpoint.glob("*.py"):
        file.write_text("raise SystemExit('this ran')")
    assert verify(checkpoint) == 0


# What cannot be compared


def test_official_architecture_without_recorded_logits(tmp_path, capsys, monkeypatch):
    """Before anything is computed; with few layers, and the entry made to fit, since the ten are large."""
    config = CaitConfig(num_hidden_layers=1, num_labels=1000)
    CaitForImageClassification(config).save_pretrained(tmp_path)
    content = json.loads(verify_checkpoint.EXPECTED_LOGITS.read_text())
    content["checkpoints"]["cait-xxs24-224"]["architecture"]["num_hidden_layers"] = 1
    (tmp_path / "expected.json").write_text(json.dumps(content))
    monkeypatch.setattr(verify_checkpoint, "prepare_images", None)
    exit_code = verify(tmp_path, "--expected", tmp_path / "expected.json")
    assert_refused(exit_code, capsys, "has no logits for cait-xxs24-224", "official weights", "pass --against timm.")


def test_unknown_architecture(checkpoint, capsys):
    formula_weights_(CaitForImageClassification(tiny_config(num_labels=6))).save_pretrained(checkpoint)
    assert_refused(
        verify(checkpoint), capsys, "expected_logits.json has no entry for", "num_labels 6", "--against timm"
    )


@pytest.mark.parametrize(
    "content",
    ["not JSON", "[]", '{"checkpoints": {"a": {"logits": null}}}', '{"checkpoints": 1}'],
    ids=["no JSON", "list", "no architecture", "no entries"],
)
def test_damaged_file_of_expected_logits(checkpoint, expected_file, content, capsys):
    expected_file.write_text(content)
    assert_refused(verify(checkpoint, "--expected", expected_file), capsys, "but it must be JSON with an architecture")


@pytest.mark.parametrize("change", [{"logits": [["a"]]}, {"tolerance": None}], ids=lambda change: next(iter(change)))
def test_entry_of_no_numbers(checkpoint, expected_file, change, capsys):
    content = json.loads(expected_file.read_text())
    content["checkpoints"][SYNTHETIC] |= change
    expected_file.write_text(json.dumps(content))
    assert_refused(verify(checkpoint, "--expected", expected_file), capsys, "for synthetic-tiny that are not numbers")


def test_missing_file_of_expected_logits(checkpoint, tmp_path, capsys):
    assert_refused(verify(checkpoint, "--expected", tmp_path / "absent.json"), capsys, "absent.json")


def test_absent_checkpoint(tmp_path, capsys):
    assert_refused(verify(tmp_path / "absent"), capsys, "absent")


def test_missing_tensor(checkpoint, capsys):
    weights = load_file(checkpoint / "model.safetensors")
    del weights["cait.layernorm.weight"]
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    assert_refused(verify(checkpoint), capsys, "lacks 1 tensors, the first are cait.layernorm.weight")


def test_damaged_weights(checkpoint, capsys):
    file = checkpoint / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    assert_refused(verify(checkpoint), capsys, "cannot be loaded")


def test_another_model(tmp_path, capsys):
    from transformers import ViTConfig, ViTForImageClassification

    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    ViTForImageClassification(ViTConfig(**sizes, image_size=32)).save_pretrained(tmp_path)
    assert_refused(verify(tmp_path), capsys, "is a ViTForImageClassification")


# Against timm, and recording


def test_against_timm(checkpoint, capsys):
    pytest.importorskip("timm", reason=NEEDS_TIMM)
    assert verify(checkpoint, "--against", "timm") == 0
    assert "differ from timm's by at most" in capsys.readouterr().out


def test_against_timm_notices_a_wrong_model(checkpoint, capsys, monkeypatch):
    """As if the package computed something else than timm with the same weights."""
    pytest.importorskip("timm", reason=NEEDS_TIMM)
    forward = CaitForImageClassification.forward

    def wrong(self, *args, **kwargs):
        outputs = forward(self, *args, **kwargs)
        outputs.logits[1, 2] *= 1.01
        return outputs

    monkeypatch.setattr(CaitForImageClassification, "forward", wrong)
    assert_refused(verify(checkpoint, "--against", "timm"), capsys, "The logits differ from timm's")


def test_timm_that_cannot_be_imported(checkpoint, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    monkeypatch.setitem(sys.modules, "timm.models.cait", None)
    assert_refused(verify(checkpoint, "--against", "timm"), capsys, "needs timm, which cannot be imported")


def test_record(checkpoint, expected_file, capsys):
    pytest.importorskip("timm", reason=NEEDS_TIMM)
    before = json.loads(expected_file.read_text())["checkpoints"]
    change_weights(checkpoint, "classifier.weight", lambda tensor: 1.5 * tensor)
    assert verify(checkpoint, "--expected", expected_file) == 1
    assert verify(checkpoint, "--expected", expected_file, "--record") == 0
    assert verify(checkpoint, "--expected", expected_file) == 0

    after = json.loads(expected_file.read_text())["checkpoints"]
    assert after[SYNTHETIC]["logits"] != before[SYNTHETIC]["logits"]
    assert after[SYNTHETIC]["recorded"]["checkpoint"] == "checkpoint"
    assert {name: entry for name, entry in after.items() if name != SYNTHETIC} == {
        name: entry for name, entry in before.items() if name != SYNTHETIC
    }
    assert list(expected_file.parent.glob(".expected.json*")) == []


def test_nothing_is_recorded_of_a_model_that_disagrees(checkpoint, expected_file, capsys, monkeypatch):
    pytest.importorskip("timm", reason=NEEDS_TIMM)
    before = expected_file.read_bytes()
    monkeypatch.setattr(verify_checkpoint, "timm_logits", lambda *args: torch.ones(2, 5))
    assert_refused(verify(checkpoint, "--expected", expected_file, "--record"), capsys, "differ from timm's")
    assert expected_file.read_bytes() == before


if __name__ == "__main__":
    write_synthetic_checkpoint(Path(sys.argv[1]))
