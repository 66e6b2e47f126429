# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""From an official CaiT checkpoint, or timm's copy of one, to a folder that `from_pretrained` loads.

The folder contains config.json, model.safetensors, preprocessor_config.json and a model card; it appears complete or
not at all. The sources are those of `cait_hf.sources`, the map of tensors is `cait_hf.state_dict`.
"""

import logging
from dataclasses import dataclass
from pathlib import Path

from .cards.checkpoint import render_model_card
from .checkpoints import CHECKPOINTS, CaitCheckpoint
from .configuration_cait import CaitConfig
from .files import new_folder, write_text
from .loading import build_model, require_finite
from .publish import add_remote_code
from .sources import load_source
from .verify import compare_with_timm, require_timm


logger = logging.getLogger(__name__)


@dataclass
class Converted:
    """Result of a conversion.

    `largest_difference` is in units of the largest logit, None if not verified; `has_known_sha256` says whether the
    source is, to the bit, a file whose SHA-256 is known.
    """

    config: CaitConfig
    has_image_processor: bool
    num_parameters: int
    source_sha256: str
    largest_difference: float | None
    has_known_sha256: bool


def convert(
    source: str,
    output_dir: Path,
    model_name: str,
    checkpoint: CaitCheckpoint | None = None,
    overwrite: bool = False,
    verify: bool = False,
    remote_code: bool = False,
    ema: bool = False,
) -> Converted:
    """Load, convert, write to a temporary folder, verify what was written, and only then give it its name.

    The source is read once, so that what is written, verified and hashed is the same. At no time is it in memory more
    than twice, mapped pages of files included (measured).

    Args:
        source: see `cait_hf.sources`.
        model_name: how the model card calls the result.
        checkpoint: the official checkpoint that a local source is said to be.
        ema: whether to take the EMA weights of a checkpoint of a training.

    Raises:
        ValueError: if the source is damaged, has NaN or infinite values, is not a CaiT, or not the `checkpoint`, or
            its logits are not timm's.
        OSError: if the source cannot be had, or changes while it is read, or the folder cannot be written.
    """
    if verify:
        require_timm()
    with new_folder(output_dir, source, overwrite) as folder:
        loaded = load_source(source, checkpoint, ema)
        weights = loaded.weights
        if weights.more_ema:
            logger.warning("%s has EMA weights, too, which --ema converts.", loaded.weights_file.name)
        require_finite(loaded.weights_file.name, weights.tensors)
        model = build_model(loaded.config, weights.tensors)
        num_parameters = model.num_parameters()
        model.save_pretrained(folder)
        del model
        if loaded.image_processor is not None:
            loaded.image_processor.save_pretrained(folder)
        if remote_code:
            add_remote_code(folder)
        difference = compare_with_timm(folder, weights.tensors) if verify else None
        card = render_model_card(
            loaded.config,
            model_name,
            checkpoint=loaded.checkpoint,
            source_name=loaded.name,
            source_file=f"{loaded.weights_file.name}{' (EMA weights)' if ema else ''}",
            source_sha256=weights.sha256,
            largest_difference=difference,
            has_image_processor=loaded.image_processor is not None,
            remote_code=remote_code,
        )
        write_text(folder / "README.md", card)
    is_known = weights.sha256 in {known.timm_file_sha256 for known in CHECKPOINTS}
    return Converted(
        loaded.config, loaded.image_processor is not None, num_parameters, weights.sha256, difference, is_known
    )
