# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""Stand-in for a file that the source distribution lacks: processes for the tests of parallel text models.

The mixins import these names; for an image model they skip before they would call one.
"""


def _no_text_model(*args, **kwargs):
    raise NotImplementedError("Upstream's parallel tests feed input_ids to a causal language model.")


run_distributed = _no_text_model
_get_distributed_backend = _no_text_model
_get_rank_device = _no_text_model
_set_rank_device = _no_text_model
_start_rank_processes = _no_text_model


def _get_distributed_device_type() -> str:
    return "cpu"
