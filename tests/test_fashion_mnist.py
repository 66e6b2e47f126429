# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""The checkpoint in the package: loads without network, classifies as stated; the scripts that made it."""

import gzip
import hashlib
import importlib.util
import json
import math
import os
import re
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from test_scripts import SCRIPTS, TINY_FIELDS, load_script
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForMaskedImageModeling,
    Trainer,
    TrainingArguments,
)

from cait_hf import CaitConfig, CaitForImageClassification, CaitImageProcessorPil
from cait_hf.fashion_mnist import CHECKPOINT, FOLDER, load_sample
from cait_hf.training.arguments import RECIPES
from cait_hf.training.run_record import RunRecord


prepare, release = load_script("prepare_fashion_mnist"), load_script("release_fashion_mnist")
RESULTS = json.loads((FOLDER / "results.json").read_text(encoding="utf-8"))
NO_NETWORK = """
import socket
def refuse(*args, **kwargs):
    raise AssertionError("the network was used")
socket.socket.connect = socket.getaddrinfo = refuse
"""
COUNT = """
import torch
from transformers import AutoModelForImageClassification, pipeline
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from cait_hf.fashion_mnist import CHECKPOINT, load_sample

images, labels = load_sample()
model = AutoModelForImageClassification.from_pretrained(CHECKPOINT, dtype=torch.float32)
image_processor = AutoImageProcessor.from_pretrained(CHECKPOINT)
with torch.no_grad():
    predictions = model(**image_processor(images, return_tensors="pt")).logits.argmax(-1).tolist()
correct = sum(model.config.id2label[index] == label for index, label in zip(predictions, labels))
print(correct, len(labels))
print(pipeline("image-classification", CHECKPOINT)(images[0], top_k=1)[0]["label"], "|", labels[0])
"""


def test_a_fresh_process_without_network_gets_the_stated_count(tmp_path):
    """Not within a range: the images and the weights are files, and no two logits of the sample are that close."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment["HF_HOME"] = str(tmp_path / "empty")
    finished = subprocess.run(
        [sys.executable, "-c", NO_NETWORK + COUNT], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert finished.returncode == 0, finished.stderr
    count, pipelined = finished.stdout.strip().splitlines()[-2:]
    assert count == f"{RESULTS['sample_correct']} {RESULTS['sample_images']}"
    assert pipelined == "ankle boot | ankle boot"


@torch.no_grad()
def logits_of_the_sample(dtype: torch.dtype) -> torch.Tensor:
    model = CaitForImageClassification.from_pretrained(CHECKPOINT, dtype=dtype).eval()
    inputs = CaitImageProcessorPil.from_pretrained(CHECKPOINT)(load_sample()[0], return_tensors="pt")
    return model(inputs["pixel_values"].to(dtype)).logits


def test_no_image_of_the_sample_is_a_close_call():
    """Rounding differs between machines by about 1e-5; the best two logits of each image by 1e-3 at least. In float16,
    in which a plain `from_pretrained` computes, the classes are the same."""
    logits = logits_of_the_sample(torch.float32)
    best = logits.topk(2).values
    assert (best[:, 0] - best[:, 1]).min() > 1e-3
    assert (logits_of_the_sample(torch.float16).argmax(-1) == logits.argmax(-1)).float().mean() >= 0.99


def test_the_checkpoint_is_a_small_cait_in_half_precision():
    weights = load_file(FOLDER / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float16}
    assert (FOLDER / "model.safetensors").stat().st_size <= 4_000_000
    assert sum(tensor.numel() for tensor in weights.values()) == RESULTS["parameters"] <= 2_000_000
    config = CaitConfig.from_pretrained(CHECKPOINT)
    assert (config.patch_size, config.image_size, config.num_class_attention_layers) == (4, 28, 2)
    assert config.dtype == torch.float32
    layer_scales = [name for name in weights if name.endswith("lambda1")]
    assert len(layer_scales) == 2 * (config.num_hidden_layers + config.num_class_attention_layers)


@pytest.mark.parametrize("auto_class", [AutoModel, AutoModelForImageClassification, AutoModelForMaskedImageModeling])
def test_the_checkpoint_loads_in_float32(auto_class):
    for options in ({}, {"dtype": "auto"}):
        assert {parameter.dtype for parameter in auto_class.from_pretrained(CHECKPOINT, **options).parameters()} == {
            torch.float32
        }
    config = CaitConfig.from_pretrained(CHECKPOINT)
    assert auto_class.from_config(config).dtype == torch.float32


def test_the_checkpoint_trains_with_the_stock_trainer(tmp_path):
    """In float16 one epoch left it NaN."""
    images, labels = load_sample()
    model = AutoModelForImageClassification.from_pretrained(CHECKPOINT)
    pixel_values = CaitImageProcessorPil.from_pretrained(CHECKPOINT)(images, return_tensors="pt")["pixel_values"]
    examples = [
        {"pixel_values": image, "labels": model.config.label2id[label]} for image, label in zip(pixel_values, labels)
    ]
    options = {"learning_rate": 1e-3, "per_device_train_batch_size": 50, "num_train_epochs": 1, "save_strategy": "no"}
    Trainer(model, TrainingArguments(str(tmp_path), use_cpu=True, report_to="none", **options), None, examples).train()
    with torch.no_grad():
        predicted = model.eval()(pixel_values).logits.argmax(-1).tolist()
    assert np.mean([one == example["labels"] for one, example in zip(predicted, examples)]) > 0.85


def test_a_new_classifier_starts_near_the_loss_of_chance():
    images, _ = load_sample()
    pixel_values = CaitImageProcessorPil.from_pretrained(CHECKPOINT)(images[:100], return_tensors="pt")["pixel_values"]
    model = AutoModelForImageClassification.from_pretrained(CHECKPOINT, num_labels=4, ignore_mismatched_sizes=True)
    with torch.no_grad():
        loss = model(pixel_values, labels=torch.arange(100) % 4).loss.item()
    assert abs(loss - math.log(4)) < 0.1


def test_what_is_stated_agrees_with_itself():
    matrix = np.array(RESULTS["confusion_matrix"])
    assert matrix.sum(axis=1).tolist() == [1000] * 10
    assert np.trace(matrix) / 10_000 == pytest.approx(RESULTS["shipped_test_accuracy"])
    assert RESULTS["shipped_run"] == int(np.argmax(RESULTS["validation_accuracy"]))  # not chosen by the test split
    assert RESULTS["shipped_agrees_with_float32"] >= 0.999
    config = CaitConfig.from_pretrained(CHECKPOINT)
    assert (FOLDER / "README.md").read_text(encoding="utf-8") == release.card(RESULTS, config)


def test_setup_packs_every_file(monkeypatch):
    """All that lies in the packages' folders matches a pattern of setup.py, so that an installation has it."""
    settings = {}
    monkeypatch.setattr("setuptools.setup", lambda **kwargs: settings.update(kwargs))
    spec = importlib.util.spec_from_file_location("setup_of_cait_hf", SCRIPTS.parent / "setup.py")
    monkeypatch.chdir(SCRIPTS.parent)
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    found = set()
    for package in settings["packages"]:
        folder = Path("src", *package.split("."))
        names = {path.name for path in folder.iterdir() if path.suffix != ".py" and path.is_file()}
        patterns = settings["package_data"].get(package, [])
        assert [name for name in names if not any(fnmatch(name, pattern) for pattern in patterns)] == []
        found |= names
    assert {"model.safetensors", "sample.parquet", "LICENSE-fashion-mnist", "py.typed"} <= found


# How it was made


def write_idx(path: Path, array: np.ndarray):
    header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    path.write_bytes(gzip.compress(header + array.astype(np.uint8).tobytes()))


@pytest.fixture
def originals(tmp_path) -> Path:
    """The four files, with 240 images to train on; each image's first two pixels say which it is."""
    folder = tmp_path / "originals"
    folder.mkdir()
    for name, count in (("train", 240), ("t10k", 20)):
        scans = np.zeros((count, 28, 28), np.uint8)
        scans[:, 0, 0], scans[:, 0, 1] = np.arange(count), 100 * (name == "t10k")
        write_idx(folder / f"{name}-images-idx3-ubyte.gz", scans)
        write_idx(folder / f"{name}-labels-idx1-ubyte.gz", np.arange(count) % 10)
    return folder


def test_images_are_split_by_class_without_loss(originals, tmp_path, capsys):
    prepare.main(["--source", str(originals), "--output_dir", str(tmp_path / "data")])
    printed = capsys.readouterr().out
    seen = {}
    for name, count in (("train", 220), ("validation", 20), ("test", 20)):
        rows = datasets.Dataset.from_parquet(str(tmp_path / "data" / f"{name}.parquet"))
        scans = [np.asarray(image) for image in rows["image"]]
        assert len(scans) == count and scans[0].shape == (28, 28)
        assert rows.features["label"].names == prepare.CLASSES
        assert np.bincount(rows["label"]).tolist() == [count // 10] * 10  # as many of each class
        seen[name] = [int(scan[0, 0]) for scan in scans]
        assert rows["label"] == [index % 10 for index in seen[name]]
        assert {int(scan[0, 1]) for scan in scans} == {100 * (name == "test")}
        assert f"{name}.parquet: {count} images" in printed
    assert sorted(seen["train"] + seen["validation"]) == list(range(240)) and seen["test"] == list(range(20))


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda packed: None, "does not exist: install Debian's package"),
        (lambda packed: b"nothing", "is no IDX file of bytes"),
        (lambda packed: packed[:100], "is no IDX file of bytes"),
        (lambda packed: gzip.compress(gzip.decompress(packed)[:-1]), "is no IDX file of bytes"),
        (lambda packed: gzip.compress(b"\0\0\x0d" + gzip.decompress(packed)[3:]), "is no IDX file of bytes"),
    ],
    ids=["missing", "not gzip", "cut", "short", "other magic"],
)
def test_damaged_originals_end_with_an_error_message(damage, message, originals, tmp_path):
    path = originals / "train-images-idx3-ubyte.gz"
    content = damage(path.read_bytes())
    path.write_bytes(content) if content else path.unlink()
    with pytest.raises(SystemExit, match=f"{path.name} {message}"):
        prepare.main(["--source", str(originals), "--output_dir", str(tmp_path / "data")])
    assert not (tmp_path / "data").exists()


@pytest.fixture
def trainings(tmp_path, originals) -> list[Path]:
    """Two finished trainings, of which the second was better on the validation split, and the images.

    Their EMA weights are others, and better in the opposite order.
    """
    prepare.main(["--source", str(originals), "--output_dir", str(tmp_path / "data")])
    folders = [tmp_path / "seed0", tmp_path / "seed1"]
    for seed, folder in enumerate(folders):
        write_training(folder, seed, 0.8 - seed / 10, 0.5 + seed / 10)
    write_training(tmp_path / "teacher", 2, 0.5, 0.75)
    return folders


def write_training(folder: Path, seed: int, top1: float, ema_top1: float, **flags):
    fields = {**TINY_FIELDS, "id2label": dict(enumerate(prepare.CLASSES)), "initializer_range": 0.5}
    for weights in (folder, folder / "ema"):
        torch.manual_seed(seed + 10 * (weights == folder))
        CaitForImageClassification(CaitConfig(**fields)).save_pretrained(weights)
        CaitImageProcessorPil(size=16, crop_size=16).save_pretrained(weights)
    metrics = {"eval_top1": top1, "eval_ema_top1": ema_top1, "eval_loss": 9.0, "eval_ema_loss": 1.5}
    metrics["train_images_per_second"] = 220 * 3 / (60 + 60 * seed)
    (folder / "all_results.json").write_text(json.dumps(metrics))
    log = [{"loss": 2.0}, {"loss": 1.25}, {"train_runtime": 1.0}]
    (folder / "trainer_state.json").write_text(json.dumps({"log_history": log, "epoch": 3.0}))
    same = {"output_dir": str(folder), "dataset_name": "/a/path", "max_train_samples": 100, "num_train_epochs": 2}
    flags = {**same, "teacher_model_name_or_path": None, "config_overrides": "hidden_size=8", **flags}
    changes = [{"step": 1234, "flag": "num_train_epochs", "before": 4, "after": 2}] if seed == 1 else []
    RunRecord(flags, data={}, changes=changes).write(folder)


def release_flags(trainings: list[Path], tmp_path: Path, output: Path) -> list[str]:
    flags = ["--data", tmp_path / "data", "--output_dir", output, "--hardware", "an abacus"]
    flags += ["--teacher", tmp_path / "teacher"]
    return [str(flag) for flag in [*trainings, *flags]]


def test_release(trainings, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(release, "SAMPLE", 5)
    output = tmp_path / "released"
    results = release.main(release_flags(trainings, tmp_path, output))
    capsys.readouterr()
    assert results == json.loads((output / "results.json").read_text())
    assert results["shipped_run"] == 1 and len(results["test_accuracy"]) == 2

    shipped, trained = (load_file(folder / "model.safetensors") for folder in (output, trainings[1] / "ema"))
    for name, tensor in trained.items():
        assert torch.equal(shipped[name], tensor.half())
    config = CaitConfig.from_pretrained(output)
    assert config.dtype == torch.float32 and config.initializer_range == CaitConfig().initializer_range
    test = datasets.Dataset.from_parquet(str(tmp_path / "data" / "test.parquet"))
    sample = datasets.Dataset.from_parquet(str(output / "sample.parquet"))
    assert sample["label"] == test["label"][:5] and sample.features == test.features

    def correct(folder: Path) -> np.ndarray:
        model = CaitForImageClassification.from_pretrained(folder, dtype=torch.float32).eval()
        inputs = CaitImageProcessorPil.from_pretrained(folder)(list(test["image"]), return_tensors="pt")
        return model(**inputs).logits.argmax(-1).detach().numpy() == np.array(test["label"])

    of_shipped = correct(output)
    assert results["shipped_test_accuracy"] == of_shipped.mean()
    assert results["sample_correct"] == of_shipped[:5].sum()
    matrix = np.array(results["confusion_matrix"])
    assert np.trace(matrix) == of_shipped.sum() and matrix.sum(axis=1).tolist() == [2] * 10
    assert results["teacher"]["validation_accuracy"] == 0.75
    assert results["teacher"]["test_accuracy"] == correct(tmp_path / "teacher" / "ema").mean()

    card = (output / "README.md").read_text(encoding="utf-8")
    assert "The seeds took 1, 2 minutes for 3 epochs each on an abacus" in card
    assert "teacher's 3 minutes for 3" in card
    assert "loss was 1.25, 1.25 on" in card and "and 1.50, 1.50 on held-out ones" in card
    assert card.count("resumed") == 1
    assert "\nSeed 1 was resumed at step 1,234 with `num_train_epochs` 2 in the place of 4.\n" in card
    assert "(mean of 2 seeds" in card and "names\n75.0% of the held-out" in card
    assert "release_fashion_mnist.py outputs/seed0 outputs/seed1 --teacher outputs/teacher" in card
    assert len(re.findall(r"^\| T-shirt \|", card, re.MULTILINE)) == 1
    assert "What was tried" not in card


def test_release_of_one_seed_and_what_was_tried(trainings, tmp_path, monkeypatch, capsys):
    """Of short trainings the card has what differs, the best first, and no path."""
    monkeypatch.setattr(release, "SAMPLE", 5)
    tried = [tmp_path / "tried" / str(index) for index in range(3)]
    write_training(tried[0], 0, 0.5, 0.625, learning_rate=None)
    write_training(tried[1], 0, 0.5, 0.75, config_overrides="hidden_size=16", learning_rate=0.1)
    write_training(tried[2], 0, 0.5, 0.5, teacher_model_name_or_path="/a/teacher", learning_rate=0.1)
    output = tmp_path / "released"
    flags = [*release_flags(trainings[:1], tmp_path, output), "--tried", *map(str, tried)]
    results = release.main(flags)
    capsys.readouterr()
    names = ["max_train_samples", "num_train_epochs", "hidden_size", "learning_rate", "teacher", "held-out accuracy"]
    rows = [[100, 2, "16", 0.1, "no", 0.75], [100, 2, "8", "", "no", 0.625], [100, 2, "8", 0.1, "yes", 0.5]]
    assert results["tried"] == [names, *rows]
    card = (output / "README.md").read_text(encoding="utf-8")
    assert "(one seed). It names" in card and "The training took 1 minutes for 3 epochs on an abacus" in card
    assert "| 100 | 2 | 16 | 0.1 | no | 75.0% |" in card and "| 100 | 2 | 8 | 0.1 | yes | 50.0% |" in card
    assert "/a/" not in card + json.dumps(results)


def test_release_of_an_unfinished_training_ends_with_an_error_message(trainings, tmp_path):
    output = tmp_path / "released"
    with pytest.raises(SystemExit, match="error: .*nothing has no record of a training"):
        release.main([*release_flags(trainings, tmp_path, output), "--tried", str(tmp_path / "nothing")])
    (trainings[1] / "all_results.json").unlink()
    with pytest.raises(SystemExit, match="error: .*all_results.json"):
        release.main(release_flags(trainings, tmp_path, output))
    assert not output.exists()
    (trainings[1] / "all_results.json").write_text("{}")
    with pytest.raises(SystemExit, match="error: a training has no 'eval_ema_top1'"):
        release.main(release_flags(trainings, tmp_path, output))
    (trainings[0] / "trainer_state.json").write_text('{"log_history": [], "epoch": 1.0}')
    with pytest.raises(SystemExit, match="error: a training has no 'loss' in its log: it is not finished"):
        release.main(release_flags(trainings[:1], tmp_path, output))


def test_intervals():
    # 12.706 is t of one degree of freedom; the standard error of 89 and 91 is 1
    assert release.interval([0.89, 0.91]) == "90.00 ± 12.71" and release.interval([0.9]) == "90.00"
    # Wilson's by hand: z**2 = 3.8415, middle 0.5, half 1.96 / 1.038415 * sqrt(0.0025 + 0.0098**2) = 0.0962
    assert release.fraction(0.5, 100) == "50.00% (40.4 to 59.6 %)"


def test_sample_is_of_the_test_split():
    images, labels = load_sample()
    assert len(images) == len(labels) == RESULTS["sample_images"]
    assert all(isinstance(image, Image.Image) and image.size == (28, 28) and image.mode == "L" for image in images)
    assert {*labels} == {*prepare.CLASSES}
    first = ["ankle boot", "pullover", *2 * ["trouser"], "shirt", "trouser", "coat", "shirt", "sandal", "sneaker"]
    assert labels[:10] == first  # as github.com/zalandoresearch/fashion-mnist's t10k-labels-idx1 begins
    pixels = b"".join(image.tobytes() for image in images)
    sha256 = "00cc52584679205ab764cf9e1e98915407f8bb5a0ab0bd054345f1805679a298"
    assert hashlib.sha256(pixels).hexdigest() == sha256  # of t10k-images-idx3's bytes 16 to 392,016


def test_documentation_and_recipe_are_about_this_checkpoint():
    readme, training = (
        (SCRIPTS.parent / page).read_text(encoding="utf-8") for page in ("README.md", "docs/training.md")
    )
    values = 100 * np.array(RESULTS["test_accuracy"])
    accuracy = f"{values.mean():.1f} %"
    if len(values) > 1:
        student_t = {2: 12.706, 3: 4.303}[len(values)]
        accuracy = f"{values.mean():.1f} ± {student_t * values.std(ddof=1) / len(values) ** 0.5:.1f} %"
    assert accuracy in readme and accuracy in training
    assert f"{RESULTS['teacher']['test_accuracy']:.1%}".replace("%", " %") in training
    assert f"{RESULTS['parameters'] / 1e6:.1f} million parameters" in readme
    recipe = yaml.safe_load((RECIPES / "fashion_mnist.yaml").read_text(encoding="utf-8"))
    config = json.loads((FOLDER / "config.json").read_text(encoding="utf-8"))
    fields = dict(item.split("=") for item in recipe["config_overrides"].split(","))
    assert fields.pop("initializer_range") == "0.13"  # of a training from scratch
    assert len(fields) > 6 and all(str(config[name]) == value for name, value in fields.items())
    assert config["drop_path_rate"] == recipe["drop_path_rate"]
    assert recipe["num_train_epochs"] == RESULTS["trainings"][0]["epochs"]
    teacher = yaml.safe_load((RECIPES / "fashion_mnist_teacher.yaml").read_text(encoding="utf-8"))
    assert teacher["num_train_epochs"] == RESULTS["teacher"]["epochs"]
