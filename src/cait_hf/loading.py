# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""Weights and models from files, folders and repositories; nothing that is loaded runs code."""

import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from transformers import AutoModelForImageClassification, PreTrainedModel

from .configuration_cait import CaitConfig
from .modeling_cait import CaitForImageClassification
from .state_dict import convert_official_state_dict


REPO_ID = re.compile(r"[\w.-]+/[\w.-]+")


def load_model(source: str) -> CaitForImageClassification:
    """The model in the dtype of its file.

    Raises:
        ValueError: if tensors are damaged, missing, or of other shapes than the configuration says.
        OSError: if `source` does not exist or has no weights.
    """
    if Path(source).is_file():
        raise NotADirectoryError(f"source is {source}, a file, but it must be a folder or the id of a repository.")
    if not Path(source).is_dir() and not REPO_ID.fullmatch(source):
        raise FileNotFoundError(f"source is {source}, which is neither a folder nor the id of a repository.")
    model, missing = load_weights(CaitForImageClassification, source, "auto")
    require_none_missing(source, missing)
    return model


def load_weights(
    model_class: type[PreTrainedModel] | type[AutoModelForImageClassification],
    source: str,
    dtype: str | torch.dtype,
    revision: str = "main",
) -> tuple[PreTrainedModel, set[str]]:
    """The model, and the names of its tensors that `source` does not contain.

    Raises:
        ValueError: if tensors are damaged, or of other shapes than the configuration says.
        OSError: if `source` does not exist or has no weights.
    """
    try:
        model, loading = model_class.from_pretrained(source, revision=revision, dtype=dtype, output_loading_info=True)
    except (RuntimeError, safetensors.SafetensorError) as error:
        raise ValueError(f"The weights of {source} cannot be loaded: {error}") from error
    return model, set(loading["missing_keys"])


def require_none_missing(source: str, missing: set[str]) -> None:
    """Raise ValueError with the first names if `source` lacks tensors."""
    if missing:
        raise ValueError(f"{source} lacks {len(missing)} tensors, the first are {', '.join(sorted(missing)[:5])}.")


def read_weights(path: Path) -> dict[str, Any]:
    """Content of a weights file, mapped where its format allows; nothing that a pickle contains is ever run.

    Raises:
        ValueError: if the file is damaged or contains more than tensors.
        OSError: if it cannot be opened.
    """
    path.open("rb").close()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an old pickle protocol
        try:
            if path.suffix == ".safetensors":
                return safetensors.torch.load_file(path)
            return torch.load(str(path), map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
        except Exception as error:  # any bytes at all: the parsers' errors for them have no common class
            raise ValueError(
                f"{path} is damaged, or it contains more than tensors and was not unpickled ({type(error).__name__})."
            ) from error


def build_model(config: CaitConfig, state_dict: dict[str, Any]) -> CaitForImageClassification:
    """The model of `config` with the tensors of an official `state_dict`, in their dtype.

    Raises:
        ValueError: if the tensors are not those of this configuration; the first offenders are named.
    """
    converted = convert_official_state_dict(state_dict)
    with torch.device("meta"):
        model = CaitForImageClassification(config)
    expected = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    found = {key: tuple(tensor.shape) for key, tensor in converted.items()}
    if found != expected:
        offenders = [key for key in expected | found if expected.get(key) != found.get(key)]
        described = ", ".join(f"{key} is {found.get(key)}, not {expected.get(key)}" for key in offenders[:5])
        raise ValueError(f"{len(offenders)} tensors do not fit the configuration (None: absent): {described}.")
    model.load_state_dict({key: tensor.clone() for key, tensor in converted.items()}, assign=True)
    return model.eval()
