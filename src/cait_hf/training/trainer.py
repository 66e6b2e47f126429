# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""`Trainer` with the recipe of the official training (facebookresearch/deit with timm 0.3.2).

Like the official training loop (`engine.py`), it stops at a loss that is not finite; plain `Trainer` trains on.
"""

import copy
import gc
import logging
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch.optim.lr_scheduler import LRScheduler
from transformers import (
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer import SCHEDULER_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..evaluation.metrics import ClassificationMetrics
from ..losses import image_classification_loss
from .arguments import RecipeArguments
from .best_model import is_best
from .distillation import Distillation
from .ema import ModelEma
from .models import has_unused_parameters, plain_model
from .optimization import decayed_parameter_names, make_optimizer, make_scheduler
from .progress import StepTimer, TrainingProgress
from .randomness import Randomness, seed_forward_pass
from .resume import (
    TRAINER_STATE,
    check_files,
    check_optimizer,
    could_not_be_written,
    could_not_go_on,
    state_of,
)
from .sampling import make_sampler
from .streaming import ImageStream
from .transforms import TrainCollator, collate


logger = logging.getLogger(__name__)

SHARDED = {DistributedType.FSDP: "FSDP", DistributedType.DEEPSPEED: "DeepSpeed"}


class ImageClassificationTrainer(Trainer):
    """`Trainer` for any image classifier: soft labels, a teacher, layer decay, an average of the weights.

    Weight decay spares all vectors (biases, norms, LayerScale), positions and class token. The loss is CaiT's own,
    [`~cait_hf.losses.image_classification_loss`], for any model.

    `args` are never edited: they are the record of the run, which loggers and checkpoints keep. Where they have a
    `label_smoothing_factor`, `train_collator` smooths the labels; where they `push_to_hub`, the script pushes what is
    complete at the end. The trainer itself does neither.

    Args:
        recipe ([`~cait_hf.training.arguments.RecipeArguments`], *optional*): the defaults change nothing.
        train_collator ([`~cait_hf.training.transforms.TrainCollator`], *optional*): makes the batches to train on.
        randomness ([`~cait_hf.training.randomness.Randomness`], *optional*): with it the order of the images and
            what is dropped depend on seed and step alone. Without it: Trainer's own order.
        distillation ([`~cait_hf.training.distillation.Distillation`], *optional*): a teacher.
        **kwargs: of `Trainer`.

    Raises:
        FloatingPointError: by `train`, if the loss of a step is not finite. The step is not taken, and earlier
            checkpoints are kept.
        ValueError: if an average is to be kept of weights that are sharded, or labels are to be smoothed without
            `train_collator`.
    """

    args: TrainingArguments
    _initialized = False

    def __init__(
        self,
        model: torch.nn.Module | None,
        args: TrainingArguments,
        recipe: RecipeArguments | None = None,
        train_collator: TrainCollator | None = None,
        randomness: Randomness | None = None,
        distillation: Distillation | None = None,
        **kwargs: Any,
    ) -> None:
        if train_collator is not None:
            kwargs["data_collator"] = collate
        elif args.label_smoothing_factor:
            raise ValueError(
                f"label_smoothing_factor is {args.label_smoothing_factor}, but only a train_collator smooths labels: "
                "pass TrainCollator(num_labels, randomness, label_smoothing_factor) of cait_hf.training.transforms."
            )
        super().__init__(model=model, args=args, **kwargs)
        if self.accelerator.num_processes > 1 and args.ddp_find_unused_parameters is None:
            checkpointing = args.activation_checkpointing or args.gradient_checkpointing  # excludes the search
            find = not checkpointing and has_unused_parameters(self.model)
            self.accelerator.ddp_handler.find_unused_parameters = find
        self.recipe, self.train_collator, self.randomness = recipe or RecipeArguments(), train_collator, randomness
        self.loss_is_scaled_for_ga = self.model_accepts_loss_kwargs = False  # ours is the mean of a batch
        self.distillation = distillation.to(self.args.device) if distillation else None
        self.ema = None
        if self.recipe.ema_decay is not None:
            if self.sharded:
                raise ValueError("--ema_decay needs the weights in one piece: drop it, or FSDP and DeepSpeed.")
            self.ema = ModelEma(self.model, self.recipe.ema_decay, self.recipe.ema_warmup)
        self.timer = StepTimer(self.args.world_size)
        self.results: dict[str, dict] = {}  # by weights, "raw" and "ema"
        self.add_callback(_KeepUp(self))
        if self.pop_callback(ProgressCallback) is not None or self.args.disable_tqdm:
            self.pop_callback(PrinterCallback)
            self.add_callback(TrainingProgress(self.timer))
        self._micro_step = 0
        self._initialized = True

    @property
    def sharded(self) -> bool:
        """Whether the weights lie in pieces on the processes."""
        return self.is_fsdp_enabled or self.is_deepspeed_enabled

    def get_train_dataloader(self) -> torch.utils.data.DataLoader:
        """The base class's, with the batches of `train_collator`; a stream is dealt to the processes already."""
        if isinstance(self.train_dataset, ImageStream):
            return self._loader_of_stream()
        for_evaluation = self.data_collator
        self.data_collator: Callable[[list[dict]], dict[str, torch.Tensor]] = self.train_collator or for_evaluation
        try:
            return super().get_train_dataloader()
        finally:
            self.data_collator = for_evaluation

    def get_eval_dataloader(self, eval_dataset: Any = None) -> torch.utils.data.DataLoader:
        """The base class's, of all images: `--dataloader_drop_last` is about training."""
        recorded = self.args
        self.args = copy.copy(recorded)
        self.args.dataloader_drop_last = False
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.args = recorded

    def _loader_of_stream(self) -> torch.utils.data.DataLoader:
        args = self.args
        return torch.utils.data.DataLoader(
            self.train_dataset,
            batch_size=self._train_batch_size,
            collate_fn=self.train_collator,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
            prefetch_factor=args.dataloader_prefetch_factor,
        )

    def _init_training_state(
        self, max_steps: int, steps_per_epoch: int, num_epochs: int, checkpoint: str | None, trial: Any
    ) -> tuple[int, int]:
        """The base class's, of a checkpoint that may have been moved.

        A stream resumes where the checkpoint was written, without decoding what comes before.
        """
        with tempfile.TemporaryDirectory() as folder:
            if checkpoint is not None:
                with could_not_go_on(checkpoint):
                    if not self.is_deepspeed_enabled:  # or the base class would train on with a new optimizer
                        os.stat(os.path.join(checkpoint, SCHEDULER_NAME))
                state_of(checkpoint, self.args.output_dir).save_to_json(os.path.join(folder, TRAINER_STATE))
                checkpoint = folder  # of which the base class reads the state alone
            epochs_trained, batches_to_skip = super()._init_training_state(
                max_steps, steps_per_epoch, num_epochs, checkpoint, trial
            )
        if isinstance(self.train_dataset, ImageStream):
            batches = self.state.global_step * self.args.gradient_accumulation_steps
            self.train_dataset.skip_batches(batches, self._train_batch_size)
            batches_to_skip = 0
        return epochs_trained, batches_to_skip

    def init_hf_repo(self, *args: Any, **kwargs: Any) -> None:
        """The base class's, but not in `__init__`: no repository before there is something to push."""
        if self._initialized:
            super().init_hf_repo(*args, **kwargs)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Nothing: see the class."""

    def _get_train_sampler(self, train_dataset: Any = None) -> torch.utils.data.Sampler | None:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        if self.randomness is None or not hasattr(dataset, "__len__"):
            return super()._get_train_sampler(train_dataset)
        return make_sampler(len(dataset), self.randomness, self.recipe, self.args)

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """The optimizer of `--optim`, with this package's groups."""
        if self.optimizer is None:
            model = plain_model(self.model if model is None else model)
            self.optimizer: torch.optim.Optimizer = make_optimizer(model, self.recipe, self.args)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> LRScheduler:
        """The schedule of the flags, which may be the official one."""
        if self.lr_scheduler is None:
            optimizer = self.optimizer if optimizer is None else optimizer
            self.lr_scheduler: LRScheduler = make_scheduler(optimizer, self.recipe, self.args, num_training_steps)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def _get_learning_rate(self) -> float:
        return max(self.lr_scheduler.get_last_lr())  # the head's, where layers have fractions of it

    def get_decay_parameter_names(self, model: torch.nn.Module) -> list[str]:
        """Names of the parameters with two or more axes that the model's `no_weight_decay()`, if any, leaves."""
        return sorted(decayed_parameter_names(plain_model(model)))

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The base class's step; raises `FloatingPointError` before its gradients reach the weights."""
        if self.randomness is not None:
            place = self.state.global_step, self._micro_step, self.args.process_index
            seed_forward_pass(self.randomness.seed, *place)
            self._micro_step += 1
        loss = super().training_step(*args, **kwargs)
        if not torch.isfinite(loss).all():
            raise not_finite(loss, self.state.global_step + 1, self.args.output_dir)
        return loss

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        """`image_classification_loss` of classes or soft labels and, in training, the teacher's part."""
        inputs = dict(inputs)
        labels = inputs.pop("labels", None)
        if labels is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        outputs = model(**inputs)
        loss = image_classification_loss(labels, outputs.logits, plain_model(self.model).config)
        if self.distillation is not None and model.training:
            with self.accelerator.autocast():
                loss = self.distillation(inputs["pixel_values"], outputs.logits, loss)
        return (loss, outputs) if return_outputs else loss

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """The base class's metrics and, where an average of the weights is kept, the same of it as `eval_ema_...`.

        On several processes the losses count the images, repeated, that fill the last batches up; accuracies do not.
        """
        metrics = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        self._keep_results("raw")
        if self.ema is not None:
            with self.ema.in_place_of(self.model):
                metrics |= super().evaluate(eval_dataset, ignore_keys, f"{metric_key_prefix}_ema")
            self._keep_results("ema")
        return metrics

    def _keep_results(self, weights: str) -> None:
        if isinstance(self.compute_metrics, ClassificationMetrics) and self.compute_metrics.last is not None:
            self.results[weights] = self.compute_metrics.last

    def get_batch_samples(self, epoch_iterator: Iterable[dict], *args: Any, **kwargs: Any) -> tuple[list[dict], Any]:
        """The base class's; the timer measures how long it waits. None where a training was complete already."""
        if self.state.global_step >= self.state.max_steps:
            return [], None
        return super().get_batch_samples(self.timer.batches(epoch_iterator), *args, **kwargs)

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """By the metric and, of equal ones, by the loss."""
        return is_best(metrics, self.args, self.state)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        step, folder = self.state.global_step, self.args.output_dir
        unfinished = Path(folder, f"{PREFIX_CHECKPOINT_DIR}-{step}") if self.args.should_save else None
        with could_not_be_written(step, folder, unfinished):
            super()._save_checkpoint(*args, **kwargs)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.args.should_save:
            plain_model(self.model).config.save_pretrained(output_dir)  # adapters come without
        if self.ema is not None and self.args.should_save:
            self.ema.save(output_dir)  # before the file that marks the checkpoint as complete
        super()._save_optimizer_and_scheduler(output_dir)

    def _load_best_model(self) -> None:
        check_files(Path(self.state.best_model_checkpoint), ["weights"])
        super()._load_best_model()
        if self.ema is not None:
            self.ema.load(self.state.best_model_checkpoint)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with could_not_go_on(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)
            check_optimizer(self.optimizer)
            if self.ema is not None and checkpoint is not None:
                self.ema.load(checkpoint)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, *args: Any, **kwargs: Any) -> None:
        with could_not_go_on(resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, *args, **kwargs)


class _KeepUp(TrainerCallback):
    """Tells the trainer's parts where training is."""

    def __init__(self, trainer: ImageClassificationTrainer) -> None:
        self.trainer = trainer

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, *rest: Any, **kwargs: Any) -> None:
        if self.trainer.randomness is not None:
            self.trainer.randomness.epoch = int(state.epoch)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, *rest: Any, **kwargs: Any) -> None:
        self.trainer._micro_step = 0
        if isinstance(self.trainer.train_dataset, ImageStream):
            state.epoch = state.global_step / state.max_steps  # a stream is one epoch
        if self.trainer.ema is not None:
            self.trainer.ema.update(self.trainer.model, state.global_step)


def not_finite(loss: torch.Tensor, step: int, output_dir: str | Path) -> FloatingPointError:
    """The error for a loss that is not finite at optimizer step number `step`, which is not taken."""
    return FloatingPointError(
        f"The loss is {loss.item()} at step {step}, so training stopped before that step: look for pixels or labels "
        f"that are not finite, or lower the learning rate. Checkpoints of earlier steps, if any, are in {output_dir}."
    )


def log_strategy(accelerator: Accelerator) -> None:
    """Log how the processes train together, and warn where that is not what `accelerate launch` was told."""
    kind = accelerator.distributed_type
    strategy = "FSDP2" if accelerator.is_fsdp2 else SHARDED.get(kind, "DDP")
    if not accelerator.is_main_process:
        return
    processes = accelerator.num_processes
    one = processes == 1
    logger.info("%s on %s.", "One process" if one else f"{strategy} of {processes} processes", accelerator.device.type)
    for sharded, name in SHARDED.items():
        if os.environ.get(f"ACCELERATE_USE_{sharded.value}", "false").lower() == "true" and kind != sharded:
            logger.warning("%s was asked for, but accelerate has it for several GPUs alone.", name)


def end_training(accelerator: Accelerator) -> None:
    """End what the processes have together; the caller has let go of the wrapped model.

    As long as something holds that, its process group lives on, whatever its name says, with threads that PyTorch's
    gloo leaves running: the interpreter, on its way out, may end them in a destructor, which aborts the process.
    """
    accelerator.end_training()
    accelerator.free_memory()
    gc.collect()
