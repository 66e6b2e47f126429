# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""Stand-in for a file that the source distribution lacks: values of the fields that every configuration has."""

# None of them a default, so that ConfigTester sees which ones a configuration loses.
config_common_kwargs = {
    "return_dict": False,
    "output_hidden_states": True,
    "output_attentions": True,
    "dtype": "float16",
    "chunk_size_feed_forward": 3,
    "is_encoder_decoder": True,
    "architectures": ["AModel"],
    "id2label": {0: "ant", 1: "bee", 2: "cat"},
    "label2id": {"ant": 0, "bee": 1, "cat": 2},
    "problem_type": "regression",
    "name_or_path": "somewhere",
}
