# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""Checkpoints of both training scripts that are damaged, planted, moved, or were not written to their end.

That a run that was killed resumes to the bit is in `test_training_equivalence.py`.
"""

import json
import os
import pickle
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import warm_process
from safetensors.torch import load_file, save_file
from test_scripts import SCRIPTS, TINY, load_script, write_images
from transformers import TrainerState

from cait_hf.training.arguments import TrainingArguments
from cait_hf.training.best_model import saved_step
from cait_hf.training.resume import check_files, find_checkpoint_to_resume, interruptible, say_how_to_resume


pytestmark = pytest.mark.usefixtures("no_plots")
WITH_EMA = find_spec("timm") is not None
OF_BOTH = ["config.json", "model.safetensors", "preprocessor_config.json", "trainer_state.json"]
OF_BOTH += ["ema.safetensors"] if WITH_EMA else []
FILES = {
    "run_image_classification": [*OF_BOTH, "optimizer.pt", "rng_state.pth", "scheduler.pt"],
    "run_image_classification_no_trainer": [*OF_BOTH, "optimizer.bin", "random_states_0.pkl", "scheduler.bin"],
}
EACH_FILE = [(name, file) for name, files in FILES.items() for file in files]


@pytest.fixture(scope="module")
def flags(tmp_path_factory) -> str:
    """Six steps, a checkpoint at every second."""
    folder = write_images(tmp_path_factory.mktemp("images") / "train", range(3), 8)
    flags = f"--do_train --do_eval --train_dir {folder} --validation_dir {folder} --config_overrides {TINY}"
    flags += " --per_device_train_batch_size 8 --max_steps 6 --save_steps 2 --eval_strategy steps --eval_steps 2"
    flags += " --learning_rate 1e-2 --disable_tqdm true --load_best_model_at_end --metric_for_best_model eval_loss"
    return flags + (" --ema_decay 0.5" if WITH_EMA else "")


@pytest.fixture(scope="module")
def runs(flags, tmp_path_factory) -> dict[str, Path]:
    """The output folder of a complete run of each script; tests copy it."""
    folder = tmp_path_factory.mktemp("runs")
    for name in FILES:
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(sys.modules, "matplotlib", None)
            load_script(name).main([*flags.split(), "--output_dir", str(folder / name)])
        written = sorted(path.name for path in (folder / name / "checkpoint-6").iterdir())
        assert written == sorted([*FILES[name], "training_args.bin"])
    return {name: folder / name for name in FILES}


@pytest.fixture
def copy(runs, tmp_path):
    """Makes a copy of the checkpoints of a run, as one that was interrupted after the last."""

    def make(name: str, *steps: int) -> Path:
        for step in steps:
            shutil.copytree(runs[name] / f"checkpoint-{step}", tmp_path / "out" / f"checkpoint-{step}")
        return tmp_path / "out"

    return make


def find(folder: Path, asked: Path | None = None) -> str | None:
    args = TrainingArguments(str(folder), do_train=True, resume_from_checkpoint=asked and str(asked))
    return find_checkpoint_to_resume(args, overwrite=False, with_ema=WITH_EMA)


def other_content(path: Path):
    """What can be read, but is nothing that this file could hold."""
    if path.suffix == ".safetensors":
        save_file({}, path)
    elif path.suffix == ".json":
        path.write_text("[]")
    else:
        torch.save(None, path)


def flip(path: Path):
    """One bit of the length of a header, or of the first object: only some formats have checksums of the rest."""
    content = bytearray(path.read_bytes())
    content[1 if path.suffix == ".safetensors" else 100] ^= 128
    path.write_bytes(content)


DAMAGES = {
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3]),
    "junk": lambda path: path.write_bytes(np.random.default_rng(0).bytes(path.stat().st_size)),
    "other": other_content,
    "flipped": flip,
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name, file", EACH_FILE)
def test_damaged_file_is_named(name, file, damage, copy, caplog):
    """With an older checkpoint the run resumes from that and says why, unless the damaged one was asked for."""
    folder = copy(name, 4, 6)
    path = folder / "checkpoint-6" / file
    DAMAGES[damage](path)
    with pytest.raises(ValueError, match=f"checkpoint-6/{file} is damaged"):
        find(folder, asked=folder / "checkpoint-6")
    assert find(folder) == str(folder / "checkpoint-4")
    assert f"{path} is damaged" in caplog.text
    shutil.rmtree(folder / "checkpoint-4")
    with pytest.raises(ValueError, match=f"--overwrite_output_dir.*checkpoint-6/{file} is damaged"):
        find(folder)


@pytest.mark.parametrize("pattern", ["model.safetensors", "optimizer.*", "scheduler.*"])
@pytest.mark.parametrize("name", FILES)
def test_checkpoint_without_a_part_is_passed_over(name, pattern, copy):
    """Trainer alone would resume with a new optimizer, without a word."""
    folder = copy(name, 4, 6)
    next((folder / "checkpoint-6").glob(pattern)).unlink()
    with pytest.raises(ValueError, match="checkpoint-6 has no (weights|optimizer state|scheduler state)"):
        find(folder, asked=folder / "checkpoint-6")
    assert find(folder) == str(folder / "checkpoint-4")


class Planted:
    """Makes a folder when it is unpickled."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def save_planted(planted: Planted, path: Path):
    torch.save({"state": planted}, path.with_name("planted"))
    path.with_name("planted").replace(path)  # PyTorch writes to no hidden name


PICKLES = {
    "plain": lambda planted, path: path.write_bytes(pickle.dumps({"state": planted})),
    "zip": save_planted,
    "legacy": lambda planted, path: torch.save({"state": planted}, path, _use_new_zipfile_serialization=False),
}


@pytest.mark.parametrize("form", PICKLES)
@pytest.mark.parametrize("name", FILES)
def test_planted_pickle_never_runs(name, form, flags, copy, tmp_path):
    """In place of every file, beside them under each name that a library looks for, and found by no check."""
    folder, planted = copy(name, 6), Planted(tmp_path / "ran")
    checkpoint = folder / "checkpoint-6"
    with pytest.raises(FileExistsError):  # what is planted would run
        planted.marker.mkdir()
        pickle.loads(pickle.dumps(planted))
    planted.marker.rmdir()
    others = "custom_checkpoint_0.pkl scaler.pt sampler.bin pytorch_model.bin pytorch_model_fsdp.bin adapter_model.bin"
    others += " rng_state_1.pth optimizer_0/.metadata pytorch_model/mp_rank_00_model_states.pt"
    for file in [*FILES[name], *others.split()]:
        path = checkpoint / file
        kept = path.read_bytes() if path.exists() else None
        path.parent.mkdir(exist_ok=True)
        PICKLES[form](planted, path)
        with pytest.raises(ValueError, match=f"{file} is damaged"):
            find(folder, asked=checkpoint)
        path.unlink() if kept is None else path.write_bytes(kept)
    PICKLES[form](planted, checkpoint / "training_args.bin")  # which nothing reads
    assert find(folder) == str(checkpoint)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cait_hf.training.resume.check_files", lambda *arguments: None)
        for file in (FILES[name][-1], "custom_checkpoint_0.pkl"):
            PICKLES[form](planted, checkpoint / file)
            with pytest.raises((SystemExit, pickle.UnpicklingError)):
                load_script(name).main([*flags.split(), "--max_steps", "8", "--output_dir", str(folder)])
    assert not planted.marker.exists()


def test_sharded_and_deepspeed_files_are_no_damage(copy, tmp_path, monkeypatch):
    """What `torch.distributed.checkpoint` and DeepSpeed write holds records of theirs beside the tensors."""
    checkpoint = copy("run_image_classification", 6) / "checkpoint-6"
    if torch.distributed.is_available():
        import torch.distributed.checkpoint as dcp

        sharded, planted = checkpoint / "pytorch_model_fsdp_0", Planted(tmp_path / "ran")
        dcp.save({"a": torch.ones(2), "step": planted}, checkpoint_id=sharded, no_dist=True)
        with pytest.raises(ValueError, match="pytorch_model_fsdp_0/.metadata is damaged, or contains what could run"):
            check_files(checkpoint)
        assert not planted.marker.exists()
        shutil.rmtree(sharded)
        dcp.save({"a": torch.ones(2), "step": 3}, checkpoint_id=sharded, no_dist=True)
    module = ModuleType("deepspeed.runtime.zero.config")
    module.ZeroStageEnum = type("ZeroStageEnum", (), {"__module__": module.__name__})
    module.other = type("other", (), {"__module__": module.__name__})
    for name in ("deepspeed", "deepspeed.runtime", "deepspeed.runtime.zero", module.__name__):
        monkeypatch.setitem(sys.modules, name, module)
    path = checkpoint / "global_step6" / "mp_rank_00_model_states.pt"
    path.parent.mkdir()
    torch.save({"stage": module.ZeroStageEnum(), "weight": torch.ones(2)}, path)
    check_files(checkpoint)
    torch.save({"stage": module.other()}, path)
    with pytest.raises(ValueError, match="mp_rank_00_model_states.pt is damaged, or contains what could run code"):
        check_files(checkpoint)


def test_weights_alone_are_enough_for_the_best_checkpoint(copy):
    """As `--save_only_model` writes them."""
    checkpoint = copy("run_image_classification", 6) / "checkpoint-6"
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        (checkpoint / name).unlink()
    check_files(checkpoint, ["weights"])
    with pytest.raises(ValueError, match="checkpoint-6 has no optimizer state"):
        check_files(checkpoint)


@pytest.mark.parametrize(
    "case, line",
    [
        ("", "the same command resumes from checkpoint-6 in"),
        ("overwrites", "the same command without --overwrite_output_dir resumes from checkpoint-6 in"),
        ("asked", "the same command without --resume_from_checkpoint resumes from checkpoint-6 in"),
        ("evaluates", "interrupted.\n"),
    ],
)
def test_interruption_names_the_flag_that_must_go(case, line, copy, capsys):
    folder = copy("run_image_classification", 6)
    asked = str(folder / "checkpoint-6") if case == "asked" else None
    args = TrainingArguments(str(folder), do_train=case != "evaluates", resume_from_checkpoint=asked, use_cpu=True)
    say_how_to_resume(args, case == "overwrites")
    assert line in capsys.readouterr().err


def test_saved_step_is_that_of_a_checkpoint(tmp_path):
    """Of step 4: the better one of step 6 was not saved."""
    log = [{"step": 4, "epoch": 2.0}, {"step": 6, "epoch": 3.0}]
    state = TrainerState(epoch=4.0, global_step=8, best_global_step=6, log_history=log)
    args = TrainingArguments(
        str(tmp_path), load_best_model_at_end=True, save_steps=4, eval_steps=2, eval_strategy="steps"
    )
    assert saved_step(args, state) == (8, 4.0)
    state.best_model_checkpoint = str(tmp_path / "checkpoint-4")
    assert saved_step(args, state) == (4, 2.0)
    state.log_history = []
    assert saved_step(args, state) == (4, 2.0)


def assert_same(folder: Path, other: Path):
    ours, theirs = (load_file(path / "model.safetensors") for path in (folder, other))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize("name", FILES)
def test_run_resumes_from_the_checkpoint_before_a_damaged_one(name, flags, copy, caplog):
    """The damaged one is set aside, or it would be kept as the newest and those that are written removed."""
    folder = copy(name, 2, 4, 6)
    DAMAGES["cut"](folder / "checkpoint-6" / FILES[name][-1])
    flags = f"{flags} --max_steps 5 --save_total_limit 2 --output_dir {folder}"
    load_script(name).main(flags.replace("--load_best_model_at_end", "").split())
    kept = {path.name for path in folder.glob("*checkpoint-*")} - {"checkpoint-2", "checkpoint-4"}  # the best of them
    assert kept == {".checkpoint-6.damaged", "checkpoint-5"} and "checkpoint-6 was renamed" in caplog.text


@pytest.mark.parametrize("name", FILES)
def test_checkpoint_of_the_other_script_is_not_resumed_from(name, flags, copy):
    other = next(other for other in FILES if other != name)
    folder = copy(name, 6)
    with pytest.raises(SystemExit, match="scheduler.* is missing|optimizer.bin is missing"):
        load_script(other).main([*flags.split(), "--output_dir", str(folder), "--max_steps", "8"])


def store_best(checkpoint: Path, best: str):
    """As if no evaluation could be better than that of step 2."""
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    state |= {"best_global_step": 2, "best_metric": 0.0, "best_model_checkpoint": best}
    (checkpoint / "trainer_state.json").write_text(json.dumps(state))


@pytest.mark.parametrize("stored", ["out/checkpoint-2", "/absent/checkpoint-2"])
@pytest.mark.parametrize("name", FILES)
def test_moved_run_ends_with_its_best_checkpoint(name, stored, flags, copy, tmp_path, monkeypatch, caplog):
    """Begun as a relative or as an absolute path, and resumed from another working directory."""
    folder = copy(name, 2, 4)
    store_best(folder / "checkpoint-4", stored)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    load_script(name).main([*flags.split(), "--output_dir", "../out", "--save_total_limit", "1"])
    assert_same(folder, folder / "checkpoint-2")
    assert "checkpoint-2" not in caplog.text
    state = json.loads((folder / "trainer_state.json").read_text())
    assert (state["global_step"], state["best_model_checkpoint"]) == (6, "../out/checkpoint-2")


@pytest.mark.parametrize("lost", [True, False])
@pytest.mark.parametrize("name", FILES)
def test_lost_best_checkpoint_is_replaced(name, lost, flags, copy, caplog):
    folder = copy(name, 2, 4)
    store_best(folder / "checkpoint-4", "out/checkpoint-2")
    if lost:
        shutil.rmtree(folder / "checkpoint-2")
    else:
        DAMAGES["cut"](folder / "checkpoint-2" / "model.safetensors")
    load_script(name).main([*flags.split(), "--output_dir", str(folder)])
    assert "checkpoint-2" in caplog.text and "The best checkpoint will be chosen" in caplog.text
    assert_same(folder, folder / "checkpoint-6")


@pytest.fixture(scope="module")
def save(flags, tmp_path_factory) -> dict[str, Callable[[Path], None]]:
    """Of each script, what writes the checkpoint of step 1 into a folder."""
    made = []
    flags = f"{flags} --max_steps 1 --save_strategy no --eval_strategy no".replace("--load_best_model_at_end", "")
    for name in FILES:
        script = load_script(name)
        loop = script.Loop if name.endswith("no_trainer") else script.ImageClassificationTrainer
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop, "evaluate", lambda self, *rest: made.append(self) or {})
            patch.setattr(script, "end_training", lambda accelerator: None, raising=False)  # it forgets the model
            script.main([*flags.split(), "--output_dir", str(tmp_path_factory.mktemp("one"))])
    trainer, loop = made

    def by_trainer(folder: Path):
        trainer.args.output_dir = str(folder)
        trainer._save_checkpoint(trainer.model, None)

    def by_loop(folder: Path):
        loop.experiment.training_args.output_dir = str(folder)
        loop.save_checkpoint()

    return dict(zip(FILES, (by_trainer, by_loop)))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="only Linux has a device that is always full")
@pytest.mark.parametrize("name, file", [*EACH_FILE, *((name, "training_args.bin") for name in FILES)])
def test_full_disk_leaves_no_checkpoint(name, file, save, tmp_path):
    """At whichever file the disk is full, nothing looks like one more checkpoint."""
    unfinished = tmp_path / (".checkpoint-1.part" if name.endswith("no_trainer") else "checkpoint-1")
    if file.endswith(".safetensors"):  # written under another name, so here it cannot get its own
        (unfinished / file / "full").mkdir(parents=True)
    else:
        unfinished.mkdir()
        (unfinished / file).symlink_to("/dev/full")
    with pytest.raises(OSError, match="the checkpoint of step 1 could not be written"):
        save[name](tmp_path)
    assert list(tmp_path.iterdir()) == []
    save[name](tmp_path)
    check_files(tmp_path / "checkpoint-1")


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="signals to a process group are a matter of POSIX")
@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", FILES)
def test_interruption_says_how_to_resume(name, number, flags, tmp_path):
    """Worker processes get the signal, too, as from a terminal and from Slurm; nobody shows a traceback."""
    flags = flags.replace("--max_steps 6", "--max_steps 10000") + " --dataloader_num_workers 2 --save_total_limit 1"
    command = [SCRIPTS / f"{name}.py", *flags.split(), "--output_dir", tmp_path / "out"]
    code = f"import os; os.setpgid(0, 0); {warm_process.SCRIPT}"
    process = warm_process.start(code, *command, log=tmp_path / "log")
    end = time.monotonic() + 100
    while not list(tmp_path.glob("out/checkpoint-*/trainer_state.json")) and time.monotonic() < end:
        assert process.is_alive(), (tmp_path / "log.err").read_text()
        time.sleep(0.01)
    os.killpg(process.pid, number)
    process.join(30)
    assert process.exitcode == 128 + number
    printed = (tmp_path / "log.err").read_text()
    assert "Traceback" not in printed and "Error" not in printed, printed
    line = rf"interrupted: the same command resumes from checkpoint-\d+ in {tmp_path}/out."
    assert re.fullmatch(line, printed.splitlines()[-1])


@pytest.mark.skipif(os.name == "nt", reason="a signal that a process sends to itself ends it on Windows")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interruption_in_a_destructor_is_not_lost(number, monkeypatch):
    """Python drops what a __del__ raises."""

    class Interrupted:
        def __del__(self):
            signal.raise_signal(number)

    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    with pytest.raises(SystemExit) as error, interruptible():
        Interrupted()
        time.sleep(20)
        pytest.fail("the run goes on")
    assert error.value.code == 128 + number
