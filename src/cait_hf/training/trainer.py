# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""`Trainer` with the weight decay of the official recipe (facebookresearch/deit with timm 0.3.2's optimizers).

Like the official training loop (`engine.py`), it stops at a loss that is not finite; plain `Trainer` trains on.
"""

import torch
from transformers import Trainer


class ImageClassificationTrainer(Trainer):
    """`Trainer` that decays no vectors (biases, norms, LayerScale), no positions and no class token.

    Raises:
        FloatingPointError: by `train`, if the loss of a step is not finite. The step is not taken, and earlier
            checkpoints are kept.
    """

    def training_step(self, *args, **kwargs) -> torch.Tensor:
        """The base class's step; raises `FloatingPointError` before its gradients reach the weights."""
        loss = super().training_step(*args, **kwargs)
        if not torch.isfinite(loss).all():
            raise FloatingPointError(
                f"The loss is {loss.item()} at step {self.state.global_step + 1}, so training stopped before that "
                "step: look for pixels or labels that are not finite, or lower the learning rate. Checkpoints of "
                f"earlier steps, if any, are in {self.args.output_dir}."
            )
        return loss

    def get_decay_parameter_names(self, model: torch.nn.Module) -> list[str]:
        """Names of the parameters with two or more axes that the model's `no_weight_decay()`, if any, leaves."""
        exempt = model.no_weight_decay() if hasattr(model, "no_weight_decay") else set()
        return [name for name, parameter in model.named_parameters() if parameter.ndim >= 2 and name not in exempt]
