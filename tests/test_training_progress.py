# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""`cait_hf.training.progress` with a clock of our own: no test depends on how fast this machine is."""

import io

import pytest
import torch
from random_weights import images, randomize_, tiny_config
from transformers import ProgressCallback, Trainer, TrainerCallback, TrainingArguments

from cait_hf import CaitForImageClassification
from cait_hf.training import progress
from cait_hf.training.progress import StepTimer, TrainingProgress, peak_memory_mib


@pytest.fixture
def clock():
    class Clock:
        seconds = 100.0

        def __call__(self) -> float:
            return self.seconds

        def pass_(self, seconds: float):
            self.seconds += seconds

    return Clock()


def test_by_hand(clock):
    timer = StepTimer(num_processes=2, clock=clock)
    assert timer.summary() == timer.postfix() == {}
    clock.pass_(1000)  # loading the model
    timer.skip()
    for wait, work, count in ((20, 5, 8), (1, 3, 8), (2, 4, 4)):
        with pytest.raises(KeyError), timer.waiting():  # a failure is waited for, too
            clock.pass_(wait)
            raise KeyError
        clock.pass_(work)
        timer.step(count)
        if wait == 20:  # the first step counts if there is no other
            assert timer.summary()["train_images_per_second"] == 2 * 8 / 25
            assert timer.summary()["train_data_wait_fraction"] == 20 / 25
        with timer.waiting():
            clock.pass_(50)  # evaluation
        timer.skip()
    summary = timer.summary()
    assert all(isinstance(value, float) for value in summary.values())
    assert summary.pop("train_peak_memory_mib", 1) > 0
    assert summary == {
        "train_images_per_second": 2 * 12 / 10,
        "train_data_wait_fraction": 3 / 10,
        "train_first_step_seconds": 25.0,
    }
    assert (timer.postfix()["img/s"], timer.postfix()["data"]) == ("2.4", "30%")


def test_batches_are_passed_on_timed_and_counted(clock):
    sizes = (3, 3, 3, 3, 2)

    def slow_loader():
        for size in sizes:
            clock.pass_(1)
            yield {"labels": torch.zeros(size)}

    timer = StepTimer(clock=clock)
    seen = []
    for index, batch in enumerate(timer.batches(slow_loader())):
        seen.append(len(batch["labels"]))
        clock.pass_(1)
        if index % 2 or index == 4:  # two batches a step, one in the last
            timer.step()
    assert tuple(seen) == sizes
    assert timer.summary()["train_images_per_second"] == (6 + 2) / (4 + 2)
    assert timer.summary()["train_data_wait_fraction"] == 3 / 6


def test_peak_memory(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    peak = peak_memory_mib()
    if progress.resource is not None:
        assert 50 < peak < 1e6  # torch alone takes more than 50 MiB, and no unit is mistaken
        block = torch.ones(int((peak + 64) * 2**18))
        assert peak_memory_mib() > peak + 32 and block.sum() > 0
    monkeypatch.setattr(progress, "resource", None)
    assert peak_memory_mib() is None
    timer = StepTimer()
    timer.step(1)
    assert "mem" not in timer.postfix() and "train_peak_memory_mib" not in timer.summary()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 3 * 2**20)
    assert peak_memory_mib() == 3


class TimedTrainer(Trainer):
    """As the docstring of `TrainingProgress` says, with a clock that only fetching and steps move."""

    clock, timer = None, None

    def get_batch_samples(self, epoch_iterator, *args, **kwargs):
        def slow(batches):
            for batch in batches:
                self.clock.pass_(1)
                yield batch

        return super().get_batch_samples(self.timer.batches(slow(epoch_iterator)), *args, **kwargs)

    def training_step(self, *args, **kwargs):
        self.clock.pass_(3)
        return super().training_step(*args, **kwargs)


def train(folder, clock, resume=None, **arguments) -> StepTimer:
    slow = TrainerCallback()  # evaluation and saving take long
    slow.on_prediction_step = slow.on_save = lambda *args, **kwargs: clock.pass_(1000)
    data = [{"pixel_values": row, "labels": index % 5} for index, row in enumerate(images(10, 32))]
    trainer = TimedTrainer(
        model=randomize_(CaitForImageClassification(tiny_config(num_hidden_layers=1))),
        args=TrainingArguments(
            folder,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
            num_train_epochs=2,
            eval_strategy="steps",
            eval_steps=3,  # not where it saves
            save_steps=2,
            logging_steps=1,
            report_to=[],
            use_cpu=True,
            **arguments,
        ),
        train_dataset=data,
        eval_dataset=data[:4],
        callbacks=[slow],
    )
    trainer.clock, trainer.timer = clock, StepTimer(clock=clock)
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(TrainingProgress(trainer.timer))
    trainer.train(resume_from_checkpoint=resume)
    return trainer.timer


@pytest.fixture
def bars(monkeypatch) -> list:
    """Every bar that training opens, drawn into memory."""
    opened = []

    class Bar(progress.tqdm):
        def __init__(self, **kwargs):
            super().__init__(**kwargs, file=io.StringIO(), mininterval=0)
            opened.append(self)

    monkeypatch.setattr(progress, "tqdm", Bar)
    return opened


def test_trainer_shows_and_measures(tmp_path, clock, bars, capsys):
    timer = train(tmp_path, clock, disable_tqdm=False)
    # 6 steps: of 2, 2 and 1 batches an epoch; without the first 8 batches of 4 seconds are left, 16 images
    assert timer.summary()["train_images_per_second"] == 16 / 32
    assert timer.summary()["train_data_wait_fraction"] == 1 / 4
    (bar,) = bars
    assert (bar.n, bar.total, bar.initial) == (6, 6, 0)
    drawn = bar.fp.getvalue()
    assert "img/s=0.5" in drawn and "data=25%" in drawn
    assert "eval_loss" in capsys.readouterr().out  # the log continues above the bar


def test_resumed_bar_starts_where_training_was(tmp_path, clock, bars):
    train(tmp_path, clock, disable_tqdm=False)
    timer = train(tmp_path, clock, resume=str(tmp_path / "checkpoint-4"), disable_tqdm=False)
    assert (bars[1].n, bars[1].total, bars[1].initial) == (6, 6, 4)
    assert timer.summary()["train_images_per_second"] == 2 / 4  # the last step: one batch


def test_disabled_bar_measures_and_prints_nothing(tmp_path, clock, monkeypatch, capsys):
    monkeypatch.setattr("transformers.trainer.PrinterCallback", TrainerCallback)  # Trainer's own, prints the log
    timer = train(tmp_path, clock, disable_tqdm=True)
    assert timer.summary()["train_images_per_second"] == 16 / 32
    printed = capsys.readouterr()
    assert printed.out == "" and "it/s" not in printed.err and "%|" not in printed.err
