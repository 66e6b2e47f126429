# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""`cait_hf.training.data`: images from every kind of source, streams shared by processes and workers, classes."""

import dataclasses
import io
import itertools
import json
import logging
import os
import shutil
import tarfile
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from test_scripts import NAMES, write_images
from torch.utils.data import DataLoader

from cait_hf.corrupt_images import CorruptImageError
from cait_hf.image_datasets import describe, load_images
from cait_hf.training.arguments import DataArguments
from cait_hf.training.data import hold_out, load_data
from cait_hf.training.streaming import KEY_BITS, ImageStream


pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")

# Of 25 scans of digits 0 to 5, in an order that mixes the classes; their pixels tell them apart.
DIGITS = load_digits(n_class=6)
SCANS, TARGETS = (DIGITS.images[:25] * 15).astype(np.uint8), DIGITS.target[:25].tolist()
SHARDS = (7, 4, 6, 5, 3)


def as_pixels(image: Image.Image, key: int) -> torch.Tensor:
    return torch.from_numpy(np.array(image.convert("L")))


def png(scan: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(scan).save(file, "png")
    return file.getvalue()


def index_of(pixels: torch.Tensor) -> int:
    (index,) = [index for index, scan in enumerate(SCANS) if np.array_equal(scan, pixels)]
    return index


def class_of(item: dict) -> str:
    return sorted(NAMES)[item["labels"]]


def load(tmp_path: Path, do_train: bool = True, do_eval: bool = False, **fields):
    """What `load_data` gives, prepared for a model that has the six classes in alphabetical order."""
    loaded = load_data(DataArguments(**fields), train=do_train, evaluate=do_eval, output_dir=tmp_path / "out")
    for images in loaded:
        if images is not None:
            images.prepare(as_pixels, {name: index for index, name in enumerate(sorted(NAMES))})
    return loaded


def first_epoch(stream: ImageStream, workers: int = 0) -> list[dict]:
    """The items of one pass of an endless stream over all 25 images, in a process."""
    stream.endless = False
    return list(itertools.chain.from_iterable(DataLoader(stream, 2, num_workers=workers, collate_fn=list)))


def table(indices) -> datasets.Dataset:
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(NAMES))}
    rows = {
        "image": [{"bytes": png(SCANS[index]), "path": f"{index}.png"} for index in indices],
        "label": [TARGETS[index] for index in indices],
    }
    return datasets.Dataset.from_dict(rows, features=datasets.Features(features))


def shards() -> list[range]:
    ends = np.cumsum(SHARDS).tolist()
    return [range(end - count, end) for count, end in zip(SHARDS, ends)]


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> Path:
    """The 25 scans in every form; those with numbers alone need class_names.txt."""
    folder = tmp_path_factory.mktemp("sources")
    (folder / "class_names.txt").write_text("\n".join(NAMES) + "\n")
    for name in ("parquet", "tar", "json"):
        (folder / name).mkdir()
    for number, indices in enumerate(shards()):
        table(indices).to_parquet(folder / "parquet" / f"train-{number}.parquet")
        with tarfile.open(folder / "tar" / f"train-{number}.tar", "w") as archive:
            for index in indices:
                label = TARGETS[index]
                members = {
                    "png": png(SCANS[index]),
                    "cls": str(label).encode(),
                    "json": json.dumps({"digit": label, "word": NAMES[label]}).encode(),
                }
                for extension, content in members.items():
                    member = tarfile.TarInfo(f"{index:04}.{extension}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
    for index, target in enumerate(TARGETS):
        (folder / "folder" / NAMES[target]).mkdir(parents=True, exist_ok=True)
        (folder / "folder" / NAMES[target] / f"{index}.png").write_bytes(png(SCANS[index]))
    with open(folder / "json" / "train.jsonl", "w") as file:
        for index, target in enumerate(TARGETS):
            path = folder / "folder" / NAMES[target] / f"{index}.png"
            file.write(json.dumps({"scan": str(path), "species": NAMES[target]}) + "\n")
    table(range(25)).save_to_disk(folder / "saved", num_shards=2)
    datasets.DatasetDict({"train": table(range(25))}).save_to_disk(folder / "saved_splits")
    return folder


NAMED = {"class_names": "{0}/class_names.txt"}
TAR = {"dataset_name": "webdataset", "train_files": "{0}/tar/train-*.tar", **NAMED}
SOURCES = {
    "folder of parquet": {"dataset_name": "{0}/parquet"},
    "parquet files": {"dataset_name": "parquet", "train_files": "{0}/parquet/*.parquet"},
    "webdataset": TAR,
    "webdataset, field of json": {**TAR, "label_column_name": "json.word"},
    "json": {"dataset_name": "{0}/json", "image_column_name": "scan", "label_column_name": "species", **NAMED},
    "imagefolder": {"train_dir": "{0}/folder"},
    "imagefolder files": {"dataset_name": "imagefolder", "train_files": "{0}/folder/**"},
    "saved to disk": {"dataset_name": "{0}/saved"},
    "saved with splits": {"dataset_name": "{0}/saved_splits"},
}


@pytest.mark.parametrize("streaming", [False, True], ids=["table", "stream"])
@pytest.mark.parametrize("fields", SOURCES.values(), ids=SOURCES)
def test_every_source_gives_the_same_images_and_classes(fields, streaming, sources, tmp_path):
    fields = {name: value.format(sources) for name, value in fields.items()}
    train, evaluation = load(tmp_path, streaming=streaming, **fields)
    assert evaluation is None and isinstance(train, ImageStream) == streaming
    assert sorted(train.class_names) == sorted(NAMES)
    items = first_epoch(train) if streaming else list(train)
    indices = [index_of(item["pixel_values"]) for item in items]
    assert sorted(indices) == list(range(25))
    assert [class_of(item) for item in items] == [NAMES[TARGETS[index]] for index in indices]
    assert len({item["key"] for item in items}) == 25
    assert not (tmp_path / "out").exists()


def test_validation_files_are_matched_by_name(sources, tmp_path):
    """A validation folder with other numbers beside training data with numbers of their own."""
    write_images(tmp_path / "validation", range(3), 2)
    files = {"train_files": f"{sources}/folder/**", "validation_files": f"{tmp_path}/validation/**"}
    train, evaluation = load(tmp_path, do_eval=True, dataset_name="imagefolder", **files)
    assert [class_of(item) for item in evaluation] == 2 * ["one"] + 2 * ["two"] + 2 * ["zero"]
    assert len(train) == 25


def test_views_repeat_images_with_other_keys(sources, tmp_path):
    train, _ = load(tmp_path, train_dir=str(sources / "folder"), max_train_samples=5)
    keys = []
    train.prepare(lambda image, key: (keys.append(key), as_pixels(image, key))[1], dict.fromkeys(NAMES, 0))
    assert len(list(train)) == len(train) == 5
    train.views, keys[:] = 3, []
    items = [train[index] for index in (2, 7, 12)]
    assert keys == [item["key"] for item in items] == [2, 7, 12]
    assert len({index_of(item["pixel_values"]) for item in items}) == 1
    assert len(train) == 5
    with pytest.raises(IndexError, match="the index is 15, but there are 3 views of 5 images"):
        train[15]


def test_columns_that_are_not_asked_for_are_not_decoded(tmp_path):
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(NAMES)), "mask": datasets.Image()}
    rows = {"image": [{"bytes": png(SCANS[0])}], "label": [TARGETS[0]], "mask": [{"bytes": b"no image"}]}
    datasets.Dataset.from_dict(rows, features=datasets.Features(features)).to_parquet(tmp_path / "train.parquet")
    for streaming in (False, True):
        fields = {"dataset_name": str(tmp_path), "streaming": streaming}
        with pytest.raises(ValueError, match="2 columns .* look like images: set --image_column_name to one of image"):
            load(tmp_path, **fields)
        train, _ = load(tmp_path, image_column_name="image", **fields)
        assert class_of(next(iter(train))) == NAMES[TARGETS[0]]


def test_held_out_images_are_no_training_images(sources, tmp_path):
    train, evaluation = load(tmp_path, do_eval=True, train_dir=str(sources / "folder"), train_val_split=0.3)
    indices = [{index_of(item["pixel_values"]) for item in images} for images in (train, evaluation)]
    assert len(indices[1]) == 8 and indices[0] | indices[1] == set(range(25)) and not indices[0] & indices[1]
    for images in (train, evaluation):
        assert all(class_of(item) == NAMES[TARGETS[index_of(item["pixel_values"])]] for item in images)
    with pytest.raises(ValueError, match="--train_val_split is 0.99, but of 25 images that leaves none on a side"):
        hold_out(load(tmp_path, train_dir=str(sources / "folder"))[0], 0.99, seed=0)


@pytest.mark.parametrize("fraction", [0.05, 0.15, 0.3, 0.5, 0.9])
def test_a_fraction_of_each_class_is_held_out(fraction, tmp_path):
    """Of 1, 2, 3 ... images; to one image, but at least one on each side where there are two."""
    sizes = dict(zip(NAMES, (1, 2, 3, 4, 40, 13)))
    targets = [index for index, size in enumerate(sizes.values()) for _ in range(size)]
    scans = [{"bytes": png(np.full((8, 8), index, np.uint8)), "path": None} for index in range(len(targets))]
    columns = {"numbers": (targets, datasets.ClassLabel(names=list(NAMES)))}
    columns["names"] = [NAMES[target] for target in targets], datasets.Value("string")
    for form, (labels, label_type) in columns.items():
        features = datasets.Features({"image": datasets.Image(), "label": label_type})
        datasets.Dataset.from_dict({"image": scans, "label": labels}, features=features).save_to_disk(tmp_path / form)
    splits = []
    for form, seed in (("numbers", 0), ("numbers", 0), ("names", 0), ("numbers", 1)):
        data_args = DataArguments(dataset_name=str(tmp_path / form), train_val_split=fraction)
        pair = load_data(data_args, train=True, evaluate=True, seed=seed)
        assert sorted(np.concatenate([images.numbers for images in pair])) == list(range(len(targets)))
        splits.append([images.numbers.tolist() for images in pair])
        held = [targets[number] for number in pair[1].numbers]
        for index, size in enumerate(sizes.values()):
            count = held.count(index)
            assert min(1, size - 1) <= count <= max(0, size - 1) and (abs(count - fraction * size) <= 1 or count == 1)
        assert held != sorted(held)
    assert splits[0] == splits[1] != splits[3]


def test_held_out_images_are_announced(sources, tmp_path, caplog):
    load(tmp_path, do_eval=True, train_dir=str(sources / "folder"))
    assert "6 of the 25 training images" in caplog.text and "pass --validation_dir" in caplog.text
    load(tmp_path, do_eval=True, dataset_name=str(sources / "saved_splits"))
    assert "set --eval_split: " in caplog.text and "saved_splits has only the splits train" in caplog.text


# --- streams ---


def stream(sources: Path, tmp_path: Path, pattern: str = "train-*", **fields) -> ImageStream:
    files = f"{sources}/parquet/{pattern}.parquet"
    return load(tmp_path, dataset_name="parquet", train_files=files, streaming=True, shuffle_buffer=4, **fields)[0]


@pytest.mark.parametrize("ranks, workers", [(2, 2), (2, 0), (5, 2), (1, 7)])
@pytest.mark.parametrize("pattern, count", [("train-*", 25), ("train-[0-3]", 22), ("train-4", 3)])
def test_processes_and_workers_fraction_an_epoch(pattern, count, ranks, workers, sources, tmp_path):
    """Also where the files cannot be dealt out evenly; keys are those that one process alone gives."""
    alone = {item["key"]: index_of(item["pixel_values"]) for item in first_epoch(stream(sources, tmp_path, pattern))}
    assert len(alone) == count
    shared = []
    for rank in range(ranks):
        part = stream(sources, tmp_path, pattern)
        part.split(rank, ranks)
        part.set_epoch(3)
        shared.append([(item["key"], index_of(item["pixel_values"])) for item in first_epoch(part, workers)])
    together = list(itertools.chain(*shared))
    assert len(together) == count
    assert {key - (3 << KEY_BITS): index for key, index in together} == alone
    assert count < 10 or all(len(part) >= count // ranks - 3 for part in shared)


def test_each_pass_has_another_order_and_other_keys(sources, tmp_path):
    endless = stream(sources, tmp_path)
    items = list(itertools.islice(endless, 75))
    passes = [items[start : start + 25] for start in (0, 25, 50)]
    orders = [[index_of(item["pixel_values"]) for item in items] for items in passes]
    assert all(sorted(order) == list(range(25)) for order in orders)
    assert orders[0] != orders[1] != orders[2] != orders[0] and orders[0] != sorted(orders[0])
    numbers = [
        {index: item["key"] - (number << KEY_BITS) for index, item in zip(order, items)}
        for number, (items, order) in enumerate(zip(passes, orders))
    ]
    assert numbers[0] == numbers[1] == numbers[2] and 0 <= min(numbers[0].values()) < max(numbers[0].values()) < 35

    endless.set_epoch(1)
    again = list(itertools.islice(endless, 25))
    assert [item["key"] for item in again] == [item["key"] for item in passes[1]]
    other_seed = stream(sources, tmp_path)
    other_seed.seed = 43
    assert [item["key"] for item in itertools.islice(other_seed, 25)] != [item["key"] for item in passes[0]]


@pytest.mark.parametrize("corrupt_images", ["error", "skip"])
@pytest.mark.parametrize("workers", [0, 1, 2, 3])
def test_skipped_batches_are_those_that_came_first(workers, corrupt_images, sources, tmp_path):
    """Over the end of passes, and with a worker for which no file is left (three workers, two files a process)."""

    def keys(skipped: int) -> list[list[int]]:
        part = stream(sources, tmp_path, "train-[0-3]", corrupt_images=corrupt_images)
        part.split(0, 2)
        part.skip_batches(skipped, batch_size=4)
        loader = DataLoader(part, 4, num_workers=workers, collate_fn=lambda items: [item["key"] for item in items])
        return list(itertools.islice(loader, 12 - skipped))

    whole = keys(0)
    assert len(set(itertools.chain(*whole))) == 48 and max(map(max, whole)) > 1 << KEY_BITS
    for skipped in (1, 5, 8):
        assert keys(skipped) == whole[skipped:]


def test_workers_that_live_on_take_the_new_epoch(sources, tmp_path):
    """And one that is spawned, not forked, gets the stream as bytes."""
    part = stream(sources, tmp_path)
    part.endless = False
    loader = DataLoader(part, 5, num_workers=1, persistent_workers=True, collate_fn=list)
    for epoch in (0, 2):
        part.set_epoch(epoch)
        assert {item["key"] >> KEY_BITS for batch in loader for item in batch} == {epoch}
    copy = ForkingPickler.loads(ForkingPickler.dumps(part))
    assert [item["key"] for item in first_epoch(copy)] == [item["key"] for item in first_epoch(part)]
    with pytest.raises(ValueError, match="rank is 2, .* world_size, 2"):
        part.split(2, 2)


def test_evaluation_stream_ends_and_keeps_the_order_of_the_data(sources, tmp_path):
    files = f"{sources}/parquet/train-*.parquet"
    fields = {"dataset_name": "parquet", "validation_files": files, "streaming": True}
    _, evaluation = load(tmp_path, do_train=False, do_eval=True, **fields)
    assert [index_of(item["pixel_values"]) for item in evaluation] == list(range(25))
    _, evaluation = load(tmp_path, do_train=False, do_eval=True, max_eval_samples=7, **fields)
    firsts = [index for part, count in zip(shards(), (2, 2, 1, 1, 1)) for index in part[:count]]
    assert [index_of(item["pixel_values"]) for item in evaluation] == firsts
    assert len(first_epoch(stream(sources, tmp_path, max_train_samples=3))) == 3


def test_stream_is_never_held_whole(tmp_path):
    """Data without an end: a stream reads what it gives and its buffer, no more."""
    read = []

    def rows(parts):
        for index in itertools.count():
            read.append(index)
            yield {"image": {"bytes": png(SCANS[index % 25]), "path": None}, "label": TARGETS[index % 25]}

    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(NAMES))})
    source = datasets.IterableDataset.from_generator(rows, features=features, gen_kwargs={"parts": [0]})
    found = describe(source, "the training data")
    columns = {field.name: getattr(found, field.name) for field in dataclasses.fields(found)}
    images = ImageStream(**columns, shuffle_buffer=8, endless=True)
    read.clear()
    assert len(list(itertools.islice(images, 20))) == 20
    assert len(read) <= 20 + 8 + 2 * 16


# --- classes and messages ---


def test_numbers_without_names(sources, tmp_path, caplog):
    files = {"dataset_name": "webdataset", "train_files": f"{sources}/tar/*.tar"}
    with pytest.raises(ValueError, match="streamed and its column cls is of type int64.*--class_names FILE"):
        load(tmp_path, streaming=True, **files)
    with caplog.at_level(logging.WARNING):
        train, _ = load(tmp_path, **files)
    assert train.class_names == list("012345") and "see --class_names" in caplog.text
    with pytest.raises(ValueError, match="to one of png, cls, json, json.digit, json.word"):
        load(tmp_path, label_column_name="json.name", **files)
    with pytest.raises(ValueError, match="--label_column_name is json, but .* no single value"):
        load(tmp_path, label_column_name="json", **files)


def test_class_names_must_fit(sources, tmp_path):
    (names := tmp_path / "names.txt").write_text("\n".join(NAMES[:4]))
    files = {"dataset_name": "webdataset", "train_files": f"{sources}/tar/*.tar", "class_names": str(names)}
    with pytest.raises(ValueError, match=r"the label [45] in the column cls, .* from 0 to 3; --class_names"):
        load(tmp_path, **files)
    with pytest.raises(ValueError, match=r"the label '(four|five)' in the column json.word, but the classes are zero"):
        load(tmp_path, label_column_name="json.word", **files)
    part, _ = load(tmp_path, streaming=True, **files)
    with pytest.raises(CorruptImageError, match=r"^row \d of .*/train-\d.tar \(.*.png\): .* has the label [45]"):
        list(itertools.islice(DataLoader(part, num_workers=1, collate_fn=list), 25))

    with pytest.raises(ValueError, match="--class_names is .*, but the training data names its classes itself"):
        load(tmp_path, train_dir=str(sources / "folder"), class_names=str(names))
    for text in ("", "a\n\nb\n", "a\nb\na\n"):
        names.write_text(text)
        with pytest.raises(ValueError, match="--class_names is .*names.txt, but each line must be one name"):
            load(tmp_path, **files)
    hidden = table([0, 1]).map(lambda row: {"label": -1}, remove_columns="label", features=table([0]).features)
    hidden.to_parquet(tmp_path / "train.parquet")  # as public test splits have their labels
    with pytest.raises(ValueError, match="the training data has the label -1 in the column label"):
        load(tmp_path, dataset_name=str(tmp_path))


def test_class_folder_without_images_is_named(sources, tmp_path, caplog):
    write_images(tmp_path / "train", range(2), 2)
    (tmp_path / "train" / "six").mkdir()
    (tmp_path / "train" / "seven").mkdir()
    (tmp_path / "train" / "seven" / "notes.txt").write_text("images follow")
    (tmp_path / "train" / ".thumbnails").mkdir()
    with caplog.at_level(logging.WARNING):
        train, _ = load(tmp_path, train_dir=str(tmp_path / "train"))
    assert train.class_names == ["one", "zero"]
    assert "--train_dir: seven, six hold no images and become no classes" in caplog.text
    caplog.clear()
    load(tmp_path, train_dir=str(sources / "folder"))
    assert "become no classes" not in caplog.text


@pytest.mark.parametrize("links", [1, 3])
@pytest.mark.parametrize("streaming", [False, True], ids=["table", "stream"])
def test_class_folders_may_be_links(links, streaming, tmp_path):
    """As in a selection of the classes of a large dataset."""
    for folder in sorted(write_images(tmp_path / "real", range(3), 2).iterdir()):
        place = tmp_path / "train" / folder.name
        place.parent.mkdir(exist_ok=True)
        place.symlink_to(folder) if len(list(place.parent.iterdir())) < links else shutil.copytree(folder, place)
    train, _ = load(tmp_path, train_dir=str(tmp_path / "train"), streaming=streaming, shuffle_buffer=1)
    items = list(itertools.islice(train, 6))
    assert sorted(map(class_of, items)) == 2 * ["one"] + 2 * ["two"] + 2 * ["zero"]
    assert len({item["key"] for item in items}) == 6


def folder_of(root: Path, *files: str) -> Path:
    """A folder with scans at these paths, the first scan in the first file, and so on."""
    for index, file in enumerate(files):
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_bytes(png(SCANS[index]) if "." in file else b"")
    return root


FOLDERS = {
    "subfolders in a class": ("cat/1.png", "cat/old/2.png", "cat/old/3/3.jpg", "dog/4.png"),
    "an archive and images beside the classes": ("cat/1.png", "dog/2.png", "images.zip", "example.png"),
    "names that other tools hide": ("__background__/1.png", "test/2.png", "train/3.png", "a,b/4.png"),
    "capital letters": ("Cat/1.PNG", "cat/2.JPG", "dog/3.Jpeg"),
    "glob characters": ("cat [1]/a*b.png", "cat/1?.png", "{dog}/[!2].png"),
    "one class": ("cat/1.png", "cat/2.png"),
    "files that are no images": ("cat/1.png", "cat/Thumbs.db", "cat/labels.csv", "dog/2.png", "metadata.txt"),
    "the same name in each class": ("cat/1/1.png", "dog/1/1.png", "dog/2.png"),
}


@pytest.mark.parametrize("streaming", [False, True], ids=["table", "stream"])
@pytest.mark.parametrize("files", FOLDERS.values(), ids=FOLDERS)
def test_folders_have_the_classes_and_images_of_torchvision(files, streaming, tmp_path):
    vision = pytest.importorskip("torchvision.datasets", reason="ImageFolder is torchvision's")
    folder = folder_of(tmp_path / "images [1]", *files)
    expected = vision.ImageFolder(folder)
    images = load_images(folder=str(folder), streaming=streaming)
    assert images.class_names == expected.classes
    found = [(row["image"]["path"], images.class_of(row)) for row in images.rows]
    assert sorted(found) == sorted((path, expected.classes[label]) for path, label in expected.samples)


def test_hidden_files_are_no_images(tmp_path):
    files = ("cat/1.png", "dog/2.png", "cat/._1.png", "cat/.ipynb_checkpoints/1.png", ".cache/3.png", ".DS_Store.png")
    images = load_images(folder=str(folder_of(tmp_path, *files)))
    assert [Path(row["image"]["path"]).name for row in images.rows] == ["1.png", "2.png"]
    assert images.class_names == ["cat", "dog"]


def test_link_back_is_not_followed(tmp_path):
    folder = folder_of(tmp_path, "cat/1.png", "dog/2.png")
    (folder / "cat" / "again").symlink_to(folder)
    assert len(load_images(folder=str(folder)).rows) == 2


UNCLEAR_FOLDERS = [
    (
        ("train/cat/1.png", "train/dog/2.png", "val/cat/3.png"),
        r"lie in subfolders of these.*\(train/cat, .*/data/train\.",
    ),
    (
        ("images/cat/1.png", "images/dog/2.png", "note.png"),
        r"lie in subfolders of these.*\(images/cat, .*/data/images\.",
    ),
    (("animals/cat/1.png", "plants/oak/2.png"), "lie in subfolders of these.*animals/cat, plants/oak"),
    (("train/1.png", "train/dog/2.png", "val/cat/3.png"), "lie in subfolders of these.*train/dog, val/cat"),
    (("cat/\udcff.png", "dog/2.png"), "the name of .*udcff.* is not UTF-8"),
    (("1.png", "2.png"), "must lie in subfolders, one for each class"),
    (("cat/notes", "images.zip"), "there are no images in it"),
    (("cat/1.png", "dog/2.png", "metadata.csv"), "its metadata.csv cannot be read"),
]


@pytest.mark.parametrize("files, message", UNCLEAR_FOLDERS)
def test_folder_without_clear_classes(files, message, tmp_path):
    with pytest.raises(ValueError, match=f"--validation_dir is .*data, but .*{message}"):
        load(tmp_path, False, True, validation_dir=str(folder_of(tmp_path / "data", *files)))


PATHS = ["{0}/", "{0}/.", "{0}//", "./{1}", "../{2}/{1}/", "~/{1}", "~/{1}/", "link", "link/", "link/../{1}"]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("flag", ["train_dir", "dataset_name"])
def test_paths_are_what_a_shell_would_open(flag, path, tmp_path, monkeypatch):
    folder = tmp_path / ("images [1]" if flag == "train_dir" else "images 1") / "train"
    folder_of(folder, "cat/1.png", "dog/2.png")
    (folder.parent / "link").symlink_to(folder)
    monkeypatch.chdir(folder.parent)
    monkeypatch.setenv("HOME", str(folder.parent))
    path = path.format(folder, folder.name, folder.parent.name)
    train, _ = load(tmp_path, **{flag: path})
    assert train.class_names == ["cat", "dog"] and len(train) == 2


def test_saved_dataset_may_have_any_name(sources, tmp_path):
    """But `datasets` takes other folders for patterns."""
    shutil.copytree(sources / "saved", tmp_path / "data [1]" / "saved")
    assert len(load(tmp_path, dataset_name=str(tmp_path / "data [1]" / "saved"))[0]) == 25
    folder = folder_of(tmp_path / "images [1]", "cat/1.png", "dog/2.png")
    with pytest.raises(ValueError, match=r"--dataset_name is .*images \[1\], but .*\*, \? or \["):
        load(tmp_path, dataset_name=str(folder))


def test_folder_that_cannot_be_read(sources, tmp_path, monkeypatch):
    """Otherwise its images would be missing without a word."""
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "two" and access(path, mode))
    with pytest.raises(ValueError, match="--train_dir is .*, but .*/folder/two cannot be read: permission denied"):
        load(tmp_path, train_dir=str(sources / "folder"))


WRONG_INPUT = [
    ({"train_files": "a*"}, "--train_files, --validation_files and --predict_files need --dataset_name"),
    ({"dataset_name": "{0}/saved_splits", "eval_split": "tset"}, "--eval_split is tset, but .* the splits train"),
    ({"dataset_name": "{0}/saved", "eval_split": "dev", "streaming": True}, "--eval_split is dev, but .* train"),
    ({"dataset_name": "{0}/parquet", "eval_split": "test[:9]"}, r"--eval_split is test\[:9\], but .* train"),
    ({"train_dir": "{0}/folder", "eval_split": "test"}, "--eval_split is test, but it needs --dataset_name"),
    ({"train_dir": "{0}/folder", "dataset_config_name": "v"}, "--dataset_config_name is v, but it needs --dataset_n"),
    ({"dataset_name": "{0}/saved", "dataset_config_name": "v"}, "--dataset_name is .*no configuration v"),
    ({"dataset_name": "{0}/parquet", "dataset_config_name": "v"}, "--dataset_name is .*'v' not found"),
    ({"corrupt_images": "maybe"}, "--corrupt_images is maybe, "),
    ({"shuffle_buffer": 0}, "--shuffle_buffer is 0, "),
    ({"max_train_samples": 0}, "--max_train_samples is 0, "),
    ({"max_eval_samples": 0}, "--max_eval_samples is 0, "),
    ({"streaming": True, "train_dir": "{0}/folder"}, "no images to evaluate on: .*--streaming"),
    ({"streaming": True, "dataset_name": "{0}/saved_splits"}, "saved_splits has only the splits train"),
    ({"dataset_name": "{0}/json"}, "0 columns .* set --image_column_name to one of scan, species"),
    ({"dataset_name": "{0}/json", "image_column_name": "image"}, "--image_column_name is image: set"),
    ({"dataset_name": "parquet", "train_files": "{0}/class_names.txt"}, "parquet with .*class_names.*: .*[Pp]arquet"),
    ({"dataset_name": "parquet", "train_files": "{0}/absent*"}, "parquet with the files .*absent.*, but"),
]


@pytest.mark.parametrize("fields, message", WRONG_INPUT)
def test_wrong_input(fields, message, sources, tmp_path):
    fields = {name: value.format(sources) if isinstance(value, str) else value for name, value in fields.items()}
    with pytest.raises(ValueError, match=message):
        load(tmp_path, do_eval=True, **fields)


def test_images_without_training(sources):
    """Plain values are enough: a dataset or a folder, its split and columns."""
    names = str(sources / "class_names.txt")
    tar, folder = f"{sources}/tar/train-*.tar", str(sources / "folder")
    for images in (
        load_images("webdataset", files=tar, split="test", label_column="cls", class_names=names),
        load_images(str(sources / "saved"), image_column="image", streaming=True),
        load_images(str(sources / "saved_splits")),
        load_images(folder=folder, streaming=True),
    ):
        found = [(index_of(as_pixels(images.image_of(row), 0)), images.class_of(row)) for row in images.rows]
        assert sorted(found) == [(index, NAMES[target]) for index, target in enumerate(TARGETS)]
    assert images.item("image", "three", 7) == {"pixel_values": "image", "labels": 3, "key": 7}
    for arguments in ({}, {"dataset_name": "parquet", "folder": folder}):
        with pytest.raises(ValueError, match="dataset_name is .* and folder .*, but exactly one"):
            load_images(**arguments)
    unlabeled = load_images(folder=f"{folder}/two", labeled=False)
    found = {index_of(as_pixels(unlabeled.image_of(row), 0)) for row in unlabeled.rows}
    assert found == {index for index, target in enumerate(TARGETS) if target == 2} and unlabeled.class_names == []
    with pytest.raises(ValueError, match="--dataset_name is .*saved_splits, but .*only the splits train"):
        load_images(str(sources / "saved_splits"), split="test")
