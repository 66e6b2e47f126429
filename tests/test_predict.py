# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""`cait-hf predict`: what the table has, which images it takes, resuming, several processes, faults."""

import io
import json
import os
import random
import tarfile
import time
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import warm_process
from PIL import Image
from random_weights import randomize_, tiny_config
from test_distributed import wait_for
from test_scripts import SCRIPTS, load_script
from transformers import pipeline

import cait_hf_cli as cli
from cait_hf import CaitForImageClassification, CaitImageProcessorPil
from cait_hf.prediction import run as engine
from cait_hf.prediction.inputs import files_of, from_dataset, from_files
from cait_hf.prediction.predictor import Predictor, find_device, find_dtype


SCRIPT = SCRIPTS / "predict.py"
COUNT = 23  # no multiple of a shard or a batch below
FLAGS = ["--shard_size", "6", "--batch_size", "4", "--num_workers", "0", "--dtype", "float32", "--device", "cpu"]
SECONDS = 240  # for a child process on a busy machine


def save_image(index: int, file) -> None:
    noise = np.random.default_rng(index).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize((40 + index, 36), Image.Resampling.BICUBIC)
    image.save(file, "JPEG", quality=95)


def encoded(index: int) -> bytes:
    save_image(index, file := io.BytesIO())
    return file.getvalue()


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """The folders `model` and `images`."""
    folder = tmp_path_factory.mktemp("predict")
    config = tiny_config(id2label=dict(enumerate(["ant", "bee", "cat", "dog", "eel"])))
    randomize_(CaitForImageClassification(config)).save_pretrained(folder / "model")
    CaitImageProcessorPil(size=32, crop_size=32).save_pretrained(folder / "model")
    (folder / "images" / "below").mkdir(parents=True)
    for index in range(COUNT):
        save_image(index, folder / "images" / ("below" if index > 19 else "") / f"{index:02}.jpg")
    return folder


@pytest.fixture(autouse=True)
def _in_place(place, monkeypatch):
    monkeypatch.chdir(place)


def run(*arguments) -> int:
    return cli.main(["predict", "--model", "model", *FLAGS, *(str(argument) for argument in arguments)])


@pytest.fixture(scope="module")
def whole(place) -> Path:
    """A table with all columns."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        assert run("images", "--output_dir", place / "whole", "--embeddings", "--logits") == 0
    return place / "whole"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def rows_of(folder: Path) -> list[dict]:
    return [row for file in sorted(folder.glob("*.parquet")) for row in pq.read_table(file).to_pylist()]


# The table


def test_table_has_what_the_pipeline_says(whole, place):
    """In the order of the images; embeddings and logits are the model's."""
    rows = rows_of(whole)
    assert [row["file"] for row in rows] == [str(file) for file in sorted(Path("images").rglob("*.jpg"))]
    model = CaitForImageClassification.from_pretrained("model")
    image_processor = CaitImageProcessorPil.from_pretrained("model")
    classify = pipeline("image-classification", model=model, image_processor=image_processor)
    for row, best in zip(rows, classify([row["file"] for row in rows], top_k=5), strict=True):
        assert row["labels"] == [prediction["label"] for prediction in best] and row["error"] is None
        assert row["scores"] == pytest.approx([prediction["score"] for prediction in best], abs=1e-5)
        pixel_values = image_processor(Image.open(row["file"]), return_tensors="pt").pixel_values
        with torch.no_grad():
            features = model.cait(pixel_values)
            logits = model(pixel_values).logits[0]
        assert row["embedding"] == pytest.approx(features.pooler_output[0].tolist(), abs=1e-5)
        assert row["logits"] == pytest.approx(logits.tolist(), abs=1e-5)
    assert len({tuple(row["embedding"]) for row in rows}) == COUNT
    assert sorted(path.name for path in whole.iterdir() if path.suffix == ".parquet") == [
        f"predictions-{shard:05}.parquet" for shard in range(4)
    ]


def test_schema_and_metadata(whole):
    schemas = [pq.read_schema(file) for file in sorted(whole.glob("*.parquet"))]
    assert all(schema.equals(schemas[0], check_metadata=True) for schema in schemas)
    assert schemas[0].names == ["file", "labels", "scores", "error", "embedding", "logits"]
    assert [str(schemas[0].field(name).type) for name in ("embedding", "logits")] == [
        "fixed_size_list<element: float>[48]",
        "fixed_size_list<element: float>[5]",
    ]
    stated = json.loads(schemas[0].metadata[b"cait_hf"])
    assert stated["model"] == "model" and stated["revision"] is None
    assert stated["image_processor"]["class"] == "CaitImageProcessorPil"
    assert stated["image_processor"]["crop_size"] == {"height": 32, "width": 32}
    assert stated["versions"].keys() == {"cait-hf", "torch", "transformers"}


def test_pooling_and_float16(whole, tmp_path):
    flags = ["--embeddings", "--pool", "mean", "--embedding_dtype", "float16", "--top_k", "2"]
    assert run("images/00.jpg", "--output_dir", tmp_path, *flags) == 0
    (row,) = rows_of(tmp_path)
    (expected,) = (other for other in rows_of(whole) if other["file"] == "images/00.jpg")
    assert row["labels"] == expected["labels"][:2] and "logits" not in row
    model = CaitForImageClassification.from_pretrained("model")
    pixel_values = CaitImageProcessorPil.from_pretrained("model")("images/00.jpg", return_tensors="pt").pixel_values
    with torch.no_grad():
        mean = model.cait(pixel_values).last_hidden_state[0, 1:].mean(0).numpy()
    (file,) = tmp_path.glob("*.parquet")
    assert str(pq.read_schema(file).field("embedding").type) == "fixed_size_list<element: halffloat>[48]"
    assert row["embedding"] == mean.astype(np.float16).tolist()


@pytest.mark.parametrize("format", ["csv", "jsonl"])
def test_other_formats_have_the_same_rows(format, whole, tmp_path):
    pandas = pytest.importorskip("pandas", reason="pandas reads the tables")
    assert run("images", "--output_dir", tmp_path, "--embeddings", "--logits", "--format", format) == 0
    files = sorted(str(path) for path in tmp_path.glob(f"predictions-*.{format}"))
    assert len(files) == 4
    if format == "csv":
        rows = pandas.concat(map(pandas.read_csv, files)).astype(object).to_dict("records")
        rows = [
            {name: json.loads(value) if str(value).startswith("[") else value for name, value in row.items()}
            for row in rows
        ]
        rows = [{**row, "error": None if row["error"] != row["error"] else row["error"]} for row in rows]
    else:
        rows = [json.loads(line) for file in files for line in Path(file).read_text().splitlines()]
    for row, expected in zip(rows, rows_of(whole), strict=True):
        assert list(row) == list(expected)
        numbers = ("scores", "embedding", "logits")
        assert all(np.array_equal(np.float32(row[name]), np.float32(expected[name])) for name in numbers)
        assert [row[name] for name in ("file", "labels", "error")] == [
            expected[name] for name in ("file", "labels", "error")
        ]


def test_datasets_and_pandas_read_it(whole, tmp_path):
    loaded = datasets.load_dataset("parquet", data_files=f"{whole}/*.parquet", split="train", cache_dir=tmp_path)
    assert loaded[:] == datasets.load_dataset(str(whole), split="train", cache_dir=tmp_path)[:]
    assert loaded.features["embedding"].length == 48 and [*loaded] == rows_of(whole)
    pandas = pytest.importorskip("pandas", reason="pandas reads the tables")
    frame = pandas.read_parquet(whole)
    assert frame["file"].tolist() == loaded["file"][:] and np.stack(frame["embedding"]).shape == (COUNT, 48)


# Inputs


def write_sources(folder: Path) -> None:
    """The first eleven images, in two files of each format."""
    folder.mkdir()
    for number, indices in enumerate([range(6), range(6, 11)]):
        names = [f"images/{index:02}.jpg" for index in indices]
        stored = [{"bytes": encoded(index), "path": f"{index:02}.jpg"} for index in indices]
        features = datasets.Features({"image": datasets.Image()})
        table = datasets.Dataset.from_dict({"image": stored}, features=features)
        table.to_parquet(str(folder / f"{number}.parquet"))
        (folder / f"{number}.csv").write_text("\n".join(["image,other", *(f"{name},1" for name in names)]) + "\n")
        (folder / f"{number}.jsonl").write_text("".join(json.dumps({"photo": name}) + "\n" for name in names))
        with tarfile.open(folder / f"{number}.tar", "w") as tar:
            for index in indices:
                info = tarfile.TarInfo(f"{index:02}.jpg")
                info.size = len(data := encoded(index))
                tar.addfile(info, io.BytesIO(data))
    datasets.concatenate_datasets(
        [datasets.Dataset.from_parquet(str(folder / f"{number}.parquet"), cache_dir=str(folder)) for number in (0, 1)]
    ).save_to_disk(folder / "saved")


@pytest.fixture(scope="module")
def sources(place) -> Path:
    write_sources(place / "sources")
    return place / "sources"


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", ["parquet", "csv", "json", "webdataset", "saved"])
def test_datasets_that_training_takes(name, streaming, sources, whole, tmp_path):
    ending = {"json": "jsonl", "webdataset": "tar"}.get(name, name)
    flags = ["--dataset_name", name, "--data_files", f"{sources}/*.{ending}"]
    flags = ["--dataset_name", sources / "saved", "--split", "train"] if name == "saved" else flags
    flags += ["--streaming"] if streaming else []
    flags += ["--image_column_name", "photo"] if name == "json" else []
    assert run(*flags, "--output_dir", tmp_path) == 0
    rows = rows_of(tmp_path)
    expected = {Path(row["file"]).name: row for row in rows_of(whole)}
    assert sorted(Path(row["file"]).name for row in rows) == sorted(expected)[:11]
    for row in rows:
        wanted = expected[Path(row["file"]).name]
        assert row["labels"] == wanted["labels"] and row["scores"] == pytest.approx(wanted["scores"], abs=1e-5)


def test_images_without_a_name_are_called_by_their_row(tmp_path, sources):
    stored = [{"bytes": encoded(index), "path": None} for index in range(7)]
    rows = datasets.Dataset.from_dict({"image": stored}, features=datasets.Features({"image": datasets.Image()}))
    names = [name for batch in table_batches(from_dataset(rows, {}, ())) for name in batch.names]
    assert names == [f"row {index}" for index in range(7)]
    names = [
        name for batch in table_batches(from_dataset(rows.to_iterable_dataset(2), {}, ())) for name in batch.names
    ]
    assert names == [f"row {index} of file {file}" for file in (0, 1) for index in range(4 - file)]


def table_batches(inputs):
    inputs.prepare = engine.Prepare(CaitImageProcessorPil.from_pretrained("model"))
    return [inputs[batch] for batch in inputs.batches(3, 2)]


def test_files_folders_and_patterns(place, tmp_path):
    for hidden in ("._a.jpg", ".thumbnails/a.jpg", "notes.txt", "a.jpg"):
        (tmp_path / hidden).parent.mkdir(exist_ok=True)
        (tmp_path / hidden).touch()
    assert files_of(str(tmp_path)) == [f"{tmp_path}/a.jpg"]
    assert files_of("images/0[12].jpg") == ["images/01.jpg", "images/02.jpg"]
    assert files_of("./images//below") == [f"images/below/{index}.jpg" for index in (20, 21, 22)]
    assert files_of("nothing*") == [] and files_of("http://host/a.jpg") == ["http://host/a.jpg"]
    assert len(from_files(["images/01.jpg", "images/01.jpg"])) == 1


@pytest.mark.parametrize("streamed", [False, True])
def test_processes_share_the_shards(streamed):
    """Each shard is of one process, and the batches are the same whatever the number of processes."""
    rows = datasets.Dataset.from_dict({"image": [f"{index}.jpg" for index in range(COUNT)]})
    inputs = from_dataset(rows.to_iterable_dataset(5) if streamed else rows, {}, ())

    def batches(rank: int, world_size: int, ends_of=lambda shard: None) -> list:
        return list(inputs.batches(4, 3, rank, world_size, ends_of))

    alone = batches(0, 1)
    for world_size in (2, 3, 7):
        parts = [batches(rank, world_size) for rank in range(world_size)]
        assert sorted((batch for part in parts for batch in part), key=str) == sorted(alone, key=str)
        shards = [{batch.shard for batch in part} for part in parts]
        assert sum(map(len, shards)) == len(set.union(*shards)) == len({batch.shard for batch in alone})
    assert sum(batch.closes for batch in alone) == len({batch.shard for batch in alone})
    assert sum(len(batch.rows) for batch in alone) == COUNT
    done = {batch.shard: batch.ends for batch in alone if batch.closes}
    for left in done:  # what is finished is left out
        rest = batches(0, 1, {shard: ends for shard, ends in done.items() if shard != left}.get)
        assert rest == [batch for batch in alone if batch.shard == left]


# Several processes


@pytest.mark.parametrize(
    "source", [["images"], ["--dataset_name", "webdataset", "--data_files", "sources/*.tar", "--streaming"]]
)
def test_two_processes_write_the_same_files(source, sources, tmp_path):
    """To the byte, the manifest included."""
    flags = [*source, "--model", "model", *FLAGS[:-2], "--embeddings"]
    with warm_process.two_ranks(SCRIPT, *flags, "--output_dir", tmp_path / "two", log=tmp_path / "log") as processes:
        wait_for(processes)
    logs = [(tmp_path / f"log{rank}{kind}").read_text() for rank in (0, 1) for kind in ("", ".err")]
    assert [process.exitcode for process in processes] == [0, 0], logs
    assert logs[0].count("images in") == 1 and logs[2] == ""
    assert cli.main(["predict", *flags, "--output_dir", str(tmp_path / "one")]) == 0
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    if source == ["images"]:  # only the second process has something left to do
        (tmp_path / "two" / "predictions-00001.parquet").unlink()
        flags += ["--output_dir", tmp_path / "two"]
        with warm_process.two_ranks(SCRIPT, *flags, log=tmp_path / "log") as processes:
            wait_for(processes)
        assert [process.exitcode for process in processes] == [0, 0], (tmp_path / "log0.err").read_text()
        assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_a_stream_is_known_by_its_local_files(tmp_path):
    rows = datasets.Dataset.from_dict({"image": ["a.jpg"]}).to_iterable_dataset()
    found = []
    for content in ("a", "a", "bc"):
        (tmp_path / "0.csv").write_text(content) if content not in found else None
        os.utime(tmp_path / "0.csv", (1, 1))
        found += [content, from_dataset(rows, {}, (None, str(tmp_path / "*.csv"))).identity]
    first, again, other = found[1::2]
    assert first == again != other


# Resuming


KILL_FLAGS = ["--shard_size", "2", "--batch_size", "2", "--num_workers", "1", "--embeddings"]
# The default of a process that a fork server started is to start another server, which takes seconds.
FORKING = f"import multiprocessing; multiprocessing.set_start_method('fork', force=True)\n{warm_process.SCRIPT}"


def start(output_dir: Path, log: Path):
    flags = ["images", "--model", "model", *KILL_FLAGS, "--output_dir", output_dir]
    return warm_process.start(FORKING, SCRIPT, *flags, log=log)


@pytest.mark.parametrize("kills", [4, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_random_and_resumed(kills, tmp_path):
    """As if it had never been: the same bytes, no file left, and what was finished is not written again."""
    process = start(tmp_path / "whole", tmp_path / "log")
    process.join()
    assert process.exitcode == 0, (tmp_path / "log.err").read_text()
    expected = contents(tmp_path / "whole")
    assert len(expected) == -(-COUNT // 2) + 1
    draw, out, midway = random.Random(kills), tmp_path / "out", 0
    for _ in range(kills):
        before = {path.name: path.stat().st_mtime_ns for path in out.glob("*.parquet")}
        recorded = {f"predictions-{path.stem}.parquet" for path in out.glob(".finished/*.json")}
        process = start(out, tmp_path / "log")
        more = draw.choice([0, 1])
        while process.is_alive() and len([*out.glob("*.parquet")]) < len(before) + more:
            time.sleep(0.002)
        process.join(draw.uniform(0, 0.02 if more else 0.5))
        process.kill()
        process.join()
        midway += process.exitcode != 0 and 0 < len([*out.glob("*.parquet")]) < len(expected) - 1
        for path in out.glob("*.parquet"):
            assert path.name not in recorded or path.stat().st_mtime_ns == before[path.name]
            assert path.read_bytes() == expected[path.name]
    process = start(out, tmp_path / "log")
    process.join()
    assert process.exitcode == 0, (tmp_path / "log.err").read_text()
    assert contents(out) == expected and midway > 0


def test_ctrl_c_keeps_the_shards(whole, tmp_path, monkeypatch, capsys):
    predict, calls = Predictor.__call__, []

    def interrupted(self, pixel_values):
        calls.append(len(pixel_values))
        if len(calls) == 6:
            raise KeyboardInterrupt
        return predict(self, pixel_values)

    flags = ["images", "--output_dir", tmp_path, "--embeddings", "--logits"]
    with monkeypatch.context() as patch:
        patch.setattr(Predictor, "__call__", interrupted)
        assert run(*flags) == 1
    captured = capsys.readouterr()
    assert "interrupted" in captured.err and "the same command resumes" in captured.err
    assert len([*tmp_path.glob("*.parquet")]) == 2  # batches of 4, 2, 4, 2 images
    calls.clear()
    with monkeypatch.context() as patch:
        patch.setattr(Predictor, "__call__", lambda self, pixels: calls.append(len(pixels)) or predict(self, pixels))
        assert run(*flags) == 0
        assert calls == [4, 2, 4, 1] and contents(tmp_path) == contents(whole)
        assert run(*flags) == 0 and calls == [4, 2, 4, 1]
    assert "nothing was left to do" in capsys.readouterr().out


@pytest.mark.parametrize(
    "flags, named",
    [
        ("--top_k 3", "top_k 5"),
        ("--embeddings", "pool None, but pool now is class"),
        ("--logits", "logits False"),
        ("--format csv", "format parquet"),
        ("--dtype bfloat16", "dtype float32"),
        ("--batch_size 2", "batch_size 4"),
        ("--shard_size 12", "shard_size 6"),
        ("images/01.jpg", "number of images"),
    ],
)
def test_other_settings_are_refused(flags, named, begun, capsys):
    before = contents(begun)
    source = [] if flags.startswith("images") else ["images/01.jpg", "images/02.jpg"]
    assert run(*source, *flags.split(), "--output_dir", begun) == 1
    error = capsys.readouterr().err
    assert f"--output_dir {begun}" in error and named in error
    assert contents(begun) == before


@pytest.fixture(scope="module")
def begun(place) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        assert run("images/01.jpg", "images/02.jpg", "--output_dir", place / "begun") == 0
    return place / "begun"


def test_other_weights_or_images_are_refused(tmp_path, capsys):
    image = tmp_path / "image.jpg"
    save_image(0, image)
    out = tmp_path / "out"
    assert run(image, "--output_dir", out) == 0
    save_image(1, image)
    assert run(image, "--output_dir", out) == 1
    assert "hash of the images" in capsys.readouterr().err
    model = randomize_(CaitForImageClassification.from_pretrained("model"), seed=1)
    model.save_pretrained(tmp_path / "model")
    CaitImageProcessorPil(size=32, crop_size=32).save_pretrained(tmp_path / "model")
    assert run(image, "--output_dir", tmp_path / "other", "--model", "model") == 0
    manifest = json.loads((tmp_path / "other" / ".predictions.json").read_text())
    manifest["settings"]["model"] = str(tmp_path / "model")  # as if the folder had been replaced
    (tmp_path / "other" / ".predictions.json").write_text(json.dumps(manifest))
    assert run(image, "--output_dir", tmp_path / "other", "--model", tmp_path / "model") == 1
    assert "hash of the weights" in capsys.readouterr().err


def test_folder_without_a_manifest_and_one_that_is_in_use(begun, tmp_path, capsys):
    for name in ("predictions-00000.parquet", "notes.txt"):
        (tmp_path / name).write_text("mine")
    assert run("images/01.jpg", "--output_dir", tmp_path) == 1
    assert "no .predictions.json" in capsys.readouterr().err
    (tmp_path / "predictions-00000.parquet").unlink()
    assert run("images/01.jpg", "--output_dir", tmp_path) == 0 and (tmp_path / "notes.txt").read_text() == "mine"
    (tmp_path / ".predictions.json").write_text("{}")
    assert run("images/01.jpg", "--output_dir", tmp_path) == 1
    assert "is not a manifest of predictions" in capsys.readouterr().err
    code = "import sys, time; from cait_hf.folder_lock import FolderLock\n"
    code += "with FolderLock(sys.argv[1]): open(sys.argv[2], 'w').close(); time.sleep(600)"
    holder = warm_process.start(code, begun, tmp_path / "held", log=tmp_path / "log")
    try:
        while not (tmp_path / "held").exists() and holder.is_alive():
            time.sleep(0.01)
        assert run("images/01.jpg", "images/02.jpg", "--output_dir", begun) == 1
    finally:
        holder.kill()
        holder.join()
    assert "another run writes to" in capsys.readouterr().err


# Faults


def test_corrupt_images_are_rows_with_an_error(whole, tmp_path, capsys):
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("not an image")
    (tmp_path / "truncated.jpg").write_bytes(encoded(0)[:-200])
    Image.fromarray(np.full((8, 8), -1, dtype=np.int32)).save(tmp_path / "negative.tiff")
    corrupt = [str(path) for path in sorted(tmp_path.iterdir())]
    flags = ["images/00.jpg", *corrupt, "images", "--embeddings", "--logits"]
    assert run(*flags, "--output_dir", tmp_path / "out") == 1
    assert "4 of 27 images are corrupt" in capsys.readouterr().err
    rows = rows_of(tmp_path / "out")
    rows.insert(4, rows.pop(0))  # one came before the corrupt ones, in the same batch
    reasons = [row.pop("error") for row in rows]
    assert [Path(row.pop("file")).name for row in rows[:4]] == [
        "empty.jpg", "negative.tiff", "text.jpg", "truncated.jpg",
    ]  # fmt: skip
    assert reasons[0] == "zero bytes" and "-1" in reasons[1] and "truncated" in reasons[3]
    assert all(value is None for row in rows[:4] for value in row.values()) and reasons[4:] == COUNT * [None]
    for row, expected in zip(rows[4:], rows_of(whole), strict=True):  # other batches: nearly the same numbers
        assert row["labels"] == expected["labels"] and row["file"] == expected["file"]
        assert row["embedding"] == pytest.approx(expected["embedding"], abs=1e-5)
    assert run(*flags, "--output_dir", tmp_path / "out") == 1  # nothing left to do, and still the count
    assert "4 of 27 images" in capsys.readouterr().err


@pytest.mark.parametrize("num_workers", [0, 1])
def test_corrupt_images_can_end_it(num_workers, tmp_path, capsys):
    (tmp_path / "text.jpg").write_text("not an image")
    flags = ["--corrupt_images", "raise", "--num_workers", num_workers]
    assert run("images", tmp_path, *flags, "--output_dir", tmp_path / "out") == 1
    error = capsys.readouterr().err
    assert f"{tmp_path}/text.jpg" in error and "--corrupt_images raise" in error and "Traceback" not in error
    assert len(rows_of(tmp_path / "out")) == 18  # the shards before it


def test_full_disk(whole, tmp_path):
    """A limit on the size of files takes the place of the disk's; then there is room again."""
    code = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, 2 * ({4096},))\n{warm_process.SCRIPT}"
    flags = ["images", "--model", "model", *FLAGS, "--embeddings", "--logits", "--output_dir", tmp_path / "out"]
    process = warm_process.start(code, SCRIPT, *flags, log=tmp_path / "log")
    process.join()
    error = (tmp_path / "log.err").read_text()
    assert process.exitcode == 1 and "predictions-00000.parquet could not be written (File too large)" in error
    assert "Traceback" not in error and "the same command resumes" in error
    assert [path.name for path in (tmp_path / "out").rglob("*") if path.is_file()] == [".predictions.json"]
    assert cli.main([str(flag) for flag in ("predict", *flags)]) == 0
    assert contents(tmp_path / "out") == contents(whole)


def test_a_shard_that_was_cut_off_is_written_again(tmp_path):
    """As on a machine that lost power; the manifest knows its size."""
    assert run("images", "--output_dir", tmp_path) == 0
    expected = contents(tmp_path)
    (tmp_path / "predictions-00001.parquet").write_bytes(expected["predictions-00001.parquet"][:-9])
    (tmp_path / "predictions-00002.parquet").unlink()
    (tmp_path / ".predictions-00003.parquet.123").write_text("left by a kill")
    assert run("images", "--output_dir", tmp_path) == 0
    assert contents(tmp_path) == expected


@pytest.mark.parametrize(
    "flags, message",
    [
        ("", "pass either INPUT"),
        ("images --dataset_name parquet", "pass either INPUT"),
        ("images --split train", "--split is for --dataset_name"),
        ("images --streaming", "--streaming is for --dataset_name"),
        ("images --pool mean", "--pool is mean, but there are no embeddings"),
        ("images --embedding_dtype float16", "--embedding_dtype is float16"),
        ("images nowhere.jpg", "INPUT is nowhere.jpg"),
        ("model", "INPUT is model, but"),
        ("images --device cuda:77", "--device is cuda:77, but it must be one of cpu"),
        ("images --device nonsense", "--device is nonsense"),
        ("images --model nowhere", "which is neither a folder nor"),
        ("--dataset_name nowhere", "nowhere"),
        ("--dataset_name csv --data_files sources/*.csv --image_column_name x", "--image_column_name is x"),
    ],
)
def test_wrong_flags(flags, message, sources, tmp_path, capsys):
    assert run(*flags.split(), "--output_dir", tmp_path / "out") == 1
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ") and message in error and len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()


# Devices, memory


def test_device_and_dtype(monkeypatch):
    """An accelerator where there is one, and bfloat16 where it computes in it."""
    for has_amx in (True, False):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": has_amx}, raising=False)  # noqa: B023
        assert find_dtype(None, torch.device("cpu")) == (torch.bfloat16 if has_amx else torch.float32)
    assert find_dtype("float16", torch.device("cpu")) == torch.float16
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: None)
    assert find_device(None) == torch.device("cpu")
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    assert find_device(None) == torch.device("cuda") and find_device("cuda:1") == torch.device("cuda:1")
    for supported in (True, False):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: supported)  # noqa: B023
        assert find_dtype(None, torch.device("cuda")) == (torch.bfloat16 if supported else torch.float32)
    with pytest.raises(ValueError, match="--device is mps, but it must be one of cpu, cuda, cuda:0, cuda:1"):
        find_device("mps")


def test_half_precision_and_compilation(whole, tmp_path, monkeypatch):
    """What is compiled sees batches of one size, also at the end and where images are corrupt."""
    sizes = []

    def compiled(function, dynamic):
        return lambda pixel_values: sizes.append(len(pixel_values)) or function(pixel_values)

    monkeypatch.setattr(torch, "compile", compiled)
    flags = ["--dtype", "bfloat16", "--compile", "--logits", "--embeddings"]
    assert run("images", "--output_dir", tmp_path, *flags, "--batch_size", 16) == 0
    assert sizes and {*sizes} == {16}
    ours, exact = (np.array([row["logits"] for row in rows_of(folder)]) for folder in (tmp_path, whole))
    assert 0 < np.abs(ours - exact).max() < 0.1 * np.abs(exact).max()


@pytest.mark.slow
def test_memory_does_not_grow(tmp_path):
    """Resident memory of the process after 2,000 and after 20,000 small images."""
    (tmp_path / "images").mkdir()
    small = encoded(0)
    for index in range(20_000):
        (tmp_path / "images" / f"{index:05}.jpg").write_bytes(small)
    code = f"""
import sys
import cait_hf_cli as cli
from cait_hf.prediction.output_folder import OutputFolder
write, measured = OutputFolder.write, []
def measuring(self, *args):
    write(self, *args)
    status = open("/proc/self/status").read()
    measured.append(int(status.partition("VmRSS:")[2].split()[0]) / 1024)
OutputFolder.write = measuring
flags = "--shard_size 2000 --batch_size 100 --num_workers 2 --embeddings --logits".split()
code = cli.main(["predict", "{tmp_path}/images", "--model", "model", "--output_dir", "{tmp_path}/out", *flags])
print(*measured)
sys.exit(code)
"""
    finished = warm_process.run(code)
    assert finished.returncode == 0, finished.stderr
    measured = [float(number) for number in finished.stdout.splitlines()[-1].split()]
    assert len(measured) == 10 and measured[-1] - measured[0] < 100, measured
    print(measured)


def test_one_logit_is_a_sigmoid():
    model = randomize_(CaitForImageClassification(tiny_config(num_labels=1)))
    pixel_values = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = model.eval()(pixel_values).logits.sigmoid()
    assert torch.allclose(Predictor(model)(pixel_values).scores, expected)
    assert expected.max() < 0.999


# The training scripts


@pytest.mark.parametrize("script", ["run_image_classification", "run_image_classification_no_trainer"])
def test_do_predict_writes_the_same_table(script, tmp_path):
    flags = "--model_name_or_path model --do_predict --predict_dir images --per_device_eval_batch_size 4"
    flags += f" --output_dir {tmp_path} --disable_tqdm true --use_cpu"
    (tmp_path / "all_results.json").write_text("of a training")
    load_script(script).main(flags.split())
    assert (tmp_path / "all_results.json").read_text() == "of a training"
    assert run("images", "--output_dir", tmp_path / "own", "--shard_size", 2048) == 0
    ours, theirs = rows_of(tmp_path / "own"), rows_of(tmp_path / "predictions")
    assert [Path(row.pop("file")).name for row in ours] == [Path(row.pop("file")).name for row in theirs]
    assert ours == theirs


def test_do_predict_after_training_is_of_the_trained_model(sources, tmp_path, no_plots):
    (tmp_path / "train").mkdir()
    for index in range(8):
        (tmp_path / "train" / "ab"[index % 2]).mkdir(exist_ok=True)
        save_image(index, tmp_path / "train" / "ab"[index % 2] / f"{index}.jpg")
    flags = "--config_overrides hidden_size=16,num_hidden_layers=1,num_attention_heads=2,image_size=32,patch_size=8"
    flags += f" --train_dir {tmp_path}/train --do_train --max_steps 1 --disable_tqdm true --use_cpu --do_predict"
    flags += f" --predict_dir images --output_dir {tmp_path}/out --overwrite_output_dir"
    for seed in (1, 2):  # the second replaces the predictions of the first
        load_script("run_image_classification").main([*flags.split(), "--seed", str(seed)])
        arguments = ["--model", tmp_path / "out", "--output_dir", tmp_path / f"own{seed}", "--batch_size", 8]
        assert run("images", *arguments, "--shard_size", 2048) == 0
        ours, theirs = rows_of(tmp_path / f"own{seed}"), rows_of(tmp_path / "out" / "predictions")
        assert [row["scores"] for row in ours] == [row["scores"] for row in theirs]
