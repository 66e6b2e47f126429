# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""Which evaluation of a training is the best, and from which step the saved model is."""

from pathlib import Path
from typing import Any

from transformers import TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from .arguments import TrainingArguments


def is_best(metrics: dict[str, float], args: TrainingArguments, state: TrainerState) -> bool:
    """Whether an evaluation is the best so far by `--metric_for_best_model`; of equal ones the lower loss decides.

    If it is, the state remembers it.

    Args:
        metrics (`dict[str, float]`): those of the evaluation, as `eval_...`.
        state ([`TrainerState`]): with the evaluations before in its `log_history`.
    """
    if args.metric_for_best_model is None:
        return False
    name = f"eval_{args.metric_for_best_model.removeprefix('eval_')}"
    loss = "eval_ema_loss" if name.startswith("eval_ema_") else "eval_loss"
    value, sign = metrics[name], 1 if args.greater_is_better else -1
    best = state.best_metric is None or sign * value > sign * state.best_metric
    if value == state.best_metric and state.best_global_step is not None:
        logged = _logged(state, state.best_global_step, loss)
        best = logged is not None and metrics[loss] < logged[loss]
    if best:
        state.best_metric, state.best_global_step = value, state.global_step
    return best


def saved_step(args: TrainingArguments, state: TrainerState) -> tuple[int, float]:
    """The step, and its epoch, whose weights are the model at the end: the last or, if asked for, the best."""
    if not args.load_best_model_at_end or state.best_model_checkpoint is None:
        return state.global_step, state.epoch
    # not `best_global_step`: a better evaluation may have had no checkpoint, as with --save_steps twice --eval_steps
    step = int(Path(state.best_model_checkpoint).name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-"))
    logged = _logged(state, step, "epoch")
    return step, state.epoch * step / state.global_step if logged is None else logged["epoch"]


def _logged(state: TrainerState, step: int, name: str) -> dict[str, Any] | None:
    """The first entry of the log at a step that has a value of this name."""
    return next((entry for entry in state.log_history if entry["step"] == step and name in entry), None)
