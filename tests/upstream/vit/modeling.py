# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""Transformers' ViT under the same tests in the same way: the number to compare with."""

import unittest

from image_model import ImageModelTester, OverfitOnImages
from tests.test_configuration_common import ConfigTester
from tests.test_fsdp_mixin import FSDPTesterMixin
from tests.test_memory_cleanup_mixin import MemoryCleanupMixin
from tests.test_modeling_common import ModelTesterMixin
from tests.test_pipeline_mixin import PipelineTesterMixin
from tests.test_tensor_parallel_mixin import TensorParallelTesterMixin
from tests.test_training_mixin import TrainingTesterMixin
from transformers import ViTConfig, ViTForImageClassification, ViTForMaskedImageModeling, ViTModel


class ViTModelTest(
    MemoryCleanupMixin,
    ModelTesterMixin,
    PipelineTesterMixin,
    FSDPTesterMixin,
    TensorParallelTesterMixin,
    unittest.TestCase,
):
    model_tester = None
    run_under_no_grad = False
    all_model_classes = (ViTModel, ViTForImageClassification, ViTForMaskedImageModeling)
    pipeline_model_mapping = {"image-feature-extraction": ViTModel, "image-classification": ViTForImageClassification}
    test_resize_embeddings = False

    def setUp(self):
        super().setUp()
        self.model_tester = ImageModelTester(self, ViTConfig, seq_length=17, encoder_stride=8)
        self.config_tester = ConfigTester(self, config_class=ViTConfig, has_text_modality=False, hidden_size=36)

    def test_config(self):
        self.config_tester.run_common_tests()

    @unittest.skip("Asks for nn.Embedding, a table of tokens: images have a projection of patches.")
    def test_model_get_set_embeddings(self):
        pass


class ImageTraining(unittest.TestCase):
    def setUp(self):
        self.model_tester = ImageModelTester(self, ViTConfig, seq_length=17)


class ViTTrainingTest(OverfitOnImages, TrainingTesterMixin, ImageTraining):
    model_tester = None
    all_model_classes = (ViTForImageClassification,)
