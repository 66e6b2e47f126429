# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""`Trainer` with the weight decay of the official recipe (facebookresearch/deit with timm 0.3.2's optimizers)."""

import torch
from transformers import Trainer


class ImageClassificationTrainer(Trainer):
    """`Trainer` that decays no vectors (biases, norms, LayerScale), no positions and no class token."""

    def get_decay_parameter_names(self, model: torch.nn.Module) -> list[str]:
        """Names of the parameters with two or more axes that the model's `no_weight_decay()`, if any, leaves."""
        exempt = model.no_weight_decay() if hasattr(model, "no_weight_decay") else set()
        return [name for name, parameter in model.named_parameters() if parameter.ndim >= 2 and name not in exempt]
