# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""Fine-tune, train or evaluate an image classifier with `Trainer`: CaiT, or any of `AutoModelForImageClassification`.

Fine-tune an official checkpoint on two folders of images, each with one subfolder a class (the checkpoint comes from
the Hub), by a recipe and with flags of your own, which win:

    cait-hf train finetune --model_name_or_path timm/cait_xxs24_224.fb_dist_in1k \\
        --train_dir images/train --validation_dir images/validation --output_dir outputs/finetuned

Every flag of `transformers.TrainingArguments` applies. Rerun the same command after an interruption: training resumes
from the last checkpoint with the same result. `scripts/run_image_classification_no_trainer.py` takes the same flags
and writes the same files; its loop is there to be read and changed.
"""

import sys

from huggingface_hub.errors import StrictDataclassError

from ..evaluation.metrics import ClassificationMetrics, best_classes
from ..training.experiment import Experiment, error_message, prepare, set_up_logging
from ..training.outputs import already_finished, finish
from ..training.resume import interruptible
from ..training.search import search
from ..training.trainer import ImageClassificationTrainer, end_training, log_strategy


@interruptible()
def main(argv: list[str] | None = None) -> dict[str, float]:
    """Run the command and return what it writes to `all_results.json`; wrong input ends it with an error message."""
    set_up_logging()
    try:
        experiment = prepare(sys.argv[1:] if argv is None else argv)
        if experiment.training_args.search:
            return search(experiment)
        if experiment.record.finished:
            return already_finished(experiment)
        with experiment.writing():
            return run(experiment)
    except (ValueError, OSError, ImportError, FloatingPointError, StrictDataclassError) as error:
        sys.exit(error_message(error))


def run(experiment: Experiment) -> dict[str, float]:
    """Train and evaluate as the flags say; returns the metrics."""
    trainer = ImageClassificationTrainer(
        model=experiment.model,
        args=experiment.training_args,
        recipe=experiment.recipe,
        train_dataset=experiment.train_data,
        eval_dataset=experiment.eval_data,
        train_collator=experiment.train_collator,
        randomness=experiment.randomness,
        distillation=experiment.distillation,
        callbacks=experiment.callbacks,
        compute_metrics=ClassificationMetrics(experiment.model.config.num_labels),
        preprocess_logits_for_metrics=best_classes,
        processing_class=experiment.image_processor,
    )
    log_strategy(trainer.accelerator)
    metrics: dict[str, float] = {}
    if experiment.training_args.do_train:
        train_loss = trainer.train(experiment.resume_from_checkpoint).metrics["train_loss"]
        metrics |= {"train_loss": train_loss, "epoch": trainer.state.epoch, **trainer.timer.summary()}
        trainer.save_state()
    if experiment.training_args.do_eval:
        metrics |= trainer.evaluate()
    state_dict = trainer.accelerator.get_state_dict(trainer.model_wrapped) if trainer.sharded else None
    trainer.model_wrapped = trainer.model
    end_training(trainer.accelerator)
    return finish(
        experiment,
        trainer.model,
        trainer.ema,
        metrics=metrics,
        results=trainer.results,
        state=trainer.state,
        state_dict=state_dict,
    )
