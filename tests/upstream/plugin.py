# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""Pytest plugin: makes CaiT known where the shared tests look models up by name, and saves the tiny models they load.

Inside transformers a model is found in tables of class names; a registered one is not in them.
"""

import json
import os
from pathlib import Path

import pytest


def pytest_configure(config: pytest.Config):
    # Not at the top of the file: tests/conftest.py has to set the environment first.
    # And transformers after what imports parts of it: on the way it replaces its own module by another.
    import cait_hf  # isort: skip
    import transformers
    from transformers.models.auto import image_processing_auto, modeling_auto

    for name in cait_hf.__all__:
        setattr(transformers, name, getattr(cait_hf, name))
    modeling_auto.MODEL_MAPPING_NAMES["cait"] = "CaitModel"
    modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES["cait"] = "CaitForImageClassification"
    modeling_auto.MODEL_FOR_MASKED_IMAGE_MODELING_MAPPING_NAMES["cait"] = "CaitForMaskedImageModeling"
    modeling_auto.MODEL_FOR_BACKBONE_MAPPING_NAMES["cait"] = "CaitBackbone"
    image_processing_auto.IMAGE_PROCESSOR_MAPPING_NAMES["cait"] = {
        "torchvision": "CaitImageProcessor",
        "pil": "CaitImageProcessorPil",
    }
    if not hasattr(config, "workerinput"):  # once, where several processes share the tests
        save_tiny_models(Path(os.environ["TRANSFORMERS_TINY_MODEL_PATH"]))


def save_tiny_models(folder: Path):
    """What PipelineTesterMixin loads: a folder for each class of model, and a table of them."""
    import transformers
    from transformers import ViTConfig, ViTForImageClassification, ViTModel

    from cait_hf import CaitConfig, CaitForImageClassification, CaitModel

    tiny = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    tiny |= {"image_size": 32, "patch_size": 8, "num_labels": 5, "initializer_range": 0.2}
    summary = {}
    for config, classes in (
        (CaitConfig(**tiny, layer_scale_init_value=1.0), (CaitModel, CaitForImageClassification)),
        (ViTConfig(**tiny), (ViTModel, ViTForImageClassification)),
    ):
        prefix = "Cait" if config.model_type == "cait" else "ViT"
        processors = [f"{prefix}ImageProcessor", f"{prefix}ImageProcessorPil"]
        size = {"size": {"height": 32, "width": 32}}
        if prefix == "Cait":
            size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
        for model_class in classes:
            target = folder / config.model_type / model_class.__name__
            model_class(config).save_pretrained(target)
            getattr(transformers, processors[0])(**size).save_pretrained(target)
            summary[model_class.__name__] = {"tokenizer_classes": [], "processor_classes": processors}
    (folder / "reports").mkdir()
    (folder / "reports" / "tiny_model_summary.json").write_text(json.dumps(summary))
