# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""All checkpoints in one go: from files, from timm's repositories, over the network; again, partly, and with faults.

The ten checkpoints are of a few thousand parameters here; the whole architecture is the subject of other tests.
"""

import json
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
import safetensors.torch
import torch
from huggingface_hub import HfApi, ModelCard
from official_files import tiny_checkpoint, tiny_official_tensors, write_pth, write_tiny_timm_folder

from cait_hf import CHECKPOINTS, CaitConfig, CaitForImageClassification, sources
from cait_hf.conversion import convert
from cait_hf.files import sha256_of
from cait_hf.state_dict import convert_official_state_dict, convert_to_official_state_dict
from cait_hf.verify import TOLERANCE


CONVERSION = Path(__file__).parent.parent / "conversion"
sys.path.insert(0, str(CONVERSION))
import convert_all  # noqa: E402


NAMES = [checkpoint.official_name for checkpoint in CHECKPOINTS]
TWO = ["--checkpoints", "XXS24_224", "S24_224"]


@pytest.fixture
def checkpoints(monkeypatch):
    """The ten, each as small as a test wants it."""
    tiny = {name: tiny_checkpoint(name) for name in NAMES}
    real = convert_all.find_checkpoint
    for module in (convert_all, sources):
        monkeypatch.setattr(module, "find_checkpoint", lambda name: tiny[real(name).official_name])
    monkeypatch.setattr(convert_all, "CHECKPOINTS", tuple(tiny.values()))
    return tiny


@pytest.fixture
def downloads(checkpoints, tmp_path):
    """A folder with the ten files of the authors, each with weights of its own."""
    folder = tmp_path / "downloads"
    folder.mkdir()
    for seed, checkpoint in enumerate(checkpoints.values()):
        write_pth(folder / checkpoint.filename, tiny_official_tensors(checkpoint, seed))
    return folder


@pytest.fixture
def output(tmp_path) -> Path:
    return tmp_path / "new" / "output"


def run(output_dir, *options) -> int:
    return convert_all.main(["--output_dir", str(output_dir), *map(str, options)])


def modified(output_dir) -> dict[str, int]:
    return {file.parent.name: file.stat().st_mtime_ns for file in output_dir.glob("*/model.safetensors")}


def test_ten_files(checkpoints, downloads, output, tmp_path, capsys):
    assert run(output, "--source", downloads) == 0
    lines = capsys.readouterr().out.splitlines()
    for line, checkpoint in zip(lines[2:], checkpoints.values(), strict=True):
        folder = output / checkpoint.hub_name
        expected = convert_official_state_dict(torch.load(downloads / checkpoint.filename))
        stored = safetensors.torch.load_file(folder / "model.safetensors")
        assert stored.keys() == expected.keys() and all(torch.equal(stored[key], expected[key]) for key in expected)
        parameters, sha256 = checkpoint.num_parameters, sha256_of(folder / "model.safetensors")
        assert line.split()[:-1] == [checkpoint.official_name, f"{parameters:,}", "-", sha256]
        assert sum(tensor.numel() for tensor in stored.values()) == parameters and float(line.split()[-1]) >= 0
        card = ModelCard.load(folder / "README.md")
        assert card.data.license == "apache-2.0" and checkpoint.official_name in card.text
        assert str(tmp_path) not in card.text
    folders = [checkpoint.hub_name for checkpoint in checkpoints.values()]
    assert sorted(file.name for file in output.iterdir()) == sorted(["conversion.json", *folders])


def test_what_is_finished_is_not_done_again(checkpoints, downloads, output, capsys):
    options = ["--source", downloads, *TWO]
    assert run(output, *options) == 0
    before = modified(output)
    assert run(output, *options) == 0
    assert modified(output) == before and capsys.readouterr().out.count("was finished") == 2

    (output / "cait-xxs24-224" / "config.json").unlink()
    write_pth(downloads / "S24_224.pth", tiny_official_tensors(checkpoints["S24_224"], seed=99))  # another source
    assert run(output, *options) == 0
    after = modified(output)
    assert all(after[name] != before[name] for name in before)
    assert CaitConfig.from_pretrained(output / "cait-xxs24-224").hidden_size == 48


@pytest.mark.parametrize("record", [None, "not JSON", "[]", "[" * 100_000])
def test_folders_that_the_record_does_not_know(record, downloads, output, capsys):
    """Killed before the record had it, or the record is lost: a folder from the same source is done again."""
    options = ["--source", downloads, *TWO]
    assert run(output, *options) == 0
    before = modified(output)
    (output / "conversion.json").unlink() if record is None else (output / "conversion.json").write_text(record)
    assert run(output, *options) == 0
    assert modified(output).items().isdisjoint(before.items()) and "was finished" not in capsys.readouterr().out
    (output / "conversion.json").unlink()
    other = downloads / "XXS24_224.pth"
    other.rename(other.with_suffix(".safetensors"))  # another source, which this folder is not from
    assert run(output, *options) == 1
    assert "is not empty; empty it or pass --overwrite" in capsys.readouterr().err


@pytest.mark.parametrize("mine", ["README.md", "notes.txt", ".git/HEAD"])
def test_files_of_the_user_stay(mine, checkpoints, downloads, output, capsys):
    """In a folder that the record names, whose source has changed; --overwrite or not."""
    options = ["--source", downloads, *TWO]
    assert run(output, *options) == 0
    write_pth(downloads / "S24_224.pth", tiny_official_tensors(checkpoints["S24_224"], seed=99))
    file = output / "cait-s24-224" / mine
    file.parent.mkdir(exist_ok=True)
    file.write_text("mine")
    before = modified(output)
    for more in ([], ["--overwrite"]):
        assert run(output, *options, *more) == 1
        assert f"or that have changed since: {mine.partition('/')[0]}; move them" in capsys.readouterr().err
        assert file.read_text() == "mine" and modified(output) == before


def test_what_was_finished_with_other_options_is_done_again(downloads, output):
    options = ["--source", downloads, "--checkpoints", "XXS24_224"]
    for remote_code in ([], ["--remote_code"], []):
        assert run(output, *options, *remote_code) == 0
        assert (output / "cait-xxs24-224" / "modeling_cait.py").exists() == bool(remote_code)


def test_resumes_after_a_kill(downloads, output, monkeypatch):
    def interrupted(source, *args):
        if source.endswith("/S24_224.pth"):
            raise KeyboardInterrupt
        return convert(source, *args)

    with monkeypatch.context() as patch:
        patch.setattr(convert_all, "convert", interrupted)
        assert run(output, "--source", downloads, *TWO) == 1
    before = modified(output)
    assert list(before) == ["cait-xxs24-224"]
    assert run(output, "--source", downloads, *TWO) == 0
    assert modified(output).items() > before.items() and len(modified(output)) == 2


def test_one_that_fails_does_not_stop_the_others(downloads, output, capsys):
    (downloads / "XXS36_224.pth").write_bytes(b"damaged")
    (downloads / "M36_384.pth").unlink()
    (downloads / "S36_384.pth").write_bytes((downloads / "XS24_384.pth").read_bytes())  # another network
    assert run(output, "--source", downloads) == 1
    captured = capsys.readouterr()
    failed = [line.split()[0] for line in captured.out.splitlines() if "FAILED" in line]
    assert failed == ["XXS36_224", "S36_384", "M36_384"] and len(modified(output)) == 7
    assert [line.split(": ")[1] for line in captured.err.splitlines() if line.startswith("error: ")] == failed
    assert "M36_384.pth" in captured.err and "num_attention_heads is" in captured.err
    assert "Traceback" not in captured.err


@pytest.mark.parametrize("where", ["folder", "timm"])
def test_repositories_of_timm(where, hub, checkpoints, output, tmp_path):
    source = tmp_path / "timm"
    source.mkdir()
    for name in TWO[1:]:
        repository = checkpoints[name].timm_repo
        folder = source / repository.removeprefix("timm/")
        write_tiny_timm_folder(folder, checkpoints[name], tiny_official_tensors(checkpoints[name]))
        if where == "timm":
            hub.create(repository)
            hub.write(repository, {file.name: file.read_bytes() for file in folder.iterdir()})
    options = ["--source", source if where == "folder" else "timm", *TWO]
    assert run(output, *options) == 0
    before = modified(output)
    assert len(before) == 2
    assert run(output, *options) == 0
    assert modified(output) == before


def test_files_from_the_network(checkpoints, downloads, output, tmp_path, monkeypatch):
    fetched = []

    def fetch(url, destination):
        fetched.append(url)
        Path(destination).write_bytes((downloads / url.rpartition("/")[2]).read_bytes())

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", fetch)
    assert run(output, *TWO) == run(output, *TWO) == 0
    assert fetched == [checkpoints[name].url for name in TWO[1:]]


def test_difference_from_timm(downloads, output, capsys):
    pytest.importorskip("timm", reason="the reference is timm's CaiT")
    assert run(output, "--source", downloads, *TWO) == 0
    capsys.readouterr()
    assert run(output, "--source", downloads, *TWO, "--verify") == 0  # done again: it was not verified
    lines = capsys.readouterr().out.splitlines()[2:]
    assert all(float(line.split()[2]) <= TOLERANCE for line in lines) and len(lines) == 2
    record = json.loads((output / "conversion.json").read_text())
    assert all(0 <= record[name]["largest_difference"] <= TOLERANCE for name in TWO[1:])


def test_too_little_room(checkpoints, downloads, output, tmp_path, capsys, monkeypatch):
    """Nothing is begun; what is finished needs no room. A download counts twice: in the cache, and converted."""
    needed = sum(4 * checkpoint.num_parameters + 2**20 for checkpoint in checkpoints.values())
    free = 2 * needed - 1
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(convert_all.shutil, "disk_usage", lambda path: usage(0, 0, free))
    assert run(output) == 1
    assert f"but {2 * needed / 1e9:.2f} GB are needed" in capsys.readouterr().err
    free = needed - 1
    assert run(output, "--source", downloads) == 1
    message = f"has {free / 1e9:.2f} GB free, but {needed / 1e9:.2f} GB are needed for 10 checkpoints"
    assert message in capsys.readouterr().err and not output.parent.exists()
    free = needed
    assert run(output, "--source", downloads, *TWO) == 0
    free = 0
    assert run(output, "--source", downloads, *TWO) == 0


def test_push_of_all(hub, downloads, output, capsys):
    options = ["--source", downloads, *TWO, "--push_to_hub", "tester", "--remote_code"]
    for name in ("cait-xxs24-224", "cait-s24-224"):
        hub.repositories.pop(f"tester/{name}", None)
    hub.fail_next("POST /api/models/tester/cait-xxs24-224/commit", 403)
    assert run(output, *options) == 1
    captured = capsys.readouterr()
    assert "FAILED" in captured.out and "could not be pushed" in captured.err and hub.token not in str(captured)
    before = modified(output)
    assert run(output, *options) == 0  # only the push is repeated
    assert modified(output) == before
    assert capsys.readouterr().out.count("was finished, pushed") == 2
    for name in ("cait-xxs24-224", "cait-s24-224"):
        assert len(HfApi().list_repo_commits(f"tester/{name}")) == 2  # the first one of the Hub, and ours
        assert "modeling_cait.py" in HfApi().list_repo_files(f"tester/{name}")


@pytest.mark.parametrize(
    "options, message",
    [
        (["--source", "nowhere"], "source is nowhere, but it must be official, timm or an existing folder"),
        (["--checkpoints", "XXS99"], "name is 'XXS99', but the official CaiT checkpoints are"),
    ],
)
def test_refused(options, message, output, capsys):
    assert run(output, *options) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1
    assert not output.exists()


PEAK = """
import re, sys
from pathlib import Path
from cait_hf import conversion

def peak():  # of this process alone: getrusage() starts with the peak of the parent
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

before = peak()
conversion.convert(sys.argv[1], Path(sys.argv[2]), "name")
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not tell the peak of a process")
def test_peak_memory(tmp_path):
    """At most twice the file, pages of mapped files included, beside a constant (12 to 18 MB measured at 116 MB)."""
    config = CaitConfig(hidden_size=768, num_hidden_layers=2, num_attention_heads=16, intermediate_size=3072)
    model = CaitForImageClassification(config)
    source = write_pth(tmp_path / "weights.pth", convert_to_official_state_dict(model.state_dict()))
    size = source.stat().st_size
    assert size > 100e6
    command = [sys.executable, "-c", PEAK, source, tmp_path / "output"]
    child = subprocess.run(command, capture_output=True, text=True)
    assert child.returncode == 0, child.stderr
    assert 0.9 * size < int(child.stdout) < 2 * size + 32e6
