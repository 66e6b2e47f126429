# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""What the shared tests ask of a test class that brings a model, for CaiT and for ViT alike."""

import torch
from tests.test_modeling_common import floats_tensor, ids_tensor


class ImageModelTester:
    """Hands out tiny configurations and images. The shared tests read the attributes by name."""

    batch_size = 3
    num_channels = 3
    image_size = 32
    patch_size = 8
    hidden_size = 32
    num_hidden_layers = 2
    num_attention_heads = 4
    intermediate_size = 64
    num_labels = 5
    is_training = True
    mask_length = 16  # patches, of which the tests with a mask hide the first `num_masks`
    num_masks = 5

    def __init__(self, parent, config_class, seq_length: int, **fields):
        self.parent = parent
        self.config_class = config_class
        self.seq_length = seq_length
        self.fields = fields

    def get_config(self):
        # initializer_range: at 0.02 a model of this width hardly looks at its images
        return self.config_class(
            hidden_size=self.hidden_size,
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads,
            intermediate_size=self.intermediate_size,
            image_size=self.image_size,
            patch_size=self.patch_size,
            num_labels=self.num_labels,
            initializer_range=0.2,
            **self.fields,
        )

    def prepare_config_and_inputs_for_common(self):
        pixel_values = floats_tensor([self.batch_size, self.num_channels, self.image_size, self.image_size])
        return self.get_config(), {"pixel_values": pixel_values}


class OverfitOnImages:
    """Lets TrainingTesterMixin train on images, where it has a batch only for text: the batch is ours, the test its.

    The mixin asks which modality the inputs have, and for "text" reads `vocab_size` and calls the last method below.
    """

    def setUp(self):
        super().setUp()
        self.model_tester.fields["vocab_size"] = None

    def _get_model_modality(self):
        return "text"

    def _get_trainable_model_class(self):
        return next(cls for cls in self.all_model_classes)

    def _create_text_training_batch(self, batch_size, seq_length, vocab_size):
        size = self.model_tester.image_size
        images = torch.randn(batch_size, self.model_tester.num_channels, size, size)
        return {"pixel_values": images, "labels": ids_tensor([batch_size], self.model_tester.num_labels)}
