# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""CaitModel, its heads and CaitBackbone under the tests that Transformers' own models share."""

import unittest

from image_model import ImageModelTester, OverfitOnImages
from tests.test_backbone_common import BackboneTesterMixin
from tests.test_configuration_common import ConfigTester
from tests.test_fsdp_mixin import FSDPTesterMixin
from tests.test_memory_cleanup_mixin import MemoryCleanupMixin
from tests.test_modeling_common import ModelTesterMixin
from tests.test_pipeline_mixin import PipelineTesterMixin
from tests.test_tensor_parallel_mixin import TensorParallelTesterMixin
from tests.test_training_mixin import TrainingTesterMixin

from cait_hf import CaitBackbone, CaitConfig, CaitForImageClassification, CaitForMaskedImageModeling, CaitModel


def model_tester(parent, **fields) -> ImageModelTester:
    # Patches alone: the class token has no part in hidden states and attentions. LayerScale of order 1: at its default
    # a fresh model ignores its layers, and these tests would too.
    return ImageModelTester(
        parent, CaitConfig, seq_length=16, layer_scale_init_value=1.0, num_class_attention_layers=2, **fields
    )


class CaitModelTest(
    MemoryCleanupMixin,
    ModelTesterMixin,
    PipelineTesterMixin,
    FSDPTesterMixin,
    TensorParallelTesterMixin,
    unittest.TestCase,
):
    model_tester = None
    run_under_no_grad = False  # the tests of training and of gradients are among these
    all_model_classes = (CaitModel, CaitForImageClassification, CaitForMaskedImageModeling, CaitBackbone)
    pipeline_model_mapping = {
        "image-feature-extraction": CaitModel,
        "image-classification": CaitForImageClassification,
    }
    test_resize_embeddings = False  # no vocabulary

    def setUp(self):
        super().setUp()
        self.model_tester = model_tester(self)
        self.config_tester = ConfigTester(self, config_class=CaitConfig, has_text_modality=False, hidden_size=36)

    def test_config(self):
        self.config_tester.run_common_tests()

    @unittest.skip("Asks for nn.Embedding, a table of tokens: images have a projection of patches.")
    def test_model_get_set_embeddings(self):
        pass


class ImageTraining(unittest.TestCase):
    def setUp(self):
        self.model_tester = model_tester(self)


class CaitTrainingTest(OverfitOnImages, TrainingTesterMixin, ImageTraining):
    model_tester = None
    all_model_classes = (CaitForImageClassification,)


class CaitBackboneTest(BackboneTesterMixin, unittest.TestCase):
    all_model_classes = (CaitBackbone,)
    config_class = CaitConfig

    def setUp(self):
        self.model_tester = model_tester(self, out_features=["stage1", "stage2"])
