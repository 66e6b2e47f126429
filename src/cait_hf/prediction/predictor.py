# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""What is computed of a batch of images: the most probable classes, embeddings, logits."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel


@dataclass
class Outputs:
    """Of a batch, perhaps not computed yet: float32 but for `classes`, int64.

    Attributes:
        scores, classes: (images, top_k), the best first.
        embedding: (images, channels), or None.
        logits: (images, classes), or None.
        copied (`torch.cuda.Event`): with CUDA, after which they are in the memory of the CPU; else None, and they are
            on the device.
    """

    scores: torch.Tensor
    classes: torch.Tensor
    embedding: torch.Tensor | None
    logits: torch.Tensor | None
    copied: Any = None


class Predictor:
    """A classifier of Transformers in evaluation mode, on a device and in a dtype.

    Args:
        model ([`PreTrainedModel`]): it is moved.
        top_k (`int`): how many classes; all where it has fewer.
        pool (`str` or `None`): embeddings are the "class" token after the last LayerNorm, or the "mean" of the patches
            after it. For models whose classifier takes the `pooler_output` of their base model, such as CaiT.
        embedding_dtype (`str`): "float32" or "float16".
        logits (`bool`): whether to keep them.
        compile_for (`int` or `None`): compile the model with `torch.compile` for batches of so many images. Smaller
            ones are filled up, so that no image is computed by code for another size, whatever came before.

    Raises:
        ValueError: if the model has no embeddings.
    """

    def __init__(
        self,
        model: PreTrainedModel | Any,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        top_k: int = 5,
        pool: str | None = None,
        embedding_dtype: str = "float32",
        logits: bool = False,
        compile_for: int | None = None,
    ) -> None:
        if pool not in (None, "class", "mean"):
            raise ValueError(f"pool is {pool!r}, but it must be None, 'class' or 'mean'.")
        config = model.config
        if pool is not None and not (hasattr(model, "classifier") and hasattr(config, "hidden_size")):
            raise ValueError(f"pool is {pool!r}, but a {type(model).__name__} has no embeddings.")
        self.model = model.eval().to(device, dtype)
        self.device, self.dtype = torch.device(device), dtype
        self.top_k = min(top_k, config.num_labels)
        self.num_labels: int = config.num_labels
        self.labels = np.array([config.id2label[index] for index in range(config.num_labels)], dtype=object)
        self.multi_label = config.problem_type == "multi_label_classification" or config.num_labels == 1
        self.pool, self.keeps_logits, self.compiled_for = pool, logits, compile_for
        self.embedding = None if pool is None else (config.hidden_size, np.dtype(embedding_dtype))
        self._call = self._logits_and_embedding
        if compile_for is not None:
            self._call = torch.compile(self._logits_and_embedding, dynamic=False)

    @torch.inference_mode()
    def __call__(self, pixel_values: torch.Tensor) -> Outputs:
        """Of (images, channels, height, width), in memory that is pinned without waiting for the result."""
        pixel_values = pixel_values.to(self.device, self.dtype, non_blocking=True)
        images = len(pixel_values)
        if self.compiled_for is not None:
            missing = self.compiled_for - images
            pixel_values = torch.cat([pixel_values, pixel_values[:1].expand(missing, -1, -1, -1)])
        logits, embedding = self._call(pixel_values)
        logits, embedding = logits[:images].float(), None if embedding is None else embedding[:images]
        best = (logits.sigmoid() if self.multi_label else logits.softmax(-1)).topk(self.top_k)
        outputs = Outputs(best.values, best.indices, embedding, logits if self.keeps_logits else None)
        if self.device.type == "cuda":  # now: a copy that is asked for after the next batch would wait for that
            for name, tensor in vars(outputs).items():
                if tensor is not None:
                    setattr(outputs, name, tensor.to("cpu", non_blocking=True))
            outputs.copied = torch.cuda.Event()
            outputs.copied.record(torch.cuda.current_stream(self.device))
        return outputs

    def _logits_and_embedding(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        if self.pool is None:
            return self.model(pixel_values).logits, None
        features = self.model.base_model(pixel_values)
        logits = self.model.classifier(features.pooler_output)
        if self.pool == "class":
            return logits, features.pooler_output.float()
        return logits, features.last_hidden_state[:, 1:].float().mean(1)

    def columns(self, outputs: Outputs) -> dict[str, np.ndarray]:
        """The columns of the table, as `cait_hf.prediction.tables.record_batch` takes them; waits for the device."""
        if outputs.copied is not None:
            outputs.copied.synchronize()
        columns = {"labels": self.labels[outputs.classes.cpu().numpy()], "scores": outputs.scores.cpu().numpy()}
        if outputs.embedding is not None and self.embedding is not None:
            columns["embedding"] = outputs.embedding.cpu().numpy().astype(self.embedding[1])
        if outputs.logits is not None:
            columns["logits"] = outputs.logits.cpu().numpy()
        return columns


def find_device(name: str | None) -> torch.device:
    """The device of this name, or without one the accelerator of this machine, or else the CPU.

    Raises:
        ValueError: if there is no such device.
    """
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if name is None:
        return accelerator or torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    known = ["cpu"]
    if accelerator is not None:
        known += [
            accelerator.type,
            *(f"{accelerator.type}:{index}" for index in range(torch.accelerator.device_count())),
        ]
    if device is None or str(device) not in known:
        raise ValueError(f"--device is {name}, but it must be one of {', '.join(known)}.")
    return device


def find_dtype(name: str | None, device: torch.device) -> torch.dtype:
    """The dtype of this name, or without one bfloat16 where the device computes in it, else float32.

    Such are GPUs that do not emulate it, and CPUs with AMX.
    """
    if name is not None:
        return getattr(torch, name)
    if device.type == "cuda":
        has_bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        capabilities: dict = getattr(torch.cpu, "get_capabilities", dict)()  # older versions of PyTorch do not say
        has_bfloat16 = device.type == "cpu" and capabilities.get("amx_bf16", False)
    return torch.bfloat16 if has_bfloat16 else torch.float32
