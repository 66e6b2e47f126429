# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""Transformers' own way to share code with a model: `register_for_auto_class`, then `save_pretrained`.

Each class is saved alone in a folder and loaded in a process without the package. That our own `--remote_code` writes
one folder for all of them, and what that folder contains, is tested in `test_publish.py`.
"""

import json
import os
import subprocess
import sys

import pytest
import remote_code
import torch
from PIL import Image
from random_weights import images, randomize_, tiny_config
from transformers.utils import is_torchvision_available

import cait_hf
from cait_hf import CaitBackbone, CaitConfig, CaitForImageClassification, CaitForMaskedImageModeling, CaitModel


MODELS = {
    "AutoModel": CaitModel,
    "AutoModelForImageClassification": CaitForImageClassification,
    "AutoModelForMaskedImageModeling": CaitForMaskedImageModeling,
    "AutoBackbone": CaitBackbone,
}
PROCESSORS = {"CaitImageProcessorPil": {"image_processing_pil_cait.py", "image_input.py"}}
if is_torchvision_available():
    PROCESSORS["CaitImageProcessor"] = remote_code.IMAGE_PROCESSORS

LOAD = """
import sys
sys.modules["cait_hf"] = None  # as if not installed
import torch
import transformers
from PIL import Image
from transformers.models.auto.image_processing_auto import AutoImageProcessor

auto_models, processors, inputs = torch.load("inputs.pt")
outputs, names = {}, []

def called(model):
    names.append((type(model).__module__, type(model).__name__))
    with torch.no_grad():
        return model.eval()(inputs, return_dict=False)[0]

for name in auto_models:
    auto_class = getattr(transformers, name)
    config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=True)
    if name == "AutoBackbone":  # its from_pretrained takes a folder for a repository
        model = type(auto_class.from_config(config, trust_remote_code=True)).from_pretrained(name)
    else:
        model = auto_class.from_pretrained(name, trust_remote_code=True)
    outputs[name] = called(model)
    if "again" not in sys.argv:
        model.save_pretrained("again/" + name)
image = Image.radial_gradient("L").convert("RGB")
for name in processors:
    processor = AutoImageProcessor.from_pretrained(name, trust_remote_code=True, backend=processors[name])
    names.append((type(processor).__module__, type(processor).__name__))
    outputs[name] = processor(image, return_tensors="pt").pixel_values
    if "again" not in sys.argv:
        processor.save_pretrained("again/" + name)
torch.save((outputs, names), "outputs.pt")
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder in it for each class, under the name by which it is loaded."""
    monkeypatch.setattr(CaitConfig, "_auto_class", None)  # restored afterwards
    CaitConfig.register_for_auto_class()
    for auto_class, model_class in MODELS.items():
        monkeypatch.setattr(model_class, "_auto_class", None)
        model_class.register_for_auto_class(auto_class)
        randomize_(model_class(tiny_config(out_indices=[1, 3]))).save_pretrained(tmp_path / auto_class)
    for name in PROCESSORS:
        processor_class = getattr(cait_hf, name)
        monkeypatch.setattr(processor_class, "_auto_class", None)
        processor_class.register_for_auto_class()
        processor_class(size={"shortest_edge": 32}, crop_size=32).save_pretrained(tmp_path / name)
    return tmp_path


def code_in(folder) -> set[str]:
    return {file.name for file in folder.rglob("*.py")}


def load_in_a_child(folder, *arguments: str) -> tuple[dict, list]:
    backends = {name: "pil" if name.endswith("Pil") else "torchvision" for name in PROCESSORS}
    torch.save((list(MODELS), backends, images(2, 32)), folder / "inputs.pt")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment["HF_MODULES_CACHE"] = str(folder / "modules")
    child = subprocess.run(
        [sys.executable, "-c", LOAD, *arguments], capture_output=True, text=True, env=environment, cwd=folder
    )
    assert child.returncode == 0, child.stderr
    return torch.load(folder / "outputs.pt")


def test_copied_files(folder, tmp_path):
    for auto_class in MODELS:
        assert code_in(folder / auto_class) == remote_code.MODEL
        auto_map = json.loads((folder / auto_class / "config.json").read_text())["auto_map"]
        assert set(auto_map) == {"AutoConfig", auto_class}
    for name, files in PROCESSORS.items():
        assert code_in(folder / name) == files
    tiny_config().save_pretrained(tmp_path / "config")
    assert code_in(tmp_path / "config") == remote_code.CONFIGURATION


def test_every_class_loads_without_the_package(folder):
    """And again from what the loaded classes saved, as after fine-tuning."""
    outputs, names = load_in_a_child(folder)
    assert [name for _, name in names] == [*(model.__name__ for model in MODELS.values()), *PROCESSORS]
    assert all(module.startswith("transformers_modules.") for module, _ in names)
    expected = expected_outputs(folder)
    assert_equal(outputs, expected)
    for name in expected:
        assert code_in(folder / "again" / name) == code_in(folder / name)
    outputs, names = load_in_a_child(folder / "again", "again")
    assert all(module.startswith("transformers_modules.") for module, _ in names)
    assert_equal(outputs, expected)


def expected_outputs(folder) -> dict:
    inputs, image = images(2, 32), Image.radial_gradient("L").convert("RGB")
    outputs = {}
    with torch.no_grad():
        for name, model_class in MODELS.items():
            outputs[name] = model_class.from_pretrained(folder / name)(inputs, return_dict=False)[0]
    for name in PROCESSORS:
        processor = getattr(cait_hf, name).from_pretrained(folder / name)
        outputs[name] = processor(image, return_tensors="pt").pixel_values
        assert outputs[name].shape == (1, 3, 32, 32) and outputs[name].std() > 0.5
    return outputs


def assert_equal(outputs: dict, expected: dict):
    assert outputs.keys() == expected.keys()
    for name, tensors in expected.items():
        pairs = zip(outputs[name], tensors, strict=True)  # the backbone's output is a tuple
        assert all((ours - theirs).abs().max() <= 1e-5 * theirs.abs().max() for ours, theirs in pairs), name
