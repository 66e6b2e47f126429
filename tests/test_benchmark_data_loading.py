# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""`scripts/benchmark/data_loading.py` runs at a small size; what it measures is in BENCHMARKS.md."""

import pytest
from test_scripts import SCRIPTS, load_script


def test_both_loaders_are_measured(capsys):
    pytest.importorskip("timm", reason="timm's loader is the other baseline")
    flags = "--images 16 --batch_size 8 --num_workers 0 --rounds 3 --image_size 32"
    result = load_script("data_loading", SCRIPTS / "benchmark").main(flags.split())
    assert result["cait-hf"] > 0 and result["timm"] > 0
    assert result["lowest"] <= result["ratio"] <= result["highest"]
    assert '"ratio"' in capsys.readouterr().out
