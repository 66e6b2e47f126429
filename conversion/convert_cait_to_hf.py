# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""Convert an official CaiT checkpoint, or timm's copy of one, to a folder that `from_pretrained` loads.

    python conversion/convert_cait_to_hf.py --source XXS24_224.pth --output_dir cait-xxs24-224 --verify

`--source` is a file in the official format (`.pth`, or `.safetensors` with the same keys), the name of an official
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
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from huggingface_hub import HfApi, ModelCard, ModelCardData, snapshot_download
from huggingface_hub.errors import HFValidationError, HTTPError, StrictDataclassError
from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars
from transformers.utils import logging

from cait_hf import CaitCheckpoint, CaitConfig, CaitForImageClassification, CaitImageProcessorPil, find_checkpoint
from cait_hf.checkpoints import config_kwargs_from_timm, imagenet_1k_labels, label_kwargs, timm_model_args
from cait_hf.configuration_cait import as_pair
from cait_hf.state_dict import convert_official_state_dict, infer_config_kwargs


CARD_TEMPLATE = Path(__file__).parent.parent / "model_cards" / "_template.md"
HUB_ERRORS = (OSError, HTTPError, HFValidationError)  # HTTPError: no connection
REPO_ID = re.compile(r"[\w.-]+/[\w.-]+")
VERIFY_TOLERANCE = 1e-4  # largest difference of two logits, in units of the largest logit


@dataclass
class Source:
    """What `--source` turned out to be.

    Attributes:
        name: how the model card calls it.
        weights_file: where the tensors were read from.
        state_dict: tensors as the file holds them, in the official format.
        config: the model's configuration, labels included.
        image_processor: how its pictures are prepared, None where the class has no such preparation.
        checkpoint: the official checkpoint, where the weights were fetched from its authors or from timm.
    """

    name: str
    weights_file: Path
    state_dict: dict[str, Any]
    config: CaitConfig
    image_processor: CaitImageProcessorPil | None
    checkpoint: CaitCheckpoint | None = None


def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv` (default: the process's own); return its exit code."""
    return run_command(convert, parse_args(argv))


def run_command(command: Callable[[argparse.Namespace], None], args: argparse.Namespace) -> int:
    """Run `command(args)`; what goes wrong becomes one sentence on the standard error and exit code 1."""
    try:
        with quiet_transformers():
            command(args)
    except (ValueError, OSError, ImportError, StrictDataclassError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("error: interrupted.", file=sys.stderr)
        return 1
    return 0


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


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True, help="File, official name, timm repository or timm folder.")
    parser.add_argument("--output_dir", required=True, type=Path, help="Folder to write.")
    parser.add_argument("--overwrite", action="store_true", help="Replace an output folder that is not empty.")
    parser.add_argument("--verify", action="store_true", help="Compare the logits with timm's before writing.")
    parser.add_argument("--push_to_hub", metavar="REPO", help="Upload the folder to this repository on the Hub.")
    parser.add_argument("--private", action="store_true", help="Create that repository as a private one.")
    return parser.parse_args(argv)


def convert(args: argparse.Namespace):
    """Load, convert, write to a temporary folder, verify what was written, and only then give it its name."""
    if args.verify:
        require_timm()
    with new_folder(args.output_dir, args.source, args.overwrite) as folder:
        source = load_source(args.source)
        model = build_model(source.config, source.state_dict)
        model.save_pretrained(folder)
        if source.image_processor is not None:
            source.image_processor.save_pretrained(folder)
        largest_difference = verify(folder, source.state_dict) if args.verify else None
        card = model_card(source, args.push_to_hub or args.output_dir.resolve().name, largest_difference)
        (folder / "README.md").write_text(card, encoding="utf-8")
    if source.image_processor is None:
        print("No preprocessor_config.json: the package prepares square RGB pictures, which are not this model's.")
    height, width = as_pair(source.config.image_size)
    print(f"Wrote {args.output_dir}: {model.num_parameters():,} parameters, pictures of {height} x {width} pixels.")
    if args.push_to_hub:
        push_to_hub(args.output_dir, args.push_to_hub, args.private)


@contextmanager
def new_folder(output_dir: Path, source: str, overwrite: bool) -> Iterator[Path]:
    """A temporary sibling of `output_dir` that takes its name when the block ends, and disappears when it fails.

    Raises:
        OSError: if `output_dir` is a file, or holds the source, or is not empty and may not be overwritten.
    """
    output_dir, source_path = output_dir.resolve(), Path(source).resolve()
    if output_dir.is_file():
        raise FileExistsError(f"output_dir is {output_dir}, a file, but it must be a folder or not exist.")
    if not overwrite and output_dir.exists() and any(output_dir.iterdir()):
        raise FileExistsError(f"output_dir is {output_dir}, which is not empty; empty it or pass --overwrite.")
    if source_path.exists() and output_dir in (source_path, *source_path.parents):
        raise FileExistsError(f"output_dir is {output_dir}, but it must not be or hold the source.")
    new_parents = [parent for parent in output_dir.parents if not parent.exists()]
    temporary, replaced = (output_dir.with_name(f".{output_dir.name}.{secrets.token_hex(4)}") for _ in range(2))
    try:
        temporary.mkdir(parents=True)
        yield temporary
        if output_dir.exists():
            output_dir.rename(replaced)
        temporary.rename(output_dir)
    except BaseException:  # Ctrl-C included
        if replaced.exists() and not output_dir.exists():
            replaced.rename(output_dir)
        shutil.rmtree(temporary, ignore_errors=True)
        for parent in new_parents:
            with suppress(OSError):
                parent.rmdir()
        raise
    shutil.rmtree(replaced, ignore_errors=True)


def load_source(source: str) -> Source:
    """Find out what `source` is and read it.

    Raises:
        ValueError: if it is nothing that is known, or not a CaiT.
        OSError: if it, or one of its files, does not exist or cannot be fetched.
    """
    path = Path(source)
    if path.is_file():
        return load_official_file(path)
    if path.is_dir():
        return load_timm_folder(path, name=path.resolve().name)
    if path.suffix in (".pth", ".bin", ".safetensors"):
        raise FileNotFoundError(f"source is {source}, but there is no such file.")
    if REPO_ID.fullmatch(source):
        return load_timm_repo(source)
    try:
        checkpoint = find_checkpoint(source)
    except ValueError as error:
        raise ValueError(
            f"source is {source}, which is neither a file nor a folder nor a repository: {error}"
        ) from None
    return load_official_file(download(checkpoint), checkpoint)


def load_official_file(path: Path, checkpoint: CaitCheckpoint | None = None) -> Source:
    """Read a file in the official format; its tensors tell the architecture and the size of the pictures."""
    state_dict = read_weights(path)
    kwargs = infer_config_kwargs(state_dict)
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
    return Source(path.name, path, state_dict, config, image_processor, checkpoint)


def load_timm_folder(folder: Path, name: str, checkpoint: CaitCheckpoint | None = None) -> Source:
    """Read timm's `config.json` and weights."""
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
    return Source(name, weights_file, read_weights(weights_file), config, image_processor, checkpoint)


def load_timm_repo(repo_id: str) -> Source:
    """Fetch a repository of timm's from the Hub, or from the local cache, and read it."""
    try:
        folder = snapshot_download(repo_id, allow_patterns=["config.json", "model.safetensors"])
    except HUB_ERRORS as error:
        raise OSError(f"source is {repo_id}, neither a local path nor a repository within reach: {error}") from error
    try:
        checkpoint = find_checkpoint(repo_id)
    except ValueError:
        checkpoint = None
    return load_timm_folder(Path(folder), repo_id, checkpoint)


def download(checkpoint: CaitCheckpoint) -> Path:
    """Path of the authors' file in the cache of `torch.hub`, fetched if it is not there."""
    path = Path(torch.hub.get_dir(), "checkpoints", checkpoint.filename)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(checkpoint.url, str(path))
        except OSError as error:
            raise OSError(f"{checkpoint.url} could not be downloaded: {error}") from error
    return path


def read_weights(path: Path) -> dict[str, Any]:
    """Content of a weights file; nothing that a pickle contains is ever run.

    Raises:
        ValueError: if the file is damaged or holds more than tensors.
        OSError: if it cannot be opened.
    """
    with path.open("rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an old pickle protocol
        try:
            if path.suffix == ".safetensors":
                return safetensors.torch.load_file(path)
            return torch.load(file, map_location="cpu", weights_only=True)
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


def require_timm():
    try:
        import timm.models.cait  # noqa: F401
    except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision of another torch
        raise ImportError(f"--verify compares with timm, which cannot be imported: {error}") from error


@torch.no_grad()
def verify(folder: Path, state_dict: dict[str, Any]) -> float:
    """Compare the logits of the folder just written with those of timm's CaiT, on two random pictures in float32.

    Returns:
        The largest difference in units of the largest logit.

    Raises:
        ValueError: if that is more than `VERIFY_TOLERANCE`.
    """
    from timm.models.cait import Cait

    model = CaitForImageClassification.from_pretrained(folder, dtype=torch.float32).eval()
    config = model.config
    timm_model = Cait(**timm_model_args(config)).eval()
    # From the source, not through this package's map.
    official = {key.removeprefix("module."): value for key, value in state_dict.get("model", state_dict).items()}
    timm_model.load_state_dict(official)

    images = torch.randn(
        2, config.num_channels, *as_pair(config.image_size), generator=torch.Generator().manual_seed(0)
    )
    expected, logits = timm_model(images), model(images).logits
    largest_difference = ((logits - expected).abs().max() / expected.abs().max()).item()
    summary = f"the logits differ from timm's by at most {largest_difference:.1e} of the largest"
    if not largest_difference <= VERIFY_TOLERANCE:
        raise ValueError(f"--verify: {summary}, more than {VERIFY_TOLERANCE:.0e}.")
    print(f"Verified: {summary}.")
    return largest_difference


def model_card(source: Source, model_name: str, largest_difference: float | None) -> str:
    """The README.md of the folder; published figures only where the weights come from the authors or from timm."""
    official = source.checkpoint is not None
    card_data = ModelCardData(
        license="apache-2.0" if official else None,
        library_name="transformers",
        pipeline_tag="image-classification",
        tags=["cait", "image-classification", "vision"],
        datasets=["imagenet-1k"] if official else None,
        base_model=source.name if REPO_ID.fullmatch(source.name) else None,
    )
    digest = hashlib.sha256()
    with source.weights_file.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    card = ModelCard.from_template(
        card_data,
        template_path=str(CARD_TEMPLATE),
        model_name=model_name,
        config=source.config,
        checkpoint=source.checkpoint,
        has_image_processor=source.image_processor is not None,
        source_name=source.name,
        source_file=source.weights_file.name,
        source_sha256=digest.hexdigest(),
        largest_difference=largest_difference,
    )
    return str(card)


def push_to_hub(folder: Path, repo_id: str, private: bool):
    try:
        api = HfApi()
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        commit = api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Upload CaiT")
    except HUB_ERRORS as error:
        raise OSError(f"{folder} was written, but it could not be pushed to {repo_id}: {error}") from error
    print(f"Pushed to {commit.repo_url}.")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # clean up when terminated, too
    sys.exit(main())
