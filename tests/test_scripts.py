# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""What tests of scripts share, and `scripts/quickstart.py`.

What is about a whole run starts the script as a child process, as a user does; what is about a message calls `main`.
"""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import warm_process
from PIL import Image
from sklearn.datasets import load_digits
from transformers import AutoModelForImageClassification

from cait_hf import CaitForImageClassification
from cait_hf.fashion_mnist import FOLDER


SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
NAMES = ("zero", "one", "two", "three", "four", "five")  # alphabetical order is not the order of the digits
TINY_FIELDS = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 16,
    "patch_size": 4,
}
TINY = ",".join(f"{name}={value}" for name, value in TINY_FIELDS.items())


def load_script(name: str, folder: Path = SCRIPTS):
    """The module of a script, or of the command that it runs."""
    spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return sys.modules[module.main.__module__] if hasattr(module, "main") else module


def load_scripts(folder: Path, *names: str) -> list:
    """Scripts of a folder that import each other, each after those that it imports.

    Other folders have modules of the same names: once loaded, these names lead to what they led to before.
    """
    before = {name: sys.modules[name] for name in names if name in sys.modules}
    modules = [load_script(name, folder) for name in names]
    for name in names:
        del sys.modules[name]
    sys.modules.update(before)
    return modules


quickstart = load_script("quickstart")


def run(name: str, *args, check: bool = True) -> subprocess.CompletedProcess:
    finished = warm_process.run_script(SCRIPTS / f"{name}.py", *args)
    assert not check or finished.returncode == 0, finished.stdout + finished.stderr
    return finished


def write_images(folder: Path, digits: range, per_class: int, skip: int = 0) -> Path:
    """Real scans of digits as PNG files, one subfolder a class."""
    data = load_digits()
    for digit in digits:
        (folder / NAMES[digit]).mkdir(parents=True)
        for index, scan in enumerate(data.images[data.target == digit][skip : skip + per_class]):
            Image.fromarray((scan * 15).astype(np.uint8)).save(folder / NAMES[digit] / f"{index}.png")
    return folder


def test_quickstart_writes_model_and_image(tmp_path):
    """After two steps; the model of an earlier run is replaced, and nothing is left beside it."""
    (tmp_path / "cait-digits").mkdir()
    (tmp_path / "cait-digits" / "old.txt").touch()
    output = run("quickstart", "--output_dir", tmp_path, "--max_steps", 2).stdout
    assert not (tmp_path / "cait-digits" / "old.txt").exists()
    stated = json.loads((FOLDER / "results.json").read_text(encoding="utf-8"))
    assert f"Of all 500 images of the sample it names {stated['sample_correct']} correctly" in output
    assert len(re.findall(r"^  \S.*?  \S.*?%\), .*?%\), .*?%\)$", output, re.MULTILINE)) == 12  # three guesses each
    assert re.search(r"^  CaiT before, .*%$\n^  CaiT after .*%$\n^  logistic .* 90.0%$", output, re.MULTILINE)
    assert str(tmp_path / "demo.png") in output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cait-digits", "demo.png"]
    with Image.open(tmp_path / "demo.png") as image:
        assert min(image.size) > 500
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "cait-digits")
    assert isinstance(model, CaitForImageClassification) and model.config.id2label[7] == "7"


@pytest.mark.slow
def test_quickstart_beats_the_baseline(tmp_path):
    output = run("quickstart", "--output_dir", tmp_path).stdout
    accuracy = float(re.search(r"CaiT after +([\d.]+)%", output)[1])
    assert accuracy > 92  # logistic regression on pixels has 90.0


def test_interrupted_quickstart_keeps_the_old_model(tmp_path):
    class Model:
        def save_pretrained(self, folder: Path):
            folder.mkdir()
            (folder / "config.json").write_text("half")
            raise KeyboardInterrupt

    (tmp_path / "cait-digits").mkdir()
    (tmp_path / "cait-digits" / "config.json").write_text("old")
    with pytest.raises(KeyboardInterrupt):
        quickstart.save(tmp_path / "cait-digits", Model(), None)
    assert [path.name for path in tmp_path.iterdir()] == ["cait-digits"]
    assert (tmp_path / "cait-digits" / "config.json").read_text() == "old"
