# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""The comparison of logits with a reference. Whole models are compared in the tests of the commands that do so."""

import pytest
import torch

from cait_hf.verify import compare_logits


EXPECTED = torch.tensor([[2.0, -4.0]])


def test_difference_is_in_units_of_the_largest_logit():
    assert compare_logits(EXPECTED + 0.5, EXPECTED, "theirs", tolerance=0.125) == 0.125
    assert compare_logits(EXPECTED / 8 + 0.5, EXPECTED / 8, "theirs", tolerance=0.5, smallest_scale=1.0) == 0.5


@pytest.mark.parametrize(
    "logits, message",
    [
        (EXPECTED + 0.001, "^The logits differ from theirs by at most 2.5e-04 of the largest, more than the 1e-04"),
        (EXPECTED * float("nan"), "by at most nan of the largest"),
        (EXPECTED[:, :1], r"have shape \(1, 1\), but theirs have \(1, 2\)"),
    ],
    ids=["far", "not a number", "shape"],
)
def test_logits_that_are_refused(logits, message):
    with pytest.raises(ValueError, match=message):
        compare_logits(logits, EXPECTED, "theirs")
