# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""Stand-in for a file that the source distribution lacks: what PipelineTesterMixin asks of a feature extractor."""

import torch
from PIL import Image
from transformers import pipeline


class ImageFeatureExtractionPipelineTests:
    """Builds the pipeline and checks the shapes of hidden and of pooled features."""

    def get_test_pipeline(self, model, tokenizer=None, image_processor=None, dtype="float32", **kwargs):
        image = Image.effect_mandelbrot((60, 40), (-2, -1.5, 1, 1.5), 50).convert("RGB")
        task = pipeline("image-feature-extraction", model=model, image_processor=image_processor, dtype=dtype)
        return task, [image, image.rotate(90, expand=True)]

    def run_pipeline_test(self, task, examples):
        features = [torch.tensor(task(example)) for example in examples]
        hidden_size = task.model.config.hidden_size
        for feature in features:
            assert feature.ndim == 3 and (feature.shape[0], feature.shape[2]) == (1, hidden_size)
        assert not torch.equal(*features)
        assert torch.tensor(task(examples[0], pool=True)).shape == (1, hidden_size)
