# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""How fast training goes, how long it waits for data and how much memory it takes, in the bar and as metrics.

The estimated time left is tqdm's own.
"""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import ProgressCallback, TrainerState, TrainingArguments


try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]  # a module elsewhere


class StepTimer:
    """Measures the steps of a training loop; evaluation and saving are left out.

        timer = StepTimer(accelerator.num_processes)
        for batch in timer.batches(dataloader):
            ...
            timer.step()  # after each optimizer step
        timer.skip()  # after evaluation, after saving

    A GPU works on while the loop continues: the fraction of waiting is correct if each step reads a value from the
    device, as a check that the loss is finite does. The first step (compilation, start of the data workers, batches
    skipped to resume) is reported separately, unless it is the only one.

    Args:
        num_processes: processes that train; all are taken to have as many images a step as this one.
        clock: gives seconds.
    """

    def __init__(self, num_processes: int = 1, clock: Callable[[], float] = time.perf_counter) -> None:
        self.num_processes, self.clock = num_processes, clock
        self._first: tuple[float, ...] | None = None  # (images, seconds, seconds waited) of the first step
        self._later: tuple[float, ...] = (0, 0.0, 0.0)  # of all steps after it
        self.skip()

    def skip(self) -> None:
        """Leave out the time since the last step; call it after evaluation and after saving, and before training."""
        self._start, self._images, self._waited = self.clock(), 0, 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """For fetching a batch by hand: `with timer.waiting(): batch = next(iterator)`."""
        start = self.clock()
        try:
            yield
        finally:
            self._waited += self.clock() - start

    def batches(self, batches: Iterable[dict]) -> Iterator[dict]:
        """The batches as they are; measures how long each took to come and counts its `labels`."""
        iterator = iter(batches)
        while True:
            with self.waiting():
                batch = next(iterator, None)
            if batch is None:
                return
            self._images += len(batch["labels"])
            yield batch

    def step(self, num_images: int | None = None) -> None:
        """An optimizer step is done, on so many images of this process; without a number: on those of `batches`."""
        images = self._images if num_images is None else num_images
        step = (images, self.clock() - self._start, self._waited)
        if self._first is None:
            self._first = step
        else:
            self._later = tuple(map(sum, zip(self._later, step)))
        self.skip()

    def summary(self) -> dict[str, float]:
        """Images per second over all processes, fraction of the time in [0, 1] that went into waiting for data, peak
        memory of this process in MiB (on CUDA what PyTorch allocated on its device, else resident memory, both since
        the process began) and seconds of the first step. Empty before a step is done."""
        if self._first is None:
            return {}
        images, seconds, waited = self._later if self._later[1] else self._first
        metrics = {
            "train_images_per_second": images * self.num_processes / seconds,
            "train_data_wait_fraction": waited / seconds,
            "train_peak_memory_mib": peak_memory_mib(),
            "train_first_step_seconds": self._first[1],
        }
        return {name: value for name, value in metrics.items() if value is not None}

    def postfix(self) -> dict[str, str]:
        """The same for `tqdm.set_postfix`."""
        formats = {
            "train_images_per_second": ("img/s", "{:.4g}"),
            "train_data_wait_fraction": ("data", "{:.0%}"),
            "train_peak_memory_mib": ("mem", "{:.0f}MiB"),
        }
        summary = self.summary()
        return {short: text.format(summary[name]) for name, (short, text) in formats.items() if name in summary}


def peak_memory_mib() -> float | None:
    """Most memory of this process so far, in MiB: allocated by PyTorch on the CUDA device, else resident; `None` where
    the system does not report it."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    if resource is None:
        return None
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, others KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


class TrainingProgress(ProgressCallback):
    """Trainer's bar with the metrics of a [`StepTimer`], in the place of its `ProgressCallback`.

        trainer.remove_callback(ProgressCallback)
        trainer.add_callback(TrainingProgress(timer))

    The Trainer must fetch its batches through the timer:

        def get_batch_samples(self, epoch_iterator, *args, **kwargs):
            return super().get_batch_samples(self.timer.batches(epoch_iterator), *args, **kwargs)

    With `disable_tqdm` it measures all the same and prints nothing.
    """

    def __init__(self, timer: StepTimer) -> None:
        super().__init__()
        self.timer = timer

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, *rest: Any, **kwargs: Any) -> None:
        self.timer.skip()
        self.current_step = state.global_step
        if state.is_world_process_zero:
            # `initial`: steps done before an interruption must not shorten the estimated time left
            self.training_bar = tqdm(
                total=state.max_steps, initial=state.global_step, disable=args.disable_tqdm, dynamic_ncols=True
            )

    def on_step_end(self, args: TrainingArguments, state: TrainerState, *rest: Any, **kwargs: Any) -> None:
        self.timer.step()
        if state.is_world_process_zero:
            self.training_bar.set_postfix(self.timer.postfix(), refresh=False)
        super().on_step_end(args, state, *rest, **kwargs)

    def on_evaluate(self, *args: Any, **kwargs: Any) -> None:
        self.timer.skip()
        super().on_evaluate(*args, **kwargs)

    def on_predict(self, *args: Any, **kwargs: Any) -> None:
        self.timer.skip()
        super().on_predict(*args, **kwargs)

    def on_save(self, *args: Any, **kwargs: Any) -> None:
        self.timer.skip()

    def on_prediction_step(self, args: TrainingArguments, *rest: Any, **kwargs: Any) -> None:
        if not args.disable_tqdm:
            super().on_prediction_step(args, *rest, **kwargs)

    def on_log(self, args: TrainingArguments, *rest: Any, **kwargs: Any) -> None:
        if not args.disable_tqdm:
            super().on_log(args, *rest, **kwargs)
