# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""Images with their classes and what the model takes them for, in trackers that show images, once an epoch."""

import os
from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from transformers import TrainerCallback, TrainerState, TrainingArguments
from transformers.image_processing_utils import BaseImageProcessor

from .data import LabeledImages
from .streaming import ImageStream
from .transforms import collate, measure_normalization


NAME = "predictions"
NUM_IMAGES, COLUMNS, TILE, LINE = 16, 4, 160, 14  # of the drawing, the last two in pixels


class LogPredictions(TrainerCallback):
    """Logs a drawing of some images to evaluate on, with the class that they have and the predicted one, if another.

    Args:
        eval_data ([`LabeledImages`] or [`ImageStream`]): evenly spaced images of it, or the first of a stream.
        image_processor: of the model; its normalization is undone.
        id2label (`Mapping[int, str]`): names of the classes.
    """

    def __init__(
        self,
        eval_data: LabeledImages | ImageStream,
        image_processor: BaseImageProcessor,
        id2label: Mapping[int, str],
    ) -> None:
        self.eval_data, self.image_processor, self.id2label = eval_data, image_processor, id2label
        self.batch: dict[str, torch.Tensor] | None = None  # the images, once they were read

    def on_epoch_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: Any,
        model: torch.nn.Module,
        **kwargs: Any,
    ) -> None:
        if self.batch is None:
            self.batch = collate(some_of(self.eval_data))
        was_training = model.training
        model.eval()
        with torch.no_grad():  # on every process: the weights may lie in pieces on them
            logits = model(pixel_values=self.batch["pixel_values"].to(args.device)).logits
        model.train(was_training)
        if state.is_world_process_zero:
            drawing = self.draw(logits.float().softmax(-1).cpu())
            for tracker in args.report_to:
                if tracker in TRACKERS:
                    TRACKERS[tracker](drawing, args, state.global_step)

    def draw(self, scores: torch.Tensor) -> Image.Image:
        """The images in a grid, a green text below a correct one, a red one below another.

        Args:
            scores (`torch.Tensor`): of the classes, `(images, classes)`.
        """
        assert self.batch is not None
        mean, std, order = measure_normalization(self.image_processor)
        shape = (-1, 1, 1)
        pixels = self.batch["pixel_values"] * torch.tensor(std).view(shape) + torch.tensor(mean).view(shape)
        pixels = (255 * pixels[:, torch.tensor(order).argsort()]).round().clamp(0, 255).byte()
        rows = -(-len(scores) // COLUMNS)
        drawing = Image.new("RGB", (COLUMNS * TILE, rows * (TILE + 2 * LINE)), "white")
        context, font = ImageDraw.Draw(drawing), ImageFont.load_default()
        for index, (image, label, row) in enumerate(zip(pixels, self.batch["labels"].tolist(), scores)):
            score, best = row.max(-1)
            left, top = index % COLUMNS * TILE, index // COLUMNS * (TILE + 2 * LINE)
            tile = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((TILE - 4, TILE - 4))
            drawing.paste(tile, (left + 2, top + 2))
            found = f"{self.id2label[int(best)]} {score:.0%}"
            correct = int(best) == label
            lines = [found] if correct else [found, f"is {self.id2label[label]}"]
            for number, text in enumerate(lines):
                place = (left + 2, top + TILE + number * LINE)
                context.text(place, short(text), fill="green" if correct else "firebrick", font=font)
        return drawing


def some_of(eval_data: LabeledImages | ImageStream) -> list[dict]:
    if isinstance(eval_data, ImageStream):
        return list(islice(eval_data, NUM_IMAGES))
    count = min(NUM_IMAGES, len(eval_data))
    return [eval_data[index * len(eval_data) // count] for index in range(count)]


def short(text: str, length: int = 26) -> str:
    """A text that a tile has place for, of letters that the font has."""
    text = text.encode("latin-1", "replace").decode("latin-1")
    return text if len(text) <= length else f"{text[: length - 3]}..."


def _tensorboard(drawing: Image.Image, args: TrainingArguments, step: int) -> None:
    from torch.utils.tensorboard import SummaryWriter

    folder = os.environ.get("TENSORBOARD_LOGGING_DIR", os.path.join(args.output_dir, "runs"))
    with SummaryWriter(os.path.join(folder, NAME)) as writer:
        writer.add_image(NAME, np.asarray(drawing), step, dataformats="HWC")


def _trackio(drawing: Image.Image, args: TrainingArguments, step: int) -> None:
    import trackio

    trackio.log({NAME: trackio.Image(drawing)})


def _wandb(drawing: Image.Image, args: TrainingArguments, step: int) -> None:
    import wandb

    if wandb.run is not None:
        wandb.log({NAME: wandb.Image(drawing)}, commit=False)  # with the metrics that follow


def _mlflow(drawing: Image.Image, args: TrainingArguments, step: int) -> None:
    import mlflow

    mlflow.log_image(drawing, key=NAME, step=step)


# What puts a drawing into each tracker, whose run is the one in progress.
TRACKERS: dict[str, Callable[[Image.Image, TrainingArguments, int], None]] = {
    "mlflow": _mlflow,
    "tensorboard": _tensorboard,
    "trackio": _trackio,
    "wandb": _wandb,
}
