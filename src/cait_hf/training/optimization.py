# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""Which parameters train, at which fraction of the learning rate, with which weight decay, and the official schedule.

Sources: facebookresearch/deit, `main.py` (`--attn-only`, defaults of the schedule), with the optimizer groups and the
cosine schedule of timm 0.3.2, which it pins.
"""

import ast
import math
from typing import Any

import torch
from torch import nn
from transformers import Trainer, get_scheduler

from ..command_line import one_line
from .arguments import RecipeArguments, TrainingArguments


def decayed_parameter_names(model: nn.Module) -> set[str]:
    """Parameters with two or more axes that the model's `no_weight_decay()`, if it has one, does not exempt.

    Neither biases nor LayerNorms nor LayerScale decay, nor CaiT's positions and class token.
    """
    exempt = model.no_weight_decay() if hasattr(model, "no_weight_decay") else set()
    return {name for name, parameter in model.named_parameters() if parameter.ndim >= 2 and name not in exempt}


def parameter_groups(
    model: nn.Module, learning_rate: float, weight_decay: float, layer_decay: float = 1.0
) -> list[dict]:
    """The groups of an optimizer: every trainable parameter in exactly one of them.

    Args:
        model (`nn.Module`): with `layer_groups()` (see [`CaitForImageClassification`]) if `layer_decay` is not 1.
        learning_rate (`float`): of the last group, the head.
        weight_decay (`float`): of the parameters named by [`decayed_parameter_names`]; the others have none.
        layer_decay (`float`): each group before another has this fraction of its learning rate, in (0, 1].

    Returns:
        Dictionaries with "params", "lr", "weight_decay" and, for people, "name".

    Raises:
        ValueError: if `layer_decay` is outside (0, 1], or is not 1 and the model has no `layer_groups()`.
    """
    if not 0 < layer_decay <= 1:
        raise ValueError(f"--layer_decay is {layer_decay}, but it must be above 0 and at most 1.")
    if layer_decay == 1:
        layers = {"all": dict(model.named_parameters())}
    elif hasattr(model, "layer_groups"):
        layers = model.layer_groups()
    else:
        raise ValueError(
            f"--layer_decay is {layer_decay}, but {type(model).__name__} does not name its layers: pass 1."
        )
    decayed = decayed_parameter_names(model)
    groups = []
    for later, (layer, parameters) in zip(range(len(layers) - 1, -1, -1), layers.items()):
        for decays in (True, False):
            chosen = [p for name, p in parameters.items() if p.requires_grad and (name in decayed) == decays]
            if chosen:
                groups.append(
                    {
                        "name": f"{layer}{'' if decays else ', no decay'}",
                        "params": chosen,
                        "lr": learning_rate * layer_decay**later,
                        "weight_decay": weight_decay if decays else 0.0,
                    }
                )
    return groups


def cosine_schedule(
    optimizer: torch.optim.Optimizer,
    num_training_steps: int,
    num_warmup_steps: int,
    learning_rate: float,
    warmup_lr: float,
    min_lr: float,
) -> torch.optim.lr_scheduler.LambdaLR:
    """The schedule of the official training, step by step: linear to the learning rate, then a cosine to `min_lr`.

    As timm's `CosineLRScheduler(t_initial=num_training_steps, warmup_t=num_warmup_steps, t_in_epochs=False)`: the
    cosine starts at step 0, and the warm-up hides its first part. Groups with a smaller learning rate have all of
    it scaled down equally.

    Raises:
        ValueError: if `learning_rate` is not above 0, or `warmup_lr` or `min_lr` is not in [0, learning_rate].
    """
    if not learning_rate > 0:
        raise ValueError(f"--learning_rate is {learning_rate}, but it must be above 0.")
    for flag, value in (("--warmup_lr", warmup_lr), ("--min_lr", min_lr)):
        if not 0 <= value <= learning_rate:
            raise ValueError(f"{flag} is {value}, but it must be from 0 to the learning rate, {learning_rate}.")

    def fraction(step: int) -> float:
        if step < num_warmup_steps:
            return (warmup_lr + (learning_rate - warmup_lr) * step / num_warmup_steps) / learning_rate
        cosine = (1 + math.cos(math.pi * min(step / num_training_steps, 1.0))) / 2
        return (min_lr + (learning_rate - min_lr) * cosine) / learning_rate

    return torch.optim.lr_scheduler.LambdaLR(optimizer, fraction)


def make_optimizer(model: nn.Module, recipe: RecipeArguments, args: TrainingArguments) -> torch.optim.Optimizer:
    """The optimizer of `--optim` or `--timm_optimizer` with this package's groups: layer decay, what does not decay.

    Args:
        model (`nn.Module`): that of Transformers inside one of PEFT, see `models.plain_model`.

    Raises:
        ValueError: if timm has no such optimizer, if that does not take `--optim_args`, or by [`parameter_groups`].
    """
    groups = parameter_groups(model, args.learning_rate, args.weight_decay, recipe.layer_decay)
    if recipe.timm_optimizer is not None:
        return _timm_optimizer(groups, recipe.timm_optimizer, args)
    optimizer_class, options = Trainer.get_optimizer_cls_and_kwargs(args, model)
    return optimizer_class(groups, **options)


def _timm_optimizer(groups: list[dict], name: str, args: TrainingArguments) -> torch.optim.Optimizer:
    """With timm's own defaults, whatever `--adam_beta1` and the like are, and the keywords of `--optim_args`."""
    from timm.optim import get_optimizer_class, list_optimizers

    if name not in list_optimizers():
        raise ValueError(f"--timm_optimizer is {name}, but it must be one of {', '.join(list_optimizers())}.")
    try:
        return get_optimizer_class(name)(groups, lr=args.learning_rate, **_keywords(args.optim_args or ""))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"--optim_args is {args.optim_args}, but it must be NAME=VALUE, with commas between, of arguments of "
            f"timm's {name} ({one_line(error)})."
        ) from error


def _keywords(text: str) -> dict[str, Any]:
    """`{"eps": 1e-6, "betas": (0.9, 0.99)}` of "eps=1e-6, betas=(0.9, 0.99)"; runs no code."""
    try:
        call = ast.parse(f"dict({text})", mode="eval").body
    except SyntaxError as error:
        raise ValueError("not a list of arguments") from error
    if not isinstance(call, ast.Call) or call.args or not all(keyword.arg for keyword in call.keywords):
        raise ValueError("not a list of arguments")
    return {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}


def warmup_steps(recipe: RecipeArguments, args: TrainingArguments, num_training_steps: int) -> int:
    """Steps of the warm-up, of `--warmup_epochs` or `--warmup_steps`."""
    if recipe.warmup_epochs is not None:
        return math.ceil(num_training_steps * recipe.warmup_epochs / args.num_train_epochs)
    return args.get_warmup_steps(num_training_steps)


def make_scheduler(
    optimizer: torch.optim.Optimizer, recipe: RecipeArguments, args: TrainingArguments, num_training_steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """The schedule of `--lr_scheduler_type` or, with `--min_lr` or `--warmup_lr`, the official one."""
    num_warmup_steps = warmup_steps(recipe, args, num_training_steps)
    if not recipe.official_schedule:
        options = args.lr_scheduler_kwargs
        return get_scheduler(args.lr_scheduler_type, optimizer, num_warmup_steps, num_training_steps, options)
    lowest = recipe.warmup_lr or 0.0, recipe.min_lr or 0.0
    return cosine_schedule(optimizer, num_training_steps, num_warmup_steps, args.learning_rate, *lowest)


def freeze_all_but(model: nn.Module, trainable: str) -> list[str]:
    """Leave gradients to a part of the model only.

    Args:
        model (`PreTrainedModel`): an image classifier.
        trainable (`str`): "all"; "head", what is not in the base model, for a linear probe; "attention", the
            attentions, the positions and the head (`--attn-only` of facebookresearch/deit); or a number K: the last
            K layers and what comes after them, in a model with `layer_groups()`.

    Returns:
        The names of the trainable parameters.

    Raises:
        ValueError: if `trainable` is none of these, or the model has no such part.
    """
    if trainable == "all":
        return [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    chosen = head_names(model)
    if trainable == "attention":
        attention = [name for name, _ in model.named_parameters() if "attention." in name or ".attn." in name]
        if not attention:
            raise ValueError(f"--trainable is attention, but {type(model).__name__} has no parameters of that name.")
        chosen |= {*attention, *(name for name, _ in model.named_parameters() if "position_embeddings" in name)}
    elif trainable.isdecimal():
        chosen |= _last_layers_names(model, int(trainable))
    elif trainable != "head":
        raise ValueError(f"--trainable is {trainable}, but it must be all, head, attention or a number of layers.")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in chosen)
    return [name for name, _ in model.named_parameters() if name in chosen]


def head_names(model: nn.Module) -> set[str]:
    """Names of the parameters outside the base model.

    Raises:
        ValueError: if there are none, or no part of the model is called by its `base_model_prefix`, as in CLIP: then
            everything would seem to be outside.
    """
    prefix = model.base_model_prefix
    names = {name for name, _ in model.named_parameters() if not name.startswith(f"{prefix}.")}
    if not names or not hasattr(model, prefix):
        raise ValueError(f"{type(model).__name__} does not name its classifier: train all of it.")
    return names


def _last_layers_names(model: nn.Module, count: int) -> set[str]:
    if not hasattr(model, "layer_groups"):
        raise ValueError(f"--trainable is {count}, but {type(model).__name__} does not name its layers.")
    groups = model.layer_groups()
    layers = [group for group in groups if "layers." in group]
    if count > len(layers):
        raise ValueError(f"--trainable is {count}, but the model has {len(layers)} layers.")
    kept = [*layers[len(layers) - count :], "head"]
    return {name for group in kept for name in groups[group]}
