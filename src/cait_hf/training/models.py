# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""The model to train or evaluate, with its image processor, its classes, and adapters if asked for."""

import copy
import json
import logging
import re
import warnings
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForImageClassification, PreTrainedConfig, PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers.utils.generic import is_timm_config_dict

from ..configuration_cait import CaitConfig, as_pair
from ..image_processing_pil_cait import CaitImageProcessorPil
from .arguments import ModelArguments, RecipeArguments, loading
from .data import LabeledImages
from .optimization import head_names


logger = logging.getLogger(__name__)


def load_config(model_args: ModelArguments) -> PreTrainedConfig:
    """The configuration that the flags ask for.

    Raises:
        ValueError: for fields that it does not have, if it cannot be read, or if it is not for RGB images.
        OSError: if it is not there, or out of reach.
    """
    fields = {"image_size": model_args.image_size, "drop_path_rate": model_args.drop_path_rate}
    fields = {name: value for name, value in fields.items() if value is not None}
    fields |= _parse_overrides(model_args.config_overrides)
    source = model_args.model_name_or_path or model_args.config_name
    if source is None:
        config, unknown = CaitConfig.from_dict({}, return_unused_kwargs=True, **fields)
    else:
        with loading(source_flag(model_args), source):
            config_class = CaitConfig if is_cait_of_timm(source) else AutoConfig
            options = {} if config_class is CaitConfig else {"trust_remote_code": model_args.trust_remote_code}
            config, unknown = config_class.from_pretrained(source, return_unused_kwargs=True, **options, **fields)
    unknown.pop("trust_remote_code", None)
    if "drop_path_rate" in model_args.optional and unknown.pop("drop_path_rate", None) is not None:
        logger.warning("The recipe's drop_path_rate is left out: models of type %s have none.", config.model_type)
        model_args.drop_path_rate = None  # so that the model card does not state it
    if source is not None and drop_auto_map(config, source):
        logger.info(
            "The modeling files in %s do not run and are not copied: installed code knows the model.%s",
            source,
            " To add them again: cait-hf push --remote_code" if config.model_type == CaitConfig.model_type else "",
        )
    if unknown:
        raise ValueError(f"{', '.join(unknown)}: a configuration of type {config.model_type} has no such field.")
    if model_args.image_size is not None and config.model_type != CaitConfig.model_type:
        raise ValueError(f"--image_size is for CaiT only, but the model is of type {config.model_type}.")
    channels = getattr(config, "num_channels", 3)
    if channels != 3:
        raise ValueError(f"the model has num_channels {channels}, but training gives it RGB images, of 3 channels.")
    return config


def source_flag(model_args: ModelArguments) -> str:
    """The flag that names what is loaded."""
    return "model_name_or_path" if model_args.model_name_or_path is not None else "config_name"


def drop_auto_map(part: PreTrainedConfig | BaseImageProcessor, source: str) -> bool:
    """Drop the names of modeling files that a folder had and that saving would not copy; whether there were any.

    Transformers copies the code that it runs. The names of a repository's files name the repository, too, and stay.
    """
    is_remote = type(part).__module__.startswith("transformers_modules.")
    return not is_remote and Path(source).is_dir() and part.__dict__.pop("auto_map", None) is not None


def _parse_overrides(overrides: str | None) -> dict:
    fields = {}
    for item in re.split(r",(?![^\[]*\])", overrides) if overrides else ():  # not within a list
        name, equals, value = item.partition("=")
        if not equals:
            raise ValueError(f"--config_overrides has {item!r}, but each item must be FIELD=VALUE.")
        try:
            fields[name.strip()] = json.loads(value)
        except json.JSONDecodeError:
            fields[name.strip()] = value
    return fields


def is_cait_of_timm(source: str) -> bool:
    """Whether a folder or repository is timm's, with a CaiT in it."""
    config_dict, _ = PreTrainedConfig.get_config_dict(source)
    return is_timm_config_dict(config_dict) and config_dict.get("architecture", "").startswith("cait_")


def set_labels(
    config: PreTrainedConfig,
    model_args: ModelArguments,
    train_data: LabeledImages | None,
    eval_data: LabeledImages | None,
) -> None:
    """Make the classes of the training images the model's, unless it has just these, in its own order.

    Raises:
        ValueError: if there are fewer than two, if a checkpoint has others and no new classifier is allowed, or if
            the images to evaluate on have classes that the model does not have.
    """
    pretrained = model_args.model_name_or_path is not None
    if train_data is not None and not (
        pretrained and set(train_data.class_names) == set((config.id2label or {}).values())
    ):
        names = train_data.class_names
        if len(names) < 2:
            raise ValueError(f"the training images have {len(names)} class, but there must be at least 2.")
        if pretrained and len(names) != config.num_labels and not model_args.ignore_mismatched_sizes:
            raise ValueError(
                f"{model_args.model_name_or_path} has {config.num_labels} classes and the data {len(names)}: pass "
                "--ignore_mismatched_sizes to start with a new classifier."
            )
        if pretrained and len(names) == config.num_labels:
            logger.warning("The classifier was trained for other classes than those of the data; it is trained on.")
        config.num_labels = len(names)  # a field of its own in a few configurations, such as PVT's
        config.id2label = dict(enumerate(names))
    config.label2id = {name: index for index, name in config.id2label.items()}  # stored ones may lack it
    if config.problem_type is not None:  # each image has one class, whatever a checkpoint was trained for
        config.problem_type = "single_label_classification"
    if eval_data is not None:
        unknown = [name for name in eval_data.class_names if name not in config.label2id]
        if unknown:
            raise ValueError(
                f"the images to evaluate on have {len(unknown)} classes that the model does not have, such as "
                f"{', '.join(unknown[:3])}; the model has {', '.join(list(config.label2id)[:3])}, ..."
            )


def load_model(config: PreTrainedConfig, model_args: ModelArguments) -> tuple[PreTrainedModel, BaseImageProcessor]:
    """The model and its image processor, for a CaiT the Pillow one: it repeats the official preprocessing exactly."""
    name = model_args.model_name_or_path
    options = {"trust_remote_code": model_args.trust_remote_code}
    # Training keeps float32 weights, whatever was stored; autocast computes in less.
    if name is None:
        model = AutoModelForImageClassification.from_config(config, dtype=torch.float32, **options)
    else:
        with loading(source_flag(model_args), name):
            model, report = AutoModelForImageClassification.from_pretrained(
                name,
                config=config,
                dtype=torch.float32,
                ignore_mismatched_sizes=model_args.ignore_mismatched_sizes,
                output_loading_info=True,
                **options,
            )
        log_new_weights(name, report)
    source = name or model_args.config_name
    if config.model_type != CaitConfig.model_type:
        assert source is not None  # or it would be a CaiT
        with loading(source_flag(model_args), source):
            image_processor = AutoImageProcessor.from_pretrained(source, **options)
        drop_auto_map(image_processor, source)
        return model, image_processor
    sizes = {}
    if name is None or model_args.image_size is not None:
        height, width = as_pair(config.image_size)
        sizes = {"size": {"shortest_edge": max(height, width)}, "crop_size": {"height": height, "width": width}}
    if name is None:
        return model, CaitImageProcessorPil(**sizes)
    with loading(source_flag(model_args), name):
        image_processor = CaitImageProcessorPil.from_pretrained(name, **sizes)
    drop_auto_map(image_processor, name)
    return model, image_processor


def log_new_weights(name: str, report: dict) -> None:
    """Say in one line, instead of Transformers' table, which tensors of the model did not come from `name`."""
    new = sorted({*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])})
    if new:
        first = ", ".join(new[:5]) + (", ..." if len(new) > 5 else "")
        logger.info("%d tensors are absent in %s, or of other shapes, and start random: %s.", len(new), name, first)


def add_lora(model: PreTrainedModel, recipe: RecipeArguments) -> torch.nn.Module:
    """The model with adapters on some linears; they and the classifier train.

    Raises:
        ValueError: if the model has no linear of these names, or does not name its classifier.
        ImportError: if PEFT is not installed.
    """
    from peft import LoraConfig, get_peft_model

    assert recipe.lora_rank is not None  # what asks for adapters

    head = sorted({name.split(".")[0] for name in head_names(model)})
    targets = [name.strip() for name in recipe.lora_target_modules.split(",")]
    linears = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    for target in targets:
        if not any(f".{name}".endswith(f".{target}") for name in linears):
            known = ", ".join(sorted({name.split(".")[-1] for name in linears}))
            raise ValueError(f"--lora_target_modules has {target!r}, but the linears of the model are {known}.")
    config = LoraConfig(
        r=recipe.lora_rank,
        lora_alpha=recipe.lora_alpha or 2 * recipe.lora_rank,
        lora_dropout=recipe.lora_dropout,
        target_modules=targets,
        modules_to_save=head,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT asks for what Transformers has renamed
        return get_peft_model(model, config)


def save_model(
    model: torch.nn.Module,
    image_processor: BaseImageProcessor,
    folder: str | Path,
    state_dict: dict[str, torch.Tensor] | None = None,
) -> None:
    """Write what `from_pretrained` loads, with adapters merged; they stand by themselves in `adapter`.

    Args:
        state_dict: the model's, where its weights are sharded.
    """
    if hasattr(model, "merge_and_unload"):
        model.save_pretrained(Path(folder) / "adapter")
        (Path(folder) / "adapter" / "README.md").unlink()  # PEFT's empty template, with the local path of the base
        model = copy.deepcopy(model).merge_and_unload()
    model.save_pretrained(folder, state_dict=state_dict)
    image_processor.save_pretrained(folder)


def plain_model(model: torch.nn.Module) -> torch.nn.Module:
    """The model of Transformers inside one of PEFT, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def has_unused_parameters(model: torch.nn.Module) -> bool:
    """Whether the logits leave a parameter that trains without a gradient, such as the mask token of a DINOv2.

    DDP waits for the gradients of all parameters unless it looks for such ones, which takes time and warns where there
    are none. A step on the meta device tells, without data; True for a model that cannot take one there.
    """
    config = plain_model(model).config
    sides = getattr(config, "image_size", 224)
    sides = sides if isinstance(sides, list | tuple) else (sides, sides)
    meta = {name: torch.empty_like(buffer, device="meta") for name, buffer in model.named_buffers()}
    training = {name: p for name, p in model.named_parameters() if p.requires_grad}
    parameters = {name: torch.empty_like(p, device="meta").requires_grad_() for name, p in training.items()}
    meta |= {name: torch.empty_like(p, device="meta") for name, p in model.named_parameters() if name not in training}
    try:
        images = torch.empty(1, getattr(config, "num_channels", 3), *sides, device="meta")
        outputs = torch.func.functional_call(model, parameters | meta, kwargs={"pixel_values": images})
        outputs.logits.sum().backward()
    except Exception:  # of any model: it may need values, or another size
        return True
    return any(parameter.grad is None for parameter in parameters.values())
