# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""No network, one thread, no cache of the user's, and the same random numbers in every run."""

import atexit
import os
import shutil
import tempfile


# Read by the libraries when they are imported, and inherited by the processes that tests start.
os.environ.update(
    HF_HOME=tempfile.mkdtemp(prefix="cait-hf-tests-"),
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    HF_EVALUATE_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    HF_HUB_DISABLE_PROGRESS_BARS="1",
    HF_HUB_DISABLE_UPDATE_CHECK="1",
    OMP_NUM_THREADS="1",
    TOKENIZERS_PARALLELISM="false",
)
atexit.register(shutil.rmtree, os.environ["HF_HOME"], ignore_errors=True)

import pytest  # noqa: E402
import torch  # noqa: E402


torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
