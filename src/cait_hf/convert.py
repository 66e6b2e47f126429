# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""From an official CaiT checkpoint, or timm's copy of one, to a folder that `from_pretrained` loads.

The source is a file in the official format (`.pth`, or `.safetensors` with the same keys), the name of an official
checkpoint to download (`XXS24_224`), a repository of timm on the Hub (`timm/cait_xxs24_224.fb_dist_in1k`), or a folder
with timm's `config.json` and weights. The folder written holds config.json, model.safetensors,
preprocessor_config.json and a model card; it appears complete or not at all.

Official files and names: facebookresearch/deit, `cait_models.py`. The map of tensors is `cait_hf.state_dict`.
"""

import argparse
import hashlib
import json
import re
import secrets
import shutil
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import StrictDataclassError
from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars
from transformers import PreTrainedModel
from transformers.utils import logging

from .checkpoints import (
    SECOND_HAND,
    CaitCheckpoint,
    config_kwargs_from_timm,
    find_checkpoint,
    imagenet_1k_labels,
    label_kwargs,
    timm_model_args,
)
from .configuration_cait import CaitConfig, as_pair
from .image_processing_pil_cait import CaitImageProcessorPil
from .model_card import render_model_card
from .modeling_cait import CaitForImageClassification
from .publish import HUB_ERRORS, add_remote_code, push_folder
from .state_dict import convert_official_state_dict, convert_to_official_state_dict, infer_config_kwargs


REPO_ID = re.compile(r"[\w.-]+/[\w.-]+")
VERIFY_TOLERANCE = 1e-4  # largest difference of two logits, in units of the largest logit


@dataclass
class Source:
    """What the source turned out to be.

    Attributes:
        name: how the model card calls it.
        weights_file: where the tensors are, in the official format.
        config: the model's configuration, labels included.
        image_processor: how its pictures are prepared, None where the class has no such preparation.
        checkpoint: the official checkpoint, where the weights are those of its authors or timm's copy of them.
    """

    name: str
    weights_file: Path
    config: CaitConfig
    image_processor: CaitImageProcessorPil | None
    checkpoint: CaitCheckpoint | None = None


@dataclass
class Converted:
    """What was written, for reports. `largest_difference` is in units of the largest logit, None if not verified."""

    config: CaitConfig
    has_image_processor: bool
    num_parameters: int
    source_sha256: str
    largest_difference: float | None


def convert_command(args: argparse.Namespace) -> None:
    """Convert, report, and push if asked to."""
    model_name = args.push_to_hub or args.output_dir.resolve().name
    converted = convert(args.source, args.output_dir, model_name, None, args.overwrite, args.verify, args.remote_code)
    if converted.largest_difference is not None:
        print(f"Verified: {difference_text(converted.largest_difference)}.")
    if not converted.has_image_processor:
        print("No preprocessor_config.json: the package prepares square RGB pictures, which are not this model's.")
    height, width = as_pair(converted.config.image_size)
    print(f"Wrote {args.output_dir}: {converted.num_parameters:,} parameters, pictures of {height} x {width} pixels.")
    if args.push_to_hub:
        url = push_folder(args.output_dir, args.push_to_hub, args.private, args.revision, args.tag)
        print(f"Pushed to {url}.")


def run_command(command: Callable[[argparse.Namespace], int | None], args: argparse.Namespace) -> int:
    """Run `command(args)`; what goes wrong becomes one sentence on the standard error and exit code 1."""
    try:
        with quiet_transformers():
            return command(args) or 0
    except (ValueError, OSError, ImportError, StrictDataclassError) as error:
        if getattr(args, "debug", False):
            raise
        print(f"error: {one_line(error)}", file=sys.stderr)
    except KeyboardInterrupt:
        print("error: interrupted.", file=sys.stderr)
    return 1


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Neither warnings nor the bars of reading and writing; those of downloads stay."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    download_bars = not are_progress_bars_disabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if download_bars:
        enable_progress_bars()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


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
        source: see the head of this file.
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
        (folder / "README.md").write_text(card, encoding="utf-8")
    return Converted(loaded.config, loaded.image_processor is not None, num_parameters, source_sha256, difference)


@contextmanager
def new_folder(output_dir: Path, source: str, overwrite: bool) -> Iterator[Path]:
    """A temporary sibling of `output_dir` that takes its name when the block ends, and disappears when it fails.

    Of several that write the same folder at once, each writes a sibling of its own, and the folder is always the whole
    work of one of them. A process that is killed leaves its sibling, a hidden folder, and `output_dir` as it was.

    Raises:
        OSError: if `output_dir` is a file, or holds the source, or is not empty and may not be overwritten.
    """
    output_dir, source_path = output_dir.resolve(), Path(source).resolve()
    if output_dir.is_file():
        raise FileExistsError(f"output_dir is {output_dir}, a file, but it must be a folder or not exist.")
    if source_path.exists() and output_dir in (source_path, *source_path.parents):
        raise FileExistsError(f"output_dir is {output_dir}, but it must not be or hold the source.")

    def check_not_in_use() -> None:
        if not overwrite and output_dir.exists() and any(output_dir.iterdir()):
            raise FileExistsError(f"output_dir is {output_dir}, which is not empty; empty it or pass --overwrite.")

    check_not_in_use()
    new_parents = [parent for parent in output_dir.parents if not parent.exists()]
    temporary, replaced = (output_dir.with_name(f".{output_dir.name}.{secrets.token_hex(4)}") for _ in range(2))
    try:
        temporary.mkdir(parents=True)
        yield temporary
        check_not_in_use()  # by another that has finished in the meantime
        if overwrite and output_dir.exists():
            output_dir.rename(replaced)
        elif output_dir.exists():
            output_dir.rmdir()  # only ever an empty folder
        temporary.rename(output_dir)
    except BaseException:  # Ctrl-C included
        if replaced.exists() and not output_dir.exists():
            replaced.rename(output_dir)
        shutil.rmtree(temporary, ignore_errors=True)
        for parent in new_parents:
            with suppress(OSError):
                parent.rmdir()
        raise
    finally:
        if output_dir.exists():
            shutil.rmtree(replaced, ignore_errors=True)


def load_source(source: str, checkpoint: CaitCheckpoint | None = None) -> Source:
    """Find out what `source` is, fetch it if need be, and read all but its weights.

    Raises:
        ValueError: if it is nothing that is known, not a CaiT, or not the `checkpoint`.
        OSError: if it, or one of its files, does not exist or cannot be fetched.
    """
    path = Path(source)
    if path.is_file():
        loaded = load_official_file(path, checkpoint)
    elif path.is_dir():
        loaded = load_timm_folder(path, path.resolve().name, checkpoint)
    elif path.suffix in (".pth", ".bin", ".safetensors"):
        raise FileNotFoundError(f"source is {source}, but there is no such file.")
    elif REPO_ID.fullmatch(source):
        loaded = load_timm_repo(source)
    else:
        try:
            checkpoint = find_checkpoint(source)
        except ValueError as error:
            raise ValueError(
                f"source is {source}, which is neither a file nor a folder nor a repository: {error}"
            ) from None
        loaded = load_official_file(download(checkpoint), checkpoint)
    if loaded.checkpoint is not None:
        check_geometry(loaded.config, loaded.checkpoint)
    return loaded


def load_official_file(path: Path, checkpoint: CaitCheckpoint | None = None) -> Source:
    """Read a file in the official format; its tensors tell the architecture and the size of the pictures."""
    kwargs = infer_config_kwargs(read_weights(path))
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
    return Source(path.name, path, config, image_processor, checkpoint)


def load_timm_folder(folder: Path, name: str, checkpoint: CaitCheckpoint | None = None) -> Source:
    """Read timm's `config.json` and find its weights."""
    config_file = folder / "config.json"
    if not config_file.is_file():
        raise FileNotFoundError(f"source is {folder}, but it has no config.json.")
    try:
        timm_config = json.loads(config_file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{config_file} is not valid JSON: {error}") from None
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
    return Source(name, weights_file, config, image_processor, checkpoint)


def load_timm_repo(repo_id: str) -> Source:
    """Fetch a repository of timm's from the Hub, or from the local cache, and read it."""
    try:
        folder = Path(snapshot_download(repo_id, allow_patterns=["config.json", "model.safetensors"]))
    except HUB_ERRORS as error:
        raise OSError(f"source is {repo_id}, neither a local path nor a repository within reach: {error}") from error
    try:
        checkpoint = find_checkpoint(repo_id) if repo_id.startswith("timm/") else None
    except ValueError:
        checkpoint = None
    if checkpoint is not None:
        is_known = checkpoint.timm_file_sha256_source not in (None, SECOND_HAND)
        check_download(
            folder / "model.safetensors", checkpoint, checkpoint.timm_file_sha256 if is_known else None, _HEADER_BYTES
        )
    return load_timm_folder(folder, repo_id, checkpoint)


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


_HEADER_BYTES = 10**6  # more than the header of a safetensors file of the largest checkpoint (86,160 bytes) has


def check_download(
    path: Path, checkpoint: CaitCheckpoint, sha256: str | None = None, most_beside_tensors: float = float("inf")
) -> None:
    """Compare a downloaded file with the hash, where that is known, else with the size of its float32 tensors.

    Raises:
        OSError: if they differ; the file is deleted, so that it is fetched anew the next time.
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


def check_geometry(config: CaitConfig, checkpoint: CaitCheckpoint) -> None:
    """Raise ValueError if `config` is not of the network that `checkpoint` is."""
    for name, expected in checkpoint.config_kwargs.items():
        # LayerScale at the start of training is not in the weights.
        if name != "layer_scale_init_value" and getattr(config, name) != expected:
            raise ValueError(
                f"{name} is {getattr(config, name)} in the source, but in {checkpoint.official_name} it is {expected}."
            )


def sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read_weights(path: Path) -> dict[str, Any]:
    """Content of a weights file, mapped where its format allows; nothing that a pickle contains is ever run.

    Raises:
        ValueError: if the file is damaged or holds more than tensors.
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
                f"{path} is damaged, or it holds more than tensors and was not unpickled ({type(error).__name__})."
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
    model_class: type[PreTrainedModel], source: str, dtype: str | torch.dtype
) -> tuple[PreTrainedModel, set[str]]:
    """The model, and the names of its tensors that `source` does not hold.

    Raises:
        ValueError: if tensors are damaged, or of other shapes than the configuration says.
        OSError: if `source` does not exist or has no weights.
    """
    try:
        model, loading = model_class.from_pretrained(source, dtype=dtype, output_loading_info=True)
    except (RuntimeError, safetensors.SafetensorError) as error:
        raise ValueError(f"The weights of {source} cannot be loaded: {error}") from error
    return model, set(loading["missing_keys"])


def require_none_missing(source: str, missing: set[str]) -> None:
    """Raise ValueError with the first names if `source` lacks tensors."""
    if missing:
        raise ValueError(f"{source} lacks {len(missing)} tensors, the first are {', '.join(sorted(missing)[:5])}.")


def require_timm() -> None:
    try:
        import timm.models.cait  # noqa: F401
    except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision of another torch
        raise ImportError(f"--verify compares with timm, which cannot be imported: {error}") from error


def compare_with_timm(folder: Path, weights_file: Path) -> float:
    """Compare the logits of the folder just written with those of timm's CaiT with the weights of the source.

    Returns:
        The largest difference in units of the largest logit, on two random pictures in float32.

    Raises:
        ValueError: if that is more than `VERIFY_TOLERANCE`.
    """
    config = CaitConfig.from_pretrained(folder)
    expected = timm_logits(config, read_weights(weights_file))  # gone from memory before the other model comes
    return largest_difference(CaitForImageClassification.from_pretrained(folder, dtype=torch.float32), expected)


def compare_model_with_timm(model: CaitForImageClassification) -> float:
    """The same for a model of which there is no source: its own weights go to timm's CaiT."""
    model = model.float()
    return largest_difference(model, timm_logits(model.config, convert_to_official_state_dict(model.state_dict())))


@torch.no_grad()
def timm_logits(config: CaitConfig, state_dict: dict[str, Any]) -> torch.Tensor:
    """Logits of timm's CaiT with an official `state_dict`, which goes there without this package's map."""
    from timm.models.cait import Cait

    with torch.device("meta"):
        timm_model = Cait(**timm_model_args(config)).eval()
    tensors = state_dict.get("model", state_dict).items()
    timm_model.load_state_dict({key.removeprefix("module."): tensor.float() for key, tensor in tensors}, assign=True)
    return timm_model(_random_pictures(config))


@torch.no_grad()
def largest_difference(model: CaitForImageClassification, expected: torch.Tensor) -> float:
    difference = (model.eval()(_random_pictures(model.config)).logits - expected).abs().max() / expected.abs().max()
    if not difference <= VERIFY_TOLERANCE:
        raise ValueError(f"--verify: {difference_text(difference)}, more than {VERIFY_TOLERANCE:.0e}.")
    return difference.item()


def difference_text(difference: float) -> str:
    return f"the logits differ from timm's by at most {difference:.1e} of the largest"


def _random_pictures(config: CaitConfig) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, config.num_channels, *as_pair(config.image_size), generator=generator)
