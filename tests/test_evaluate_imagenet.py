# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""`scripts/evaluate_imagenet.py` on scans of digits whose labels are chosen by the rank that the model gives them.

The logits behind every expected number come from the model and its image processor, one image at a time, sorted by
numpy; none of the script's own code is asked.
"""

import dataclasses
import io
import json
import re
import shutil
import signal
import sys
import tarfile
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
import warm_process
from PIL import Image
from random_weights import randomize_, tiny_config
from sklearn.datasets import load_digits
from test_scripts import SCRIPTS, load_script
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

from cait_hf import CaitForImageClassification, CaitImageProcessorPil
from cait_hf.checkpoints import find_checkpoint
from cait_hf.evaluation.imagenet import Prepare, class_index, indices_of_classes, synset_indices
from cait_hf.evaluation.ranks import best_ranks
from cait_hf.labels import imagenet_1k_labels


script = load_script("evaluate_imagenet")
SCRIPT = SCRIPTS / "evaluate_imagenet.py"
COUNT = 23  # no multiple of a batch size below, nor of two
RANKS = ([0, 3, 0, 7, 4, 0, 5, 1] * 3)[:COUNT]  # that the labels of the images get
SECONDS = 240  # for a child process on a busy machine
FLAGS = ["--num_workers", "0", "--batch_size", "4"]


def files_of(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file())


def save_scan(index: int, file: Path):
    file.parent.mkdir(parents=True, exist_ok=True)
    scan = (load_digits().images[index] * 15).astype(np.uint8)
    Image.fromarray(scan).resize((40, 32)).save(file, quality=95)


def logits_of(folder: Path, index: int, **options) -> np.ndarray:
    """Of one image by the model in `folder`, in the most plain way."""
    file = io.BytesIO()
    file.name = "scan.jpeg"
    scan = (load_digits().images[index] * 15).astype(np.uint8)
    Image.fromarray(scan).resize((40, 32)).save(file, quality=95)
    processor = CaitImageProcessorPil.from_pretrained(folder, **options.get("processor", {}))
    model = CaitForImageClassification.from_pretrained(folder, **options.get("model", {}))
    with torch.no_grad():
        return model(**processor(Image.open(file), return_tensors="pt")).logits[0].numpy()


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory) -> Path:
    """A tiny CaiT with 1000 classes whose outputs are not called anything."""
    return save_model(tmp_path_factory.mktemp("models") / "tiny")


def save_model(folder: Path, seed: int = 0, **config) -> Path:
    config = {"num_labels": 1000, "intermediate_size": 192, **config}
    randomize_(CaitForImageClassification(tiny_config(**config)), seed).save_pretrained(folder)
    processor = CaitImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def order(model_dir) -> list[np.ndarray]:
    """Of each image: the classes by their logits, the best first."""
    return [np.argsort(-logits_of(model_dir, index), kind="stable") for index in range(COUNT)]


@pytest.fixture(scope="module")
def labels(order) -> list[int]:
    return [int(classes[rank]) for classes, rank in zip(order, RANKS)]


@pytest.fixture(scope="module")
def data_dir(labels, tmp_path_factory) -> Path:
    """Folders called by numbers, as those of ImageNet-V2."""
    folder = tmp_path_factory.mktemp("numbers")
    for index, label in enumerate(labels):
        save_scan(index, folder / str(label) / f"{index:02}.jpeg")
    return folder


def run(*args, code: int = 0) -> int:
    found = script.main([*map(str, args), *FLAGS])
    assert found == code
    return found


def evaluate(model: Path, output: Path, *args) -> dict:
    run(model, "--output", output, *args)
    return json.loads(output.read_text())


def accuracies(results: dict) -> tuple[float, float]:
    return results["accuracy"]["top1"]["ours"], results["accuracy"]["top5"]["ours"]


def fractions(ranks: Iterable[int]) -> tuple:
    ranks = np.array(ranks)
    return pytest.approx(100 * np.mean(ranks < 1)), pytest.approx(100 * np.mean(ranks < 5))


def error_of(capsys, *args) -> str:
    """The error message of the script."""
    datasets.disable_progress_bars()
    run(*args, code=1)
    datasets.enable_progress_bars()
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and "Traceback" not in error
    return error


def test_numeric_folders(model_dir, data_dir, labels, tmp_path, capsys):
    """Sorted as text the folders would be other classes."""
    assert sorted(map(str, set(labels))) != list(map(str, sorted(set(labels))))
    results = evaluate(model_dir, tmp_path / "new" / "results.json", "--data_dir", data_dir, "--test_set", "v2")
    assert accuracies(results) == fractions(RANKS)
    hits = np.array(RANKS) < 5
    assert results["accuracy"]["top5"]["standard_error"] == pytest.approx(100 * hits.std() / COUNT**0.5)
    assert (results["num_images"], results["image_size"], results["dtype"]) == (COUNT, [32, 32], "float32")
    assert results["images_per_second"] > 0 and results["checkpoint"] is None
    printed = capsys.readouterr().out
    assert f"{100 * hits.mean():.3f}" in printed and "Not the whole set: 23 of 10,000 images." in printed
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["results.json"]


def synsets() -> list[str]:
    timm_data = pytest.importorskip("timm.data", reason="timm has the list of the synsets")
    return timm_data.ImageNetInfo().label_names()


def write_flat(folder: Path, name: str) -> Path:
    """All scans in one folder, numbered from 1."""
    for index in range(COUNT):
        save_scan(index, folder / name.format(index=index, number=index + 1))
    return folder


def test_synset_folders(model_dir, labels, tmp_path):
    names = synsets()
    for index, label in enumerate(labels):
        save_scan(index, tmp_path / "val" / names[label] / f"ILSVRC2012_val_{index + 1:08}.JPEG")
    assert len(set(labels)) < 1000  # numbering the folders that are there would be wrong
    assert accuracies(evaluate(model_dir, tmp_path / "a.json", "--data_dir", tmp_path / "val")) == fractions(RANKS)


def test_synsets_in_the_names_of_files(model_dir, labels, tmp_path):
    names = synsets()
    for index, label in enumerate(labels):
        save_scan(index, tmp_path / "val" / f"ILSVRC2012_val_{index + 1:08}_{names[label]}.JPEG")
    assert accuracies(evaluate(model_dir, tmp_path / "a.json", "--data_dir", tmp_path / "val")) == fractions(RANKS)


@pytest.mark.parametrize("line", ["{label}", "{file} {label}", "{stem},{label} 1 2 3 4"])
def test_flat_folder_with_a_file_of_labels(line, model_dir, labels, tmp_path):
    folder = write_flat(tmp_path / "val", "ILSVRC2012_val_{number:08}.JPEG")
    lines = [line.format(label=label, file=file.name, stem=file.stem) for label, file in zip(labels, files_of(folder))]
    if "," in line:
        lines = ["ImageId,PredictionString", *reversed(lines)]
    (tmp_path / "labels.txt").write_text("\n".join(lines) + "\n")
    flags = ["--data_dir", folder, "--labels_file", tmp_path / "labels.txt"]
    assert accuracies(evaluate(model_dir, tmp_path / "a.json", *flags)) == fractions(RANKS)


def test_labels_of_the_development_kit_are_refused(model_dir, labels, tmp_path, capsys):
    """They go from 1 to 1000 in another order: accuracies would be those of chance, without a word."""
    folder = write_flat(tmp_path / "val", "ILSVRC2012_val_{number:08}.JPEG")
    (tmp_path / "labels.txt").write_text("\n".join(map(str, [1000, *labels[1:]])))
    error = error_of(capsys, model_dir, "--data_dir", folder, "--labels_file", tmp_path / "labels.txt")
    assert "from 1 to 1000, as ILSVRC's development kit" in error


@pytest.fixture(scope="module")
def reassessed(order, tmp_path_factory) -> tuple[Path, list[int]]:
    """real.json, and the ranks of the images that it keeps: the best one of several labels counts."""
    real, ranks = [], []
    for index in range(COUNT):
        several = [[0], [], [9, 0], [6, 2, 8], [7, 5]][index % 5]
        real.append([int(order[index][rank]) for rank in several])
        ranks += [min(several)] if several else []
    file = tmp_path_factory.mktemp("real") / "real.json"
    file.write_text(json.dumps(real))
    return file, ranks


def test_imagenet_real(model_dir, reassessed, tmp_path, capsys):
    """The number in an image's name finds its labels; whatever else the folder says is not asked."""
    file, ranks = reassessed
    for index in range(COUNT):
        save_scan(index, tmp_path / "val" / f"{index % 3}" / f"ILSVRC2012_val_{index + 1:08}.JPEG")
    flags = ["--test_set", "real", "--real_labels", file, "--data_dir", tmp_path / "val"]
    results = evaluate(model_dir, tmp_path / "a.json", *flags)
    assert accuracies(results) == fractions(ranks) and 0 < np.mean(np.array(ranks) < 1) < 1
    assert results["num_images"] == len(ranks) == COUNT - 5
    assert "18 of 46,837" in capsys.readouterr().out

    save_scan(0, tmp_path / "val" / "0" / f"ILSVRC2012_val_{COUNT + 1:08}.JPEG")
    assert f"0/ILSVRC2012_val_{COUNT + 1:08}.JPEG is none of the 23 images" in error_of(capsys, model_dir, *flags)


def test_imagenet_real_by_the_copy_of_timm(model_dir, order, tmp_path):
    real = pytest.importorskip("timm.data", reason="timm has the labels").RealLabelsImagenet([""] * 50_000).real_labels
    write_flat(tmp_path / "val", "ILSVRC2012_val_{number:08}.JPEG")
    ranks = []
    for index, file in enumerate(files_of(tmp_path / "val")):
        places = [int(np.flatnonzero(order[index] == label)[0]) for label in real[file.name]]
        ranks += [min(places)] if places else []
    results = evaluate(model_dir, tmp_path / "a.json", "--test_set", "real", "--data_dir", tmp_path / "val")
    assert results["num_images"] == len(ranks) < COUNT
    assert accuracies(results) == fractions(ranks)


def write_parquet(folder: Path, data_dir: Path, names: list[str], values: list, feature) -> Path:
    """As the Hub's `imagenet-1k` is: the images' names are in the rows."""
    rows = {
        "image": [{"bytes": file.read_bytes(), "path": name} for file, name in zip(files_of_scans(data_dir), names)]
    }
    features = {"image": datasets.Image()}
    if feature is not None:
        rows["label"], features["label"] = values, feature
    folder.mkdir()
    datasets.Dataset.from_dict(rows, datasets.Features(features)).to_parquet(folder / "validation-00000.parquet")
    return folder


def as_stream(folder: Path, data_dir: Path, labels: list[int]) -> list:
    """Flags for the images of `data_dir` as a stream in which only their names tell the classes."""
    names = [f"{label}/{index}.jpeg" for index, label in enumerate(labels)]
    return ["--dataset_name", write_parquet(folder, data_dir, names, [], None), "--streaming"]


def files_of_scans(data_dir: Path) -> list[Path]:
    return sorted(files_of(data_dir), key=lambda file: file.name)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", ["numbers", "synsets", "names", "integers", "strings", "no column"])
def test_datasets(kind, streaming, model_dir, data_dir, labels, tmp_path):
    names = [f"ILSVRC2012_val_{index + 1:08}.JPEG" for index in range(COUNT)]
    values, feature = labels, datasets.Value("int64")
    if kind == "numbers":  # as `imagefolder` sorts them
        classes = sorted(map(str, set(labels)))
        values, feature = [classes.index(str(label)) for label in labels], datasets.ClassLabel(names=classes)
    elif kind == "synsets":
        classes = sorted({synsets()[label] for label in labels}, reverse=True)
        values = [classes.index(synsets()[label]) for label in labels]
        feature = datasets.ClassLabel(names=classes)
    elif kind == "names":  # in their usual order, with some spelled otherwise
        classes = [name if index % 20 else f"other {index}" for index, name in imagenet_1k_labels().items()]
        feature = datasets.ClassLabel(names=classes)
    elif kind == "strings":
        values, feature = list(map(str, labels)), datasets.Value("string")
    elif kind == "no column":
        names, feature = [f"format-val/{label}/{index}.jpeg" for index, label in enumerate(labels)], None
    flags = ["--dataset_name", write_parquet(tmp_path / "data", data_dir, names, values, feature)]
    flags += ["--streaming"] if streaming else []
    assert accuracies(evaluate(model_dir, tmp_path / "a.json", *flags)) == fractions(RANKS)


@pytest.mark.parametrize("streaming", [[], ["--streaming"]])
def test_column_of_the_images(streaming, model_dir, data_dir, labels, tmp_path, capsys):
    encoded = [{"bytes": file.read_bytes(), "path": None} for file in files_of_scans(data_dir)]
    black = io.BytesIO()
    Image.new("RGB", (40, 32)).save(black, "PNG")
    rows = {"image": encoded, "mask": [{"bytes": black.getvalue(), "path": None}] * COUNT, "label": labels}
    features = {"image": datasets.Image(), "mask": datasets.Image(), "label": datasets.Value("int64")}
    (tmp_path / "data").mkdir()
    dataset = datasets.Dataset.from_dict(rows, datasets.Features(features))
    dataset.to_parquet(tmp_path / "data" / "validation-00000.parquet")
    capsys.readouterr()
    flags = ["--dataset_name", tmp_path / "data", *streaming]
    error = error_of(capsys, model_dir, *flags, "--output", tmp_path / "a.json")
    assert "2 columns of the data look like images: set --image_column_name to one of image, mask" in error
    results = evaluate(model_dir, tmp_path / "a.json", *flags, "--image_column_name", "image")
    assert accuracies(results) == fractions(RANKS)
    results = evaluate(model_dir, tmp_path / "a.json", *flags, "--image_column_name", "mask")
    assert accuracies(results) != fractions(RANKS)


def test_real_labels_of_a_stream(model_dir, data_dir, reassessed, tmp_path):
    file, ranks = reassessed
    names = [f"ILSVRC2012_val_{index + 1:08}.JPEG" for index in range(COUNT)]
    data = write_parquet(tmp_path / "data", data_dir, names, [0] * COUNT, datasets.Value("int64"))
    flags = ["--test_set", "real", "--real_labels", file, "--dataset_name", data]
    for streaming in ([], ["--streaming"]):
        results = evaluate(model_dir, tmp_path / "a.json", *flags, *streaming)
        assert accuracies(results) == fractions(ranks) and results["num_images"] == len(ranks)


def test_archive_of_imagenet_v2(model_dir, data_dir, tmp_path):
    """As on the Hub: several archives of folders in one repository, without labels."""
    for name, files in (("matched", files_of(data_dir)), ("other", files_of(data_dir)[:2])):
        with tarfile.open(tmp_path / f"{name}.tar.gz", "w:gz") as archive:
            for file in files:
                archive.add(file, f"imagenetv2-{name}-format-val/{file.parent.name}/{file.name}")
    flags = ["--dataset_name", tmp_path, "--data_files", "matched.tar.gz", "--split", "train", "--test_set", "v2"]
    results = evaluate(model_dir, tmp_path / "out" / "a.json", *flags, "--streaming")
    assert (accuracies(results), results["num_images"]) == (fractions(RANKS), COUNT)


class Forwards:
    """Counts the images that go through any CaiT."""

    def __init__(self, monkeypatch):
        self.images = 0
        forward = CaitForImageClassification.forward

        def counted(model, pixel_values=None, **kwargs):
            self.images += len(pixel_values)
            return forward(model, pixel_values, **kwargs)

        monkeypatch.setattr(CaitForImageClassification, "forward", counted)


# Run the script as a process that kills itself before its fourth batch.
KILLED = """
import os, runpy, signal, sys
from cait_hf.evaluation import ranks
compute, batches = ranks.rank_batch, []
def rank_batch(*args):
    batches.append(args)
    if len(batches) == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return compute(*args)
ranks.rank_batch = rank_batch
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_a_killed_run_goes_on(model_dir, data_dir, tmp_path, monkeypatch, capsys):
    whole = evaluate(model_dir, tmp_path / "whole.json", "--data_dir", data_dir)
    output = tmp_path / "killed.json"
    command = [SCRIPT, model_dir, "--output", output, "--data_dir", data_dir, *FLAGS, "--save_steps", 2]
    killed = warm_process.run(KILLED, *command)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not output.exists() and (tmp_path / "killed.json.ranks").exists()

    forwards = Forwards(monkeypatch)
    capsys.readouterr()
    resumed = evaluate(model_dir, output, "--data_dir", data_dir)
    assert "Resuming: " in capsys.readouterr().out
    assert forwards.images == COUNT - 8  # two batches of four were written
    for results in (whole, resumed):
        del results["images_per_second"]
    assert resumed == whole
    assert not (tmp_path / "killed.json.ranks").exists()


@pytest.mark.parametrize("streaming", [False, True])
def test_interrupted_by_the_user(streaming, model_dir, data_dir, labels, tmp_path, monkeypatch, capsys):
    """Ctrl-C keeps also what was computed after the file was last written."""
    flags = as_stream(tmp_path / "data", data_dir, labels) if streaming else ["--data_dir", data_dir]
    batches = []

    def rank_batch(*args, compute=script.rank_batch):
        batches.append(args)
        if len(batches) == 4:
            raise KeyboardInterrupt
        return compute(*args)

    with monkeypatch.context() as patch:
        patch.setattr(script, "rank_batch", rank_batch)
        capsys.readouterr()
        assert error_of(capsys, model_dir, *flags, "--output", tmp_path / "a.json") == "error: interrupted.\n"
    assert len(json.loads((tmp_path / "a.json.ranks").read_text())["ranks"]) == 12
    forwards = Forwards(monkeypatch)
    assert accuracies(evaluate(model_dir, tmp_path / "a.json", *flags)) == fractions(RANKS)
    assert forwards.images == COUNT - 12


def test_ranks_of_other_settings_are_refused(model_dir, data_dir, labels, tmp_path, capsys):
    flags = ["--output", tmp_path / "a.json"]
    broken = tmp_path / "data" / str(labels[0]) / "99.jpeg"
    for index, label in enumerate(labels):
        save_scan(index, tmp_path / "data" / str(label) / f"{index:02}.jpeg")
    broken.write_bytes(b"")
    data = ["--data_dir", tmp_path / "data"]
    error_of(capsys, model_dir, *flags, *data)
    other = save_model(tmp_path / "other", seed=1)
    resized = CaitImageProcessorPil(size={"shortest_edge": 36}, crop_size={"height": 32, "width": 32})
    shutil.copytree(model_dir, tmp_path / "resized")
    error = error_of(capsys, tmp_path / "resized", *flags, *data)  # the same model in another place may resume
    assert "99.jpeg cannot be read" in error
    kept = (tmp_path / "a.json.ranks").read_text()
    resized.save_pretrained(tmp_path / "resized")
    for name, changed in {
        "model": [other, *data],
        "data": [model_dir, "--data_dir", data_dir],
        "preprocessing": [tmp_path / "resized", *data],
        "test_set": [model_dir, *data, "--test_set", "v2"],
        "dtype": [model_dir, *data, "--dtype", "bfloat16"],
        "max_samples": [model_dir, *data, "--max_samples", "20"],
    }.items():
        assert f"a.json.ranks belongs to a run with another {name}:" in error_of(capsys, *changed, *flags)
    assert (tmp_path / "a.json.ranks").read_text() == kept

    (tmp_path / "a.json.ranks").write_text("{}")
    assert "delete it to start from scratch" in error_of(capsys, model_dir, *flags, *data)


def test_corrupt_image(model_dir, labels, tmp_path, monkeypatch, capsys):
    """Its name is reported; once it is replaced the same command resumes with it and with those after it."""
    for index, label in enumerate(labels):
        save_scan(index, tmp_path / "data" / str(label) / f"{index:02}.jpeg")
    broken = tmp_path / "data" / str(labels[10]) / "10.jpeg"
    whole = broken.read_bytes()
    broken.write_bytes(whole[: len(whole) // 2])
    flags = ["--data_dir", tmp_path / "data"]
    error = error_of(capsys, model_dir, *flags, "--output", tmp_path / "a.json", "--num_workers", "1")
    assert f"{labels[10]}/10.jpeg cannot be read as an image" in error

    broken.write_bytes(whole)
    kept = len(json.loads((tmp_path / "a.json.ranks").read_text())["ranks"])
    forwards = Forwards(monkeypatch)
    assert accuracies(evaluate(model_dir, tmp_path / "a.json", *flags)) == fractions(RANKS)
    assert forwards.images == COUNT - kept < COUNT


def test_logits_that_are_not_finite(data_dir, tmp_path, capsys):
    folder = save_model(tmp_path / "model")
    model = CaitForImageClassification.from_pretrained(folder)
    with torch.no_grad():
        model.classifier.bias[7] = float("nan")
    model.save_pretrained(folder)
    error = error_of(capsys, folder, "--data_dir", data_dir, "--output", tmp_path / "a.json")
    assert "jpeg are not finite: evaluate with --dtype float32" in error


@pytest.mark.parametrize("streaming", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_two_processes_equal_one(streaming, model_dir, data_dir, labels, tmp_path):
    """An odd number of images, and a last batch that only one process needs; each image counts once."""
    flags = as_stream(tmp_path / "data", data_dir, labels) if streaming else ["--data_dir", data_dir]
    one = evaluate(model_dir, tmp_path / "one.json", *flags)
    command = [SCRIPT, model_dir, *flags, "--output", tmp_path / "two.json", *FLAGS]
    with warm_process.two_ranks(*command, log=tmp_path / "log") as processes:
        for process in processes:
            process.join(SECONDS)
    assert [process.exitcode for process in processes] == [0, 0], (tmp_path / "log0.err").read_text()
    two = json.loads((tmp_path / "two.json").read_text())
    assert (one["hardware"]["num_processes"], two["hardware"]["num_processes"]) == (1, 2)
    assert (two["accuracy"], two["num_images"]) == (one["accuracy"], COUNT)


def test_published_accuracies_stand_beside_ours(model_dir, data_dir, tmp_path, monkeypatch, capsys):
    """M48's, for a model that is said to be it: of its real size no test could be made."""
    m48 = find_checkpoint("M48_448")
    tiny = dataclasses.replace(m48, image_size=32, hidden_size=48, num_hidden_layers=3, num_attention_heads=4)
    monkeypatch.setattr(script, "find_checkpoint", lambda name: tiny if "48" in name else find_checkpoint(name))
    flags = ["--data_dir", data_dir, "--checkpoint", "M48_448", "--dtype", "bfloat16"]
    row = evaluate(model_dir, tmp_path / "a.json", *flags)["accuracy"]["top1"]
    assert (row["published"], row["timm"]) == (86.5, 86.480)
    assert row["difference from published"] == pytest.approx(row["ours"] - 86.5)
    assert row["difference from timm"] == pytest.approx(row["ours"] - 86.480)
    printed = capsys.readouterr().out
    assert '"for CaiT M48 it is best to evaluate with FP32 precision"' in printed
    assert "Published: deit README_cait.md." in printed and f"{row['ours'] - 86.48:+.3f}" in printed

    flags = ["--data_dir", data_dir, "--checkpoint", "M48_448", "--test_set", "v2"]
    row = evaluate(model_dir, tmp_path / "a.json", *flags)["accuracy"]["top5"]
    assert row["timm"] == 93.350 and "published" not in row
    assert "FP32" not in capsys.readouterr().out


def test_checkpoint_of_another_architecture(model_dir, data_dir, tmp_path, capsys):
    flags = ["--data_dir", data_dir, "--output", tmp_path / "a.json"]
    error = error_of(capsys, model_dir, *flags, "--checkpoint", "S24_224")
    assert "hidden_size is 48 in the source, but in S24_224 it is 384" in error
    named = tmp_path / "cait-s24-224"
    named.symlink_to(model_dir)
    assert evaluate(named, tmp_path / "a.json", "--data_dir", data_dir)["checkpoint"] is None


def test_checkpoints_are_found_by_name():
    for name in ("timm/cait_s24_224.fb_dist_in1k", "someone/cait-s24-224", "models/cait-s24-224"):
        checkpoint = find_checkpoint("S24_224")
        config = script.CaitConfig(**checkpoint.config_kwargs)
        assert script.find_published(name, None, config) is checkpoint
    assert script.find_published("someone/finetuned", None, config) is None
    results = {"num_images": 50_000, "image_size": [224, 224]}
    args = SimpleNamespace(test_set="imagenet", streaming=False, max_samples=None)
    hint = "Its architecture is that of S24_224: pass --checkpoint S24_224 to compare."
    assert script.notes(args, results, None, config) == [hint]
    assert script.notes(args, results, checkpoint, config) == ["Published: deit README_cait.md."]
    larger = {**results, "image_size": [384, 384]}
    assert "The accuracies of others are at 224 x 224 pixels." in script.notes(args, larger, checkpoint, config)


def test_classes_of_the_model_in_another_order(data_dir, tmp_path):
    """A model trained on folders has its classes in the order of their names as text."""
    numbers = sorted(map(str, range(1000)))
    folder = save_model(tmp_path / "model", id2label=dict(enumerate(numbers)), num_labels=1000)
    canonical = np.argsort([int(number) for number in numbers])
    labels = {}
    for index in range(COUNT):
        order = np.argsort(-logits_of(folder, index)[canonical], kind="stable")
        labels[index] = int(order[RANKS[index]])
        save_scan(index, tmp_path / "data" / str(labels[index]) / f"{index}.jpeg")
    assert accuracies(evaluate(folder, tmp_path / "a.json", "--data_dir", tmp_path / "data")) == fractions(RANKS)


def test_names_of_classes():
    names = list(imagenet_1k_labels().values())
    assert indices_of_classes(names) == list(range(1000))
    assert indices_of_classes(names[::-1]) == list(range(999, -1, -1))
    assert indices_of_classes(["10", "2"]) == [10, 2]
    assert indices_of_classes([f"LABEL_{index}" for index in range(1000)]) is None
    assert indices_of_classes(["cat", "dog"]) is None


def test_another_size(model_dir, data_dir, tmp_path):
    size = {"size": {"shortest_edge": 48}, "crop_size": {"height": 48, "width": 48}}
    ranks = []
    for index, file in enumerate(files_of_scans(data_dir)):
        logits = logits_of(model_dir, index, processor=size, model={"image_size": 48})
        ranks.append(int(np.flatnonzero(np.argsort(-logits, kind="stable") == int(file.parent.name))[0]))
    results = evaluate(model_dir, tmp_path / "a.json", "--data_dir", data_dir, "--size", 48)
    assert accuracies(results) == fractions(ranks) != fractions(RANKS)
    assert results["image_size"] == [48, 48]


def test_another_size_keeps_the_ratio_of_the_crop():
    processor = CaitImageProcessorPil(size={"shortest_edge": 256}, crop_size={"height": 224, "width": 224})
    assert script.size_options(processor, 448) == {
        "size": {"shortest_edge": 512},
        "crop_size": {"height": 448, "width": 448},
    }
    assert script.size_options(processor, None) == {}


def test_a_part_of_the_images(model_dir, data_dir, labels, tmp_path, capsys):
    """Evenly spaced in the order of the classes; of a stream the first."""
    by_class = [
        RANKS[int(file.stem)] for file in sorted(files_of(data_dir), key=lambda f: (int(f.parent.name), f.name))
    ]
    flags = ["--data_dir", data_dir, "--max_samples", 9]
    results = evaluate(model_dir, tmp_path / "a.json", *flags)
    assert (accuracies(results), results["num_images"]) == (fractions([by_class[i * 23 // 9] for i in range(9)]), 9)
    assert "9 of 50,000 images, evenly spaced." in capsys.readouterr().out

    flags = as_stream(tmp_path / "data", data_dir, labels)
    results = evaluate(model_dir, tmp_path / "a.json", *flags, "--max_samples", 9)
    assert (accuracies(results), results["num_images"]) == (fractions(RANKS[:9]), 9)
    assert "9 of 50,000 images, the first of the stream." in capsys.readouterr().out


def test_other_models(data_dir, tmp_path):
    """Any model of `AutoModelForImageClassification`, here a ViT that squeezes images to its size."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    model = ViTForImageClassification(ViTConfig(**sizes, image_size=32, patch_size=8, num_labels=1000)).eval()
    processor = ViTImageProcessorPil(size={"height": 32, "width": 32})
    model.save_pretrained(tmp_path / "vit")
    processor.save_pretrained(tmp_path / "vit")
    for index, rank in enumerate(RANKS):
        save_scan(index, tmp_path / "scan.jpeg")
        with torch.no_grad():
            logits = model(**processor(Image.open(tmp_path / "scan.jpeg").convert("RGB"), return_tensors="pt")).logits
        label = int(np.argsort(-logits[0].numpy(), kind="stable")[rank])
        save_scan(index, tmp_path / "data" / str(label) / f"{index}.jpeg")
    flags = ["--data_dir", tmp_path / "data"]
    assert accuracies(evaluate(tmp_path / "vit", tmp_path / "a.json", *flags)) == fractions(RANKS)
    assert evaluate(tmp_path / "vit", tmp_path / "a.json", *flags, "--size", 64)["image_size"] == [64, 64]


def test_models_of_timm(data_dir, tmp_path, capsys):
    timm = pytest.importorskip("timm", reason="the model is timm's")
    safetensors = pytest.importorskip("safetensors.torch", reason="to write the model")
    model = timm.create_model("test_resnet", num_classes=1000).eval()
    folder = tmp_path / "timm"
    folder.mkdir()
    safetensors.save_file(model.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    config = {"architecture": "test_resnet", "num_classes": 1000, "pretrained_cfg": model.pretrained_cfg}
    (folder / "config.json").write_text(json.dumps(config))
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
    for index, rank in enumerate(RANKS):
        save_scan(index, tmp_path / "scan.jpeg")
        with torch.no_grad():
            logits = model(transform(Image.open(tmp_path / "scan.jpeg").convert("RGB"))[None])
        label = int(np.argsort(-logits[0].numpy(), kind="stable")[rank])
        save_scan(index, tmp_path / "data" / str(label) / f"{index}.jpeg")
    flags = ["--data_dir", tmp_path / "data"]
    assert accuracies(evaluate(folder, tmp_path / "a.json", *flags)) == fractions(RANKS)
    error = error_of(capsys, folder, *flags, "--size", 64, "--output", tmp_path / "a.json")
    assert "--size is 64, but the size of a TimmWrapperImageProcessor is fixed" in error


def test_images_are_read_as_in_the_evaluations_of_others(model_dir, tmp_path):
    """EXIF orientations are ignored, gray and CMYK images become RGB by Pillow's conversion."""
    processor = CaitImageProcessorPil.from_pretrained(model_dir)
    values = (load_digits().images[0] * 15).astype(np.uint8)
    scan = Image.fromarray(values).resize((40, 32))
    tag = Image.Exif()
    tag[0x0112] = 6  # to be turned by 90 degrees
    scan.save(tmp_path / "turned.jpeg", quality=95, exif=tag)
    Image.merge("RGB", [scan] * 3).save(tmp_path / "turned-rgb.jpeg", quality=95, exif=tag)
    scan.convert("CMYK").save(tmp_path / "cmyk.jpeg", quality=95)
    prepare = Prepare(processor, {})
    for name in ("turned.jpeg", "turned-rgb.jpeg", "cmyk.jpeg"):
        pixels = np.asarray(Image.open(tmp_path / name).convert("RGB"))
        expected = processor(Image.fromarray(pixels), return_tensors="pt").pixel_values[0]
        assert torch.equal(prepare([(0, str(tmp_path / name), (1,))])["pixel_values"][0], expected)


def test_16_bits_reach_the_model_as_the_image_of_8_bits(model_dir, tmp_path):
    ramp = np.linspace(0, 255, 32 * 32).astype(np.uint8).reshape(32, 32)
    Image.fromarray(ramp).save(tmp_path / "8.png")
    Image.fromarray(ramp.astype(np.uint16) * 257).save(tmp_path / "16.png")
    prepare = Prepare(CaitImageProcessorPil.from_pretrained(model_dir), {})
    items = [(index, str(tmp_path / name), (1,)) for index, name in enumerate(("8.png", "16.png"))]
    batch = prepare(items)
    assert batch["readable"].all() and torch.equal(*batch["pixel_values"]) and batch["pixel_values"].std() > 1


def test_equal_logits_rank_by_class_index():
    logits = torch.tensor([[3.0, 2.0, 2.0, 0.0], [0.0, 0.0, 0.0, 0.0], [1.0, float("inf"), 0.0, 0.0]])
    assert best_ranks(logits, torch.tensor([[2, -1], [3, 1], [0, -1]])).tolist() == [2, 1, -2]


@pytest.mark.parametrize(
    "flags, message",
    [
        ("--data_dir nowhere", "--data_dir is nowhere, but there is no such folder"),
        ("--data_dir {empty}", "there are no images in it or in its subfolders"),
        ("--data_dir {strange}", "The class of cats/0.jpeg is unknown: its folder must be a synset"),
        ("--data_dir {large}", "'1000' is no class of ImageNet-1k"),
        ("--data_dir {flat}", "The class of 0.jpeg is unknown: .*--labels_file must name it"),
        ("--data_dir {flat} --labels_file {short}", "has 2 labels for 1 images"),
        ("--data_dir {flat} --labels_file {others}", "lacks 1 of the images, such as 0.jpeg"),
        ("--data_dir {data} --test_set real --real_labels {short}", "short is not valid JSON"),
        ("--data_dir {data} --test_set real --real_labels {json}", "must hold a list of lists of class indices"),
        ("--data_dir {data} --real_labels {json}", "--real_labels is for --test_set real"),
        ("--data_dir {data} --streaming", "--streaming is for --dataset_name"),
        ("--dataset_name {data} --labels_file {short}", "--labels_file is for --data_dir"),
        ("--data_dir {data} --max_samples 0", "--max_samples is 0, but it must be at least 1"),
        ("--data_dir {data} --checkpoint S25", "name is 'S25', but the official CaiT checkpoints are"),
        ("--dataset_name {cats} --split train", "2 classes such as 'cat', but they must be called by their synsets"),
        ("--dataset_name {cats} --split test", "test"),
    ],
)
def test_wrong_input(flags, message, model_dir, data_dir, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    save_scan(0, tmp_path / "strange" / "cats" / "0.jpeg")
    save_scan(0, tmp_path / "large" / "1000" / "0.jpeg")
    save_scan(0, tmp_path / "flat" / "0.jpeg")
    (tmp_path / "short").write_text("5\n6\n")
    (tmp_path / "others").write_text("1.jpeg 5\n")
    (tmp_path / "json").write_text("[[0], [1000]]")
    for name in ("cat", "dog"):
        save_scan(0, tmp_path / "cats" / name / "0.jpeg")
    places = {file.name: file for file in tmp_path.iterdir()}
    args = flags.format(data=data_dir, **places).split()
    error = error_of(capsys, model_dir, *args, "--output", tmp_path / "a.json")
    assert re.search(message, error), error


def test_what_is_said_without_timm(model_dir, data_dir, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "timm.data", None)
    synset_indices.cache_clear()
    class_index.cache_clear()
    flags = ["--data_dir", data_dir, "--output", tmp_path / "a.json"]
    error = error_of(capsys, model_dir, *flags, "--test_set", "real")
    assert "Pass --real_labels real.json, or install timm" in error
    save_scan(0, tmp_path / "val" / "n01440764" / "0.jpeg")
    assert "pip install timm" in error_of(capsys, model_dir, *flags[2:], "--data_dir", tmp_path / "val")


def test_models_that_are_no_classifiers_of_imagenet(data_dir, tmp_path, capsys):
    flags = ["--data_dir", data_dir, "--output", tmp_path / "a.json"]
    five = save_model(tmp_path / "five", num_labels=5)
    assert "five has 5 classes, but it must have the 1000 of ImageNet-1k" in error_of(capsys, five, *flags)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    model = ViTForImageClassification(ViTConfig(**sizes, image_size=32, patch_size=8, num_labels=1000))
    model.vit.save_pretrained(tmp_path / "headless")
    assert "lacks 2 tensors" in error_of(capsys, tmp_path / "headless", *flags)
    assert "nowhere" in error_of(capsys, tmp_path / "nowhere", *flags)
