# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""Outputs of a run: model, EMA weights, metrics, predictions, report and card; perhaps pushed to the Hub."""

import json
import logging
from pathlib import Path

import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError, HTTPError
from transformers import TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..cards.training import Dataset, write_model_card
from ..evaluation.metrics import METRICS, scalars
from ..files import write_json
from ..prediction.inputs import Inputs
from ..prediction.predictor import Predictor
from ..prediction.run import Settings, predict
from .arguments import DataArguments, TrainingArguments, changed_fields, program
from .best_model import saved_step
from .data import TRAINING_DATA, LabeledImages
from .ema import ModelEma
from .experiment import Experiment
from .models import plain_model, save_model
from .optimization import warmup_steps
from .report import environment, write_report
from .resume import RUN_RECORD, TRAINER_STATE
from .streaming import ImageStream


logger = logging.getLogger(__name__)

ALWAYS_SHOWN = (
    *("seed", "num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps"),
    *("optim", "learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay", "label_smoothing_factor"),
    *("max_grad_norm", "bf16", "fp16"),
)
# Beginnings of the names of flags that change no weight of a training, or that the card shows elsewhere: the data.
NO_SETTINGS = (
    *("disable_tqdm", "do_", "hub_", "local_rank", "log_", "logging_", "output_dir", "overwrite_output_dir"),
    *("project", "push_to_hub", "report_to", "resume_from_checkpoint", "run_name", "trackio_"),
    *("dataset_name", "dataset_config_name", "train_dir", "validation_dir", "train_files", "validation_files"),
    "predict_",
)


PREDICTIONS = "predictions"  # folder of the table of --do_predict
EVALUATED = {"raw": "Evaluation", "ema": "Evaluation of the EMA weights"}


def finish(
    experiment: Experiment,
    model: torch.nn.Module,
    ema: ModelEma | None,
    *,
    metrics: dict[str, float],
    results: dict[str, dict],
    state: TrainerState,
    state_dict: dict[str, torch.Tensor] | None = None,
) -> dict[str, float]:
    """Write, on the main process, the outputs of a run: metrics, model, EMA, predictions, report, card; push them.

    Args:
        model (`nn.Module`): without wrappers.
        ema ([`ModelEma`] or `None`): written as a model of its own to the folder `ema`.
        metrics (`dict[str, float]`): `train_...` and `eval_...` metrics.
        results (`dict[str, dict]`): of the last evaluation, for `write_report`.
        state ([`TrainerState`]): at the end.
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
    if not (args.do_train or args.do_eval):  # predictions alone, perhaps beside a training, whose metrics stay
        assert experiment.inputs is not None
        write_predictions(experiment, experiment.inputs, model, sharded=False)
        return metrics
    if args.do_train and "train_images_per_second" not in metrics:  # no step was left to take
        metrics = {name: value for name, value in metrics.items() if name != "train_loss"}
    for weights, loss in (("raw", "eval_loss"), ("ema", "eval_ema_loss")):
        if weights in results and loss in metrics:
            results[weights]["loss"] = metrics[loss]
    step, epoch = saved_step(args, state)
    for name in ("train", "eval"):
        chosen = {key: value for key, value in metrics.items() if key.startswith(name)}
        if chosen:
            content = {**chosen, "epoch": epoch if name == "eval" and args.do_train else metrics.get("epoch")}
            write_json(folder / f"{name}_results.json", content, indent=4, sort_keys=True)
    write_json(folder / "all_results.json", metrics, indent=4, sort_keys=True)
    if args.do_train:
        if ema is not None:
            with ema.in_place_of(model):
                save_model(model, experiment.image_processor, folder / "ema")
        save_model(model, experiment.image_processor, folder, state_dict)
    if experiment.inputs is not None:  # before the run is recorded as finished, so that the same command resumes it
        write_predictions(experiment, experiment.inputs, model, sharded=state_dict is not None)
    write_report(
        folder,
        results=results,
        class_names=list(plain_model(model).config.id2label.values()),
        train_metrics={name: value for name, value in metrics.items() if not name.startswith("eval_")},
        # the evaluation after training is of the best weights again, not of the last step
        log_history=state.log_history[: -len(results)] if results and step < state.global_step else state.log_history,
        saved=(step, epoch) if args.do_train and args.load_best_model_at_end else None,
        num_processes=args.world_size,
    )
    if args.do_train:
        write_card(experiment, model, metrics, results, state)
        experiment.record.finished = {"step": state.global_step, "epoch": state.epoch}
        experiment.record.write(folder)
    say_what_is_there(experiment, results, state)
    if args.push_to_hub:
        push(folder, args)
    return metrics


def write_predictions(experiment: Experiment, inputs: Inputs, model: torch.nn.Module, sharded: bool) -> None:
    """The table that `cait-hf predict` writes, in the folder `predictions`; by this process alone.

    Raises:
        OSError: if it cannot be written.
    """
    args = experiment.training_args
    source = args.output_dir if args.do_train else str(experiment.model_args.model_name_or_path)
    if sharded:  # other processes have some of its weights
        model = type(plain_model(model)).from_pretrained(source)
    folder = Path(args.output_dir) / PREDICTIONS
    predictor = Predictor(model, device=args.device)
    settings = Settings(
        batch_size=args.per_device_eval_batch_size,
        num_workers=args.dataloader_num_workers,
        show_progress=not args.disable_tqdm,
    )
    summary = predict(
        inputs,
        predictor,
        experiment.image_processor,
        folder,
        settings,
        model_name=source,
        replace=True,
    )
    _, images, corrupt = summary.counts
    logger.info("Predictions on %d images, %d of them corrupt, are in %s.", images, corrupt, folder)


def say_what_is_there(experiment: Experiment, results: dict[str, dict], state: TrainerState) -> None:
    """Log the last evaluation, and what lies where."""
    args = experiment.training_args
    for weights, result in results.items():
        shown = [f"{METRICS[name]} {value:.2%}" for name, value in scalars(result).items() if name in METRICS]
        shown += [f"loss {result['loss']:.4f}"] if "loss" in result else []
        images = int(result["confusion_matrix"].sum())
        logger.info("%s on %d images: %s", EVALUATED[weights], images, ", ".join(shown))
    if not args.do_train:
        logger.info("The metrics are in %s.", args.output_dir)
        return
    step, epoch = saved_step(args, state)
    best = ""
    if step == state.best_global_step and args.load_best_model_at_end:
        best = f", the best by {args.metric_for_best_model}: {state.best_metric:.4g}"
    logger.info("The model is in %s, with the weights of step %d (epoch %.4g%s).", args.output_dir, step, epoch, best)


def already_finished(experiment: Experiment) -> dict[str, float]:
    """Say that a run is finished, push it if asked, and return its metrics; nothing else is written.

    Raises:
        OSError: if its metrics cannot be read, or it cannot be pushed.
    """
    args, folder = experiment.training_args, Path(experiment.training_args.output_dir)
    finished = experiment.record.finished
    assert finished is not None  # or there would be something to do
    logger.info(
        "%s contains a finished training (%d steps, %.4g epochs); metrics and model card stay as they are. To "
        "continue, pass a higher --num_train_epochs or --max_steps; from scratch, --overwrite_output_dir.",
        *(folder, finished["step"], finished["epoch"]),
    )
    if args.push_to_hub and args.should_save:
        push(folder, args)
    metrics = json.loads((folder / "all_results.json").read_text(encoding="utf-8"))
    if args.do_eval and not any(name.startswith("eval_") for name in metrics):
        logger.warning(
            "It was not evaluated: pass --do_eval without --do_train, --model_name_or_path %s, and another "
            "--output_dir.",
            folder,
        )
    if args.do_predict:
        logger.warning(
            "There are no new predictions: pass --do_predict without --do_train, and --model_name_or_path %s.", folder
        )
    return metrics


def write_card(
    experiment: Experiment,
    model: torch.nn.Module,
    metrics: dict[str, float],
    results: dict[str, dict],
    state: TrainerState,
) -> None:
    """The model card, with what was measured and the settings of the training."""
    model_args, data_args, args = experiment.model_args, experiment.data_args, experiment.training_args
    dataset_name = data_args.train_files or data_args.dataset_name or data_args.train_dir
    assert dataset_name is not None  # or nothing could have been trained on
    dataset = Dataset(dataset_name, data_args.dataset_config_name)
    changes = [
        (f"from step {change['step']}", f"`{change['flag']}` {change['after']} instead of {change['before']}")
        for change in experiment.record.changes
        if not change["flag"].startswith(NO_SETTINGS)
    ]
    write_model_card(
        args.output_dir,
        model=plain_model(model),
        num_parameters=experiment.num_parameters,
        num_trainable=experiment.num_trainable,
        model_name=args.hub_model_id or str(args.output_dir),
        base_model=model_args.model_name_or_path,
        dataset=dataset,
        evaluated=dataset_evaluated(dataset, experiment.eval_data, data_args),
        results=results,
        settings=settings_of(experiment, state),
        changes=changes,
        train_metrics={name: value for name, value in metrics.items() if name.startswith("train_")},
        resumed_at=experiment.resumed_at,
        environment=environment(args.world_size),
        command=(*command(args.world_size), *experiment.argv),
    )


def command(num_processes: int) -> tuple[str, ...]:
    """How this program is started, without its arguments."""
    if program() == ("cait-hf", "train"):
        return program() if num_processes == 1 else ("accelerate", "launch", "-m", "cait_hf_cli", "train")
    return (*(("python",) if num_processes == 1 else ("accelerate", "launch")), *program())


def settings_of(experiment: Experiment, state: TrainerState) -> dict[str, object]:
    """Hyperparameters for the card: the usual ones as they ran, then all others that differ from their defaults."""
    args, recipe = experiment.training_args, experiment.recipe
    values = {name: value for name, value in args.to_dict().items() if name in (*ALWAYS_SHOWN, *args.changed)}
    values.pop("num_train_epochs" if args.max_steps > 0 else "max_steps", None)
    if recipe.official_schedule:
        values["lr_scheduler_type"] = "cosine of the official training, by warmup_lr and min_lr"
    if recipe.timm_optimizer is not None:
        values["optim"] = f"timm's {recipe.timm_optimizer}"
    values["warmup_steps"] = warmup_steps(recipe, args, state.max_steps)
    train_images = experiment.record.data["train"]["images"] if experiment.record.data["train"] else None
    step, epoch = saved_step(args, state)
    settings = {
        "training images": train_images,
        "epochs trained": f"{state.epoch:.4g}",
        "steps trained": state.global_step,
        "images per step": args.train_batch_size * args.gradient_accumulation_steps * args.world_size,
        "processes": args.world_size,
        "weights saved": f"of step {step}, epoch {epoch:.4g}" if args.load_best_model_at_end else None,
    }
    settings |= {name: values[name] for name in (*ALWAYS_SHOWN, *args.changed) if name in values}
    for arguments in (experiment.recipe, experiment.model_args, experiment.data_args):
        settings |= {name: getattr(arguments, name) for name in changed_fields(arguments)}
    return {name: value for name, value in settings.items() if not name.startswith(NO_SETTINGS)}


def dataset_evaluated(
    dataset: Dataset, eval_data: LabeledImages | ImageStream | None, data_args: DataArguments
) -> Dataset:
    """What was evaluated on, for the card of a model that was trained on a dataset."""
    if eval_data is None:
        return dataset
    if eval_data.origin == TRAINING_DATA:
        return dataset._replace(split=f"{data_args.train_val_split:.0%} held out")
    own = data_args.validation_files or data_args.validation_dir
    return Dataset(own) if own else dataset._replace(split=data_args.eval_split)


def push(folder: Path, args: TrainingArguments) -> None:
    """Upload a finished run, without checkpoints and logs.

    Raises:
        OSError: if the Hub cannot be reached or refuses; the folder is complete all the same.
    """
    api = HfApi(token=args.hub_token)
    repo_id = args.hub_model_id or folder.resolve().name
    try:
        repo_id = api.create_repo(repo_id, private=args.hub_private_repo, exist_ok=True).repo_id
        ignored = [f"{PREFIX_CHECKPOINT_DIR}-*", ".*", "runs/*", f"{PREDICTIONS}/*", TRAINER_STATE, RUN_RECORD]
        api.upload_folder(repo_id=repo_id, folder_path=folder, ignore_patterns=ignored, commit_message="Upload model")
    except (OSError, HTTPError, HFValidationError) as error:
        raise OSError(f"{folder} was written, but it could not be pushed to {repo_id}: {error}") from error
