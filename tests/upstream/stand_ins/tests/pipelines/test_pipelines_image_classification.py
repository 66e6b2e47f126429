# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""Stand-in for a file that the source distribution lacks: what PipelineTesterMixin asks of an image classifier."""

import math

from PIL import Image
from transformers import pipeline


class ImageClassificationPipelineTests:
    """Builds the pipeline and checks what it says of images of two shapes, one by one and together."""

    def get_test_pipeline(self, model, tokenizer=None, image_processor=None, dtype="float32", **kwargs):
        images = [Image.effect_mandelbrot((60, 40), (-2, -1.5, 1, 1.5), 50), Image.radial_gradient("L")]
        task = pipeline("image-classification", model=model, image_processor=image_processor, dtype=dtype, top_k=3)
        return task, [image.convert("RGB") for image in images]

    def run_pipeline_test(self, task, examples):
        labels = task.model.config.id2label.values()
        together = task(examples)
        assert len(together) == len(examples)
        for example, predictions in zip(examples, together):
            assert len(predictions) == min(3, len(labels))
            assert all(prediction["label"] in labels for prediction in predictions)
            scores = [prediction["score"] for prediction in predictions]
            assert scores == sorted(scores, reverse=True) and sum(scores) <= 1 + 1e-3
            alone = task(example)
            assert [prediction["label"] for prediction in alone] == [prediction["label"] for prediction in predictions]
            assert all(math.isclose(a["score"], b["score"], abs_tol=1e-3) for a, b in zip(alone, predictions))
