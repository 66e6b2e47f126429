# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""Outputs of a run: the model, its EMA weights, metrics, report and card; perhaps pushed to the Hub."""

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError, HTTPError
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..cards.training import Dataset, write_model_card
from ..files import write_json
from .arguments import DataArguments, TrainingArguments, changed_fields
from .data import TRAINING_DATA, LabeledImages
from .ema import ModelEma
from .experiment import Experiment
from .models import plain_model, save_model
from .report import environment, write_report
from .resume import TRAINER_STATE
from .streaming import ImageStream


ALWAYS_SHOWN = (
    *("seed", "num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps"),
    *("optim", "learning_rate", "lr_scheduler_type", "weight_decay", "bf16", "fp16"),
)
# Beginnings of the names of flags that change no weight of a training, or that the card shows elsewhere: the data.
NO_SETTINGS = (
    *("disable_tqdm", "do_", "hub_", "local_rank", "log_", "logging_", "output_dir", "overwrite_output_dir"),
    *("project", "push_to_hub", "report_to", "resume_from_checkpoint", "run_name", "trackio_"),
    *("dataset_name", "dataset_config_name", "train_dir", "validation_dir"),
)


def finish(
    experiment: Experiment,
    model: torch.nn.Module,
    ema: ModelEma | None,
    *,
    metrics: dict[str, float],
    results: dict[str, dict],
    log_history: Sequence[dict],
    state_dict: dict[str, torch.Tensor] | None = None,
) -> dict[str, float]:
    """Write, on the main process, the outputs of a run: metrics, model, EMA, report, card; push them if asked.

    Args:
        model (`nn.Module`): without wrappers.
        ema ([`ModelEma`] or `None`): written as a model of its own to the folder `ema`.
        metrics (`dict[str, float]`): `train_...` and `eval_...` metrics.
        results (`dict[str, dict]`): of the last evaluation, for `write_report`.
        log_history: as `TrainerState.log_history`.
        state_dict: the model's, in one piece, where its weights are sharded.

    Returns:
        `metrics`, which are in `all_results.json` too.

    Raises:
        OSError: if something cannot be written or pushed.
    """
    args, folder = experiment.training_args, Path(experiment.training_args.output_dir)
    if not args.should_save:
        return metrics
    folder.mkdir(parents=True, exist_ok=True)
    if args.do_train and "train_images_per_second" not in metrics:  # no step was left to take
        metrics = {name: value for name, value in metrics.items() if name != "train_loss"}
    for weights, loss in (("raw", "eval_loss"), ("ema", "eval_ema_loss")):
        if weights in results and loss in metrics:
            results[weights]["loss"] = metrics[loss]
    for name in ("train", "eval"):
        chosen = {key: value for key, value in metrics.items() if key.startswith(name)}
        if chosen:
            content = {**chosen, "epoch": metrics.get("epoch")}
            write_json(folder / f"{name}_results.json", content, indent=4, sort_keys=True)
    write_json(folder / "all_results.json", metrics, indent=4, sort_keys=True)
    if args.do_train:
        if ema is not None:
            with ema.in_place_of(model):
                save_model(model, experiment.image_processor, folder / "ema")
        save_model(model, experiment.image_processor, folder, state_dict)
    write_report(
        folder,
        results=results,
        class_names=list(plain_model(model).config.id2label.values()),
        train_metrics={name: value for name, value in metrics.items() if not name.startswith("eval_")},
        log_history=log_history,
        num_processes=args.world_size,
    )
    if args.do_train:
        write_card(experiment, model, metrics, results)
    if args.push_to_hub:
        push(folder, args)
    return metrics


def write_card(
    experiment: Experiment, model: torch.nn.Module, metrics: dict[str, float], results: dict[str, dict]
) -> None:
    """The model card, with what was measured and the settings of the training."""
    model_args, data_args, args = experiment.model_args, experiment.data_args, experiment.training_args
    dataset_name = data_args.dataset_name or data_args.train_dir
    assert dataset_name is not None  # or nothing could have been trained on
    write_model_card(
        args.output_dir,
        model=plain_model(model),
        model_name=args.hub_model_id or str(args.output_dir),
        base_model=model_args.model_name_or_path,
        dataset=Dataset(dataset_name, data_args.dataset_config_name, split_evaluated(experiment.eval_data, data_args)),
        results=results,
        settings=settings_of(experiment),
        train_metrics={name: value for name, value in metrics.items() if name.startswith("train_")},
        environment=environment(args.world_size),
        command=(*(("python",) if args.world_size == 1 else ("accelerate", "launch")), sys.argv[0], *experiment.argv),
    )


def settings_of(experiment: Experiment) -> dict[str, object]:
    """Hyperparameters for the card: the usual ones, then all others that differ from their defaults."""
    args = experiment.training_args
    values = args.to_dict()
    settings = {"processes": args.world_size} | {name: values[name] for name in (*ALWAYS_SHOWN, *args.changed)}
    for arguments in (experiment.recipe, experiment.model_args, experiment.data_args):
        settings |= {name: getattr(arguments, name) for name in changed_fields(arguments)}
    return {name: value for name, value in settings.items() if not name.startswith(NO_SETTINGS)}


def split_evaluated(eval_data: LabeledImages | ImageStream | None, data_args: DataArguments) -> str | None:
    """Name of the evaluation split on the card."""
    if eval_data is None:
        return None
    if eval_data.origin == TRAINING_DATA:
        return f"{data_args.train_val_split:.0%} held out"
    return Path(data_args.validation_dir).name if data_args.validation_dir else data_args.eval_split


def push(folder: Path, args: TrainingArguments) -> None:
    """Upload a finished run, without checkpoints and logs.

    Raises:
        OSError: if the Hub cannot be reached or refuses; the folder is complete all the same.
    """
    api = HfApi(token=args.hub_token)
    repo_id = args.hub_model_id or folder.resolve().name
    try:
        repo_id = api.create_repo(repo_id, private=args.hub_private_repo, exist_ok=True).repo_id
        ignored = [f"{PREFIX_CHECKPOINT_DIR}-*", ".*", "runs/*", TRAINER_STATE]
        api.upload_folder(repo_id=repo_id, folder_path=folder, ignore_patterns=ignored, commit_message="Upload model")
    except (OSError, HTTPError, HFValidationError) as error:
        raise OSError(f"{folder} was written, but it could not be pushed to {repo_id}: {error}") from error
