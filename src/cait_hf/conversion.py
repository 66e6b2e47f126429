# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""From an official CaiT checkpoint, or timm's copy of one, to a folder that `from_pretrained` loads.

The folder contains config.json, model.safetensors, preprocessor_config.json and a model card; it appears complete or
not at all. The sources are those of `cait_hf.sources`, the map of tensors is `cait_hf.state_dict`.
"""

from dataclasses import dataclass
from pathlib import Path

from .cards.checkpoint import render_model_card
from .checkpoints import CaitCheckpoint
from .configuration_cait import CaitConfig
from .files import new_folder, sha256_of, write_text
from .loading import build_model, read_weights
from .publish import add_remote_code
from .sources import load_source
from .verify import compare_with_timm, require_timm


@dataclass
class Converted:
    """Result of a conversion. `largest_difference` is in units of the largest logit, None if not verified."""

    config: CaitConfig
    has_image_processor: bool
    num_parameters: int
    source_sha256: str
    largest_difference: float | None


def convert(
    source: str,
    output_dir: Path,
    model_name: str,
    checkpoint: CaitCheckpoint | None = None,
    overwrite: bool = False,
    verify: bool = False,
    remote_code: bool = False,
) -> Converted:
    """Load, convert, write to a temporary folder, verify what was written, and only then give it its name.

    At no time are the weights in memory more than twice, mapped pages of files included (measured; three times with
    `verify` where the source is a pickle from before torch 1.6, which cannot be mapped).

    Args:
        source: see `cait_hf.sources`.
        model_name: how the model card calls the result.
        checkpoint: the official checkpoint that a local source is said to be.

    Raises:
        ValueError: if the source is damaged, not a CaiT, or not the `checkpoint`, or its logits are not timm's.
        OSError: if the source cannot be had, or the folder cannot be written.
    """
    if verify:
        require_timm()
    with new_folder(output_dir, source, overwrite) as folder:
        loaded = load_source(source, checkpoint)
        model = build_model(loaded.config, read_weights(loaded.weights_file))
        num_parameters = model.num_parameters()
        model.save_pretrained(folder)
        del model
        if loaded.image_processor is not None:
            loaded.image_processor.save_pretrained(folder)
        if remote_code:
            add_remote_code(folder)
        difference = compare_with_timm(folder, loaded.weights_file) if verify else None
        source_sha256 = sha256_of(loaded.weights_file)
        card = render_model_card(
            loaded.config,
            model_name,
            checkpoint=loaded.checkpoint,
            source_name=loaded.name,
            source_file=loaded.weights_file.name,
            source_sha256=source_sha256,
            largest_difference=difference,
            has_image_processor=loaded.image_processor is not None,
            remote_code=remote_code,
        )
        write_text(folder / "README.md", card)
    return Converted(loaded.config, loaded.image_processor is not None, num_parameters, source_sha256, difference)
