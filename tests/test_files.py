# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""Files and folders that appear complete or not at all; folders also with the conversion, in `test_conversion.py`."""

import os
import signal
from pathlib import Path

import pytest
import warm_process

from cait_hf.files import MANIFEST, new_folder, read_json, replacing, write_json


def test_an_error_leaves_the_earlier_file(tmp_path):
    path = tmp_path / "metrics.json"
    path.write_text("earlier")
    with pytest.raises(OSError, match="full"), replacing(path) as temporary:
        temporary.write_text("half")
        raise OSError("the disk is full")
    assert path.read_text() == "earlier" and list(tmp_path.iterdir()) == [path]


def test_json_of_which_a_part_cannot_be_written_leaves_the_earlier_file(tmp_path):
    path = tmp_path / "metrics.json"
    write_json(path, {"b": 1, "a": 2}, sort_keys=True)
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert path.read_text() == '{"a": 2, "b": 1}\n' and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "\x80"], ids=["empty", "truncated", "nested", "not UTF-8"])
def test_json_that_is_refused(text, tmp_path):
    path = tmp_path / "metrics.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=f"{path} is not valid JSON"):
        read_json(path)


# Folders


def write(folder: Path, text: str = "new") -> None:
    with new_folder(folder, "source", overwrite=True) as temporary:
        (temporary / "part").mkdir()
        (temporary / "part" / "weights").write_text(text)
        (temporary / "README.md").write_text(text)


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


FOREIGN = {  # names, what makes them, what the error message names
    "file": (lambda folder: (folder / "notes.txt").write_text("mine"), "notes.txt"),
    "repository": (lambda folder: (folder / ".git" / "objects").mkdir(parents=True), ".git"),
    "edited": (lambda folder: (folder / "README.md").write_text("mine"), "README.md"),
    "in a folder of ours": (lambda folder: (folder / "part" / "notes.txt").write_text("mine"), "part/notes.txt"),
    "link to a file": (lambda folder: (folder / "link").symlink_to(folder / "README.md"), "link"),
    "link to a folder": (lambda folder: (folder / "link").symlink_to(folder.parent), "link"),
    "link in place of a file": (lambda folder: move_and_link(folder / "README.md"), "README.md"),
    "manifest without files": (lambda folder: (folder / MANIFEST).write_text('{"files": []}'), MANIFEST),
    "no manifest": (lambda folder: (folder / MANIFEST).unlink(), "README.md, part"),
}


def move_and_link(path: Path) -> None:
    path.symlink_to(path.rename(path.parent.parent / "elsewhere"))


@pytest.mark.parametrize("change, named", FOREIGN.values(), ids=FOREIGN)
def test_folder_with_files_of_the_user_stays(change, named, tmp_path):
    folder = tmp_path / "model"
    write(folder, "old")
    change(folder)
    before = sorted(tmp_path.rglob("*")), contents(tmp_path)
    with pytest.raises(FileExistsError, match=f"(changed since|who wrote its files): {named}"):
        write(folder)
    assert (sorted(tmp_path.rglob("*")), contents(tmp_path)) == before


def test_file_of_the_user_that_comes_while_the_folder_is_written(tmp_path):
    folder = tmp_path / "model"
    write(folder, "old")
    with pytest.raises(FileExistsError, match="notes.txt"), new_folder(folder, "source", overwrite=True):
        (folder / "notes.txt").write_text("mine")
    assert (folder / "notes.txt").read_text() == "mine" and os.listdir(tmp_path) == ["model"]


def test_folder_that_lacks_files_is_replaced(tmp_path):
    folder = tmp_path / "model"
    write(folder, "old")
    (folder / "README.md").unlink()
    write(folder)
    assert contents(folder)["README.md"] == "new" and os.listdir(tmp_path) == ["model"]


@pytest.mark.parametrize("rename", [1, 2], ids=["between the names", "after both"])
def test_killed_while_a_folder_is_replaced(rename, tmp_path, caplog):
    """Without the next run there is no folder of this name, but a hidden one; nothing of it stays."""
    folder = tmp_path / "model"
    write(folder, "old")
    program = f"""
import os, signal
from pathlib import Path
from cait_hf import files
works, calls = Path.rename, []
def rename(self, target):
    works(self, target)
    calls.append(target)
    if len(calls) == {rename}:
        os.kill(os.getpid(), signal.SIGKILL)
Path.rename = rename
with files.new_folder(Path({str(folder)!r}), "source", overwrite=True) as temporary:
    (temporary / "README.md").write_text("new")
"""
    assert warm_process.run(program).returncode == -signal.SIGKILL
    assert folder.exists() == (rename == 2) and len(os.listdir(tmp_path)) == 2
    with pytest.raises(FileExistsError, match="is not empty"), new_folder(folder, "source", overwrite=False):
        pass
    assert os.listdir(tmp_path) == ["model"]
    assert contents(folder)["README.md"] == ("old" if rename == 1 else "new")
    assert ("was put back" in caplog.text) == (rename == 1)


def test_a_folder_of_a_longer_name_is_not_put_back(tmp_path):
    """The only copy of `cait.v2`, after a kill, is none of `cait`."""
    left = tmp_path / ".cait.v2.01234567.replaced"
    left.mkdir()
    for _ in range(2):  # the first run finds no folder `cait`, the second one does
        with new_folder(tmp_path / "cait", "source", overwrite=True) as folder:
            (folder / "file").write_text("new")
        assert left.is_dir()


def test_folder_that_was_not_put_back_is_named(tmp_path, caplog):
    """Its name is in use by something else."""
    folder, earlier = tmp_path / "model", tmp_path / ".model.0123abcd.replaced"
    write(folder, "old")
    folder.rename(earlier)
    folder.mkdir()
    write(folder)
    assert f"{earlier} is an earlier {folder}" in caplog.text and contents(earlier)["README.md"] == "old"
