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
import sys
import tarfile
from collections.abc import Callable, Iterable
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


datasets.disable_progress_bars()  # an error message is all that is printed to stderr
script = load_script("evaluate_imagenet")
SCRIPT = SCRIPTS / "evaluate_imagenet.py"
COUNT = 23  # no multiple of a batch size below, nor of two
RANKS = ([0, 3, 0, 7, 4, 0, 5, 1] * 3)[:COUNT]  # that the labels of the images get
SECONDS = 240  # for a child process on a busy machine
FLAGS = ["--num_workers", "0", "--batch_size", "4"]


def files_of(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file())


def save_scan(index: int, file: Path | io.BytesIO):
    if isinstance(file, Path):
        file.parent.mkdir(parents=True, exist_ok=True)
    scan = (load_digits().images[index] * 15).astype(np.uint8)
    Image.fromarray(scan).resize((40, 32)).save(file, "JPEG", quality=95)


def write_scans(folder: Path, labels: list[int], name: str = "{label}/{index:02}.jpeg") -> Path:
    for index, label in enumerate(labels):
        synset = synsets()[label] if "{synset}" in name else None
        save_scan(index, folder / name.format(index=index, number=index + 1, label=label, synset=synset))
    return folder


def read_scan(index: int) -> Image.Image:
    save_scan(index, file := io.BytesIO())
    return Image.open(file)


def logits_of(folder: Path, index: int, processor: dict | None = None, **config) -> np.ndarray:
    """Of one image by the model in `folder`, in the most plain way."""
    image_processor = CaitImageProcessorPil.from_pretrained(folder, **(processor or {}))
    model = CaitForImageClassification.from_pretrained(folder, **config)
    with torch.no_grad():
        return model(**image_processor(read_scan(index), return_tensors="pt")).logits[0].numpy()


@torch.no_grad()
def write_ranked(folder: Path, logits_of: Callable) -> list:
    """Flags for scans in folders of the classes to which `logits_of(index)` gives RANKS."""
    orders = [np.argsort(-np.asarray(logits_of(index)), kind="stable") for index in range(COUNT)]
    return ["--data_dir", write_scans(folder, [int(order[rank]) for order, rank in zip(orders, RANKS)])]


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
    return write_scans(tmp_path_factory.mktemp("numbers"), labels)


@pytest.fixture
def evaluate(tmp_path):
    """Evaluate the model with these flags; the results are in a.json."""

    def evaluated(model: Path, *args) -> dict:
        assert script.main([*map(str, [model, "--output", tmp_path / "a.json", *args]), *FLAGS]) == 0
        return json.loads((tmp_path / "a.json").read_text())

    return evaluated


@pytest.fixture
def error_of(tmp_path, capsys):
    """The error message of the script."""

    def error(model: Path, *args) -> str:
        capsys.readouterr()
        assert script.main([*map(str, [model, "--output", tmp_path / "a.json", *args]), *FLAGS]) == 1
        message = capsys.readouterr().err
        assert message.startswith("error: ") and message.count("\n") == 1 and "Traceback" not in message
        return message

    return error


def accuracies(results: dict) -> tuple[float, float]:
    return results["accuracy"]["top1"]["ours"], results["accuracy"]["top5"]["ours"]


def fractions(ranks: Iterable[int]) -> tuple:
    ranks = np.array(ranks)
    return pytest.approx(100 * np.mean(ranks < 1)), pytest.approx(100 * np.mean(ranks < 5))


def test_numeric_folders(evaluate, model_dir, data_dir, labels, tmp_path, capsys):
    """Sorted as text the folders would be other classes."""
    assert sorted(map(str, set(labels))) != list(map(str, sorted(set(labels))))
    results = evaluate(model_dir, "--data_dir", data_dir, "--test_set", "v2")
    assert accuracies(results) == fractions(RANKS)
    hits = np.array(RANKS) < 5
    assert results["accuracy"]["top5"]["standard_error"] == pytest.approx(100 * hits.std() / COUNT**0.5)
    assert (results["num_images"], results["image_size"], results["dtype"]) == (COUNT, [32, 32], "float32")
    assert results["images_per_second"] > 0 and results["checkpoint"] is None
    printed = capsys.readouterr().out
    assert f"{100 * hits.mean():.3f}" in printed and "Not the whole set: 23 of 10,000 images." in printed
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


def synsets() -> list[str]:
    timm_data = pytest.importorskip("timm.data", reason="timm has the list of the synsets")
    return timm_data.ImageNetInfo().label_names()


@pytest.mark.parametrize("name", ["{synset}/ILSVRC2012_val_{number:08}.JPEG", "{index:02}_{synset}.JPEG"])
def test_synsets_of_folders_and_files(name, evaluate, model_dir, labels, tmp_path):
    assert len(set(labels)) < 1000  # numbering the folders that are there would be wrong
    folder = write_scans(tmp_path / "val", labels, name)
    assert accuracies(evaluate(model_dir, "--data_dir", folder)) == fractions(RANKS)


NUMBERED = "ILSVRC2012_val_{number:08}.JPEG"


@pytest.mark.parametrize("line", ["{label}", "{file} {label}", "{stem},{label} 1 2 3 4"])
def test_flat_folder_with_a_file_of_labels(line, evaluate, model_dir, labels, tmp_path):
    folder = write_scans(tmp_path / "val", RANKS, NUMBERED)
    lines = [line.format(label=label, file=file.name, stem=file.stem) for label, file in zip(labels, files_of(folder))]
    if "," in line:
        lines = ["ImageId,PredictionString", *reversed(lines)]
    (tmp_path / "labels.txt").write_text("\n".join(lines) + "\n")
    flags = ["--data_dir", folder, "--labels_file", tmp_path / "labels.txt"]
    assert accuracies(evaluate(model_dir, *flags)) == fractions(RANKS)


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


@pytest.mark.parametrize("source", ["folder", "rows", "stream"])
def test_imagenet_real(source, error_of, evaluate, model_dir, data_dir, reassessed, tmp_path, capsys):
    """The number in an image's name finds its labels; whatever else the data say is not asked."""
    file, ranks = reassessed
    folder, name = tmp_path / "val", "{label}/" + NUMBERED
    if source == "folder":
        data = ["--data_dir", write_scans(folder, [index % 3 for index in range(COUNT)], name)]
    else:
        names = [NUMBERED.format(number=index + 1) for index in range(COUNT)]
        data = ["--dataset_name", write_parquet(folder, data_dir, names, [0] * COUNT, datasets.Value("int64"))]
        data += ["--streaming"] if source == "stream" else []
    flags = ["--test_set", "real", "--real_labels", file, *data]
    results = evaluate(model_dir, *flags)
    assert accuracies(results) == fractions(ranks) and 0 < np.mean(np.array(ranks) < 1) < 1
    assert results["num_images"] == len(ranks) == COUNT - 5
    assert "18 of 46,837" in capsys.readouterr().out
    if source == "folder":
        save_scan(0, folder / "0" / NUMBERED.format(number=COUNT + 1))
        assert f"0/ILSVRC2012_val_{COUNT + 1:08}.JPEG is none of the 23 images" in error_of(model_dir, *flags)


def test_imagenet_real_by_the_copy_of_timm(evaluate, model_dir, order, tmp_path):
    real = pytest.importorskip("timm.data", reason="timm has the labels").RealLabelsImagenet([""] * 50_000).real_labels
    write_scans(tmp_path / "val", RANKS, NUMBERED)
    ranks = []
    for index, file in enumerate(files_of(tmp_path / "val")):
        places = [int(np.flatnonzero(order[index] == label)[0]) for label in real[file.name]]
        ranks += [min(places)] if places else []
    results = evaluate(model_dir, "--test_set", "real", "--data_dir", tmp_path / "val")
    assert results["num_images"] == len(ranks) < COUNT
    assert accuracies(results) == fractions(ranks)


def write_parquet(folder: Path, data_dir: Path, names: list, values: list, feature, **columns) -> Path:
    """As the Hub's `imagenet-1k` is: the images' names are in the rows. More columns as (values, feature)."""
    encoded = [{"bytes": file.read_bytes(), "path": name} for file, name in zip(files_of_scans(data_dir), names)]
    columns = {"image": (encoded, datasets.Image())} | columns | ({"label": (values, feature)} if feature else {})
    features = datasets.Features({name: feature for name, (_, feature) in columns.items()})
    folder.mkdir()
    dataset = datasets.Dataset.from_dict({name: values for name, (values, _) in columns.items()}, features)
    dataset.to_parquet(folder / "validation-00000.parquet")
    return folder


def as_stream(folder: Path, data_dir: Path, labels: list[int]) -> list:
    """Flags for the images of `data_dir` as a stream in which only their names tell the classes."""
    names = [f"{label}/{index}.jpeg" for index, label in enumerate(labels)]
    return ["--dataset_name", write_parquet(folder, data_dir, names, [], None), "--streaming"]


def files_of_scans(data_dir: Path) -> list[Path]:
    return sorted(files_of(data_dir), key=lambda file: file.name)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", ["numbers", "synsets", "names", "integers", "strings", "no column"])
def test_datasets(kind, streaming, evaluate, model_dir, data_dir, labels, tmp_path):
    names = [NUMBERED.format(number=index + 1) for index in range(COUNT)]
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
    assert accuracies(evaluate(model_dir, *flags)) == fractions(RANKS)


@pytest.mark.parametrize("streaming", [[], ["--streaming"]])
def test_column_of_the_images(streaming, error_of, evaluate, model_dir, data_dir, labels, tmp_path, capsys):
    black = io.BytesIO()
    Image.new("RGB", (40, 32)).save(black, "PNG")
    mask = {"mask": ([{"bytes": black.getvalue(), "path": None}] * COUNT, datasets.Image())}
    value = datasets.Value("int64")
    folder = write_parquet(tmp_path / "data", data_dir, [None] * COUNT, labels, value, **mask)
    flags = ["--dataset_name", folder, *streaming]
    error = error_of(model_dir, *flags)
    assert "2 columns of the data look like images: set --image_column_name to one of image, mask" in error
    for name, equal in (("image", True), ("mask", False)):
        results = evaluate(model_dir, *flags, "--image_column_name", name)
        assert (accuracies(results) == fractions(RANKS)) is equal


def test_archive_of_imagenet_v2(evaluate, model_dir, data_dir, tmp_path):
    """As on the Hub: several archives of folders in one repository, without labels."""
    for name, files in (("matched", files_of(data_dir)), ("other", files_of(data_dir)[:2])):
        with tarfile.open(tmp_path / f"{name}.tar.gz", "w:gz") as archive:
            for file in files:
                archive.add(file, f"imagenetv2-{name}-format-val/{file.parent.name}/{file.name}")
    flags = ["--dataset_name", tmp_path, "--data_files", "matched.tar.gz", "--split", "train", "--test_set", "v2"]
    results = evaluate(model_dir, *flags, "--streaming")
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


@pytest.mark.parametrize("streaming", [False, True])
def test_interrupted_and_resumed(
    streaming, error_of, evaluate, model_dir, data_dir, labels, tmp_path, monkeypatch, capsys
):
    """The ranks are on disk after every second batch, and with Ctrl-C also those since; each is computed once."""
    flags = as_stream(tmp_path / "data", data_dir, labels) if streaming else ["--data_dir", data_dir]
    flags += ["--save_steps", 2]
    complete = evaluate(model_dir, *flags)
    ranks, batches, kept = tmp_path / "a.json.ranks", [], []

    def kept_ranks() -> int:
        return len(json.loads(ranks.read_text())["ranks"])

    def rank_batch(*args, compute=script.rank_batch):
        batches.append(args)
        if len(batches) == 4:
            kept.append(kept_ranks())
            raise KeyboardInterrupt
        return compute(*args)

    with monkeypatch.context() as patch:
        patch.setattr(script, "rank_batch", rank_batch)
        assert error_of(model_dir, *flags) == "error: interrupted.\n"
    assert [*kept, kept_ranks()] == [8, 12]
    forwards = Forwards(monkeypatch)
    resumed = evaluate(model_dir, *flags)
    assert "Resuming: " in capsys.readouterr().out and forwards.images == COUNT - 12 and not ranks.exists()
    del complete["images_per_second"], resumed["images_per_second"]
    assert resumed == complete and accuracies(resumed) == fractions(RANKS)


def test_ranks_of_other_settings_are_refused(error_of, model_dir, data_dir, labels, tmp_path):
    data = ["--data_dir", write_scans(tmp_path / "data", labels)]
    (tmp_path / "data" / str(labels[0]) / "99.jpeg").write_bytes(b"")
    error_of(model_dir, *data)
    other = save_model(tmp_path / "other", seed=1)
    resized = CaitImageProcessorPil(size={"shortest_edge": 36}, crop_size={"height": 32, "width": 32})
    shutil.copytree(model_dir, tmp_path / "resized")
    error = error_of(tmp_path / "resized", *data)  # the same model in another place may resume
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
        assert f"a.json.ranks belongs to a run with another {name}:" in error_of(*changed)
    assert (tmp_path / "a.json.ranks").read_text() == kept

    (tmp_path / "a.json.ranks").write_text("{}")
    assert "delete it to start from scratch" in error_of(model_dir, *data)


def test_corrupt_image(error_of, evaluate, model_dir, labels, tmp_path, monkeypatch):
    """Its name is reported; once it is replaced the same command resumes with it and with those after it."""
    flags = ["--data_dir", write_scans(tmp_path / "data", labels)]
    broken = tmp_path / "data" / str(labels[10]) / "10.jpeg"
    whole = broken.read_bytes()
    broken.write_bytes(whole[: len(whole) // 2])
    error = error_of(model_dir, *flags, "--num_workers", "1")
    assert f"{labels[10]}/10.jpeg cannot be read as an image" in error

    broken.write_bytes(whole)
    kept = len(json.loads((tmp_path / "a.json.ranks").read_text())["ranks"])
    forwards = Forwards(monkeypatch)
    assert accuracies(evaluate(model_dir, *flags)) == fractions(RANKS)
    assert forwards.images == COUNT - kept < COUNT


@pytest.mark.parametrize("streaming", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_two_processes_equal_one(streaming, evaluate, model_dir, data_dir, labels, tmp_path):
    """An odd number of images, and a last batch that only one process needs; each image counts once."""
    flags = as_stream(tmp_path / "data", data_dir, labels) if streaming else ["--data_dir", data_dir]
    one = evaluate(model_dir, *flags)
    command = [SCRIPT, model_dir, *flags, "--output", tmp_path / "two.json", *FLAGS]
    with warm_process.two_ranks(*command, log=tmp_path / "log") as processes:
        for process in processes:
            process.join(SECONDS)
    assert [process.exitcode for process in processes] == [0, 0], (tmp_path / "log0.err").read_text()
    two = json.loads((tmp_path / "two.json").read_text())
    assert (one["hardware"]["num_processes"], two["hardware"]["num_processes"]) == (1, 2)
    assert (two["accuracy"], two["num_images"]) == (one["accuracy"], COUNT)


def test_published_accuracies_stand_beside_ours(evaluate, model_dir, data_dir, monkeypatch, capsys):
    """M48's, for a model that is said to be it: of its real size no test could be made."""
    m48 = find_checkpoint("M48_448")
    tiny = dataclasses.replace(m48, image_size=32, hidden_size=48, num_hidden_layers=3, num_attention_heads=4)
    monkeypatch.setattr(script, "find_checkpoint", lambda name: tiny if "48" in name else find_checkpoint(name))
    flags = ["--data_dir", data_dir, "--checkpoint", "M48_448", "--dtype", "bfloat16"]
    row = evaluate(model_dir, *flags)["accuracy"]["top1"]
    assert (row["published"], row["timm"]) == (86.5, 86.480)
    assert row["difference from published"] == pytest.approx(row["ours"] - 86.5)
    assert row["difference from timm"] == pytest.approx(row["ours"] - 86.480)
    printed = capsys.readouterr().out
    assert '"for CaiT M48 it is best to evaluate with FP32 precision"' in printed
    assert "Published: deit README_cait.md." in printed and f"{row['ours'] - 86.48:+.3f}" in printed

    flags = ["--data_dir", data_dir, "--checkpoint", "M48_448", "--test_set", "v2"]
    row = evaluate(model_dir, *flags)["accuracy"]["top5"]
    assert row["timm"] == 93.350 and "published" not in row
    assert "FP32" not in capsys.readouterr().out


def test_checkpoints_are_found_by_name():
    for name in ("timm/cait_s24_224.fb_dist_in1k", "someone/cait-s24-224", "models/cait-s24-224"):
        checkpoint = find_checkpoint("S24_224")
        config = script.CaitConfig(**checkpoint.config_kwargs)
        assert script.find_published(name, None, config) is checkpoint
        assert script.find_published(name, None, tiny_config()) is None
    assert script.find_published("someone/finetuned", None, config) is None
    results = {"num_images": 50_000, "image_size": [224, 224]}
    args = SimpleNamespace(test_set="imagenet", streaming=False, max_samples=None)
    hint = "Its architecture is that of S24_224: pass --checkpoint S24_224 to compare."
    assert script.notes(args, results, None, config) == [hint]
    assert script.notes(args, results, checkpoint, config) == ["Published: deit README_cait.md."]
    larger = {**results, "image_size": [384, 384]}
    assert "The accuracies of others are at 224 x 224 pixels." in script.notes(args, larger, checkpoint, config)


def test_classes_of_the_model_in_another_order(evaluate, tmp_path):
    """A model trained on folders has its classes in the order of their names as text."""
    numbers = sorted(map(str, range(1000)))
    folder = save_model(tmp_path / "model", id2label=dict(enumerate(numbers)), num_labels=1000)
    canonical = np.argsort([int(number) for number in numbers])
    flags = write_ranked(tmp_path / "data", lambda index: logits_of(folder, index)[canonical])
    assert accuracies(evaluate(folder, *flags)) == fractions(RANKS)


def test_names_of_classes():
    names = list(imagenet_1k_labels().values())
    assert indices_of_classes(names) == list(range(1000))
    assert indices_of_classes(names[::-1]) == list(range(999, -1, -1))
    assert indices_of_classes(["10", "2"]) == [10, 2]
    assert indices_of_classes([f"LABEL_{index}" for index in range(1000)]) is None
    assert indices_of_classes(["cat", "dog"]) is None


def test_another_size(evaluate, model_dir, data_dir):
    size = {"size": {"shortest_edge": 48}, "crop_size": {"height": 48, "width": 48}}
    ranks = []
    for index, file in enumerate(files_of_scans(data_dir)):
        logits = logits_of(model_dir, index, processor=size, image_size=48)
        ranks.append(int(np.flatnonzero(np.argsort(-logits, kind="stable") == int(file.parent.name))[0]))
    results = evaluate(model_dir, "--data_dir", data_dir, "--size", 48)
    assert accuracies(results) == fractions(ranks) != fractions(RANKS)
    assert results["image_size"] == [48, 48]


def test_another_size_keeps_the_ratio_of_the_crop():
    processor = CaitImageProcessorPil(size={"shortest_edge": 256}, crop_size={"height": 224, "width": 224})
    larger = {"size": {"shortest_edge": 512}, "crop_size": {"height": 448, "width": 448}}
    assert script.size_options(processor, 448) == larger
    assert script.size_options(processor, None) == {}


def test_a_part_of_the_images(evaluate, model_dir, data_dir, labels, tmp_path, capsys):
    """Evenly spaced in the order of the classes; of a stream the first."""
    files = sorted(files_of(data_dir), key=lambda file: (int(file.parent.name), file.name))
    by_class = [RANKS[int(file.stem)] for file in files]
    flags = ["--data_dir", data_dir, "--max_samples", 9]
    results = evaluate(model_dir, *flags)
    assert (accuracies(results), results["num_images"]) == (fractions([by_class[i * 23 // 9] for i in range(9)]), 9)
    assert "9 of 50,000 images, evenly spaced." in capsys.readouterr().out

    flags = as_stream(tmp_path / "data", data_dir, labels)
    results = evaluate(model_dir, *flags, "--max_samples", 9)
    assert (accuracies(results), results["num_images"]) == (fractions(RANKS[:9]), 9)
    assert "9 of 50,000 images, the first of the stream." in capsys.readouterr().out


def vit() -> ViTForImageClassification:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    return ViTForImageClassification(ViTConfig(**sizes, image_size=32, patch_size=8, num_labels=1000)).eval()


def test_other_models(evaluate, tmp_path):
    """Any model of `AutoModelForImageClassification`, here a ViT that squeezes images to its size."""
    model = vit()
    processor = ViTImageProcessorPil(size={"height": 32, "width": 32})
    model.save_pretrained(tmp_path / "vit")
    processor.save_pretrained(tmp_path / "vit")

    def logits(index):
        return model(**processor(read_scan(index).convert("RGB"), return_tensors="pt")).logits[0]

    flags = write_ranked(tmp_path / "data", logits)
    assert accuracies(evaluate(tmp_path / "vit", *flags)) == fractions(RANKS)
    assert evaluate(tmp_path / "vit", *flags, "--size", 64)["image_size"] == [64, 64]


def test_models_of_timm(error_of, evaluate, tmp_path):
    timm = pytest.importorskip("timm", reason="the model is timm's")
    safetensors = pytest.importorskip("safetensors.torch", reason="to write the model")
    model = timm.create_model("test_resnet", num_classes=1000).eval()
    folder = tmp_path / "timm"
    folder.mkdir()
    safetensors.save_file(model.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    config = {"architecture": "test_resnet", "num_classes": 1000, "pretrained_cfg": model.pretrained_cfg}
    (folder / "config.json").write_text(json.dumps(config))
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
    flags = write_ranked(tmp_path / "data", lambda index: model(transform(read_scan(index).convert("RGB"))[None])[0])
    assert accuracies(evaluate(folder, *flags)) == fractions(RANKS)
    error = error_of(folder, *flags, "--size", 64)
    assert "--size is 64, but the size of a TimmWrapperImageProcessor is fixed" in error


def test_images_are_read_as_in_the_evaluations_of_others(model_dir, tmp_path):
    """EXIF orientations are ignored, gray and CMYK become RGB by Pillow's conversion, 16 bits are scaled to 8."""
    processor = CaitImageProcessorPil.from_pretrained(model_dir)
    scan = Image.fromarray((load_digits().images[0] * 15).astype(np.uint8)).resize((40, 32))
    tag = Image.Exif()
    tag[0x0112] = 6  # to be turned by 90 degrees
    scan.save(tmp_path / "turned.png", exif=tag)
    Image.merge("RGB", [scan] * 3).save(tmp_path / "turned-rgb.png", exif=tag)
    scan.convert("CMYK").save(tmp_path / "cmyk.tiff")
    Image.fromarray(np.asarray(scan).astype(np.uint16) * 257).save(tmp_path / "16.png")
    expected = processor(scan.convert("RGB"), return_tensors="pt").pixel_values[0]
    files = sorted(tmp_path.iterdir())
    batch = Prepare(processor, {})([(index, str(file), (1,)) for index, file in enumerate(files)])
    assert batch["readable"].tolist() == [True] * 4 and expected.std() > 0.5
    for file, pixels in zip(files, batch["pixel_values"], strict=True):
        assert torch.equal(pixels, expected), file


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
        ("--data_dir {flat} --labels_file {kit}", "from 1 to 1000, as ILSVRC's development kit"),
        ("--data_dir {data} --test_set real --real_labels {short}", "short is not valid JSON"),
        ("--data_dir {data} --test_set real --real_labels {json}", "must hold a list of lists of class indices"),
        ("--data_dir {data} --real_labels {json}", "--real_labels is for --test_set real"),
        ("--data_dir {data} --streaming", "--streaming is for --dataset_name"),
        ("--dataset_name {data} --labels_file {short}", "--labels_file is for --data_dir"),
        ("--data_dir {data} --max_samples 0", "--max_samples is 0, but it must be at least 1"),
        ("--data_dir {data} --checkpoint S24_224", "hidden_size is 48 in the source, but in S24_224 it is 384"),
        ("--data_dir {data} --checkpoint S25", "name is 'S25', but the official CaiT checkpoints are"),
        ("--dataset_name {cats} --split train", "2 classes such as 'cat', but they must be called by their synsets"),
        ("--dataset_name {cats} --split test", "test"),
    ],
)
def test_wrong_input(flags, message, error_of, model_dir, data_dir, tmp_path):
    (tmp_path / "empty").mkdir()
    save_scan(0, tmp_path / "strange" / "cats" / "0.jpeg")
    save_scan(0, tmp_path / "large" / "1000" / "0.jpeg")
    save_scan(0, tmp_path / "flat" / "0.jpeg")
    (tmp_path / "short").write_text("5\n6\n")
    (tmp_path / "others").write_text("1.jpeg 5\n")
    (tmp_path / "kit").write_text("1000\n")
    (tmp_path / "json").write_text("[[0], [1000]]")
    for name in ("cat", "dog"):
        save_scan(0, tmp_path / "cats" / name / "0.jpeg")
    places = {file.name: file for file in tmp_path.iterdir()}
    error = error_of(model_dir, *flags.format(data=data_dir, **places).split())
    assert re.search(message, error), error


def test_what_is_said_without_timm(error_of, model_dir, data_dir, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm.data", None)
    synset_indices.cache_clear()
    class_index.cache_clear()
    flags = ["--data_dir", data_dir]
    error = error_of(model_dir, *flags, "--test_set", "real")
    assert "Pass --real_labels real.json, or install timm" in error
    save_scan(0, tmp_path / "val" / "n01440764" / "0.jpeg")
    assert "pip install timm" in error_of(model_dir, *flags[2:], "--data_dir", tmp_path / "val")


def test_models_that_cannot_be_evaluated(error_of, data_dir, tmp_path):
    flags = ["--data_dir", data_dir]
    five = save_model(tmp_path / "five", num_labels=5)
    assert "five has 5 classes, but it must have the 1000 of ImageNet-1k" in error_of(five, *flags)
    vit().vit.save_pretrained(tmp_path / "headless")
    assert "lacks 2 tensors" in error_of(tmp_path / "headless", *flags)
    assert "nowhere" in error_of(tmp_path / "nowhere", *flags)
    model = randomize_(CaitForImageClassification(tiny_config(num_labels=1000)))
    torch.nn.init.constant_(model.classifier.bias[7:8], float("nan"))
    model.save_pretrained(save_model(tmp_path / "nan"))
    assert "jpeg are not finite: evaluate with --dtype float32" in error_of(tmp_path / "nan", *flags)
