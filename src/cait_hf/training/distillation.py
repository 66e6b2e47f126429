# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""Knowledge distillation: the loss of a student with a teacher.

CaiT has no distillation token, and the public code cannot train one with a teacher: facebookresearch/deit, `losses.py`
wants the two outputs of a distilled DeiT. The ten checkpoints have one class token and one head, so teacher and labels
speak to the same logits, as in the distillation without a token of the DeiT paper (arXiv 2012.12877).
"""

from collections import Counter, defaultdict

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoModelForImageClassification
from transformers.image_processing_utils import BaseImageProcessor
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from ..command_line import one_line
from ..evaluation.imagenet import indices_of_classes
from ..labels import IMAGENET_1K_CLASSES
from .arguments import ModelArguments, RecipeArguments, loading
from .transforms import input_size, measure_normalization


class Distillation:
    """A teacher that sees what the student sees, with augmentation and mixup.

    The loss is `(1 - alpha) * own + alpha * teacher's`, the teacher's part (facebookresearch/deit, `losses.py`) being
    - "hard": the cross entropy with the class that the teacher likes best;
    - "soft": tau^2 times KL(teacher || student), both softened by tau, mean over batch and classes.

    Args:
        teacher (`PreTrainedModel`): an image classifier; put in evaluation mode, never trained.
        recipe ([`RecipeArguments`]): `distillation_type`, "hard" or "soft"; `distillation_alpha`, the weight of the
            teacher in [0, 1]; `distillation_tau`, the temperature of "soft", above 0.
        student_processor, teacher_processor: image processors; their means and deviations may differ.
        student_labels (`dict[int, str]`): names of the student's classes; the teacher must have the same ones.

    Raises:
        ValueError: if an argument is outside its range, or the classes differ.
    """

    def __init__(
        self,
        teacher: nn.Module,
        recipe: RecipeArguments,
        student_processor: BaseImageProcessor,
        teacher_processor: BaseImageProcessor,
        student_labels: dict[int, str],
    ) -> None:
        kind, alpha, tau = recipe.distillation_type, recipe.distillation_alpha, recipe.distillation_tau
        if kind not in ("hard", "soft"):
            raise ValueError(f"--distillation_type is {kind}, but it must be hard or soft.")
        if not 0 <= alpha <= 1:
            raise ValueError(f"--distillation_alpha is {alpha}, but it must be from 0 to 1.")
        if not tau > 0:
            raise ValueError(f"--distillation_tau is {tau}, but it must be above 0.")
        # channels last: a third of the time of a convolutional teacher in bfloat16 on a CPU
        self.teacher = teacher.eval().requires_grad_(False).to(memory_format=torch.channels_last)
        self.kind, self.alpha, self.tau = kind, alpha, tau
        self.order = _order_of_classes(student_labels, teacher.config.id2label)
        student, own = map(measure_normalization, (student_processor, teacher_processor))
        self.channels = [student.order.index(channel) for channel in own.order]  # where the student has the teacher's
        pairs = [(student.mean[s], student.std[s], own.mean[t], own.std[t]) for t, s in enumerate(self.channels)]
        # pixel = student_std * x + student_mean, and the teacher gets (pixel - mean) / std
        self.scale = torch.tensor([s / t for _, s, _, t in pairs])[:, None, None]
        self.shift = torch.tensor([(m - n) / t for m, _, n, t in pairs])[:, None, None]

    def to(self, device: torch.device) -> "Distillation":
        """Move the teacher and all that goes with it."""
        self.teacher.to(device)
        self.scale, self.shift, self.order = (tensor.to(device) for tensor in (self.scale, self.shift, self.order))
        return self

    def __call__(self, pixel_values: torch.Tensor, logits: torch.Tensor, own_loss: torch.Tensor) -> torch.Tensor:
        """The student's images `(batch, channels, height, width)`, its logits and its own loss to the whole loss."""
        with torch.no_grad():
            seen = pixel_values[:, self.channels] * self.scale + self.shift
            seen = seen.to(self.teacher.dtype, memory_format=torch.channels_last)
            teacher_logits = self.teacher(pixel_values=seen).logits[:, self.order]
        return (1 - self.alpha) * own_loss + self.alpha * teacher_loss(logits, teacher_logits, self.kind, self.tau)


def load_teacher(
    recipe: RecipeArguments,
    model_args: ModelArguments,
    student_processor: BaseImageProcessor,
    student_labels: dict[int, str],
) -> Distillation | None:
    """The teacher that the flags name.

    Raises:
        ValueError: if it does not fit the student, or does not take images of its size.
        OSError: if it is not there, or out of reach.
    """
    name = recipe.teacher_model_name_or_path
    if name is None:
        return None
    options = {"trust_remote_code": model_args.trust_remote_code}
    with loading("teacher_model_name_or_path", name):
        teacher = AutoModelForImageClassification.from_pretrained(name, dtype=torch.float32, **options)
        teacher_processor = AutoImageProcessor.from_pretrained(name, **options)
    distillation = Distillation(teacher, recipe, student_processor, teacher_processor, student_labels)
    height, width = input_size(student_processor)
    image = torch.zeros(1, len(measure_normalization(student_processor).mean), height, width)
    try:
        with torch.no_grad():
            teacher(pixel_values=image)
    except (ValueError, RuntimeError) as error:
        raise ValueError(
            f"--teacher_model_name_or_path is {name}, which does not take the model's images of {height} x {width} "
            f"pixels: {one_line(error)}"
        ) from error
    return distillation


def teacher_loss(logits: torch.Tensor, teacher_logits: torch.Tensor, kind: str, tau: float) -> torch.Tensor:
    """The teacher's part of the loss, see [`Distillation`]; logits `(batch, classes)` of equal classes."""
    wide = torch.promote_types(logits.dtype, torch.float32)
    if kind == "hard":
        return F.cross_entropy(logits.to(wide), teacher_logits.argmax(dim=1))
    student, teacher = (F.log_softmax(z.to(wide) / tau, dim=1) for z in (logits, teacher_logits))
    return F.kl_div(student, teacher, reduction="sum", log_target=True) * tau**2 / logits.numel()


def _order_of_classes(student_labels: dict[int, str], teacher_labels: dict[int, str]) -> torch.Tensor:
    """Of each class of the student, in order, the index that the teacher gives it.

    Those of ImageNet-1k may have other names: timm's are not those of this package, and folders are called by synsets.
    """
    if len(student_labels) != len(teacher_labels):
        counts = f"the teacher has {len(teacher_labels)} classes and the model {len(student_labels)}"
        raise ValueError(f"{counts}: they must be the same.")
    names = [student_labels[index] for index in range(len(student_labels))]
    missing = Counter(names) - Counter(teacher_labels.values())
    if not missing:
        indices_of = defaultdict(list)
        for index in sorted(teacher_labels):
            indices_of[teacher_labels[index]].append(index)
        return torch.tensor([indices_of[name].pop(0) for name in names])  # in timm's ImageNet two classes are "crane"
    if all(name == f"LABEL_{index}" for index, name in teacher_labels.items()):
        return torch.arange(len(names))  # a teacher whose classes have no names: taken to have the same order
    if len(names) == IMAGENET_1K_CLASSES:
        own, theirs = (
            indices_of_classes([labels[i] for i in sorted(labels)]) for labels in (student_labels, teacher_labels)
        )
        if own and theirs and set(own) == set(theirs):
            return torch.tensor([theirs.index(index) for index in own])
    name = next(iter(missing))
    raise ValueError(f"the teacher does not have the class {name!r}: it must be trained for the same classes.")
