# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""The moving average of the weights, timm's `ModelEmaV3`, as both training scripts keep, evaluate and save it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from ..files import replacing


EMA_FILE = "ema.safetensors"


class ModelEma:
    """Average of the weights of a model over its steps, the last ones counting most.

    Args:
        model (`nn.Module`): the model without wrappers, its weights in one piece. Those after the first step
            are the first average.
        decay (`float`): what is kept of the average in a step, in (0, 1); the official training has 0.99996.
        warmup (`bool`): start with a smaller decay, which grows with the steps; for trainings that are short.

    Raises:
        ValueError: if `decay` is outside (0, 1).
        ImportError: if timm is not installed.
    """

    def __init__(self, model: nn.Module, decay: float, warmup: bool = False) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"--ema_decay is {decay}, but it must be between 0 and 1.")
        from timm.utils.model_ema import ModelEmaV3

        self._average = ModelEmaV3(model, decay=decay, use_warmup=warmup)

    def update(self, model: nn.Module, step: int) -> None:
        """Take the weights in after optimizer step number `step`, from 1."""
        self._average.update(model, step)

    @contextmanager
    def in_place_of(self, model: nn.Module) -> Iterator[None]:
        """Give the model the average; at the end it has its own weights again."""
        self._swap(model)
        try:
            yield
        finally:
            self._swap(model)

    @torch.no_grad()
    def _swap(self, model: nn.Module) -> None:
        own, average = model.state_dict(), self._average.module.state_dict()
        for name, tensor in own.items():
            kept = tensor.clone()
            tensor.copy_(average[name])
            average[name].copy_(kept)

    def save(self, folder: str | Path) -> None:
        """Write `ema.safetensors`, complete or not at all."""
        tensors = {name: tensor.contiguous() for name, tensor in self._average.module.state_dict().items()}
        with replacing(Path(folder) / EMA_FILE) as temporary:
            save_file(tensors, temporary)

    def load(self, folder: str | Path) -> None:
        """Take the average of a checkpoint.

        Raises:
            ValueError: if the checkpoint has none.
        """
        path = Path(folder) / EMA_FILE
        if not path.is_file():
            raise ValueError(
                f"{folder} contains no {EMA_FILE}: it was written without --ema_decay, resume without it, too."
            )
        self._average.module.load_state_dict(load_file(path))
