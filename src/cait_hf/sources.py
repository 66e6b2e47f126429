# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""Sources of a conversion: weights, and the configuration and image processor that fit them.

A source is a file in the official format (`.pth`, or `.safetensors` with the same keys) or a checkpoint that the
training code of deit or timm wrote, the name of an official checkpoint to download (`XXS24_224`), a repository of timm
on the Hub (`timm/cait_xxs24_224.fb_dist_in1k`), or a folder with timm's `config.json` and weights.

Official files and names: facebookresearch/deit, `cait_models.py`.
"""

from dataclasses import dataclass
from pathlib import Path

import torch

from .checkpoints import SECOND_HAND, CaitCheckpoint, find_checkpoint
from .configuration_cait import CaitConfig
from .files import read_json, sha256_of, unchanged
from .image_processing_pil_cait import CaitImageProcessorPil
from .labels import imagenet_1k_labels, label_kwargs
from .loading import HUB_ERRORS, REPO_ID, DamagedDownload, DamagedFile, Weights, fetch, read_weights
from .state_dict import infer_config_kwargs
from .timm_format import config_kwargs_from_timm


_HEADER_BYTES = 10**6  # more than the header of a safetensors file of the largest checkpoint (86,160 bytes) has


@dataclass
class Source:
    """A loaded source.

    Attributes:
        name: how the model card calls it.
        weights_file: where the tensors were, in the official format.
        weights: the tensors.
        config: the model's configuration, labels included.
        image_processor: how its images are prepared, None where the class has no such preparation.
        checkpoint: the official checkpoint, where the weights are those of its authors or timm's copy of them.
    """

    name: str
    weights_file: Path
    weights: Weights
    config: CaitConfig
    image_processor: CaitImageProcessorPil | None
    checkpoint: CaitCheckpoint | None = None


class WrongCheckpoint(ValueError):
    """Weights that are not those of the official checkpoint that they are said to be."""


def load_source(source: str, checkpoint: CaitCheckpoint | None = None, ema: bool = False) -> Source:
    """Find out what `source` is, fetch it if need be, and read it, each file once.

    Args:
        ema: whether to take the EMA weights of a checkpoint of a training.

    Raises:
        ValueError: if it is nothing that is known, damaged, not a CaiT, or not the `checkpoint`.
        OSError: if it, or one of its files, does not exist, cannot be fetched, or changes while it is read.
    """
    path = Path(source)
    if path.is_file():
        loaded = load_official_file(path, checkpoint, ema)
    elif path.is_dir():
        loaded = load_timm_folder(path, path.resolve().name, checkpoint, ema)
    elif path.suffix in (".pth", ".pt", ".tar", ".bin", ".safetensors"):
        raise FileNotFoundError(f"source is {source}, but there is no such file.")
    elif REPO_ID.fullmatch(source):
        loaded = load_timm_repo(source, ema)
    else:
        try:
            checkpoint = find_checkpoint(source)
        except ValueError as error:
            raise ValueError(
                f"source is {source}, which is neither a file nor a folder nor a repository: {error}"
            ) from None
        loaded = load_download(checkpoint, ema)
    if loaded.checkpoint is not None:
        check_architecture(loaded.config, loaded.checkpoint)
        check_published(loaded.weights.sha256, loaded.weights_file, loaded.checkpoint)
    return loaded


def load_download(checkpoint: CaitCheckpoint, ema: bool) -> Source:
    """Fetch and read the authors' file. One that is damaged, or of another network, does not stay in the cache."""
    path = download(checkpoint)
    try:
        loaded = load_official_file(path, checkpoint, ema)
        check_architecture(loaded.config, checkpoint)
    except (DamagedFile, WrongCheckpoint):
        path.unlink()
        raise
    return loaded


def load_official_file(path: Path, checkpoint: CaitCheckpoint | None = None, ema: bool = False) -> Source:
    """Read a file in the official format; its tensors tell the architecture and the size of the images."""
    weights = read_weights(path, ema)
    kwargs = infer_config_kwargs(weights.tensors)
    labels = imagenet_1k_labels()
    if kwargs["num_labels"] == len(labels):
        del kwargs["num_labels"]
        kwargs |= label_kwargs(labels)
    config = CaitConfig(**kwargs)
    image_processor = None
    size = config.image_size
    if config.num_channels == 3 and isinstance(size, int):
        image_processor = CaitImageProcessorPil(
            size={"shortest_edge": size}, crop_size={"height": size, "width": size}
        )
    return Source(path.name, path, weights, config, image_processor, checkpoint)


def load_timm_folder(folder: Path, name: str, checkpoint: CaitCheckpoint | None = None, ema: bool = False) -> Source:
    """Read timm's `config.json` and its weights."""
    config_file = folder / "config.json"
    if not config_file.is_file():
        raise FileNotFoundError(f"source is {folder}, but it has no config.json.")
    with unchanged(config_file):
        return _read_timm_folder(folder, config_file, name, checkpoint, ema)


def _read_timm_folder(
    folder: Path, config_file: Path, name: str, checkpoint: CaitCheckpoint | None, ema: bool
) -> Source:
    timm_config = read_json(config_file)
    if not isinstance(timm_config, dict) or "pretrained_cfg" not in timm_config:
        model_type = timm_config.get("model_type") if isinstance(timm_config, dict) else None
        raise ValueError(f"{config_file} is of model_type {model_type!r}, but it must be timm's, with pretrained_cfg.")
    config = CaitConfig(**config_kwargs_from_timm(timm_config))
    weights_files = [folder / filename for filename in ("model.safetensors", "pytorch_model.bin")]
    weights_file = next((file for file in weights_files if file.is_file()), None)
    if weights_file is None:
        raise FileNotFoundError(f"source is {folder}, but it has neither model.safetensors nor pytorch_model.bin.")
    try:
        image_processor = CaitImageProcessorPil.from_pretrained(folder)
    except ValueError:
        image_processor = None
    return Source(name, weights_file, read_weights(weights_file, ema), config, image_processor, checkpoint)


def load_timm_repo(repo_id: str, ema: bool = False) -> Source:
    """Fetch a repository of timm's from the Hub, or from the local cache, and read it."""
    try:
        folder = fetch(repo_id, ["config.json", "model.safetensors"])
    except DamagedDownload:
        raise
    except HUB_ERRORS as error:
        raise OSError(f"source is {repo_id}, neither a local path nor a repository within reach: {error}") from error
    try:
        checkpoint = find_checkpoint(repo_id) if repo_id.startswith("timm/") else None
    except ValueError:
        checkpoint = None
    if checkpoint is not None:
        check_download(folder / "model.safetensors", checkpoint, published_sha256(checkpoint), _HEADER_BYTES)
    return load_timm_folder(folder, repo_id, checkpoint, ema)


def official_cache_file(checkpoint: CaitCheckpoint) -> Path:
    """Where `torch.hub` keeps the authors' file."""
    return Path(torch.hub.get_dir(), "checkpoints", checkpoint.filename)


def download(checkpoint: CaitCheckpoint) -> Path:
    """Path of the authors' file in the cache of `torch.hub`, fetched if it is not there."""
    path = official_cache_file(checkpoint)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(checkpoint.url, str(path))
        except OSError as error:
            raise OSError(f"{checkpoint.url} could not be downloaded: {error}") from error
    check_download(path, checkpoint)  # no SHA-256 of an official file is published
    return path


def check_download(
    path: Path, checkpoint: CaitCheckpoint, sha256: str | None = None, most_beside_tensors: float = float("inf")
) -> None:
    """Compare a downloaded file with the hash, where that is known, else with the size of its float32 tensors.

    Raises:
        OSError: if they differ; the file is deleted, so that it is downloaded again the next time.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{checkpoint.timm_repo} has no {path.name}.")
    if sha256 is not None:
        found, expected = f"SHA-256 {sha256_of(path)}", f"SHA-256 {sha256}"
        fits = found == expected
    else:
        size, tensors = path.stat().st_size, 4 * checkpoint.num_parameters
        found, expected = f"{size:,} bytes", f"{tensors:,} bytes or a few more"
        fits = tensors <= size <= tensors + most_beside_tensors
    if not fits:
        path.resolve().unlink()  # of a link in the Hub's cache: what it points to
        path.unlink(missing_ok=True)
        raise OSError(f"The download of {checkpoint.official_name} has {found}, but it must have {expected}.")


def published_sha256(checkpoint: CaitCheckpoint) -> str | None:
    """SHA-256 of timm's file, where it is known at first hand."""
    return checkpoint.timm_file_sha256 if checkpoint.timm_file_sha256_source not in (None, SECOND_HAND) else None


def check_published(sha256: str, weights_file: Path, checkpoint: CaitCheckpoint) -> None:
    """Raise WrongCheckpoint if timm's file of `checkpoint` has another SHA-256 than the published one."""
    expected = published_sha256(checkpoint)
    if weights_file.name == "model.safetensors" and expected not in (None, sha256):
        raise WrongCheckpoint(
            f"{weights_file} of {checkpoint.official_name} has SHA-256 {sha256}, but timm's has {expected}."
        )


def check_architecture(config: CaitConfig, checkpoint: CaitCheckpoint) -> None:
    """Raise WrongCheckpoint if `config` is not of the network that `checkpoint` is."""
    for name, expected in checkpoint.config_kwargs.items():
        # LayerScale at the start of training is not in the weights.
        if name != "layer_scale_init_value" and getattr(config, name) != expected:
            raise WrongCheckpoint(
                f"{name} is {getattr(config, name)} in the source, but in {checkpoint.official_name} it is {expected}."
            )
