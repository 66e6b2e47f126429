# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""What a run keeps of its flags: another training is not resumed, a finished one stays, two at once are refused.

Both scripts share all of it but the training itself.
"""

import json
import shutil
import time
from functools import cache
from pathlib import Path

import pytest
import safetensors.torch
import warm_process
from test_run_image_classification import SCRIPT_NAMES
from test_scripts import TINY, load_script, write_images

from cait_hf.training import outputs


pytestmark = pytest.mark.usefixtures("no_plots")


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """Two folders to train on, equal but for the pixels, and one to evaluate on."""
    folder = tmp_path_factory.mktemp("images")
    write_images(folder / "train", range(6), 8)
    write_images(folder / "others", range(6), 8, skip=8)
    write_images(folder / "validation", range(6), 2, skip=16)
    return folder


@pytest.fixture(scope="module")
def flags(images) -> list[str]:
    flags = f"--train_dir {images / 'train'} --do_train --per_device_train_batch_size 16 --num_train_epochs 2 --seed 3"
    flags += f" --config_overrides {TINY},layer_scale_init_value=1.0 --learning_rate 1e-2 --save_steps 2 --use_cpu"
    return [*flags.split(), "--disable_tqdm", "true"]


@pytest.fixture(scope="module")
def finished_by(flags, tmp_path_factory):
    """By the name of a script: its run of six steps in two epochs, with checkpoints after 2, 4 and 6."""

    @cache
    def finished(name: str) -> Path:
        folder = tmp_path_factory.mktemp("finished")
        load_script(name).main([*flags, "--output_dir", str(folder)])
        return folder

    return finished


@pytest.fixture(params=SCRIPT_NAMES)
def run_of_each(request, finished_by) -> tuple[str, Path]:
    return request.param, finished_by(request.param)


def interrupted(finished: Path, folder: Path) -> Path:
    """The folder as it was before the third checkpoint."""
    shutil.copytree(finished, folder)
    shutil.rmtree(folder / "checkpoint-6")
    for name in ("model.safetensors", "README.md", "all_results.json", "train_results.json", "metrics.json"):
        (folder / name).unlink()
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


REFUSED = [
    ("--learning_rate 1e-3", "--learning_rate was 0.01, now 0.001"),
    ("--seed 4 --mixup 0.8", "--seed was 3, now 4; --mixup was 0.0, now 0.8"),
    ("--per_device_train_batch_size 8", "--per_device_train_batch_size was 16, now 8"),
    ("--gradient_accumulation_steps 2", "--gradient_accumulation_steps was 1, now 2"),
    ("--optim sgd", "--optim was adamw_\\w+, now sgd"),
    ("--weight_decay 0.1", "--weight_decay was 0.0, now 0.1"),
    ("--label_smoothing_factor 0.1", "--label_smoothing_factor was 0.0, now 0.1"),
    ("--lr_scheduler_type cosine", "--lr_scheduler_type was linear, now cosine"),
    ("--min_lr 1e-5", "--min_lr was None, now 1e-05"),
    ("--crop_area 0.5", "--crop_area was 0.08, now 0.5"),
    ("--ema_decay 0.9", "--ema_decay was None, now 0.9|with ema.safetensors"),
    ("--trainable head", "--trainable was all, now head"),
    ("--drop_path_rate 0.3", "--drop_path_rate was None, now 0.3"),
    (f"--config_overrides {TINY}", "--config_overrides was .*1.0, now"),
    ("--dataloader_drop_last", "--dataloader_drop_last was False, now True"),
    ("--train_dir {images}/others", "--train_dir was .*/train, now .*/others; the images to train on are others, 48"),
    ("--max_train_samples 40", "--max_train_samples was None, now 40; .*48 images of 6 classes before and 40 images"),
    ("--do_eval", "--do_eval was False, now True; .*48 images of 6 classes before and 40 images"),
]


@pytest.mark.parametrize("finished", [True, False], ids=["finished", "interrupted"])
@pytest.mark.parametrize("other, message", REFUSED)
def test_another_training_is_refused(other, message, finished, finished_by, flags, images, tmp_path):
    """By the same function in both scripts."""
    if "--mixup" in other or "--ema_decay" in other:
        pytest.importorskip("timm", reason="mixup and EMA weights are timm's")
    folder = finished_by(SCRIPT_NAMES[0])
    folder = folder if finished else interrupted(folder, tmp_path / "out")
    before = contents(folder)
    with pytest.raises(SystemExit, match=f"^error: .*({message})"):
        load_script(SCRIPT_NAMES[0]).main([*flags, *other.format(images=images).split(), "--output_dir", str(folder)])
    assert contents(folder) == before


def test_finished_run_stays(run_of_each, flags, images, caplog):
    """Whatever is logged, saved and evaluated; with the data elsewhere, too."""
    name, folder = run_of_each
    before = contents(folder)
    with caplog.at_level("INFO"):
        results = load_script(name).main([*flags, "--output_dir", str(folder), "--logging_steps", "1"])
    assert contents(folder) == before and results == json.loads(before["all_results.json"])
    assert f"{folder} contains a finished training (6 steps, 2 epochs)" in caplog.text
    with pytest.raises(SystemExit, match="--num_train_epochs is 1.0, but .* has trained 6 steps, 2 epochs"):
        load_script(name).main([*flags, "--output_dir", str(folder), "--num_train_epochs", "1"])
    assert contents(folder) == before


def test_finished_run_without_checkpoints(run_of_each, flags, tmp_path):
    name, folder = run_of_each
    shutil.copytree(folder, tmp_path / "out", ignore=shutil.ignore_patterns("checkpoint-*"))
    flags = [*flags, "--output_dir", str(tmp_path / "out"), "--save_strategy", "no"]
    assert load_script(name).main(flags) == json.loads((folder / "all_results.json").read_text())
    with pytest.raises(SystemExit, match="is finished, and no complete checkpoint"):
        load_script(name).main([*flags, "--num_train_epochs", "3"])
    (tmp_path / "out" / "model.safetensors").unlink()
    with pytest.raises(SystemExit, match="is not empty and has no complete checkpoint"):
        load_script(name).main(flags)


def test_what_may_change_is_resumed_and_on_the_card(run_of_each, flags, images, tmp_path, caplog):
    """Data that moved, another division of the step, logging; and more epochs, of which a warning says more."""
    name, folder = run_of_each
    out = interrupted(folder, tmp_path / "out")
    shutil.copytree(images / "train", tmp_path / "moved")
    other = f"--train_dir {tmp_path / 'moved'} --per_device_train_batch_size 8 --gradient_accumulation_steps 2"
    other += f" --logging_steps 2 --save_steps 3 --output_dir {out} --dataloader_num_workers 1"
    load_script(name).main([*flags, *other.split()])
    assert not [text for text in caplog.messages if "learning rates" in text]
    load_script(name).main([*flags, *other.split(), "--num_train_epochs", "3"])
    assert [text for text in caplog.messages if "from step 6 the learning rates are those of the new length" in text]
    record = json.loads((out / "run_record.json").read_text())
    changes = {change["flag"]: change["step"] for change in record["changes"]}
    assert (changes["per_device_train_batch_size"], changes["num_train_epochs"]) == (4, 6)
    assert record["finished"] == {"step": 9, "epoch": 3.0}
    card = (out / "README.md").read_text()
    assert "| num_train_epochs | `3.0` |" in card and "| epochs trained | `3` |" in card
    assert "| from step 4 | `per_device_train_batch_size` 8 instead of 16 |" in card
    assert "| from step 6 | `num_train_epochs` 3.0 instead of 2.0 |" in card
    assert not any(text in card for text in ("`logging_steps`", "`output_dir`", "`train_dir`", "| logging_steps"))
    shorter = [*flags, *other.split(), "--num_train_epochs", "2.5", "--overwrite_output_dir"]
    load_script(name).main([*shorter, "--learning_rate", "1e-3"])
    assert "instead of" not in (out / "README.md").read_text()


def test_leaving_corrupt_images_out_resumes(run_of_each, flags, images, tmp_path):
    """As the message of a corrupt image says to do."""
    name, folder = run_of_each
    out = interrupted(folder, tmp_path / "out")
    shutil.copytree(images / "train", tmp_path / "train")
    (tmp_path / "train" / "two" / "3.png").write_bytes(b"no image")
    other = ["--train_dir", str(tmp_path / "train"), "--corrupt_images", "skip", "--output_dir", str(out)]
    load_script(name).main([*flags, *other])
    assert "| from step 4 | `corrupt_images` skip instead of error |" in (out / "README.md").read_text()


def test_record_before_the_first_checkpoint_is_replaced(run_of_each, flags, tmp_path):
    name, folder = run_of_each
    shutil.copy(folder / "run_record.json", tmp_path)
    (tmp_path / ".run.lock").touch()  # of a run that was killed
    other = ["--learning_rate", "1e-3", "--max_steps", "1", "--output_dir", str(tmp_path), "--hub_token", "hf_secret"]
    load_script(name).main([*flags, *other])
    text = (tmp_path / "run_record.json").read_text()
    assert json.loads(text)["flags"]["learning_rate"] == 1e-3 and "hf_secret" not in text
    assert not (tmp_path / ".run.lock").exists()
    (tmp_path / "run_record.json").write_text("[")
    with pytest.raises(SystemExit, match="run_record.json cannot be read"):
        load_script(name).main([*flags, *other])


def test_checkpoint_elsewhere_is_compared_with_its_own_record(run_of_each, flags, tmp_path):
    name, folder = run_of_each
    again = [*flags, "--resume_from_checkpoint", str(folder / "checkpoint-4"), "--output_dir", str(tmp_path / "out")]
    with pytest.raises(SystemExit, match="checkpoint-4 was trained with other flags.*--seed was 3, now 4"):
        load_script(name).main([*again, "--seed", "4"])
    load_script(name).main(again)
    ours, theirs = (safetensors.torch.load_file(out / "model.safetensors") for out in (folder, tmp_path / "out"))
    assert all(ours[key].equal(theirs[key]) for key in theirs)


def test_output_dir_has_to_be_set(flags, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for do in ([], ["--do_train", "false", "--do_eval", "--model_name_or_path", "model"]):
        with pytest.raises(SystemExit, match="error: --output_dir is not set"):
            load_script(SCRIPT_NAMES[0]).main([*flags, *do])
    assert list(tmp_path.iterdir()) == []


# A run that has begun to write and is held up there.
HELD = """
import sys, time
from cait_hf.folder_lock import FolderLock
with FolderLock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("state", ["new", "interrupted", "finished"])
def test_second_run_in_a_folder_is_refused_until_the_first_is_killed(state, run_of_each, flags, tmp_path):
    (name, folder), out = run_of_each, tmp_path / "out"
    if state == "interrupted":
        interrupted(folder, out)
    elif state == "finished":
        shutil.copytree(folder, out)
    first = warm_process.start(HELD, out, log=tmp_path / "log")
    try:
        while not (tmp_path / "log").exists() or (tmp_path / "log").read_text() != "held\n":
            assert first.is_alive()
            time.sleep(0.01)
        before = contents(out)
        with pytest.raises(SystemExit, match=f"another run writes to --output_dir .*process {first.pid} on .*choose"):
            load_script(name).main([*flags, "--output_dir", str(out), "--max_steps", "6"])
        assert contents(out) == before
    finally:
        first.kill()
        first.join()
    load_script(name).main([*flags, "--output_dir", str(out)])
    assert (out / "model.safetensors").is_file() and not (out / ".run.lock").exists()


def test_run_that_wrote_meanwhile_is_noticed(run_of_each, flags, tmp_path, monkeypatch):
    """It began, and ended, while this one read its data."""
    script = load_script(run_of_each[0])
    prepare = script.prepare

    def slowly(argv: list[str]):
        experiment = prepare(argv)
        shutil.copytree(run_of_each[1], tmp_path / "out")
        return experiment

    monkeypatch.setattr(script, "prepare", slowly)
    with pytest.raises(SystemExit, match="another run has written to --output_dir"):
        script.main([*flags, "--output_dir", str(tmp_path / "out")])


def test_saved_epoch_is_told_and_evaluated_once(run_of_each, flags, images, tmp_path, monkeypatch, caplog):
    """With a learning rate of 0 all epochs are equal and the first stays; its evaluation is not drawn at the end."""
    script, drawn = load_script(run_of_each[0]), {}
    monkeypatch.setattr(outputs, "write_report", lambda folder, **kwargs: drawn.update(kwargs))
    flags = " ".join(flags).replace("--save_steps 2", "--save_strategy epoch --eval_strategy epoch")
    flags += f" --do_eval --validation_dir {images / 'validation'} --load_best_model_at_end --learning_rate 0"
    flags += f" --metric_for_best_model eval_top1 --output_dir {tmp_path / 'out'}"
    with caplog.at_level("INFO"):
        results = script.main(flags.split())
    evaluations = [(entry["step"], entry["eval_loss"]) for entry in drawn["log_history"] if "eval_loss" in entry]
    assert evaluations == [(3, results["eval_loss"]), (6, results["eval_loss"])] and drawn["saved"] == (3, 1.0)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| weights saved | `of step 3, epoch 1` |" in card and "| epochs trained | `2` |" in card
    assert json.loads((tmp_path / "out" / "eval_results.json").read_text())["epoch"] == 1
    *_, evaluation, place = [message for message in caplog.messages if str(tmp_path) in message or "loss" in message]
    assert evaluation == (
        f"Evaluation on 12 images: top-1 accuracy {results['eval_top1']:.2%}, top-5 accuracy "
        f"{results['eval_top5']:.2%}, mean accuracy of the classes {results['eval_mean_class_accuracy']:.2%}, loss "
        f"{results['eval_loss']:.4f}"
    )
    best = f"the best by eval_top1: {results['eval_top1']:.4g}"
    assert place == f"The model is in {tmp_path / 'out'}, with the weights of step 3 (epoch 1, {best})."


def test_evaluation_alone_prints_its_metrics(run_of_each, images, tmp_path, caplog, capsys):
    name, folder = run_of_each
    flags = f"--model_name_or_path {folder} --do_eval --output_dir {tmp_path} --validation_dir {images / 'validation'}"
    with caplog.at_level("INFO"):
        results = load_script(name).main([*flags.split(), "--use_cpu"])
    assert f"Evaluation on 12 images: top-1 accuracy {results['eval_top1']:.2%}, " in caplog.text
    assert caplog.messages[-1] == f"The metrics are in {tmp_path}." and capsys.readouterr().out == ""
    assert not (tmp_path / "run_record.json").exists() and not (tmp_path / "README.md").exists()
