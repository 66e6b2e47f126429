# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""From the flags to all that a training loop needs; the two scripts differ in the loop alone."""

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, TrainerCallback, set_seed
from transformers.image_processing_utils import BaseImageProcessor

from ..command_line import disable_bars
from ..evaluation.metrics import METRICS
from ..folder_lock import FolderLock
from ..prediction.inputs import Inputs
from .arguments import DataArguments, ModelArguments, RecipeArguments, TrainingArguments, parse_arguments
from .data import LabeledImages, load_data, load_inputs
from .distillation import Distillation, load_teacher
from .ema import ModelEma
from .models import add_lora, load_config, load_model, plain_model, set_labels
from .optimization import freeze_all_but, make_optimizer
from .prediction_images import TRACKERS, LogPredictions
from .randomness import Randomness
from .resume import (
    CORRUPT_IMAGES_LISTS,
    RUN_RECORD,
    check_classes_of_checkpoint,
    checkpoints_in,
    find_checkpoint_to_resume,
    say_how_to_resume,
    set_aside_newer,
)
from .run_record import RunRecord, make_record, reached
from .streaming import ImageStream
from .transforms import EvalTransform, TrainCollator, TrainTransform


logger = logging.getLogger(__name__)


@dataclass
class Experiment:
    """Everything that the training loops need.

    Attributes:
        argv (`list[str]`): the command line, for the model card.
        training_args ([`TrainingArguments`]): as parsed, never edited: they go to loggers, checkpoints and card.
        model (`nn.Module`): with the frozen parts frozen and adapters added.
        num_parameters, num_trainable (`int`): of the model without adapters; of what trains.
        train_data, eval_data ([`LabeledImages`], [`ImageStream`] or `None`): items are what the model takes.
        inputs ([`Inputs`] or `None`): images to predict on, in the process that writes.
        train_collator ([`TrainCollator`]): makes batches to train on.
        randomness ([`Randomness`]): its `epoch` is to be set before an epoch begins.
        distillation ([`Distillation`] or `None`): a teacher, on the CPU.
        resume_from_checkpoint (`str` or `None`): a complete checkpoint to resume from.
        resumed_at (`int` or `None`): its step.
        record ([`RunRecord`]): what the output folder keeps of the run. Where it is finished, nothing is left to do.
        checkpoints (`set[int]`): steps of those that were in the output folder.
        callbacks: called by both loops when training begins and ends, before and after each step and epoch, and with
            the metrics to log; what looks at gradients, weights or metrics has its place here.
    """

    argv: list[str]
    model_args: ModelArguments
    data_args: DataArguments
    recipe: RecipeArguments
    training_args: TrainingArguments
    model: PreTrainedModel
    num_parameters: int
    num_trainable: int
    image_processor: BaseImageProcessor
    train_data: LabeledImages | ImageStream | None
    eval_data: LabeledImages | ImageStream | None
    inputs: Inputs | None
    train_collator: TrainCollator
    randomness: Randomness
    distillation: Distillation | None
    resume_from_checkpoint: str | None
    resumed_at: int | None
    record: RunRecord
    checkpoints: set[int]
    callbacks: list[TrainerCallback] = field(default_factory=list)

    @property
    def streaming(self) -> bool:
        """Whether the images to train on come as a stream, each process its part."""
        return isinstance(self.train_data, ImageStream)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """While a run writes to its output folder: no other may, and what it replaces is deleted.

        Raises:
            ValueError: if another run writes there, or has written since this one was prepared.
        """
        args, folder = self.training_args, Path(self.training_args.output_dir)
        if not args.should_save:
            yield
            return
        with FolderLock(folder):
            if {*checkpoints_in(folder)} != self.checkpoints:
                raise ValueError(f"another run has written to --output_dir {folder}: run the same command again.")
            if args.do_train and self.data_args.overwrite_output_dir:
                (folder / RUN_RECORD).unlink(missing_ok=True)
                for path in checkpoints_in(folder).values():
                    shutil.rmtree(path)
                if self.streaming:  # its list grows while it is read
                    for path in folder.glob(CORRUPT_IMAGES_LISTS):
                        path.unlink()
            elif self.resume_from_checkpoint is not None:
                checkpoint, asked = Path(self.resume_from_checkpoint), args.resume_from_checkpoint is not None
                logger.info("Resuming from %s; pass --overwrite_output_dir to train from scratch.", checkpoint)
                if not asked or checkpoint.resolve().parent == folder.resolve():
                    set_aside_newer(checkpoint, "replaced" if asked else "damaged")
            try:
                yield
            except KeyboardInterrupt:
                say_how_to_resume(args, self.data_args.overwrite_output_dir)
                raise


class WriteRecord(TrainerCallback):
    """Writes the record of a run as soon as its checkpoint, if it resumes from one, is loaded."""

    def __init__(self, record: RunRecord) -> None:
        self.record = record

    def on_train_begin(self, args: TrainingArguments, *rest: Any, **kwargs: Any) -> None:
        if args.should_save:
            self.record.write(args.output_dir)


def set_up_logging() -> None:
    """Log messages of the scripts and warnings, without those of libraries that load data, nor bars of saving."""
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    disable_bars()
    for library in ("accelerate", "datasets", "evaluate", "filelock", "fsspec", "httpx", "httpx2"):
        logging.getLogger(library).setLevel(logging.WARNING)


def prepare(argv: list[str]) -> Experiment:
    """Read the flags, load data and models, and check that they go together.

    Raises:
        ValueError, OSError, ImportError, StrictDataclassError: with an error message for the user; nothing was
        written.
    """
    model_args, data_args, recipe, args = parse_arguments(argv)
    output_dir = Path(args.output_dir)
    if args.should_save:
        FolderLock(output_dir).check()
    overwrites = data_args.overwrite_output_dir or not args.do_train
    before = None if overwrites else RunRecord.read(Path(args.resume_from_checkpoint or output_dir / "-").parent)
    if before is not None and not is_model(output_dir):
        before.finished = None
    resume_from = find_checkpoint_to_resume(
        args,
        data_args.overwrite_output_dir,
        recipe.ema_decay is not None,
        finished=before is not None and before.finished is not None,
    )
    checkpoints = {*checkpoints_in(output_dir)}
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
    inputs = load_inputs(data_args) if args.do_predict and args.should_save else None
    record = make_record(model_args, data_args, recipe, args, train_data, eval_data)
    if before is not None:
        compare(record, before, resume_from)
    elif resume_from is not None and args.process_index == 0:
        logger.warning("%s has no record of its flags: nothing was compared.", resume_from)
    config = load_config(model_args)
    set_labels(config, model_args, train_data, eval_data)
    check_metric(args.metric_for_best_model, config.num_labels, recipe.ema_decay is not None)
    if resume_from is not None:
        check_classes_of_checkpoint(resume_from, config)
    model, image_processor = load_model(config, model_args)
    if recipe.layer_decay != 1 and not hasattr(model, "layer_groups") and "layer_decay" in model_args.optional:
        logger.warning("The recipe's layer_decay is left out: %s does not name its layers.", type(model).__name__)
        recipe.layer_decay = 1.0

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
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    distillation = load_teacher(recipe, model_args, image_processor, config.id2label)
    if recipe.lora_rank is not None:
        model = add_lora(model, recipe)
    else:
        freeze_all_but(model, recipe.trainable)
    make_optimizer(plain_model(model), recipe, args)  # may raise
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
    callbacks: list[TrainerCallback] = [WriteRecord(record)]
    if eval_data and TRACKERS.keys() & {*(args.report_to or ())}:
        callbacks.append(LogPredictions(eval_data, image_processor, config.id2label))
    return Experiment(
        argv=argv,
        model_args=model_args,
        data_args=data_args,
        recipe=recipe,
        training_args=args,
        model=model,
        num_parameters=num_parameters,
        num_trainable=sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
        image_processor=image_processor,
        train_data=train_data,
        eval_data=eval_data,
        inputs=inputs,
        train_collator=collator,
        randomness=randomness,
        distillation=distillation,
        resume_from_checkpoint=resume_from,
        # now, for `save_total_limit` may delete the checkpoint
        resumed_at=None if resume_from is None else reached(resume_from)[0],
        record=record,
        checkpoints=checkpoints,
        callbacks=callbacks,
    )


def is_model(folder: Path) -> bool:
    """Whether a run has written its model to a folder."""
    return any((folder / f"model.safetensors{ending}").is_file() for ending in ("", ".index.json"))


def compare(record: RunRecord, before: RunRecord, resume_from: str | None) -> None:
    """Make the record of a run one that is resumed, or that has finished already; see [`RunRecord.resumes`]."""
    output_dir = record.flags["output_dir"]
    if before.finished is not None and record.flags["resume_from_checkpoint"] is None:
        step, epoch = int(before.finished["step"]), before.finished["epoch"]
        wanted = record.steps_wanted(step, epoch)
        if wanted <= step or resume_from is None:
            record.resumes(before, output_dir, step, epoch)
            if wanted > step:
                raise ValueError(
                    f"--output_dir {output_dir} has a training that is finished, and no complete checkpoint to resume "
                    "from: choose another, or pass --overwrite_output_dir."
                )
            record.finished = before.finished
            return
    if resume_from is not None:
        record.resumes(before, resume_from, *reached(resume_from))


def check_metric(
    name: str | None, num_classes: int, with_ema: bool, asked_by: str = "--metric_for_best_model"
) -> None:
    """Raise ValueError, before training, if no evaluation has the metric that selects the best model."""
    metrics = ["loss", *(metric for metric in METRICS if metric != "top5" or num_classes > 5)]
    metrics += [f"ema_{metric}" for metric in metrics] if with_ema else []
    if name is not None and name.removeprefix("eval_") not in metrics:
        known = ", ".join(f"eval_{metric}" for metric in metrics)
        raise ValueError(f"{asked_by} is {name}, but it must be one of {known}.")


def error_message(error: Exception) -> str:
    """The message of an error; of one from a worker process, the last line of its traceback."""
    last = str(error).strip().splitlines()[-1]
    return f"error: {last.partition('Error: ')[2] or last}" if "Traceback" in str(error) else f"error: {error}"
