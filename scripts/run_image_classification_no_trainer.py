# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""Fine-tune, train or evaluate an image classifier with a loop of its own on accelerate, there to be read and changed.

    python scripts/run_image_classification_no_trainer.py finetune \\
        --model_name_or_path timm/cait_xxs24_224.fb_dist_in1k \\
        --train_dir images/train --validation_dir images/validation --output_dir outputs/finetuned

    accelerate launch --config_file scripts/accelerate_configs/ddp.yaml \\
        scripts/run_image_classification_no_trainer.py finetune ...

Flags, files and result are those of `run_image_classification.py`, to the bit where one process trains in float32. Of
the flags of `transformers.TrainingArguments` those that only Trainer can follow are refused.
"""

import math
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import cait_hf  # noqa: F401 - first, so that Transformers' optional packages import without messages


# isort: split

import torch
from accelerate import Accelerator, skip_first_batches
from accelerate.utils import DistributedDataParallelKwargs, LoggerType, ProjectConfiguration, TorchDynamoPlugin
from huggingface_hub.errors import StrictDataclassError
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_callback import CallbackHandler, DefaultFlowCallback, TrainerControl, TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, SaveStrategy, rotate_checkpoints

from cait_hf.evaluation.metrics import best_classes, classification_metrics, scalars
from cait_hf.losses import image_classification_loss
from cait_hf.training.arguments import TrainingArguments
from cait_hf.training.best_model import is_best
from cait_hf.training.ema import ModelEma
from cait_hf.training.experiment import Experiment, error_message, prepare, set_up_logging
from cait_hf.training.models import has_unused_parameters, plain_model
from cait_hf.training.optimization import make_optimizer, make_scheduler
from cait_hf.training.outputs import already_finished, finish
from cait_hf.training.progress import StepTimer
from cait_hf.training.randomness import seed_forward_pass
from cait_hf.training.resume import (
    TRAINER_STATE,
    check_files,
    check_optimizer,
    could_not_be_written,
    could_not_go_on,
    interruptible,
    state_of,
)
from cait_hf.training.sampling import make_sampler
from cait_hf.training.streaming import ImageStream
from cait_hf.training.trainer import SHARDED, end_training, log_strategy, not_finite
from cait_hf.training.transforms import collate


# The flags of TrainingArguments that this loop follows; any other must keep its default.
FOLLOWED = """
    output_dir do_train do_eval do_predict per_device_train_batch_size per_device_eval_batch_size num_train_epochs
    max_steps learning_rate lr_scheduler_type lr_scheduler_kwargs warmup_steps optim optim_args weight_decay adam_beta1
    adam_beta2 adam_epsilon gradient_accumulation_steps max_grad_norm label_smoothing_factor bf16 fp16
    torch_compile torch_compile_backend torch_compile_mode activation_checkpointing activation_checkpointing_kwargs
    gradient_checkpointing gradient_checkpointing_kwargs logging_strategy logging_steps logging_first_step
    report_to run_name project eval_strategy eval_steps eval_delay save_strategy save_steps save_total_limit
    load_best_model_at_end metric_for_best_model greater_is_better resume_from_checkpoint push_to_hub hub_model_id
    hub_token hub_private_repo seed use_cpu dataloader_drop_last dataloader_num_workers dataloader_pin_memory
    dataloader_persistent_workers dataloader_prefetch_factor disable_tqdm remove_unused_columns ddp_timeout
    local_rank log_level trackio_space_id
"""


@interruptible()
def main(argv: list[str] | None = None) -> dict[str, float]:
    """Run the script and return what it writes to `all_results.json`; wrong input ends it with an error message."""
    set_up_logging()
    try:
        experiment = prepare(sys.argv[1:] if argv is None else argv)
        check_flags(experiment.training_args)
        if experiment.record.finished:
            return already_finished(experiment)
        with experiment.writing():
            return run(experiment)
    except (ValueError, OSError, ImportError, FloatingPointError, StrictDataclassError) as error:
        sys.exit(error_message(error))


def run(experiment: Experiment) -> dict[str, float]:
    """Train and evaluate as the flags say; returns the metrics."""
    loop = Loop.of(experiment)
    log_strategy(loop.accelerator)
    metrics = {}
    if experiment.training_args.do_train:
        metrics |= loop.train()
        loop.save_state()
    if experiment.training_args.do_eval:
        metrics |= loop.evaluate()
    state_dict = loop.accelerator.get_state_dict(loop.model) if loop.sharded else None
    loop.model = loop.plain_model
    end_training(loop.accelerator)
    return finish(
        experiment,
        loop.plain_model,
        loop.ema,
        metrics=metrics,
        results=loop.results,
        state=loop.state,
        state_dict=state_dict,
    )


def check_flags(args: TrainingArguments):
    """Raise ValueError for a flag that is set and that this loop does not follow."""
    if args.lr_scheduler_type == "reduce_lr_on_plateau":
        raise ValueError("--lr_scheduler_type reduce_lr_on_plateau is for run_image_classification.py: take another.")
    for logger in args.report_to:
        if logger not in (*LoggerType.list(), "kubeflow"):  # which Transformers adds by itself
            raise ValueError(f"--report_to {logger} is for run_image_classification.py: leave it out here.")
    for name in args.changed:
        if name not in FOLLOWED.split():
            raise ValueError(f"--{name} is for run_image_classification.py: leave it out here.")


@dataclass
class Loop:
    """A training from its state at the start, or at a checkpoint, to its end."""

    experiment: Experiment
    accelerator: Accelerator
    model: torch.nn.Module  # wrapped by accelerate
    plain_model: torch.nn.Module  # the same without wrappers
    optimizer: torch.optim.Optimizer | None
    train_loader: DataLoader | None
    eval_loader: DataLoader | None
    ema: ModelEma | None
    state: TrainerState  # Trainer's, with the same meaning
    timer: StepTimer
    callbacks: CallbackHandler
    control: TrainerControl = field(default_factory=TrainerControl)  # set by the callbacks: what is due
    results: dict[str, dict] = field(default_factory=dict)  # of the last evaluation, of "raw" weights and "ema"
    bar: tqdm | None = None  # while it trains

    @classmethod
    def of(cls, experiment: Experiment) -> "Loop":
        args, recipe = experiment.training_args, experiment.recipe
        accelerator = make_accelerator(args)
        model, optimizer, train_loader, eval_loader = experiment.model, None, None, None
        if accelerator.num_processes > 1 and not (args.activation_checkpointing or args.gradient_checkpointing):
            accelerator.ddp_handler.find_unused_parameters = has_unused_parameters(model)
        if args.gradient_checkpointing:  # the old names, which newer versions keep equal to the new ones
            model.gradient_checkpointing_enable(args.gradient_checkpointing_kwargs)
        if experiment.distillation is not None:
            experiment.distillation.to(accelerator.device)
        if args.do_eval:
            eval_loader = accelerator.prepare(make_loader(experiment, training=False))
        if args.do_train:
            optimizer = make_optimizer(plain_model(model), recipe, args)
            train_loader = make_loader(experiment, training=True)
            if experiment.streaming:  # dealt to the processes already
                model, optimizer = accelerator.prepare(model, optimizer)
            else:
                model, optimizer, train_loader = accelerator.prepare(model, optimizer, train_loader)
        else:
            model = accelerator.prepare_model(model, evaluation_mode=True)
        unwrapped = accelerator.unwrap_model(model, keep_torch_compile=False)
        ema = None
        if recipe.ema_decay is not None:
            if accelerator.distributed_type in SHARDED:
                raise ValueError("--ema_decay needs the weights in one piece: drop it, or FSDP and DeepSpeed.")
            ema = ModelEma(unwrapped, recipe.ema_decay, recipe.ema_warmup)
        state = TrainerState(is_world_process_zero=accelerator.is_main_process)
        callbacks = [DefaultFlowCallback, *experiment.callbacks]
        return cls(
            experiment=experiment,
            accelerator=accelerator,
            model=model,
            plain_model=unwrapped,
            optimizer=optimizer,
            train_loader=train_loader,
            eval_loader=eval_loader,
            ema=ema,
            state=state,
            timer=StepTimer(accelerator.num_processes),
            callbacks=CallbackHandler(callbacks, unwrapped, experiment.image_processor, optimizer, None),
        )

    def train(self) -> dict[str, float]:
        """All epochs, or those after the checkpoint to resume from; returns the `train_...` metrics."""
        args = self.experiment.training_args
        self.per_epoch, num_epochs, max_steps = length_of_training(self.train_loader, args)
        scheduler = make_scheduler(self.optimizer, self.experiment.recipe, args, max_steps)
        # not `register_for_checkpointing`, whose files are unpickled without limits
        self.scheduler = self.accelerator.prepare_scheduler(scheduler)
        self.state.compute_steps(args, max_steps)
        self.state.max_steps, self.state.num_train_epochs = max_steps, num_epochs
        self.load_checkpoint(self.experiment.resume_from_checkpoint)
        self.callbacks.lr_scheduler = self.scheduler
        self.losses, self.total_loss, first_step = [], 0.0, self.state.global_step
        self.bar = tqdm(total=max_steps, initial=first_step, disable=self.quiet)
        self.callbacks.on_train_begin(args, self.state, self.control)
        self.timer.skip()
        for epoch in range(self.state.global_step // self.per_epoch, num_epochs):
            if self.state.global_step >= max_steps or self.control.should_training_stop:
                break
            self.train_epoch(epoch)
        self.callbacks.on_train_end(args, self.state, self.control)
        self.bar.close()
        self.bar = None  # what follows is in the metrics that the run prints at its end
        if args.load_best_model_at_end and self.state.best_model_checkpoint is not None:
            check_files(Path(self.state.best_model_checkpoint), ["weights"])
            self.accelerator.load_state(self.state.best_model_checkpoint)
            if self.ema is not None:
                self.ema.load(self.state.best_model_checkpoint)
        self.total_loss += sum(map(float, self.losses))
        loss = self.total_loss / max(1, self.state.global_step - first_step)
        return {"train_loss": loss, "epoch": self.state.epoch, **self.timer.summary()}

    def train_epoch(self, epoch: int):
        events = self.experiment.training_args, self.state, self.control
        self.experiment.randomness.epoch = epoch
        self.model.train()
        self.callbacks.on_epoch_begin(*events)
        for batches in self.accumulated_batches(self.state.global_step - epoch * self.per_epoch):
            self.callbacks.on_step_begin(*events)
            self.train_step(batches)
            self.state.epoch = epoch + (self.state.global_step - epoch * self.per_epoch) / self.per_epoch
            self.callbacks.on_step_end(*events)
            self.log_evaluate_save()
            if self.control.should_training_stop:
                break
        self.callbacks.on_epoch_end(*events)
        self.log_evaluate_save()

    def accumulated_batches(self, steps_taken: int) -> Iterator[list[dict[str, torch.Tensor]]]:
        """The batches of each step of an epoch, after those of the steps that were taken before an interruption."""
        per_step = self.experiment.training_args.gradient_accumulation_steps
        loader = self.train_loader
        if steps_taken and self.experiment.streaming:
            loader.dataset.skip_batches(steps_taken * per_step, loader.batch_size)
        elif steps_taken:
            loader = skip_first_batches(loader, steps_taken * per_step)
        batches = []
        for batch in self.timer.batches(loader):
            batches.append({name: values.to(self.accelerator.device) for name, values in batch.items()})
            if len(batches) == per_step:
                yield batches
                batches = []
        if batches:
            yield batches

    def train_step(self, batches: list[dict[str, torch.Tensor]]):
        """One step of the optimizer, with the mean of the batches' gradients."""
        args, step = self.experiment.training_args, self.state.global_step
        total = torch.zeros((), device=self.accelerator.device)
        for micro_step, batch in enumerate(batches):
            seed_forward_pass(args.seed, step, micro_step, self.accelerator.process_index)
            last = micro_step == len(batches) - 1
            self.accelerator.gradient_state._set_sync_gradients(last)
            with nullcontext() if last else self.accelerator.no_sync(self.model):
                loss = self.loss_of(batch) / len(batches)
                self.accelerator.backward(loss)
            if not torch.isfinite(loss):
                raise not_finite(loss, step + 1, args.output_dir)
            total += loss.detach()
        limit = args.max_grad_norm if args.max_grad_norm > 0 else math.inf
        self.grad_norm = self.accelerator.clip_grad_norm_(self.model.parameters(), limit)
        self.callbacks.on_pre_optimizer_step(args, self.state, self.control)
        self.optimizer.step()
        self.learning_rate = max(self.scheduler.get_last_lr())  # the head's, where layers have fractions of it
        if not self.accelerator.optimizer_step_was_skipped:
            self.scheduler.step()
        self.optimizer.zero_grad()
        self.losses.append(total)
        self.state.global_step += 1
        if self.ema is not None:
            self.ema.update(self.plain_model, self.state.global_step)
        self.timer.step()
        self.bar.set_postfix(self.timer.postfix(), refresh=False)
        self.bar.update()

    def loss_of(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """The mean loss of a batch, with the teacher's part if there is one."""
        logits = self.model(pixel_values=batch["pixel_values"]).logits
        loss = image_classification_loss(batch["labels"], logits, self.plain_model.config)
        if self.experiment.distillation is not None:
            with self.accelerator.autocast():
                loss = self.experiment.distillation(batch["pixel_values"], logits, loss)
        return loss

    def log_evaluate_save(self):
        """What the flow of Trainer finds to be due."""
        args, control = self.experiment.training_args, self.control
        if control.should_log and self.losses:
            loss = self.accelerator.gather(torch.stack(self.losses).mean()).mean().item()
            norm = self.grad_norm.item() if torch.is_tensor(self.grad_norm) else self.grad_norm
            self.log({"loss": loss, "grad_norm": norm, "learning_rate": self.learning_rate})
            self.total_loss, self.losses = self.total_loss + sum(map(float, self.losses)), []
        if control.should_evaluate:
            best = is_best(self.evaluate(), args, self.state)
            if args.save_strategy == SaveStrategy.BEST:
                control.should_save = best
            self.model.train()
        if control.should_save:
            self.save_checkpoint()
        control.should_log = control.should_evaluate = control.should_save = False
        self.timer.skip()

    def log(self, metrics: dict[str, float]):
        metrics = {**metrics, "epoch": round(self.state.epoch, 4)}
        self.state.log_history.append({**metrics, "step": self.state.global_step})
        self.accelerator.log(metrics, step=self.state.global_step)
        self.callbacks.on_log(self.experiment.training_args, self.state, self.control, metrics)
        if self.bar is not None and not self.quiet:
            self.bar.write(str(metrics))

    def evaluate(self) -> dict[str, float]:
        """Loss and accuracies as `eval_...` and, of the average of the weights, as `eval_ema_...`."""
        metrics = self.evaluate_weights("raw", "eval")
        if self.ema is not None:
            with self.ema.in_place_of(self.plain_model):
                metrics |= self.evaluate_weights("ema", "eval_ema")
        return metrics

    @torch.no_grad()
    def evaluate_weights(self, whose: str, prefix: str) -> dict[str, float]:
        self.model.eval()
        losses, best, labels = [], [], []
        for batch in tqdm(self.eval_loader, disable=self.quiet, leave=False, desc="evaluation"):
            logits = self.model(pixel_values=batch["pixel_values"]).logits
            loss = image_classification_loss(batch["labels"], logits, self.plain_model.config, reduction="none")
            gathered = self.accelerator.gather_for_metrics((loss, best_classes(logits), batch["labels"]))
            for values, new in zip((losses, best, labels), gathered):
                values.append(new.cpu())
        num_classes = self.plain_model.config.num_labels
        self.results[whose] = classification_metrics(torch.cat(best), torch.cat(labels), num_classes)
        metrics = {"loss": torch.cat(losses).double().mean().item(), **scalars(self.results[whose])}
        metrics = {f"{prefix}_{name}": value for name, value in metrics.items()}
        self.log(metrics)
        return metrics

    def save_checkpoint(self):
        """A folder that is complete as soon as it has its name."""
        args, step = self.experiment.training_args, self.state.global_step
        folder = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{step}"
        unfinished = folder.with_name(f".{folder.name}.part")
        with could_not_be_written(step, args.output_dir, unfinished if self.accelerator.is_main_process else None):
            self.accelerator.save_state(str(unfinished))
            if self.accelerator.is_main_process:
                if self.ema is not None:
                    self.ema.save(unfinished)
                self.plain_model.config.save_pretrained(unfinished)
                self.experiment.image_processor.save_pretrained(unfinished)
                torch.save(args, unfinished / TRAINING_ARGS_NAME)
                if self.state.best_global_step == step:
                    self.state.best_model_checkpoint = str(folder)
                self.state.save_to_json(str(unfinished / TRAINER_STATE))
                if folder.exists():
                    shutil.rmtree(folder)
                os.replace(unfinished, folder)
                rotate_checkpoints(args.output_dir, args.save_total_limit, self.state.best_model_checkpoint)
        self.accelerator.wait_for_everyone()
        if self.state.best_global_step == step:
            self.state.best_model_checkpoint = str(folder)

    def save_state(self):
        """What Trainer's `save_state` leaves in the output folder."""
        if self.accelerator.is_main_process:
            os.makedirs(self.experiment.training_args.output_dir, exist_ok=True)
            self.state.save_to_json(os.path.join(self.experiment.training_args.output_dir, TRAINER_STATE))

    def load_checkpoint(self, folder: str | None):
        if folder is None:
            return
        with could_not_go_on(folder):
            self.accelerator.load_state(folder)
            check_optimizer(self.optimizer)
            if self.ema is not None:
                self.ema.load(folder)
        stored = state_of(folder, self.experiment.training_args.output_dir)
        for name in (
            "epoch",
            "global_step",
            "log_history",
            "best_metric",
            "best_global_step",
            "best_model_checkpoint",
        ):
            setattr(self.state, name, getattr(stored, name))

    @property
    def sharded(self) -> bool:
        return self.accelerator.distributed_type in SHARDED

    @property
    def quiet(self) -> bool:
        return self.experiment.training_args.disable_tqdm or not self.accelerator.is_local_main_process


def make_accelerator(args: TrainingArguments) -> Accelerator:
    """The one engine: processes, precision, FSDP and DeepSpeed are what `accelerate launch` was told."""
    precision = "fp16" if args.fp16 else "bf16" if args.bf16 else None  # None: as launched
    compilation = TorchDynamoPlugin(backend=args.torch_compile_backend, mode=args.torch_compile_mode)
    accelerator = Accelerator(
        mixed_precision=precision,
        dynamo_plugin=compilation if args.torch_compile else None,
        step_scheduler_with_optimizer=False,  # it steps when it is told to
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=False)],
        log_with=[logger for logger in args.report_to if logger in LoggerType.list()] or None,
        project_config=ProjectConfiguration(args.output_dir, logging_dir=os.path.join(args.output_dir, "runs")),
    )
    if args.report_to:
        accelerator.init_trackers(args.project, config=args.to_sanitized_dict())
    return accelerator


def make_loader(experiment: Experiment, training: bool) -> DataLoader:
    """Batches in the order and with the collator of training, or as they come."""
    args, workers = experiment.training_args, experiment.training_args.dataloader_num_workers
    dataset = experiment.train_data if training else experiment.eval_data
    order = {}
    if training and not experiment.streaming:
        sampler = make_sampler(len(dataset), experiment.randomness, experiment.recipe, args)
        order = {"sampler": sampler, "drop_last": args.dataloader_drop_last}
    return DataLoader(
        dataset,
        batch_size=args.train_batch_size if training else args.eval_batch_size,
        collate_fn=experiment.train_collator if training else collate,
        num_workers=workers,
        pin_memory=args.dataloader_pin_memory and torch.cuda.is_available(),
        persistent_workers=args.dataloader_persistent_workers and workers > 0,
        prefetch_factor=args.dataloader_prefetch_factor,
        **order,
    )


def length_of_training(loader: DataLoader, args: TrainingArguments) -> tuple[int, int, int]:
    """Steps in an epoch, epochs, steps in all; a stream is one epoch without end."""
    if isinstance(loader.dataset, ImageStream):
        return args.max_steps, 1, args.max_steps
    per_epoch = max(1, math.ceil(len(loader) / args.gradient_accumulation_steps))
    max_steps = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * per_epoch)
    return per_epoch, math.ceil(max_steps / per_epoch), max_steps


if __name__ == "__main__":
    main()
