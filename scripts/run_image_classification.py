# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""Fine-tune, train or evaluate an image classifier: CaiT, or any other that `AutoModelForImageClassification` loads.

Fine-tune an official checkpoint on two folders of pictures, each with one subfolder a class (the checkpoint comes from
the Hub):

    python scripts/run_image_classification.py --model_name_or_path timm/cait_xxs24_224.fb_dist_in1k \\
        --ignore_mismatched_sizes --train_dir pictures/train --validation_dir pictures/validation \\
        --do_train --do_eval --learning_rate 5e-5 --num_train_epochs 3 --output_dir outputs/finetuned

Every flag of `transformers.TrainingArguments` holds; all flags may stand in one .json or .yaml file instead. The same
command, given again after an interruption, goes on from the last checkpoint. Accuracies and timings end in
`all_results.json` beside the model and its image processor.
"""

import json
import logging
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import evaluate
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import (
    AutoConfig,
    AutoModelForImageClassification,
    HfArgumentParser,
    PreTrainedConfig,
    TrainingArguments,
    set_seed,
)
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils.generic import is_timm_config_dict

import cait_hf
from cait_hf import CaitConfig, CaitImageProcessorPil
from cait_hf.configuration_cait import as_pair
from cait_hf.training.data import (
    DataArguments,
    EvalTransform,
    LabelledPictures,
    TrainTransform,
    collate,
    load_data,
    option,
)
from cait_hf.training.trainer import ImageClassificationTrainer


logger = logging.getLogger(__name__)

TOPK_ACCURACY = Path(cait_hf.__file__).with_name("topk_accuracy.py")


@dataclass
class ModelArguments:
    model_name_or_path: str | None = option("Checkpoint, a folder or Hub id. Without it: training from scratch.")
    config_name: str | None = option("From scratch: folder or Hub id of the configuration. Without it: CaiT XXS24.")
    config_overrides: str | None = option("From scratch: fields, such as hidden_size=96,num_hidden_layers=6.")
    image_size: int | None = option("CaiT only: resolution to work at; the positions are resized to it.")
    drop_path_rate: float | None = option("Rate of stochastic depth, in [0, 1).")
    ignore_mismatched_sizes: bool = option("Start a new classifier if the number of classes differs.", default=False)


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Run the script and return what it writes to `all_results.json`; wrong input ends it with a sentence."""
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    for library in ("datasets", "evaluate", "filelock", "fsspec", "httpx", "httpx2"):
        logging.getLogger(library).setLevel(logging.WARNING)
    try:
        model_args, data_args, training_args = parse_arguments(sys.argv[1:] if argv is None else argv)
        resume_from = find_checkpoint_to_resume(training_args, data_args.overwrite_output_dir)
        set_seed(training_args.seed)
        train_data, eval_data = load_data(data_args, training_args)
        config = load_config(model_args)
        set_labels(config, model_args, train_data, eval_data)
        model, image_processor = load_model(config, model_args)
        train_transform = TrainTransform(image_processor, training_args.seed)
        if train_data:
            train_data.prepare(train_transform, config.label2id)
        if eval_data:
            eval_data.prepare(EvalTransform(image_processor), config.label2id)
    except (ValueError, OSError, StrictDataclassError) as error:
        sys.exit(f"error: {error}")

    trainer = ImageClassificationTrainer(
        model=model,
        args=training_args,
        train_dataset=train_data,
        eval_dataset=eval_data,
        data_collator=collate,
        compute_metrics=topk_accuracy(config.num_labels),
        processing_class=image_processor,
        callbacks=[train_transform],
    )
    metrics = {}
    if training_args.do_train:
        try:
            metrics["train"] = trainer.train(resume_from_checkpoint=resume_from).metrics
        except FloatingPointError as error:
            sys.exit(f"error: {error}")
        trainer.save_model()
        trainer.save_state()
    if training_args.do_eval:
        metrics["eval"] = trainer.evaluate()
    for split, values in metrics.items():
        trainer.log_metrics(split, values)
        trainer.save_metrics(split, values)
    return {name: value for values in metrics.values() for name, value in values.items()}


def parse_arguments(argv: list[str]) -> tuple[ModelArguments, DataArguments, TrainingArguments]:
    parser = HfArgumentParser((ModelArguments, DataArguments, TrainingArguments), description=__doc__.splitlines()[0])
    if len(argv) == 1 and argv[0].endswith(".json"):
        parsed = parser.parse_json_file(argv[0])
    elif len(argv) == 1 and argv[0].endswith((".yaml", ".yml")):
        parsed = parser.parse_yaml_file(argv[0])
    else:
        parsed = parser.parse_args_into_dataclasses(argv, look_for_args_file=False)

    model_args, data_args, training_args = parsed
    pretrained = model_args.model_name_or_path is not None
    if not (training_args.do_train or training_args.do_eval):
        raise ValueError("there is nothing to do: pass --do_train, --do_eval or both.")
    if not (training_args.do_train or pretrained):
        raise ValueError("--do_eval without --do_train needs --model_name_or_path, the model to evaluate.")
    if pretrained and (model_args.config_name or model_args.config_overrides):
        raise ValueError("--config_name and --config_overrides train from scratch: drop them or --model_name_or_path.")
    if data_args.dataset_name and (data_args.train_dir or data_args.validation_dir):
        raise ValueError("--dataset_name excludes --train_dir and --validation_dir: pass one or the other.")
    if not 0 < data_args.train_val_split < 1:
        raise ValueError(f"--train_val_split is {data_args.train_val_split}, but it must be between 0 and 1.")
    return parsed


def find_checkpoint_to_resume(training_args: TrainingArguments, overwrite: bool) -> str | None:
    """The checkpoint that was asked for, else the last complete one in `output_dir`; None to start anew."""
    asked = training_args.resume_from_checkpoint
    if asked is not None:
        if not _is_complete(Path(asked)):
            raise ValueError(f"--resume_from_checkpoint is {asked}, but that is no folder of a complete checkpoint.")
        return asked
    output_dir = Path(training_args.output_dir)
    if not training_args.do_train or not output_dir.is_dir() or not any(output_dir.iterdir()):
        return None

    checkpoints = {int(path.name.split("-")[1]): path for path in output_dir.glob(f"{PREFIX_CHECKPOINT_DIR}-[0-9]*")}
    if overwrite:
        for path in checkpoints.values():
            shutil.rmtree(path)
        return None
    complete = [step for step, path in checkpoints.items() if _is_complete(path)]
    if not complete:
        raise ValueError(f"--output_dir {output_dir} is not empty: choose another, or pass --overwrite_output_dir.")
    logger.info("Going on from %s; pass --overwrite_output_dir to train anew.", checkpoints[max(complete)])
    return str(checkpoints[max(complete)])


def _is_complete(checkpoint: Path) -> bool:
    return (checkpoint / "trainer_state.json").is_file()  # Trainer writes it last


def load_config(model_args: ModelArguments) -> PreTrainedConfig:
    fields = {"image_size": model_args.image_size, "drop_path_rate": model_args.drop_path_rate}
    fields = {name: value for name, value in fields.items() if value is not None}
    fields |= parse_overrides(model_args.config_overrides)
    source = model_args.model_name_or_path or model_args.config_name
    if source is None:
        config, unknown = CaitConfig.from_dict({}, return_unused_kwargs=True, **fields)
    else:
        config_class = CaitConfig if is_cait_of_timm(source) else AutoConfig
        config, unknown = config_class.from_pretrained(source, return_unused_kwargs=True, **fields)
    if unknown:
        raise ValueError(f"{', '.join(unknown)}: a configuration of type {config.model_type} has no such field.")
    if model_args.image_size is not None and not isinstance(config, CaitConfig):
        raise ValueError(f"--image_size is for CaiT only, but the model is of type {config.model_type}.")
    return config


def parse_overrides(overrides: str | None) -> dict:
    fields = {}
    for item in overrides.split(",") if overrides else ():
        name, equals, value = item.partition("=")
        if not equals:
            raise ValueError(f"--config_overrides has {item!r}, but each item must be FIELD=VALUE.")
        try:
            fields[name.strip()] = json.loads(value)
        except json.JSONDecodeError:
            fields[name.strip()] = value
    return fields


def is_cait_of_timm(source: str) -> bool:
    config_dict, _ = PreTrainedConfig.get_config_dict(source)
    return is_timm_config_dict(config_dict) and config_dict.get("architecture", "").startswith("cait_")


def set_labels(
    config: PreTrainedConfig,
    model_args: ModelArguments,
    train_data: LabelledPictures | None,
    eval_data: LabelledPictures | None,
):
    """Make the classes of the training pictures the model's, unless it has just these, in its own order."""
    pretrained = model_args.model_name_or_path is not None
    if train_data is not None and not (pretrained and set(train_data.class_names) == set(config.id2label.values())):
        names = train_data.class_names
        if len(names) < 2:
            raise ValueError(f"the training pictures have {len(names)} class, but there must be at least 2.")
        if pretrained and len(names) != config.num_labels and not model_args.ignore_mismatched_sizes:
            raise ValueError(
                f"{model_args.model_name_or_path} has {config.num_labels} classes and the data {len(names)}: pass "
                "--ignore_mismatched_sizes to start with a new classifier."
            )
        if pretrained and len(names) == config.num_labels:
            logger.warning("The classifier was trained for other classes than those of the data; it is trained on.")
        config.id2label = dict(enumerate(names))
    config.label2id = {name: index for index, name in config.id2label.items()}  # stored ones may lack it
    if eval_data is not None:
        unknown = [name for name in eval_data.class_names if name not in config.label2id]
        if unknown:
            raise ValueError(
                f"the pictures to evaluate on have {len(unknown)} classes that the model does not have, such as "
                f"{', '.join(unknown[:3])}; the model has {', '.join(list(config.label2id)[:3])}, ..."
            )


def load_model(config: PreTrainedConfig, model_args: ModelArguments) -> tuple[torch.nn.Module, object]:
    """The model and its image processor, for a CaiT the Pillow one: it repeats the official preprocessing exactly."""
    name = model_args.model_name_or_path
    if name is None:
        model = AutoModelForImageClassification.from_config(config)
    else:
        model = AutoModelForImageClassification.from_pretrained(
            name, config=config, ignore_mismatched_sizes=model_args.ignore_mismatched_sizes
        )
    if not isinstance(config, CaitConfig):
        return model, AutoImageProcessor.from_pretrained(name or model_args.config_name)
    sizes = {}
    if name is None or model_args.image_size is not None:
        height, width = as_pair(config.image_size)
        sizes = {"size": {"shortest_edge": max(height, width)}, "crop_size": {"height": height, "width": width}}
    if name is None:
        return model, CaitImageProcessorPil(**sizes)
    return model, CaitImageProcessorPil.from_pretrained(name, **sizes)


def topk_accuracy(num_labels: int) -> Callable:
    metric = evaluate.load(str(TOPK_ACCURACY), keep_in_memory=True)
    top_k = [k for k in (1, 5) if k == 1 or k < num_labels]

    def compute_metrics(prediction) -> dict[str, float]:
        logits = prediction.predictions[0] if isinstance(prediction.predictions, tuple) else prediction.predictions
        return metric.compute(predictions=logits, references=prediction.label_ids, top_k=top_k)

    return compute_metrics


if __name__ == "__main__":
    main()
