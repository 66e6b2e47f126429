# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""CaiT ("Going deeper with Image Transformers", arXiv 2103.17239) for Hugging Face Transformers.

Importing the package registers model type `"cait"` with `AutoConfig`, `AutoModel`, `AutoModelForImageClassification`,
`AutoModelForMaskedImageModeling`, `AutoBackbone` and `AutoImageProcessor`.
"""

from typing import TYPE_CHECKING, NoReturn

from . import import_messages  # noqa: F401 - before Transformers, which imports what prints them


# isort: split

from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForMaskedImageModeling,
)
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers.utils import is_torchvision_available

from .attention_native import attention_backend
from .checkpoints import CHECKPOINTS, CaitCheckpoint, find_checkpoint
from .configuration_cait import CaitConfig
from .image_processing_pil_cait import CaitImageProcessorPil
from .loading import from_pretrained
from .modeling_cait import (
    CaitBackbone,
    CaitForImageClassification,
    CaitForImageClassificationOutput,
    CaitForMaskedImageModeling,
    CaitModel,
    CaitModelOutput,
    CaitPreTrainedModel,
)


__version__ = "0.1.0"

__all__ = [
    "CHECKPOINTS",
    "CaitBackbone",
    "CaitCheckpoint",
    "CaitConfig",
    "CaitForImageClassification",
    "CaitForImageClassificationOutput",
    "CaitForMaskedImageModeling",
    "CaitImageProcessorPil",
    "CaitModel",
    "CaitModelOutput",
    "CaitPreTrainedModel",
    "attention_backend",
    "find_checkpoint",
    "from_pretrained",
]

_image_processor_classes: dict[str, type] = {"pil": CaitImageProcessorPil}
if TYPE_CHECKING or is_torchvision_available():  # a type checker that saw __getattr__ would accept any name
    from .image_processing_cait import CaitImageProcessor

    __all__ += ["CaitImageProcessor"]
    _image_processor_classes["torchvision"] = CaitImageProcessor

else:

    def __getattr__(name: str) -> NoReturn:
        if name == "CaitImageProcessor":
            raise ImportError("CaitImageProcessor needs torchvision: install it, or use CaitImageProcessorPil.")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


# AutoImageProcessor from its own module: under `transformers` release 5.17 has a stand-in that wants torchvision.
# exist_ok: importing twice (a reload, a remote-code copy beside the package) registers again
AutoConfig.register(CaitConfig.model_type, CaitConfig, exist_ok=True)
AutoModel.register(CaitConfig, CaitModel, exist_ok=True)
AutoModelForImageClassification.register(CaitConfig, CaitForImageClassification, exist_ok=True)
AutoModelForMaskedImageModeling.register(CaitConfig, CaitForMaskedImageModeling, exist_ok=True)
AutoBackbone.register(CaitConfig, CaitBackbone, exist_ok=True)
AutoImageProcessor.register(CaitConfig, image_processor_classes=_image_processor_classes, exist_ok=True)
