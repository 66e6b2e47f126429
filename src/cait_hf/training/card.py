# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""The model card (`README.md`) of a trained model: what was measured, on what, and how the model was trained.

Metadata and their format are those of huggingface_hub. Nothing is stated that the caller did not measure or set.
"""

import logging
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData, metadata_load
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from transformers import PreTrainedModel

from ..files import write_text


logger = logging.getLogger(__name__)

MARKER = "generated-by-cait-hf"  # a tag: a card with it is ours to replace
METRICS = {"top1": "top-1 accuracy", "top5": "top-5 accuracy", "mean_class_accuracy": "mean accuracy of the classes"}
WEIGHTS = {"raw": "as trained", "ema": "their moving average (EMA)"}
TRAINING = {
    "train_images_per_second": "images per second in training, all processes",
    "train_data_wait_fraction": "fraction of that time spent waiting for data",
    "train_peak_memory_mib": "peak memory of a process in MiB",
    "train_runtime": "seconds of training, with evaluation and saving",
    "train_loss": "mean loss of training",
}

TEMPLATE = """\
---
{{ card_data }}
---

<!-- Each run rewrites this file. To keep your own changes, remove the tag {{ marker }} above. -->

# {{ title }}

{{ origin }} It has {{ "{:,}".format(num_parameters) }} parameters
{%- if num_trainable != num_parameters %}, of which {{ "{:,}".format(num_trainable) }} were trained,{% endif %}
and {{ num_classes }} classes{% if num_classes <= 20 %}: {{ class_names }}{% endif %}.

## Results
{% if results %}
Measured on {{ "{:,}".format(num_images) }} images of {{ dataset_text }}.

{{ results_table }}
{% else %}
Nothing was measured for this card.
{% endif %}
## How to use

```python
{% if needs_cait_hf %}import cait_hf  # registers CaiT with the Auto classes
{% endif %}from transformers import pipeline

classify = pipeline("image-classification", model="{{ model_name }}")
print(classify("image.jpg"))
```

Step by step:

```python
{% if needs_cait_hf %}import cait_hf
{% endif %}import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification

image_processor = AutoImageProcessor.from_pretrained("{{ model_name }}")
model = AutoModelForImageClassification.from_pretrained("{{ model_name }}")

inputs = image_processor(Image.open("image.jpg").convert("RGB"), return_tensors="pt")
with torch.no_grad():
    logits = model(**inputs).logits
print(model.config.id2label[logits.argmax(-1).item()])
```

## Training
{% if command %}
```bash
{{ command }}
```
{% endif %}{% if settings_table %}
{{ settings_table }}
{% endif %}
### Time and hardware

{{ machine_table }}
"""


class Dataset(NamedTuple):
    """The images of training and evaluation: a Hub id, a folder or any name; `split` is that of evaluation."""

    name: str
    config: str | None = None
    split: str | None = None


def write_model_card(
    output_dir: str | Path,
    *,
    model: PreTrainedModel,
    model_name: str,
    base_model: str | None,
    dataset: Dataset,
    results: dict[str, dict],
    settings: dict[str, object],
    train_metrics: dict[str, float],
    environment: dict[str, dict],
    command: Sequence[str] = (),
    license: str | None = None,
    saved: str = "raw",
) -> Path | None:
    """Write `README.md` into a model's folder, complete or not at all.

    A card that carries the tag `generated-by-cait-hf` is replaced; any other is the user's and stays. Of local paths
    the card shows the last part only, and of tokens nothing: cards are published.

    Args:
        model: as trained; its class names are shown where they are few.
        model_name: what the examples load, a Hub id or a folder.
        base_model: what training started from, a Hub id or a folder; `None` for random weights.
        results: as for `write_report`, of the weights as trained ("raw") and of their moving average ("ema").
        settings: flags of the training and their values, in the order to show; those that are `None` are left out.
        train_metrics: of the training, such as `StepTimer.summary()` and `train_runtime`.
        environment: what `report.environment` returned.
        command: the command line, program first.
        license: id of a license, such as "apache-2.0"; without it the card states none.
        saved: which weights lie in the folder, "raw" or "ema".

    Returns:
        The file, or `None` where the user's own card stays.
    """
    path = Path(output_dir) / "README.md"
    if path.exists() and not is_ours(path):
        logger.warning("%s is not a card that cait-hf wrote, so it stays as it is.", path)
        return None
    title = shown(model_name)
    card = ModelCard.from_template(
        card_metadata(model, title, base_model, dataset, results, license),
        template_str=TEMPLATE,
        marker=MARKER,
        title=title.rpartition("/")[2],
        model_name=title,
        needs_cait_hf=model.config.model_type == "cait",
        origin=origin_text(model.config.model_type, base_model, dataset),
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        num_trainable=sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
        num_classes=model.config.num_labels,
        class_names=", ".join(model.config.id2label.values()),
        results=results,
        num_images=max((int(result["confusion_matrix"].sum()) for result in results.values()), default=0),
        dataset_text=dataset_text(dataset),
        results_table=results_table(results, saved),
        command=command_text(command),
        settings_table=settings_table(settings),
        machine_table=machine_table(train_metrics, environment),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, f"{card}\n")
    return path


def is_ours(path: Path) -> bool:
    try:
        tags = (metadata_load(path) or {}).get("tags")
    except (ValueError, yaml.YAMLError):  # not UTF-8 or not YAML: no card of ours
        return False
    return isinstance(tags, list) and MARKER in tags


def card_metadata(
    model: PreTrainedModel,
    title: str,
    base_model: str | None,
    dataset: Dataset,
    results: dict[str, dict],
    license: str | None,
) -> ModelCardData:
    """Metadata of the card; accuracies are fractions in [0, 1], as `evaluate` gives them."""
    measured = [
        EvalResult(
            task_type="image-classification",
            task_name="Image Classification",
            dataset_type=shown(dataset.name),
            dataset_name=shown(dataset.name),
            dataset_config=dataset.config,
            dataset_split=dataset.split,
            metric_type="accuracy",
            metric_name=METRICS[name] + (", EMA" if weights == "ema" else ""),
            metric_value=result[name],
        )
        for weights, result in results.items()
        for name in METRICS
        if name in result
    ]
    return ModelCardData(
        library_name="transformers",
        pipeline_tag="image-classification",
        tags=[model.config.model_type, "image-classification", "vision", MARKER],
        license=license,
        base_model=base_model if is_hub_id(base_model) else None,
        datasets=[dataset.name] if is_hub_id(dataset.name) else None,
        metrics=["accuracy"] if measured else None,
        model_name=title.rpartition("/")[2] if measured else None,
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


def origin_text(model_type: str, base_model: str | None, dataset: Dataset) -> str:
    if base_model is None:
        start = "trained from random weights"
    elif is_hub_id(base_model):
        start = f"fine-tuned from [{base_model}](https://huggingface.co/{base_model})"
    else:
        start = f"fine-tuned from `{shown(base_model)}`"
    return f"An image classifier (`{model_type}`), {start} on {dataset_text(dataset._replace(split=None))}."


def dataset_text(dataset: Dataset) -> str:
    is_on_hub = is_hub_id(dataset.name)
    name = (
        f"[{dataset.name}](https://huggingface.co/datasets/{dataset.name})"
        if is_on_hub
        else f"`{shown(dataset.name)}`"
    )
    details = [
        f"{kind} `{value}`" for kind, value in (("configuration", dataset.config), ("split", dataset.split)) if value
    ]
    return f"{name} ({', '.join(details)})" if details else name


def results_table(results: dict[str, dict], saved: str) -> str:
    columns = [name for name in METRICS if any(name in result for result in results.values())]
    rows = []
    for weights, result in results.items():
        title = WEIGHTS[weights] + (", in this repository" if weights == saved else "")
        rows.append([title, *(f"{result[name]:.2%}" if name in result else "" for name in columns)])
        rows[-1].append(f"{result['loss']:.4f}" if "loss" in result else "")
    return markdown(["weights", *(METRICS[name] for name in columns), "loss"], rows)


def settings_table(settings: dict[str, object]) -> str:
    rows = [
        (name, f"`{shown(value)}`")
        for name, value in settings.items()
        if value is not None and not name.endswith("token")
    ]
    return markdown(("setting", "value"), rows) if rows else ""


def machine_table(train_metrics: dict[str, float], environment: dict[str, dict]) -> str:
    rows = [(title, f"{train_metrics[name]:.4g}") for name, title in TRAINING.items() if name in train_metrics]
    hardware = environment["hardware"]
    rows += [("GPU", ", ".join(hardware["gpus"]))] if hardware["gpus"] else []
    rows += [("CPU", f"{hardware['cpu']}, {hardware['cores']} cores"), ("processes", hardware["processes"])]
    rows.append(("versions", ", ".join(f"{name} {version}" for name, version in environment["versions"].items())))
    return markdown(("", ""), rows)


def markdown(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = (head, ["---"] * len(head), *rows)
    return "\n".join(f"| {' | '.join(_cell(value) for value in line)} |" for line in lines)


def _cell(value: object) -> str:
    return " ".join(str(value).replace("|", "\\|").split())


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
