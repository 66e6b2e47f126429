# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""`--search`: flags from ranges in a file, by `Trainer.hyperparameter_search` with optuna.

Each trial is prepared as a training with its flags would be, so that it may try every flag of a training: those of the
recipe and the model, too, which `Trainer` does not know.
"""

import csv
import io
import logging
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
import yaml
from huggingface_hub.errors import StrictDataclassError

from ..evaluation.metrics import ClassificationMetrics, best_classes
from ..files import write_text
from .arguments import SEARCHES, DataArguments, TrainingArguments, find_file, flag_names, parse_arguments, read_yaml
from .ema import ModelEma
from .experiment import Experiment, check_metric, prepare
from .run_record import MAY_CHANGE
from .trainer import ImageClassificationTrainer


logger = logging.getLogger(__name__)

# Of a trial: nothing is kept but its metrics.
OF_A_TRIAL = ("--save_strategy=no", "--load_best_model_at_end=False", "--push_to_hub=False", "--search=")
LENGTH = ("num_train_epochs", "max_steps")  # of the flags that may change in a run the only ones that change results
# They say how far a training is at a step.
PROGRESS = (*LENGTH, "per_device_train_batch_size", "gradient_accumulation_steps")


@dataclass
class SearchSpace:
    """What a file of ranges says.

    Attributes:
        ranges (`dict`): by flag a list of values, or `low` and `high`, integers or floats, with `step` or `log`.
        trials (`int`): how many trainings.
        metric (`str`): of an evaluation; of a loss the lowest is best, of others the highest.
    """

    ranges: dict[str, Any]
    trials: int = 20
    metric: str = "eval_top1"

    @classmethod
    def read(cls, name: str) -> "SearchSpace":
        """Of a file, or of this package's file of that name.

        Raises:
            ValueError: for what is no range of a flag that a training may have.
            OSError: if it cannot be read.
        """
        path = find_file(name, SEARCHES)
        content = read_yaml(path)
        known = [field.name for field in fields(cls)]
        if not isinstance(content, dict) or not {"ranges"} <= content.keys() <= {*known}:
            raise ValueError(f"--search is {path}, which must hold ranges, and may hold {', '.join(known[1:])}.")
        space = cls(**content)
        if type(space.trials) is not int or space.trials < 1:
            raise ValueError(f"trials is {space.trials} in {path}, but it must be an integer > 0.")
        if not isinstance(space.ranges, dict) or not space.ranges:
            raise ValueError(f"ranges is {space.ranges} in {path}, but it must name flags with their ranges.")
        space.ranges = {name: _range(name, given, path) for name, given in space.ranges.items()}
        return space

    @property
    def direction(self) -> str:
        return "minimize" if self.metric.endswith("loss") else "maximize"

    @property
    def prunes(self) -> bool:
        """Whether trials may be compared at equal steps: all are equally far there."""
        return not self.ranges.keys() & {*PROGRESS}

    def suggest(self, trial: Any) -> dict[str, Any]:
        """Flags for a trial of optuna; asked again, it gives the same."""
        values = {}
        for name, given in self.ranges.items():
            if isinstance(given, list):
                values[name] = trial.suggest_categorical(name, given)
            else:
                is_integer = all(type(value) is int for key, value in given.items() if key != "log")
                values[name] = (trial.suggest_int if is_integer else trial.suggest_float)(name, **given)
        return values


def _range(name: str, given: Any, path: str) -> list | dict[str, Any]:
    """A checked range; numbers such as 1e-5, which are text in YAML, as numbers."""
    of_data = {field.name for field in fields(DataArguments)}
    changes_nothing = name.startswith(MAY_CHANGE) and name not in LENGTH
    if changes_nothing or name in of_data or name not in flag_names() - {"help"}:
        raise ValueError(f"ranges has {name} in {path}, but it must be a flag of the model or of the training.")
    if isinstance(given, list) and given and all(isinstance(value, str | int | float) for value in given):
        return given
    try:
        numbers = {key: value if isinstance(value, int) else float(value) for key, value in given.items()}
        low, high = numbers["low"], numbers["high"]
        allowed = low <= high and (low > 0 or not numbers.get("log"))
        allowed = allowed and len(numbers) <= 3 and numbers.keys() <= {"low", "high", "step", "log"}
    except (AttributeError, KeyError, TypeError, ValueError):
        allowed = False
    if not allowed:
        raise ValueError(
            f"{name} is {given} in {path}, but it must be a list of values, or low and high, perhaps with step, or "
            "with log and a low > 0."
        )
    return numbers


def search(experiment: Experiment) -> dict[str, float]:
    """Try flags, and write `search_results.csv` and the best ones as `best.yaml`; returns the best metric.

    The metric is that of a trial's last evaluation. A trial fails whose loss is not finite, whose memory does not
    suffice or whose flags no training allows. From the sixth trial on, one that is worse than the median of those
    before ends early, where [`SearchSpace.prunes`] allows it. The table has both. Each trial updates both files,
    for a search may be interrupted.

    Raises:
        ValueError: if the file of ranges or the output folder is not for this, or no trial was complete.
    """
    import optuna

    args = experiment.training_args
    assert args.search is not None
    space = SearchSpace.read(args.search)
    num_labels = experiment.model.config.num_labels
    check_metric(space.metric, num_labels, experiment.recipe.ema_decay is not None, "metric")
    if experiment.resume_from_checkpoint is not None or experiment.record.finished:
        raise ValueError(f"--output_dir {args.output_dir} has a training, but --search needs a folder without one.")
    table, best_flags = (Path(args.output_dir, name) for name in ("search_results.csv", "best.yaml"))
    trials: list[Any] = []  # as they begin

    def model_init(trial: Any) -> Any:
        if trial is None:  # when the trainer is made
            return experiment.model
        trials.append(trial)
        write_results(table, best_flags, trial.study, metric, space)  # of the trials before
        flags = [f"--{name}={value}" for name, value in space.suggest(trial).items()]
        tried = prepare([*experiment.argv, *OF_A_TRIAL, f"--output_dir={args.output_dir}/run-{trial.number}", *flags])
        for name in {*space.ranges, "learning_rate"} & {field.name for field in fields(TrainingArguments)}:
            setattr(trainer.args, name, getattr(tried.training_args, name))
        for name in ("recipe", "train_collator", "randomness"):
            setattr(trainer, name, getattr(tried, name))
        trainer.train_dataset, trainer.eval_dataset = tried.train_data, tried.eval_data
        trainer.distillation = tried.distillation.to(args.device) if tried.distillation else None
        model = tried.model.to(args.device)
        if trainer.recipe.ema_decay is not None:
            trainer.ema = ModelEma(model, trainer.recipe.ema_decay, trainer.recipe.ema_warmup)
        return model

    trainer = ImageClassificationTrainer(
        model=None,
        model_init=model_init,
        args=parse_arguments([*experiment.argv, *OF_A_TRIAL])[3],
        recipe=experiment.recipe,
        train_dataset=experiment.train_data,
        eval_dataset=experiment.eval_data,
        train_collator=experiment.train_collator,
        randomness=experiment.randomness,
        compute_metrics=ClassificationMetrics(num_labels),
        preprocess_logits_for_metrics=best_classes,
        processing_class=experiment.image_processor,
    )
    metric = f"eval_{space.metric.removeprefix('eval_')}"
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with experiment.writing():
        best_flags.unlink(missing_ok=True)
        try:
            best = trainer.hyperparameter_search(
                hp_space=lambda trial: {},  # `model_init`, which comes first, has set all
                compute_objective=lambda metrics: metrics[metric],
                n_trials=space.trials,
                direction=space.direction,
                backend="optuna",
                sampler=optuna.samplers.TPESampler(seed=args.seed),
                pruner=optuna.pruners.MedianPruner() if space.prunes else optuna.pruners.NopPruner(),
                catch=(FloatingPointError, torch.OutOfMemoryError, ValueError, StrictDataclassError),
                gc_after_trial=True,  # the error of a trial holds its tensors
            )
        except ValueError as error:
            if trials:  # whose own are caught
                raise ValueError(f"no trial of --search was complete: see {table}.") from error
            raise
        finally:
            if trials:
                for row in write_results(table, best_flags, trials[0].study, metric, space):
                    cells = (f"{cell:<16.6g}" if isinstance(cell, float) else f"{cell!s:<16}" for cell in row)
                    logger.info("  ".join(cells).rstrip())
    logger.info("The best of %d trials is %s, with %s %.4g.", len(trials), best.run_id, metric, best.objective)
    logger.info("Its flags are in %s: to train with them, give this file after the recipe.", best_flags)
    return {metric: best.objective}


def write_results(table: Path, best_flags: Path, study: Any, metric: str, space: SearchSpace) -> list[list[Any]]:
    """Write a table of all trials, a line each, as CSV, and the flags of the best one, if any; returns the rows."""
    rows: list[list[Any]] = [["trial", "state", metric, *space.ranges, "seconds"]]
    for trial in study.trials:
        seconds = f"{trial.duration.total_seconds():.1f}" if trial.duration is not None else ""
        value = "" if trial.value is None else trial.value
        rows.append([trial.number, trial.state.name.lower(), value, *map(trial.params.get, space.ranges), seconds])
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_text(table, text.getvalue())
    if any(state == "complete" for _, state, *_ in rows):
        write_text(best_flags, yaml.safe_dump(study.best_trial.params, sort_keys=False))
    return rows
