# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""`--report_to`: what each tracker that is installed has after a training: metrics, and a drawing an epoch."""

import os
import re
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from random_weights import randomize_, tiny_config
from test_run_image_classification import SCRIPT_NAMES
from test_scripts import SCRIPTS, TINY, load_script, write_images

from cait_hf import CaitForImageClassification, CaitImageProcessorPil
from cait_hf.training.prediction_images import COLUMNS, LINE, TILE, TRACKERS, LogPredictions, short


pytestmark = pytest.mark.usefixtures("no_plots")
EPOCHS = 2


def in_tensorboard(folder: Path) -> tuple[list[str], int]:
    from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer

    events = EventMultiplexer().AddRunsFromDirectory(str(folder / "out" / "runs"))
    events.Reload()
    runs = events.Runs().items()
    scalars = [name for _, found in runs for name in found["scalars"]]
    return scalars, sum(len(events.Images(run, name)) for run, found in runs for name in found["images"])


def in_trackio(folder: Path) -> tuple[list[str], int]:
    (database,) = (folder / "trackio").glob("*.db")
    with sqlite3.connect(database) as connection:
        metrics = "".join(str(row[0]) for row in connection.execute("SELECT metrics FROM metrics"))
    return [metrics], len([*(folder / "trackio").rglob("*.png")])


def in_wandb(folder: Path) -> tuple[list[str], int]:
    (run,) = (folder / "wandb").glob("offline-run-*")
    (log,) = run.glob("*.wandb")
    return re.findall(r"[\w/]*(?:loss|top1)", log.read_bytes().decode("latin-1")), len(
        [*run.rglob("media/images/predictions*.png")]
    )


def in_mlflow(folder: Path) -> tuple[list[str], int]:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    runs = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    run = min(runs, key=lambda run: run.info.start_time)  # Trainer's evaluation after the training is another
    assert run.info.status == "FINISHED"
    images = [file for file in folder.rglob("predictions*.png") if "artifacts" in file.parts]
    return [*run.data.metrics], len(images)


READ = {"mlflow": in_mlflow, "tensorboard": in_tensorboard, "trackio": in_trackio, "wandb": in_wandb}


@pytest.mark.parametrize("tracker", sorted(TRACKERS))
@pytest.mark.parametrize("name", SCRIPT_NAMES)
def test_metrics_and_images(name, tracker, tmp_path, monkeypatch):
    """Offline, in a folder of the test; the weights are those of a training without trackers."""
    pytest.importorskip(tracker, reason=f"--report_to {tracker} needs {tracker}")
    monkeypatch.chdir(tmp_path)
    environment = {
        "DO_NOT_TRACK": "true",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path / 'mlflow.db'}",
        "TRACKIO_DIR": str(tmp_path / "trackio"),
        "WANDB_MODE": "offline",
        "WANDB_DIR": str(tmp_path),
        "WANDB_SILENT": "true",
    }
    images = write_images(tmp_path / "images", range(3), 8)
    flags = f"--train_dir {images} --do_train --do_eval --num_train_epochs {EPOCHS} --eval_strategy epoch --use_cpu"
    flags += f" --config_overrides {TINY} --drop_path_rate 0.2 --save_strategy no --disable_tqdm true"
    flags = f"{flags} --per_device_train_batch_size 8 --logging_steps 1".split()
    # a process of its own: a tracker's run is that of a process, and complete at its end
    command = [sys.executable, SCRIPTS / f"{name}.py", *flags, "--report_to", tracker, "--output_dir", "out"]
    finished = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)
    assert finished.returncode == 0, finished.stderr
    metrics, count = READ[tracker](tmp_path)
    assert count == EPOCHS
    assert any("eval" in metric and "top1" in metric for metric in metrics) and any("loss" in m for m in metrics)
    load_script(name).main([*flags, "--output_dir", "plain"])
    assert Path("out/model.safetensors").read_bytes() == Path("plain/model.safetensors").read_bytes()


def test_drawing():
    """Of a correct image the predicted class in green, of another in red with its own class below it."""
    model = randomize_(CaitForImageClassification(tiny_config())).train()
    processor = CaitImageProcessorPil(size=32, crop_size=32)
    color = np.full((32, 32, 3), (200, 100, 50), dtype=np.uint8)
    pixel_values = processor(color, return_tensors="pt").pixel_values[0]
    with torch.no_grad():
        best = model.eval()(pixel_values[None]).logits.argmax().item()
    data = [{"pixel_values": pixel_values, "labels": label} for label in (best, (best + 1) % 5)]
    callback = LogPredictions(data, processor, model.config.id2label)
    drawn = []

    class Arguments:
        device, report_to = "cpu", ["tensorboard"]

    class State:
        is_world_process_zero, global_step = True, 7

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TRACKERS, "tensorboard", lambda drawing, args, step: drawn.append((drawing, step)))
        model.train()
        callback.on_epoch_end(Arguments, State, None, model=model)
    ((drawing, step),) = drawn
    assert model.training and step == 7 and drawing.size == (COLUMNS * TILE, TILE + 2 * LINE)
    pixels = np.asarray(drawing).astype(int)
    for left in (0, TILE):
        assert np.abs(pixels[TILE // 2, left + TILE // 2] - color[0, 0]).max() <= 1
    texts = [
        pixels[TILE + row * LINE : TILE + (row + 1) * LINE, left : left + TILE] for left in (0, TILE) for row in (0, 1)
    ]
    green, red = (
        [(text[..., mine] - text[..., other]).max() > 90 for text in texts] for mine, other in ((1, 0), (0, 1))
    )
    assert green == [True, False, False, False] and red == [False, False, True, True]


def test_long_and_foreign_names():
    assert short("a" * 30) == "a" * 23 + "..." and short("犬 dog") == "? dog"
