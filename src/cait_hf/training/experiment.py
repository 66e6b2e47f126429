# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""From the flags to all that a training loop needs; the two scripts differ in the loop alone."""

import logging
import math
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError, HTTPError
from safetensors import SafetensorError
from transformers import (
    AutoModelForImageClassification,
    PreTrainedConfig,
    PreTrainedModel,
    Trainer,
    get_scheduler,
    set_seed,
)
from transformers.image_processing_utils import BaseImageProcessor
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..files import write_json
from .arguments import DataArguments, ModelArguments, RecipeArguments, TrainingArguments, parse_arguments
from .card import METRICS, Dataset, write_model_card
from .data import TRAINING_DATA, LabelledPictures, PictureStream, load_data
from .distillation import Distillation
from .ema import EMA_FILE, ModelEma
from .models import add_lora, load_config, load_model, plain_model, save_model, set_labels
from .optimization import cosine_schedule, freeze_all_but, parameter_groups
from .randomness import Randomness
from .report import environment, write_report
from .sampling import TrainSampler
from .transforms import EvalTransform, TrainCollator, TrainTransform


logger = logging.getLogger(__name__)

BAD_IMAGES_LISTS = "bad_images*.txt"  # written before training begins, too
OTHER_FLAGS = (
    "pass the flags that it was written with, or another --output_dir, or --overwrite_output_dir to train anew"
)
TRAINER_STATE = "trainer_state.json"  # the last file of a checkpoint, in both scripts


@dataclass
class Experiment:
    """What both loops take.

    Attributes:
        argv (`list[str]`): the command line, for the model card.
        model (`nn.Module`): with the frozen parts frozen and adapters added.
        train_data, eval_data ([`LabelledPictures`], [`PictureStream`] or `None`): items are what the model takes.
        train_collator ([`TrainCollator`]): makes batches to train on.
        randomness ([`Randomness`]): its `epoch` is to be set before an epoch begins.
        distillation ([`Distillation`] or `None`): a teacher, on the CPU.
        resume_from_checkpoint (`str` or `None`): a complete checkpoint to go on from.
        push_to_hub (`bool`): whether what is complete at the end goes to the Hub; Trainer's own flag is off.
    """

    argv: list[str]
    model_args: ModelArguments
    data_args: DataArguments
    recipe: RecipeArguments
    training_args: TrainingArguments
    model: PreTrainedModel
    image_processor: BaseImageProcessor
    train_data: LabelledPictures | PictureStream | None
    eval_data: LabelledPictures | PictureStream | None
    train_collator: TrainCollator
    randomness: Randomness
    distillation: Distillation | None
    resume_from_checkpoint: str | None
    push_to_hub: bool

    @property
    def streaming(self) -> bool:
        """Whether the pictures to train on come as a stream, each process its share."""
        return isinstance(self.train_data, PictureStream)


def set_up_logging() -> None:
    """What the scripts and warnings say, without the chatter of libraries that load data."""
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    for library in ("accelerate", "datasets", "evaluate", "filelock", "fsspec", "httpx", "httpx2"):
        logging.getLogger(library).setLevel(logging.WARNING)


def prepare(argv: list[str]) -> Experiment:
    """Read the flags, load data and models, and check that they go together.

    Raises:
        ValueError, OSError, ImportError, StrictDataclassError: with a sentence for the user; nothing was written.
    """
    model_args, data_args, recipe, args = parse_arguments(argv)
    resume_from = find_checkpoint_to_resume(args, data_args.overwrite_output_dir, recipe.ema_decay is not None)
    set_seed(args.seed)
    train_data, eval_data = load_data(data_args, args)
    config = load_config(model_args)
    set_labels(config, model_args, train_data, eval_data)
    check_metric(args.metric_for_best_model, config.num_labels, recipe.ema_decay is not None)
    if resume_from is not None:
        check_classes_of_checkpoint(resume_from, config)
    model, image_processor = load_model(config, model_args)

    randomness = Randomness(args.seed)
    if train_data:
        transform = TrainTransform(
            image_processor,
            randomness,
            recipe.crop_area,
            recipe.flip_probability,
            recipe.auto_augment,
            recipe.random_erasing,
        )
        train_data.prepare(transform, config.label2id)
        if isinstance(train_data, PictureStream):
            train_data.split(args.process_index, args.world_size)
        else:
            train_data.views = recipe.repeated_augmentation
    if eval_data:
        eval_data.prepare(EvalTransform(image_processor), config.label2id)
    collator = TrainCollator(
        config.num_labels,
        randomness,
        args.label_smoothing_factor,
        recipe.mixup,
        recipe.cutmix,
        recipe.mixup_prob,
        recipe.mixup_switch_prob,
        recipe.mixup_mode,
    )
    args.label_smoothing_factor = 0.0  # the collator smooths the labels to train on, and no others
    push_to_hub, args.push_to_hub = args.push_to_hub, False
    distillation = load_teacher(recipe, model_args, image_processor, config.id2label)
    if recipe.lora_rank is not None:
        model = add_lora(model, recipe)
    else:
        freeze_all_but(model, recipe.trainable)
    parameter_groups(plain_model(model), args.learning_rate, args.weight_decay, recipe.layer_decay)  # or its sentence
    if isinstance(train_data, PictureStream) and recipe.repeated_augmentation > 1:
        raise ValueError("--repeated_augmentation needs to know all pictures: drop it or --streaming.")
    batch = args.train_batch_size * max(1, args.world_size)  # of all processes
    if isinstance(train_data, LabelledPictures) and args.dataloader_drop_last and len(train_data) < batch:
        raise ValueError(
            f"--dataloader_drop_last leaves no batch of the {len(train_data)} pictures to train on: drop it, or lower "
            f"--per_device_train_batch_size from {args.per_device_train_batch_size}."
        )
    if recipe.ema_decay is not None:
        ModelEma(torch.nn.Linear(1, 1), recipe.ema_decay)  # or its sentence
    if data_args.overwrite_output_dir and args.do_train and args.should_save:
        for path in checkpoints_in(Path(args.output_dir)).values():
            shutil.rmtree(path)
        if isinstance(train_data, PictureStream):  # its list grows while it is read
            for path in Path(args.output_dir).glob(BAD_IMAGES_LISTS):
                path.unlink()
    return Experiment(
        argv,
        model_args,
        data_args,
        recipe,
        args,
        model,
        image_processor,
        train_data,
        eval_data,
        collator,
        randomness,
        distillation,
        resume_from,
        push_to_hub,
    )


def load_teacher(
    recipe: RecipeArguments,
    model_args: ModelArguments,
    student_processor: BaseImageProcessor,
    student_labels: dict[int, str],
) -> Distillation | None:
    """The teacher that the flags name.

    Raises:
        ValueError: if it does not fit the student.
    """
    name = recipe.teacher_model_name_or_path
    if name is None:
        return None
    options = {"trust_remote_code": model_args.trust_remote_code}
    teacher = AutoModelForImageClassification.from_pretrained(name, dtype=torch.float32, **options)
    return Distillation(
        teacher,
        recipe.distillation_type,
        recipe.distillation_alpha,
        recipe.distillation_tau,
        student_processor,
        AutoImageProcessor.from_pretrained(name, **options),
        student_labels,
    )


def make_sampler(
    num_pictures: int, randomness: Randomness, recipe: RecipeArguments, args: TrainingArguments
) -> TrainSampler:
    """The order of the pictures for all processes together."""
    return TrainSampler(
        num_pictures, randomness, recipe.repeated_augmentation, args.train_batch_size, max(1, args.world_size)
    )


def make_optimizer(model: torch.nn.Module, recipe: RecipeArguments, args: TrainingArguments) -> torch.optim.Optimizer:
    """The optimizer of `--optim` with this package's groups: layer decay, and what has no weight decay."""
    model = plain_model(model)
    optimizer_class, options = Trainer.get_optimizer_cls_and_kwargs(args, model)
    groups = parameter_groups(model, args.learning_rate, args.weight_decay, recipe.layer_decay)
    return optimizer_class(groups, **options)


def make_scheduler(
    optimizer: torch.optim.Optimizer, recipe: RecipeArguments, args: TrainingArguments, num_training_steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """The schedule of `--lr_scheduler_type` or, with `--min_lr` or `--warmup_lr`, the official one."""
    num_warmup_steps = args.get_warmup_steps(num_training_steps)
    if recipe.warmup_epochs is not None:
        num_warmup_steps = math.ceil(num_training_steps * recipe.warmup_epochs / args.num_train_epochs)
    if recipe.min_lr is None and recipe.warmup_lr is None:
        options = args.lr_scheduler_kwargs
        return get_scheduler(args.lr_scheduler_type, optimizer, num_warmup_steps, num_training_steps, options)
    lowest = recipe.warmup_lr or 0.0, recipe.min_lr or 0.0
    return cosine_schedule(optimizer, num_training_steps, num_warmup_steps, args.learning_rate, *lowest)


def find_checkpoint_to_resume(args: TrainingArguments, overwrite: bool, with_ema: bool) -> str | None:
    """The checkpoint that was asked for, else the last complete one in `output_dir`; None to start anew.

    Raises:
        ValueError: if the one asked for is not complete, or `output_dir` has no complete checkpoint and files that no
            interrupted training leaves.
    """
    asked, ema = args.resume_from_checkpoint, f" with {EMA_FILE}" if with_ema else ""
    if asked is not None:
        if not is_complete(Path(asked), with_ema):
            raise ValueError(
                f"--resume_from_checkpoint is {asked}, but that is no folder of a complete checkpoint{ema}."
            )
        return asked
    output_dir = Path(args.output_dir)
    if not args.do_train or not output_dir.is_dir():
        return None
    if all(path.match(BAD_IMAGES_LISTS) or is_unfinished(path) for path in output_dir.iterdir()):
        return None
    checkpoints = checkpoints_in(output_dir)
    if overwrite:
        return None
    complete = [step for step, path in checkpoints.items() if is_complete(path, with_ema)]
    if not complete:
        raise ValueError(
            f"--output_dir {output_dir} is not empty and has no complete checkpoint{ema} to go "
            "on from: choose another, or pass --overwrite_output_dir."
        )
    logger.info("Going on from %s; pass --overwrite_output_dir to train anew.", checkpoints[max(complete)])
    return str(checkpoints[max(complete)])


def checkpoints_in(output_dir: Path) -> dict[int, Path]:
    """Folders of checkpoints by the number of steps taken."""
    found = output_dir.glob(f"{PREFIX_CHECKPOINT_DIR}-*")
    return {int(path.name.split("-")[1]): path for path in found if path.name.split("-")[1].isdecimal()}


def check_metric(name: str | None, num_classes: int, with_ema: bool) -> None:
    """Raise ValueError, before training, if no evaluation has the metric that tells the best model."""
    metrics = ["loss", *(metric for metric in METRICS if metric != "top5" or num_classes > 5)]
    metrics += [f"ema_{metric}" for metric in metrics] if with_ema else []
    if name is not None and name.removeprefix("eval_") not in metrics:
        known = ", ".join(f"eval_{metric}" for metric in metrics)
        raise ValueError(f"--metric_for_best_model is {name}, but it must be one of {known}.")


def check_classes_of_checkpoint(checkpoint: str, config: PreTrainedConfig) -> None:
    """Raise ValueError if a checkpoint to go on from tells other classes apart: it would be given wrong names."""
    if type(config).from_pretrained(checkpoint).id2label != config.id2label:
        raise ValueError(f"{checkpoint} has other classes than the data: {OTHER_FLAGS}.")


def is_complete(checkpoint: Path, with_ema: bool) -> bool:
    """Whether a checkpoint was written to its end."""
    return (checkpoint / TRAINER_STATE).is_file() and (not with_ema or (checkpoint / EMA_FILE).is_file())


def is_unfinished(path: Path) -> bool:
    """Whether this is what an interruption leaves of a checkpoint: Trainer writes in place, its state last."""
    is_checkpoint = path.match(f"{PREFIX_CHECKPOINT_DIR}-*") or path.match(f".{PREFIX_CHECKPOINT_DIR}-*.part")
    return is_checkpoint and path.is_dir() and not (path / TRAINER_STATE).is_file()


def in_a_sentence(error: Exception) -> str:
    """What an error says; one of a worker process comes with a traceback, whose last line it is."""
    last = str(error).strip().splitlines()[-1]
    return f"error: {last.partition('Error: ')[2] or last}" if "Traceback" in str(error) else f"error: {error}"


@contextmanager
def could_not_be_written(step: int, output_dir: str | Path, unfinished: Path | None = None) -> Iterator[None]:
    """Raise OSError with a sentence if a checkpoint could not be written, and remove what there is of it."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:  # RuntimeError: torch.save on a full disk
        if unfinished is not None:
            shutil.rmtree(unfinished, ignore_errors=True)
        raise OSError(
            f"the checkpoint of step {step} could not be written to {output_dir}: {error}. The same command goes on "
            "from the last complete one."
        ) from error


@contextmanager
def could_not_go_on(checkpoint: str | None) -> Iterator[None]:
    """Raise ValueError with a sentence if a checkpoint does not fit the model or the optimizer."""
    try:
        yield
    except (RuntimeError, ValueError, KeyError) as error:
        raise ValueError(f"{checkpoint} does not fit the flags: {OTHER_FLAGS}.") from error


def check_optimizer(optimizer: torch.optim.Optimizer) -> None:
    """Raise ValueError if what was loaded is the state of another kind of optimizer."""
    if not optimizer.defaults.keys() <= optimizer.param_groups[0].keys():
        raise ValueError("the optimizer was another one.")


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
    """Write, on the main process, what a run leaves: figures, model, average, report, card; perhaps push them.

    Args:
        model (`nn.Module`): without wrappers.
        ema ([`ModelEma`] or `None`): written as a model of its own to the folder `ema`.
        metrics (`dict[str, float]`): `train_...` and `eval_...` figures.
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
    if experiment.push_to_hub:
        push(folder, args)
    return metrics


def write_card(
    experiment: Experiment, model: torch.nn.Module, metrics: dict[str, float], results: dict[str, dict]
) -> None:
    """The model card, with what was measured and the flags that are not their defaults."""
    model_args, data_args, args = experiment.model_args, experiment.data_args, experiment.training_args
    dataset_name = data_args.dataset_name or data_args.train_dir
    assert dataset_name is not None  # or nothing could have been trained on
    always = (
        *("seed", "num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps"),
        *("optim", "learning_rate", "lr_scheduler_type", "weight_decay", "bf16", "fp16"),
    )
    values = args.to_dict()
    settings = {"processes": args.world_size} | {name: values[name] for name in always}
    for arguments in (experiment.recipe, model_args):
        chosen = {field.name: getattr(arguments, field.name) for field in fields(arguments)}
        settings |= {name: value for name, value in chosen.items() if value != getattr(type(arguments), name)}
    write_model_card(
        args.output_dir,
        model=plain_model(model),
        model_name=args.hub_model_id or str(args.output_dir),
        base_model=model_args.model_name_or_path,
        dataset=Dataset(dataset_name, data_args.dataset_config_name, split_evaluated(experiment.eval_data, data_args)),
        results=results,
        settings=settings,
        train_metrics={name: value for name, value in metrics.items() if name.startswith("train_")},
        environment=environment(args.world_size),
        command=(*(("python",) if args.world_size == 1 else ("accelerate", "launch")), sys.argv[0], *experiment.argv),
    )


def split_evaluated(eval_data: LabelledPictures | PictureStream | None, data_args: DataArguments) -> str | None:
    """What the card calls the pictures to evaluate on."""
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
