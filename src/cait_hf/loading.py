# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""Weights and models from files, folders and repositories; nothing that is loaded runs code."""

import errno
import hashlib
import re
import warnings
import zipfile
from contextlib import ExitStack
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, HTTPError, StrictDataclassError
from torch.serialization import safe_globals
from transformers import AutoModelForImageClassification, PreTrainedModel

from .checkpoints import resolve_model
from .configuration_cait import CaitConfig
from .files import read_json, sha256_of, unchanged
from .image_processing_pil_cait import CaitImageProcessorPil
from .modeling_cait import CaitBackbone, CaitForImageClassification, CaitForMaskedImageModeling, CaitModel
from .state_dict import convert_official_state_dict, has_ema_weights, official_tensors


REPO_ID = re.compile(r"[\w.-]+/[\w.-]+")
HUB_ERRORS = (OSError, HTTPError, HFValidationError)  # HTTPError: no connection
INDEX = "model.safetensors.index.json"
SHARD = "model-?????-of-?????.safetensors"
# A model on the Hub, with patterns for names.
MODEL_FILES = ["config.json", "preprocessor_config.json", "model.safetensors", INDEX, SHARD]


class DamagedFile(ValueError):
    """A file whose content cannot be what was written."""


class DamagedDownload(OSError):
    """A file from the Hub that is not the one that was announced."""


def from_pretrained(
    name: str, *, dtype: str | torch.dtype = "auto", revision: str = "main"
) -> tuple[CaitForImageClassification, CaitImageProcessorPil]:
    """A classifier in evaluation mode and the image processor that belongs to it, by a short name.

    ```python
    >>> import cait_hf

    >>> model, image_processor = cait_hf.from_pretrained("XXS24_224")
    >>> logits = model(**image_processor("image.jpg", return_tensors="pt")).logits  # (1, 1000)
    ```

    Args:
        name (`str`):
            An official name such as `"XXS24_224"`, which is timm's repository on the Hub, `"fashion_mnist"`, which
            comes with this package, a folder, or the id of a repository, in this package's format or timm's.
        dtype (`str` or `torch.dtype`, defaults to `"auto"`):
            Of the weights; `"auto"` is that of the file.
        revision (`str`, defaults to `"main"`):
            Branch, tag or commit of the repository.

    Raises:
        ValueError: if tensors are damaged, missing, or of other shapes than the configuration says.
        OSError: if there is no such model, or the Hub is out of reach.
    """
    source = resolve_model(name)
    model = load_model(source, dtype, revision)
    return model, CaitImageProcessorPil.from_pretrained(source, revision=revision)


def load_model(source: str, dtype: str | torch.dtype = "auto", revision: str = "main") -> CaitForImageClassification:
    """The model, by default in the dtype of its file.

    Raises:
        ValueError: if tensors are damaged, missing, or of other shapes than the configuration says.
        OSError: if `source` does not exist or has no weights.
    """
    if Path(source).is_file():
        raise NotADirectoryError(f"source is {source}, a file, but it must be a folder or the id of a repository.")
    if not Path(source).is_dir() and not REPO_ID.fullmatch(source):
        raise FileNotFoundError(f"source is {source}, which is neither a folder nor the id of a repository.")
    model, missing = load_weights(CaitForImageClassification, source, dtype, revision)
    require_none_missing(source, missing)
    return model


def load_weights(
    model_class: type[PreTrainedModel] | type[AutoModelForImageClassification],
    source: str,
    dtype: str | torch.dtype,
    revision: str = "main",
) -> tuple[PreTrainedModel, set[str]]:
    """The model, and the names of its tensors that `source` does not contain.

    Files are read into memory, not mapped: one that shrinks would kill the process. Those of a repository are compared
    with the hashes that the Hub states.

    Raises:
        ValueError: if tensors are damaged, or of other shapes than the configuration says.
        OSError: if `source` does not exist or has no weights, changes while it is read, or its download is damaged.
    """
    try:
        if not Path(source).exists():
            fetch_if_possible(source, revision)
        with ExitStack() as stack:
            for file in Path(source).iterdir() if Path(source).is_dir() else ():
                if file.name == "config.json" or file.suffix in (".safetensors", ".bin"):
                    stack.enter_context(unchanged(file))
            model, loading = model_class.from_pretrained(
                source, revision=revision, dtype=dtype, output_loading_info=True, disable_mmap=True
            )
    except (RuntimeError, safetensors.SafetensorError) as error:  # RecursionError of a configuration included
        raise ValueError(f"The weights of {source} cannot be loaded: {error}") from error
    return model, set(loading["missing_keys"])


def fetch(repo_id: str, patterns: list[str], revision: str = "main") -> Path:
    """Folder in the Hub's cache with the files of a repository whose names match.

    Raises:
        OSError, HTTPError, HFValidationError: if they cannot be fetched, or are not what the Hub says.
    """
    folder = Path(snapshot_download(repo_id, revision=revision, allow_patterns=patterns))
    for file in folder.iterdir():
        if any(fnmatchcase(file.name, pattern) for pattern in patterns):
            require_stated_hash(file, repo_id)
    return folder


def fetch_if_possible(repo_id: str, revision: str = "main") -> None:
    """The same for all files of a model; what is missing or out of reach is left to Transformers to say."""
    try:
        fetch(repo_id, MODEL_FILES, revision)
    except DamagedDownload:
        raise
    except HUB_ERRORS:
        pass


def require_stated_hash(file: Path, repo_id: str) -> None:
    """Raise OSError if a file in the Hub's cache is not the one that the Hub named, and remove it.

    The cache calls a file by the hash that came with it: the SHA-256 of a large file, git's SHA-1 of a small one. A
    system without links has no such names, and nothing is compared.
    """
    blob = file.resolve()
    if re.fullmatch("[0-9a-f]{64}", blob.name):
        kind, found = "SHA-256", sha256_of(blob)
    elif re.fullmatch("[0-9a-f]{40}", blob.name):
        content = blob.read_bytes()
        kind, found = "git SHA-1", hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    else:
        return
    if found != blob.name:
        blob.unlink()
        file.unlink(missing_ok=True)
        raise DamagedDownload(
            f"The download of {file.name} from {repo_id} has {kind} {found}, but the Hub states {blob.name}; it was "
            "removed, try again."
        )


def require_none_missing(source: str, missing: set[str]) -> None:
    """Raise ValueError with the first names if `source` lacks tensors."""
    if missing:
        raise ValueError(f"{source} lacks {len(missing)} tensors, the first are {', '.join(sorted(missing)[:5])}.")


class _Ignored:
    """Stands for an object that a training stores beside its weights: it takes any arguments and any state."""

    def __new__(cls, *args: Any) -> "_Ignored":
        return super().__new__(cls)

    def __init__(self, *args: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


# What flags and metrics are made of, as pickles name it. None of it is ever built or called.
_IGNORED = [
    (_Ignored, name)
    for name in (
        "argparse.Namespace",
        "types.SimpleNamespace",
        *(f"{module}.{kind}Path" for module in ("pathlib", "pathlib._local") for kind in ("Posix", "Windows")),
        *(f"numpy.{core}.multiarray.scalar" for core in ("core", "_core")),
        "numpy.dtype",
    )
]


@dataclass
class Weights:
    """Content of a weights file.

    Attributes:
        tensors: by their plain official names.
        sha256: of the file.
        more_ema: whether the file has EMA weights, too, that were not asked for.
    """

    tensors: dict[str, Any]
    sha256: str
    more_ema: bool


def read_weights(path: Path, ema: bool = False) -> Weights:
    """Content of a weights file, all of it read into memory; nothing that a pickle contains is ever run.

    It is not mapped: a mapped file that shrinks kills the process. Of a zip file (torch's format since 1.6) the
    checksums are compared; safetensors and earlier pickles have none.

    Args:
        ema: whether to take the EMA weights of a checkpoint of a training.

    Raises:
        ValueError: if the file is damaged, contains more than tensors and flags, or has no such weights.
        OSError: if it cannot be opened, or changes while it is read.
    """
    path.open("rb").close()
    with unchanged(path):
        sha256 = sha256_of(path)
        content = _parse(path)
    return Weights(official_tensors(content, ema), sha256, not ema and has_ema_weights(content))


def _parse(path: Path) -> Any:
    with warnings.catch_warnings(), safe_globals(_IGNORED):
        warnings.simplefilter("ignore")  # an old pickle protocol
        try:
            if path.suffix == ".safetensors":
                return dict(sorted(safetensors.torch.load(path.read_bytes()).items()))  # their order is random
            if zipfile.is_zipfile(path):
                with zipfile.ZipFile(path) as archive:
                    damaged = archive.testzip()
                if damaged is not None:
                    raise zipfile.BadZipFile(f"the CRC-32 of {damaged} is wrong")
            return torch.load(str(path), map_location="cpu", weights_only=True, mmap=False)
        except Exception as error:  # any bytes at all: the parsers' errors for them have no common class
            if isinstance(error, OSError) and error.errno != errno.EINVAL:  # that one: a seek to a damaged offset
                raise
            if isinstance(error, MemoryError) or "allocate memory" in str(error):
                raise MemoryError(f"{path} does not fit into memory.") from error
            reason = f": {error}" if isinstance(error, zipfile.BadZipFile) else ""
            raise DamagedFile(
                f"{path} is damaged, or it contains more than tensors and was not unpickled "
                f"({type(error).__name__}{reason})."
            ) from error


def require_finite(source: str, tensors: dict[str, Any]) -> None:
    """Raise ValueError with the first names if tensors contain NaN or infinities."""
    found = {key: tensor for key, tensor in tensors.items() if isinstance(tensor, torch.Tensor)}
    damaged = [key for key, tensor in found.items() if not torch.isfinite(tensor).all()]
    if damaged:
        raise ValueError(f"{source} has NaN or infinite values in {len(damaged)} tensors: {', '.join(damaged[:5])}.")


def check_folder(folder: Path) -> None:
    """Raise ValueError unless the model in `folder` can be loaded: its configuration, and headers of its weights.

    Names and shapes are compared with those of a model without values, sizes of files with their headers. Of a
    quantized model, whose tensors depend on the method, only the files are checked.
    """
    try:
        content_of_config = read_json(folder / "config.json")
        if not isinstance(content_of_config, dict) or content_of_config.get("model_type") != "cait":
            raise ValueError("config.json is not a CaiT's")
        config = CaitConfig.from_pretrained(folder)
        if (folder / "preprocessor_config.json").is_file():
            CaitImageProcessorPil.from_pretrained(folder)
        found = [
            stored_shapes(folder / "model.safetensors") if (folder / "model.safetensors").is_file() else None,
            sharded_shapes(folder) if (folder / INDEX).is_file() else None,
        ]
        if found == [None, None]:
            raise ValueError(f"there is neither model.safetensors nor {INDEX}")
        if getattr(config, "quantization_config", None) is None:
            for shapes in filter(None, found):
                require_shapes(shapes, model_shapes(config))
    except (OSError, ValueError, TypeError, StrictDataclassError) as error:
        raise ValueError(
            f"folder is {folder}, but it must hold config.json and the complete weights of a converted or trained "
            f"CaiT: {error}"
        ) from error


def model_shapes(config: CaitConfig) -> dict[str, tuple[int, ...]]:
    """Shapes by name of the tensors of the class that `config` names, of a classifier where it names none of ours."""
    classes = (CaitForImageClassification, CaitModel, CaitForMaskedImageModeling, CaitBackbone)
    named = (model_class for model_class in classes if model_class.__name__ in (config.architectures or ()))
    with torch.device("meta"):
        model = next(named, CaitForImageClassification)(config)
    return {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}


def stored_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Shapes by name in a safetensors file, by its header, which is compared with the size of the file.

    Raises:
        ValueError: if the file is damaged.
        OSError: if there is none.
    """
    file.open("rb").close()
    try:
        with safetensors.safe_open(file, framework="pt") as content:
            return {key: tuple(content.get_slice(key).get_shape()) for key in content.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise ValueError(f"{file.name} is damaged: {error}") from error


def sharded_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """The same of all shards that the index names.

    Raises:
        ValueError: if the index is damaged, names files that are not shards in `folder`, or other tensors than theirs.
        OSError: if a shard is missing.
    """
    index = read_json(folder / INDEX)
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{INDEX} has no weight_map")
    names = set(map(str, weight_map.values()))
    if others := sorted(name for name in names if not fnmatchcase(name, SHARD) or "/" in name or "\\" in name):
        raise ValueError(f"{INDEX} names {', '.join(others[:5])}, but shards lie beside it as {SHARD}")
    shapes: dict[str, tuple[int, ...]] = {}
    for name in sorted(names):
        shard = stored_shapes(folder / name)
        if shard.keys() != {key for key, file in weight_map.items() if file == name}:
            raise ValueError(f"{name} has other tensors than {INDEX} says")
        shapes |= shard
    return shapes


def require_shapes(found: dict[str, tuple[int, ...]], expected: dict[str, tuple[int, ...]]) -> None:
    """Raise ValueError with the first names if tensors are missing, unknown, or of other shapes."""
    if found != expected:
        offenders = [key for key in expected | found if expected.get(key) != found.get(key)]
        described = ", ".join(f"{key} is {found.get(key)}, not {expected.get(key)}" for key in offenders[:5])
        raise ValueError(f"{len(offenders)} tensors do not fit the configuration (None: absent): {described}.")


def build_model(config: CaitConfig, state_dict: dict[str, Any]) -> CaitForImageClassification:
    """The model of `config` with the tensors of an official `state_dict`, in their dtype.

    Raises:
        ValueError: if the tensors are not those of this configuration; the first offenders are named.
    """
    converted = convert_official_state_dict(state_dict)
    with torch.device("meta"):
        model = CaitForImageClassification(config)
    found, expected = (
        {key: tuple(tensor.shape) for key, tensor in tensors.items()} for tensors in (converted, model.state_dict())
    )
    require_shapes(found, expected)
    model.load_state_dict({key: tensor.clone() for key, tensor in converted.items()}, assign=True)
    return model.eval()
