# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""Images that cannot be decoded: named, or left out of tables and streams, listed, and no label is shifted."""

import errno
import io
import itertools
import logging
import os
import re
import shutil
import struct
import zlib
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import pytest
from PIL import Image
from test_scripts import NAMES, write_images
from test_training_data import SCANS, SHARDS, TARGETS, class_of, index_of, load, png, shards, table
from torch.utils.data import DataLoader

from cait_hf.corrupt_images import CorruptImageError, CorruptList, count_listed, decode, name_of, write_list
from cait_hf.image_input import to_pixels
from cait_hf.training.arguments import DataArguments
from cait_hf.training.data import load_data


def encode(image: Image.Image, format: str) -> bytes:
    file = io.BytesIO()
    image.save(file, format)
    return file.getvalue()


def bomb() -> bytes:
    """A PNG whose header says that it has 60,000 x 60,000 pixels."""
    header = b"IHDR" + struct.pack(">II", 60_000, 60_000) + PNG[24:29]
    return PNG[:12] + header + struct.pack(">I", zlib.crc32(header)) + PNG[33:]


NOISE = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
JPEG, PNG = encode(Image.fromarray(NOISE), "jpeg"), encode(Image.fromarray(NOISE), "png")

CORRUPT = {
    "zero bytes": (b"", "zero bytes"),
    "truncated JPEG": (JPEG[: len(JPEG) // 2], "truncated"),
    "truncated PNG": (PNG[: len(PNG) // 2], "truncated"),
    "damaged PNG": (PNG[:60] + bytes(40) + PNG[100:], "."),
    "head of a PNG": (PNG[:20], "."),
    "text": (b"404 Not Found", "of no format that Pillow reads"),
    "decompression bomb": (bomb(), "decompression bomb"),
}
GOOD = {
    "JPEG": JPEG,
    "one channel": encode(Image.fromarray(NOISE[..., 0]), "png"),
    "four channels": encode(Image.fromarray(np.dstack([NOISE, NOISE[..., :1]]), "RGBA"), "png"),
    "16 bits": encode(Image.fromarray(NOISE[..., 0].astype(np.uint16) * 257), "png"),
    "palette": encode(Image.fromarray(NOISE).quantize(16), "png"),
    "CMYK": encode(Image.fromarray(NOISE).convert("CMYK"), "jpeg"),
    "1 bit": encode(Image.fromarray(NOISE).convert("1"), "png"),
    "animation": encode(Image.fromarray(NOISE), "gif"),
}


@pytest.fixture
def folder(tmp_path) -> Path:
    """36 images of six classes, and the corrupt ones among them: first, last and in between."""
    write_images(tmp_path / "train", range(6), 6)
    for number, (data, _) in enumerate(CORRUPT.values()):
        (tmp_path / "train" / NAMES[number % 6] / f"{number}x.jpg").write_bytes(data)
    return tmp_path / "train"


def listed(tmp_path: Path, name: str = "corrupt_images.txt") -> dict[str, str]:
    return dict(line.split("\t") for line in (tmp_path / "out" / name).read_text().splitlines())


@pytest.mark.parametrize("as_file", [False, True], ids=["bytes", "file"])
@pytest.mark.parametrize("data, reason", CORRUPT.values(), ids=CORRUPT)
def test_corrupt_images_are_found(data, reason, as_file, tmp_path):
    (tmp_path / "image.jpg").write_bytes(data)
    stored = {"bytes": None if as_file else data, "path": str(tmp_path / "image.jpg") if as_file else None}
    with pytest.raises(CorruptImageError, match=reason) as error:
        decode(stored, datasets.Image())
    assert str(tmp_path) not in str(error.value) and " at 0x" not in str(error.value)


@pytest.mark.parametrize("data", GOOD.values(), ids=GOOD)
def test_unusual_images_are_fine(data, tmp_path):
    """Under a wrong name as well; all become three channels of 8 bits."""
    (tmp_path / "image.bmp").write_bytes(data)
    image = decode(str(tmp_path / "image.bmp"), datasets.Image())
    assert tuple(to_pixels(image).shape) == (3, 40, 30)
    assert to_pixels(image).float().std() > 30
    assert decode(data, datasets.Image()).tobytes() == image.tobytes()


def test_missing_files_and_cells(tmp_path, monkeypatch):
    for stored in (None, str(tmp_path / "absent.png"), str(tmp_path), {"bytes": None, "path": None}):
        with pytest.raises(CorruptImageError):
            decode(stored, datasets.Image())
    monkeypatch.chdir(tmp_path)
    (tmp_path / "0.png").write_bytes(b"")  # bytes win over a file that has their name by chance
    assert decode({"bytes": PNG, "path": "0.png"}, datasets.Image()).size == (30, 40)


def test_a_fault_of_the_machine_is_no_corrupt_image(monkeypatch):
    """Or a run that has too many files open would continue without most of its data."""

    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(PIL.Image, "open", fail)
    for error in (OSError(errno.EMFILE, "too many open files"), OSError(errno.EIO, "disk"), MemoryError()):
        with pytest.raises(type(error)) as raised:
            decode({"bytes": PNG, "path": None}, datasets.Image())
        assert raised.value is error
    error = PermissionError(errno.EACCES, "Permission denied")
    with pytest.raises(CorruptImageError, match="Permission denied"):
        decode({"bytes": PNG, "path": None}, datasets.Image())


# --- tables ---


def corrupt_table(corrupt: set[int]) -> datasets.Dataset:
    """The 25 scans, of which some are cut."""

    def cut(row: dict, index: int) -> dict:
        data = row["image"]["bytes"]
        return {"image": {"bytes": data[: len(data) // 2] if index in corrupt else data, "path": row["image"]["path"]}}

    rows = table(range(25))
    undecoded = rows.cast_column("image", datasets.Image(decode=False))
    return undecoded.map(cut, with_indices=True, load_from_cache_file=False).cast(rows.features)


def test_rows_are_named_by_their_place_in_the_data(tmp_path):
    """Not by their place among those drawn."""
    corrupt_table({7}).to_parquet(tmp_path / "train.parquet")
    train, _ = load(tmp_path, dataset_name=str(tmp_path), max_train_samples=25)
    with pytest.raises(CorruptImageError, match=r"the image row 7 of the training data \(7.png\) cannot be decoded"):
        list(train)
    assert name_of({"bytes": b"", "path": None}, "row 7") == name_of(b"", "row 7") == name_of(None, "row 7") == "row 7"


def test_skip_leaves_them_out_and_lists_them(folder, tmp_path, caplog):
    clean = tmp_path / "clean"
    shutil.copytree(folder, clean, ignore=shutil.ignore_patterns("*x.jpg"))
    expected = list(load(tmp_path, train_dir=str(clean))[0])
    with caplog.at_level(logging.WARNING):
        train, _ = load(tmp_path, train_dir=str(folder), corrupt_images="skip")
    items = list(train)
    assert len(train) == len(items) == 36 and [item["key"] for item in items] == list(range(36))
    for item, same in zip(items, expected):
        assert item["labels"] == same["labels"] and (item["pixel_values"] == same["pixel_values"]).all()

    reasons = listed(tmp_path)
    files = {
        str(folder / NAMES[number % 6] / f"{number}x.jpg"): reason
        for number, (_, reason) in enumerate(CORRUPT.values())
    }
    assert reasons.keys() == files.keys() and all(re.search(files[name], reasons[name]) for name in files)
    assert "Left out 7 images" in caplog.text and "out/corrupt_images.txt" in caplog.text
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["corrupt_images.txt"]

    load(tmp_path, train_dir=str(clean), corrupt_images="skip")  # a list that no longer holds does not remain
    assert not (tmp_path / "out" / "corrupt_images.txt").exists()


@pytest.mark.parametrize("count", [1, 10, 22, 25])
def test_skip_still_gives_as_many_as_are_asked_for(count, tmp_path):
    corrupt_table({0, 11, 24}).to_parquet(tmp_path / "train.parquet")
    fields = {"dataset_name": str(tmp_path), "max_train_samples": count, "corrupt_images": "skip"}
    train, _ = load(tmp_path, **fields)
    indices = [index_of(item["pixel_values"]) for item in train]
    assert len(set(indices)) == len(indices) == min(count, 22)
    assert [class_of(item) for item in train] == [NAMES[TARGETS[index]] for index in indices]
    whole = load(tmp_path, dataset_name=str(tmp_path), max_train_samples=25)[0]
    assert indices == [int(number) for number in whole.numbers if number not in (0, 11, 24)][:count]


def test_skip_holds_out_the_same_images(tmp_path):
    """A corrupt image moves no other one from training to evaluation."""
    corrupt_table({3, 4}).to_parquet(tmp_path / "train.parquet")
    fields = {"dataset_name": str(tmp_path), "do_eval": True}
    with_corrupt, without = load(tmp_path, **fields), load(tmp_path, corrupt_images="skip", **fields)
    for one, other in zip(with_corrupt, without):
        assert [number for number in one.numbers if number not in (3, 4)] == other.numbers.tolist()
    assert listed(tmp_path).keys() == {f"row {number} of the training data ({number}.png)" for number in (3, 4)}


def test_several_processes_find_the_same(folder, tmp_path):
    _, found = load(tmp_path, train_dir=str(folder), corrupt_images="skip"), listed(tmp_path)
    arguments = DataArguments(train_dir=str(folder), corrupt_images="skip")
    train, _ = load_data(arguments, train=True, output_dir=tmp_path / "out", num_workers=2)
    assert listed(tmp_path) == found and len(train) == 36


def test_what_was_decoded_once_is_remembered(folder, tmp_path, monkeypatch):
    """Decodable images are not decoded again; corrupt ones are, and a repaired one comes back."""
    train, _ = load(tmp_path, train_dir=str(folder), corrupt_images="skip")
    decoded = []

    def decode_and_count(image_type, value, **kwargs):
        decoded.append(value["path"])
        return decode_example(image_type, value, **kwargs)

    decode_example = datasets.Image.decode_example
    monkeypatch.setattr(datasets.Image, "decode_example", decode_and_count)
    load(tmp_path, train_dir=str(folder), corrupt_images="skip")
    assert sorted(decoded) == sorted(str(path) for path in folder.rglob("*x.jpg"))

    (folder / "one" / "1x.jpg").write_bytes(JPEG)
    (folder / "two" / "0.png").write_bytes(b"")
    train, _ = load(tmp_path, train_dir=str(folder), corrupt_images="skip")
    names = listed(tmp_path).keys()
    assert len(train) == 36 and str(folder / "one" / "1x.jpg") not in names and str(folder / "two" / "0.png") in names


def test_no_image_of_a_class_or_of_any_is_left(tmp_path, caplog):
    corrupt = {index for index, target in enumerate(TARGETS) if NAMES[target] == "three"}
    corrupt_table(corrupt).to_parquet(tmp_path / "train.parquet")
    with caplog.at_level(logging.WARNING):
        train, _ = load(tmp_path, dataset_name=str(tmp_path), corrupt_images="skip")
    assert "No image of three can be decoded in the training data" in caplog.text
    assert len(train.class_names) == 6 and train.classes_present() == set(NAMES) - {"three"}
    assert all(class_of(item) == NAMES[TARGETS[index_of(item["pixel_values"])]] for item in train)
    corrupt_table(set(range(25))).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(ValueError, match="the training data has no image that can be decoded; the first is row 0 of"):
        load(tmp_path, dataset_name=str(tmp_path), corrupt_images="skip")
    assert len(listed(tmp_path)) == 25


def test_only_the_first_process_writes_the_list(folder, tmp_path):
    arguments = DataArguments(train_dir=str(folder), corrupt_images="skip")
    train, _ = load_data(arguments, train=True, output_dir=tmp_path / "out", process_index=1)
    assert len(train) == 36 and not (tmp_path / "out").exists()


# --- the list ---


def test_list_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = write_list(tmp_path, [("a\nb\t.png", "cut\r")])
    assert path.read_text() == "a\\nb\\t.png\tcut\\r\n"

    def fail(*args):
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no space left"):
        write_list(tmp_path, [("c.png", "cut")])
    assert [path.name for path in tmp_path.iterdir()] == ["corrupt_images.txt"]
    assert path.read_text().startswith("a")


def test_stream_list_has_each_image_once(tmp_path):
    first, second, other = (CorruptList(tmp_path / "out", rank) for rank in (0, 0, 2))
    assert not (tmp_path / "out").exists()
    assert first.add("a.png", "cut") and not first.add("a.png", "cut")
    assert not second.add("a.png", "cut") and second.add("b.png", "cut")  # such as an interrupted run, resumed
    assert other.add("a.png", "cut") and other.add("c.png", "cut")
    assert listed(tmp_path) == {"a.png": "cut", "b.png": "cut"}
    assert listed(tmp_path, "corrupt_images.rank2.txt") == {"a.png": "cut", "c.png": "cut"}
    assert count_listed(tmp_path / "out") == 3 and count_listed(tmp_path) == 0


# --- streams ---


CORRUPT_ROWS = {1, 7, 8, 24}


def corrupt_stream(tmp_path: Path, corrupt: set[int] = CORRUPT_ROWS, **fields):
    for number, indices in enumerate(shards()):
        corrupt_table(corrupt).select(indices).to_parquet(tmp_path / f"train-{number}.parquet")
    files = f"{tmp_path}/train-*.parquet"
    return load(tmp_path, dataset_name="parquet", train_files=files, streaming=True, shuffle_buffer=4, **fields)[0]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("streaming", [False, True], ids=["table", "stream"])
def test_first_corrupt_image_ends_the_run_with_an_error_message(streaming, workers, folder, tmp_path):
    train, name = load(tmp_path, train_dir=str(folder))[0], r".*/train/\w+/\dx.jpg"
    if streaming:
        train, name = corrupt_stream(tmp_path), r"row \d of shard \d of the training data \(\d+.png\)"
    with pytest.raises(CorruptImageError) as error:
        list(itertools.islice(DataLoader(train, 2, num_workers=workers, collate_fn=list), 22))
    message = rf"the image {name} cannot be decoded \(.*\): .*pass --corrupt_images skip to leave out all .*"
    assert re.fullmatch(message, str(error.value)), str(error.value)


@pytest.mark.parametrize("workers", [0, 2])
def test_stream_skips_counts_and_lists(workers, tmp_path):
    clean = corrupt_stream(tmp_path / "clean", set())
    keys = {index_of(item["pixel_values"]): item["key"] for item in itertools.islice(clean, 25)}
    part = corrupt_stream(tmp_path, corrupt_images="skip")
    loader = DataLoader(part, 1, num_workers=workers, collate_fn=list)
    items = list(itertools.chain(*itertools.islice(loader, 84)))  # four passes over those that are good
    indices = [index_of(item["pixel_values"]) for item in items]
    assert not set(indices) & CORRUPT_ROWS and len(set(indices)) == 21
    assert all((item["key"] & 0xFFFFFF) == keys[index] for item, index in zip(items, indices))
    assert all(class_of(item) == NAMES[TARGETS[index]] for item, index in zip(items, indices))
    assert count_listed(tmp_path / "out") == 4
    starts = np.cumsum((0, *SHARDS))
    for index in CORRUPT_ROWS:
        shard_number = int(np.searchsorted(starts, index, side="right")) - 1
        name = f"row {index - starts[shard_number]} of shard {shard_number} of the training data ({index}.png)"
        assert name in listed(tmp_path)


@pytest.mark.parametrize("workers", [0, 2])
def test_skipped_batches_count_good_images_alone(workers, tmp_path):
    def keys(skipped: int) -> list:
        part = corrupt_stream(tmp_path, corrupt_images="skip")
        part.skip_batches(skipped, batch_size=3)
        loader = DataLoader(part, 3, num_workers=workers, collate_fn=lambda items: [item["key"] for item in items])
        return list(itertools.islice(loader, 15 - skipped))

    whole = keys(0)
    for skipped in (1, 4, 9):
        assert keys(skipped) == whole[skipped:]


def test_stream_of_corrupt_images_alone_ends(tmp_path):
    with pytest.raises(CorruptImageError, match="none of the 25 images that a process read"):
        next(iter(corrupt_stream(tmp_path, set(range(25)), corrupt_images="skip")))


def test_image_folder_as_a_stream(folder, tmp_path):
    train, _ = load(tmp_path, train_dir=str(folder), streaming=True, corrupt_images="skip", shuffle_buffer=1)
    train.endless = False
    assert len(list(train)) == 36 and len(listed(tmp_path)) == 7
    assert listed(tmp_path)[str(folder / "zero" / "0x.jpg")] == "zero bytes"
    train.corrupt_images = "error"
    with pytest.raises(CorruptImageError, match="x.jpg cannot be decoded"):
        list(train)


def test_scans_are_told_apart():
    """What `index_of` stands on."""
    assert len({png(scan) for scan in SCANS}) == len(SCANS) == sum(SHARDS)
