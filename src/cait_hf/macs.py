# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""MACs (multiply-accumulate operations) of a configuration, counted without a model."""

from .configuration_cait import CaitConfig, as_pair


def macs(config: CaitConfig) -> int:
    """MACs of one image of `config.image_size`: the patch projection, every linear layer, and the two products and
    the two talking-heads projections of each attention. Norms, softmax, activations and additions are not counted."""
    rows, columns = (size // patch for size, patch in zip(as_pair(config.image_size), as_pair(config.patch_size)))
    patch_height, patch_width = as_pair(config.patch_size)
    patches, width, hidden = rows * columns, config.hidden_size, config.intermediate_size
    tokens = 1 + patches  # what the class token attends to

    embeddings = patches * width * config.num_channels * patch_height * patch_width
    patch_layer = (
        4 * patches * width**2  # queries, keys, values, output
        + 2 * patches**2 * width  # scores, attended values
        + 2 * patches**2 * config.num_attention_heads**2  # talking-heads projections
        + 2 * patches * width * hidden
    )
    class_layer = (
        2 * width**2  # query and output of the class token
        + 2 * tokens * width**2  # keys, values
        + 2 * tokens * width
        + 2 * width * hidden
    )
    return (
        embeddings
        + config.num_hidden_layers * patch_layer
        + config.num_class_attention_layers * class_layer
        + width * config.num_labels
    )
