# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""Transformers' ViT image processors under the same tests: the number to compare with."""

import unittest

from tests.test_image_processing_common import ImageProcessingTester, ImageProcessingTestMixin


class ViTImageProcessingTester(ImageProcessingTester):
    def __init__(self, parent, **kwargs):
        kwargs.setdefault("size", {"height": 18, "width": 18})
        super().__init__(parent, **kwargs)


class ViTImageProcessingTest(ImageProcessingTestMixin, unittest.TestCase):
    image_processor_tester_class = ViTImageProcessingTester
    test_cast_dtype = True
