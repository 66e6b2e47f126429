# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""Values of `training.md`, the card of a trained model: what was measured, on what, and how the model was trained.

Nothing is stated that the caller did not measure or set.
"""

import logging
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import yaml
from huggingface_hub import EvalResult, ModelCardData, metadata_load
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from transformers import PreTrainedModel

from ..evaluation.metrics import METRICS
from ..files import write_text
from . import render


logger = logging.getLogger(__name__)

MARKER = "generated-by-cait-hf"  # a tag: a card with it is ours to replace
WEIGHTS = {"raw": "as trained, in this repository", "ema": "their moving average (EMA)"}
TRAINING = {
    "train_images_per_second": "images per second in training, all processes",
    "train_data_wait_fraction": "fraction of that time spent waiting for data",
    "train_peak_memory_mib": "peak memory of a process in MiB",
    "train_runtime": "seconds of training, with evaluation and saving",
    "train_loss": "mean loss of training",
}


class Dataset(NamedTuple):
    """Images to train or to evaluate on: a Hub id, a folder or any name; `split` where it is not all of them."""

    name: str
    config: str | None = None
    split: str | None = None

    def __str__(self) -> str:
        parts = (("configuration", self.config), ("split", self.split))
        details = ", ".join(f"{kind} `{value}`" for kind, value in parts if value)
        return link(self.name, "datasets/") + (f" ({details})" if details else "")


def write_model_card(
    output_dir: str | Path,
    *,
    model: PreTrainedModel,
    num_parameters: int,
    num_trainable: int,
    model_name: str,
    base_model: str | None,
    dataset: Dataset,
    evaluated: Dataset,
    results: dict[str, dict],
    settings: dict[str, object],
    changes: Sequence[tuple[str, str]] = (),
    train_metrics: dict[str, float],
    resumed_at: int | None = None,
    environment: dict[str, dict],
    command: Sequence[str] = (),
) -> Path | None:
    """Write `README.md` into a model's folder, complete or not at all.

    A card that carries the tag `generated-by-cait-hf` is replaced; any other is the user's and stays. Of local paths
    the card shows the last part only, and of tokens nothing: cards are published.

    Args:
        model: its type and classes are shown, with their names where they are few.
        num_parameters: of what `model_name` loads.
        num_trainable: parameters that were trained, which may be those of adapters that were merged at the end.
        model_name: what the examples load, a Hub id or a folder.
        base_model: what training started from, a Hub id or a folder; `None` for random weights.
        dataset, evaluated: trained on; evaluated on.
        results: as for `write_report`, of the weights as trained ("raw") and of their moving average ("ema").
        settings: flags of the training and their values, in the order to show; those that are `None` are left out.
        changes: since which step which flag had another value, in runs that were resumed.
        train_metrics: of the training, such as `StepTimer.summary()` and `train_runtime`.
        resumed_at: the step after which those were measured, of a run that was resumed.
        environment: what `report.environment` returned.
        command: the command line, program first.

    Returns:
        The file, or `None` where the user's own card stays.
    """
    path = Path(output_dir) / "README.md"
    if path.exists() and not is_ours(path):
        logger.warning("%s is not a card that cait-hf wrote, so it stays as it is.", path)
        return None
    name = shown(model_name)
    measured = {metric: title for metric, title in METRICS.items() if any(metric in row for row in results.values())}
    card = render(
        "training.md",
        metadata(model.config.model_type, name, base_model, dataset, evaluated, results),
        marker=MARKER,
        title=name.rpartition("/")[2],
        model_name=name,
        model_type=model.config.model_type,
        base_model=base_model and link(base_model),
        dataset=dataset,
        dataset_evaluated=evaluated,
        num_parameters=num_parameters,
        num_trainable=num_trainable,
        class_names=list(model.config.id2label.values()),
        num_images=max((int(result["confusion_matrix"].sum()) for result in results.values()), default=0),
        metrics=list(measured.values()),
        results=[
            (
                WEIGHTS[weights],
                *(f"{result[metric]:.2%}" if metric in result else "" for metric in measured),
                f"{result['loss']:.4f}" if "loss" in result else "",
            )
            for weights, result in results.items()
        ],
        command=command_text(command),
        settings=[
            (flag, f"`{shown(value)}`")
            for flag, value in settings.items()
            if value is not None and not flag.endswith("token")
        ],
        changes=changes,
        machine=machine_rows(train_metrics, environment),
        resumed_at=resumed_at,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, card)
    return path


def is_ours(path: Path) -> bool:
    try:
        tags = (metadata_load(path) or {}).get("tags")
    except (ValueError, yaml.YAMLError):  # not UTF-8 or not YAML: no card of ours
        return False
    return isinstance(tags, list) and MARKER in tags


def metadata(
    model_type: str,
    name: str,
    base_model: str | None,
    dataset: Dataset,
    evaluated: Dataset,
    results: dict[str, dict],
) -> ModelCardData:
    """Metadata of the card; accuracies are fractions in [0, 1], as `evaluate` gives them."""
    measured = [
        EvalResult(
            task_type="image-classification",
            task_name="Image Classification",
            dataset_type=shown(evaluated.name),
            dataset_name=shown(evaluated.name),
            dataset_config=evaluated.config,
            dataset_split=evaluated.split,
            metric_type="accuracy",
            metric_name=title + (", EMA" if weights == "ema" else ""),
            metric_value=result[metric],
        )
        for weights, result in results.items()
        for metric, title in METRICS.items()
        if metric in result
    ]
    return ModelCardData(
        library_name="transformers",
        pipeline_tag="image-classification",
        tags=[model_type, "image-classification", "vision", MARKER],
        base_model=base_model if is_hub_id(base_model) else None,
        datasets=[dataset.name] if is_hub_id(dataset.name) else None,
        metrics=["accuracy"] if measured else None,
        model_name=name.rpartition("/")[2] if measured else None,
        eval_results=measured or None,
    )


def is_hub_id(name: str | None) -> bool:
    """Whether a name is "owner/name" on the Hub; local folders go first, as in `from_pretrained`."""
    if name is None or "/" not in name or os.path.exists(name):
        return False
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def shown(value: object) -> str:
    """A value as a published card may show it: no local path but its last part."""
    text = str(value)
    return Path(text).name if os.path.isabs(text) or os.path.exists(text) else text


def link(name: str, kind: str = "") -> str:
    return f"[{name}](https://huggingface.co/{kind}{name})" if is_hub_id(name) else f"`{shown(name)}`"


def machine_rows(train_metrics: dict[str, float], environment: dict[str, dict]) -> list[tuple[str, object]]:
    rows = [(title, f"{train_metrics[name]:.4g}") for name, title in TRAINING.items() if name in train_metrics]
    hardware = environment["hardware"]
    rows += [("GPU", ", ".join(hardware["gpus"]))] if hardware["gpus"] else []
    rows += [("CPU", f"{hardware['cpu']}, {hardware['cores']} cores"), ("processes", hardware["processes"])]
    return [*rows, ("versions", ", ".join(f"{name} {version}" for name, version in environment["versions"].items()))]


def command_text(command: Sequence[str]) -> str:
    """The command line, a flag a line, without tokens and without the folders of local paths."""
    text, hides_next = "", False
    for word in command:
        is_flag = word.startswith("-")
        flag, equals, value = word.partition("=") if is_flag else ("", "", word)
        if "token" in flag or (hides_next and not is_flag):
            value = value and "..."
        hides_next = "token" in flag
        separator = " \\\n    " if word.startswith("--") else " "
        text += separator + shlex.quote(flag + equals + (shown(value) if value else ""))
    return text.strip()
