# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""From the flags to all that a training loop needs; the two scripts differ in the loop alone."""

import logging
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import PreTrainedModel, TrainerCallback, set_seed
from transformers.image_processing_utils import BaseImageProcessor

from ..evaluation.metrics import METRICS
from .arguments import DataArguments, ModelArguments, RecipeArguments, TrainingArguments, parse_arguments
from .data import LabeledImages, load_data
from .distillation import Distillation, load_teacher
from .ema import ModelEma
from .models import add_lora, load_config, load_model, plain_model, set_labels
from .optimization import freeze_all_but, parameter_groups
from .randomness import Randomness
from .resume import (
    CORRUPT_IMAGES_LISTS,
    check_classes_of_checkpoint,
    checkpoints_in,
    find_checkpoint_to_resume,
    set_aside_newer,
)
from .streaming import ImageStream
from .transforms import EvalTransform, TrainCollator, TrainTransform


@dataclass
class Experiment:
    """Everything that the training loops need.

    Attributes:
        argv (`list[str]`): the command line, for the model card.
        training_args ([`TrainingArguments`]): as parsed, never edited: they go to loggers, checkpoints and card.
        model (`nn.Module`): with the frozen parts frozen and adapters added.
        train_data, eval_data ([`LabeledImages`], [`ImageStream`] or `None`): items are what the model takes.
        train_collator ([`TrainCollator`]): makes batches to train on.
        randomness ([`Randomness`]): its `epoch` is to be set before an epoch begins.
        distillation ([`Distillation`] or `None`): a teacher, on the CPU.
        resume_from_checkpoint (`str` or `None`): a complete checkpoint to resume from.
        callbacks: called by both loops when training begins and ends, before and after each step and epoch, and with
            the metrics to log; what looks at gradients, weights or metrics has its place here.
    """

    argv: list[str]
    model_args: ModelArguments
    data_args: DataArguments
    recipe: RecipeArguments
    training_args: TrainingArguments
    model: PreTrainedModel
    image_processor: BaseImageProcessor
    train_data: LabeledImages | ImageStream | None
    eval_data: LabeledImages | ImageStream | None
    train_collator: TrainCollator
    randomness: Randomness
    distillation: Distillation | None
    resume_from_checkpoint: str | None
    callbacks: list[TrainerCallback] = field(default_factory=list)

    @property
    def streaming(self) -> bool:
        """Whether the images to train on come as a stream, each process its part."""
        return isinstance(self.train_data, ImageStream)


def set_up_logging() -> None:
    """Log messages of the scripts and warnings, without those of libraries that load data."""
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    for library in ("accelerate", "datasets", "evaluate", "filelock", "fsspec", "httpx", "httpx2"):
        logging.getLogger(library).setLevel(logging.WARNING)


def prepare(argv: list[str]) -> Experiment:
    """Read the flags, load data and models, and check that they go together.

    Raises:
        ValueError, OSError, ImportError, StrictDataclassError: with an error message for the user; nothing was
        written.
    """
    model_args, data_args, recipe, args = parse_arguments(argv)
    resume_from = find_checkpoint_to_resume(args, data_args.overwrite_output_dir, recipe.ema_decay is not None)
    set_seed(args.seed)
    with args.main_process_first(desc="loading the data"):
        train_data, eval_data = load_data(
            data_args,
            train=args.do_train,
            evaluate=args.do_eval,
            seed=args.seed,
            output_dir=args.output_dir,
            num_workers=args.dataloader_num_workers,
            process_index=args.process_index,
        )
    config = load_config(model_args)
    set_labels(config, model_args, train_data, eval_data)
    check_metric(args.metric_for_best_model, config.num_labels, recipe.ema_decay is not None)
    if resume_from is not None:
        check_classes_of_checkpoint(resume_from, config)
    model, image_processor = load_model(config, model_args)

    randomness = Randomness(args.seed)
    if train_data:
        train_data.prepare(TrainTransform(image_processor, randomness, recipe), config.label2id)
        if isinstance(train_data, ImageStream):
            train_data.split(args.process_index, args.world_size)
        else:
            train_data.views = recipe.repeated_augmentation
    if eval_data:
        eval_data.prepare(EvalTransform(image_processor), config.label2id)
    collator = TrainCollator(config.num_labels, randomness, args.label_smoothing_factor, recipe)
    distillation = load_teacher(recipe, model_args, image_processor, config.id2label)
    if recipe.lora_rank is not None:
        model = add_lora(model, recipe)
    else:
        freeze_all_but(model, recipe.trainable)
    parameter_groups(plain_model(model), args.learning_rate, args.weight_decay, recipe.layer_decay)  # may raise
    if isinstance(train_data, ImageStream) and recipe.repeated_augmentation > 1:
        raise ValueError("--repeated_augmentation needs to know all images: drop it or --streaming.")
    batch = args.train_batch_size * max(1, args.world_size)  # of all processes
    if isinstance(train_data, LabeledImages) and args.dataloader_drop_last and len(train_data) < batch:
        raise ValueError(
            f"--dataloader_drop_last leaves no batch of the {len(train_data)} images to train on: drop it, or lower "
            f"--per_device_train_batch_size from {args.per_device_train_batch_size}."
        )
    if recipe.ema_decay is not None:
        ModelEma(torch.nn.Linear(1, 1), recipe.ema_decay)  # may raise
    if data_args.overwrite_output_dir and args.do_train and args.should_save:
        for path in checkpoints_in(Path(args.output_dir)).values():
            shutil.rmtree(path)
        if isinstance(train_data, ImageStream):  # its list grows while it is read
            for path in Path(args.output_dir).glob(CORRUPT_IMAGES_LISTS):
                path.unlink()
    elif resume_from is not None and args.resume_from_checkpoint is None and args.should_save:
        set_aside_newer(Path(resume_from))
    return Experiment(
        argv=argv,
        model_args=model_args,
        data_args=data_args,
        recipe=recipe,
        training_args=args,
        model=model,
        image_processor=image_processor,
        train_data=train_data,
        eval_data=eval_data,
        train_collator=collator,
        randomness=randomness,
        distillation=distillation,
        resume_from_checkpoint=resume_from,
    )


def check_metric(name: str | None, num_classes: int, with_ema: bool) -> None:
    """Raise ValueError, before training, if no evaluation has the metric that selects the best model."""
    metrics = ["loss", *(metric for metric in METRICS if metric != "top5" or num_classes > 5)]
    metrics += [f"ema_{metric}" for metric in metrics] if with_ema else []
    if name is not None and name.removeprefix("eval_") not in metrics:
        known = ", ".join(f"eval_{metric}" for metric in metrics)
        raise ValueError(f"--metric_for_best_model is {name}, but it must be one of {known}.")


def error_message(error: Exception) -> str:
    """The message of an error; of one from a worker process, the last line of its traceback."""
    last = str(error).strip().splitlines()[-1]
    return f"error: {last.partition('Error: ')[2] or last}" if "Traceback" in str(error) else f"error: {error}"
