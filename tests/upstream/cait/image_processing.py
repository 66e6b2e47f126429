# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""Both image processors of CaiT under the tests that Transformers' own image processors share."""

import unittest

from tests.test_image_processing_common import ImageProcessingTester, ImageProcessingTestMixin


class CaitImageProcessingTester(ImageProcessingTester):
    def __init__(self, parent, **kwargs):
        kwargs.setdefault("size", {"shortest_edge": 20})
        kwargs.setdefault("crop_size", {"height": 18, "width": 18})
        super().__init__(parent, **kwargs)


class CaitImageProcessingTest(ImageProcessingTestMixin, unittest.TestCase):
    image_processor_tester_class = CaitImageProcessingTester
    test_cast_dtype = True
