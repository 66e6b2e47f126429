# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""Report of a run: `metrics.json`, `confusion_matrix.png` and `learning_curves.png`.

The plots need matplotlib; without it there are the numbers alone.
"""

import importlib.metadata
import importlib.util
import json
import logging
import math
import os
import platform
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..evaluation.metrics import scalars
from ..files import replacing, write_text


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


logger = logging.getLogger(__name__)

PACKAGES = ("cait-hf", "torch", "torchvision", "timm", "transformers", "accelerate", "datasets", "numpy", "pillow")

# Of the curves. Blue: the weights as trained; orange: their moving average; gray: training.
TRAINING, COLORS = "#b4bac4", {"raw": "#1b5e9e", "ema": "#e07b39"}
SMALLEST_TEXT, MOST_ROWS_OF_COUNTS = 4.5, 50  # points; above, thousands of counts are noise
CURVES = {"raw": "eval", "ema": "eval_ema"}  # prefixes in the log
STYLE = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titleweight": "bold",
    "axes.titlesize": 11,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "legend.frameon": False,
    "text.parse_math": False,  # names of classes are no formulas
}


def write_report(
    output_dir: str | Path,
    *,
    results: dict[str, dict],
    class_names: Sequence[str],
    train_metrics: dict[str, float] | None = None,
    log_history: Sequence[dict] = (),
    saved: tuple[int, float] | None = None,
    num_processes: int = 1,
) -> list[Path]:
    """Write the metrics and the plots of a run into a folder; each file appears complete or not at all.

    Args:
        output_dir: made if it does not exist; files of an earlier report are replaced.
        results: by "raw" (the weights as trained) and, where there is one, "ema" (their moving average): what
            `classification_metrics` returned, with further floats, such as "loss", if there are any.
        class_names: in the order of the class indices; equal names are allowed.
        train_metrics: of the training: `StepTimer.summary()`, `train_loss`, `train_runtime`, ...
        log_history: as `trainer.state.log_history`: dicts with "step" or "epoch" and some of "loss",
            "learning_rate", "eval_loss", "eval_top1", "eval_top5", "eval_ema_loss", "eval_ema_top1", ...
        saved: step and epoch of the model, to be marked in the curves.
        num_processes: that trained.

    Returns:
        The files written. Without matplotlib, which a warning says, there are no PNG files; the curves need two logged
        steps or more, which a message says after a training with fewer.

    Raises:
        ValueError: another number of class names than of classes in the results.
    """
    for weights, result in results.items():
        if len(class_names) != len(result["class_accuracy"]):
            raise ValueError(
                f"class_names has {len(class_names)} names, but results[{weights!r}] has "
                f"{len(result['class_accuracy'])} classes; there must be a name for each class."
            )
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    metrics = {**report_metrics(results, class_names, train_metrics or {}), **environment(num_processes)}
    write_text(folder / "metrics.json", to_json(metrics))
    written = [folder / "metrics.json"]

    if importlib.util.find_spec("matplotlib") is None:
        logger.warning("matplotlib is not installed, so the report in %s has no images.", folder)
        return written
    drawings = {"learning_curves.png": draw_learning_curves(log_history, saved)}
    if drawings["learning_curves.png"] is None and train_metrics:
        logger.info(
            "No learning_curves.png: fewer than two steps were logged; --eval_strategy epoch or a lower "
            "--logging_steps log more."
        )
    if results:
        weights = "raw" if "raw" in results else "ema"
        matrix = results[weights]["confusion_matrix"]
        drawings["confusion_matrix.png"] = draw_confusion_matrix(matrix, class_names)
    for name, figure in drawings.items():
        if figure is not None:
            with replacing(folder / name) as temporary:
                figure.savefig(temporary, format="png", bbox_inches="tight")
            written.append(folder / name)
    return written


def report_metrics(results: dict[str, dict], class_names: Sequence[str], train_metrics: dict[str, float]) -> dict:
    """All that was measured, as one JSON object; classes are a list, for their names need not differ."""
    classes = []
    for index, name in enumerate(class_names):
        row = {"name": name}
        for weights, result in results.items():
            row["images"] = result["confusion_matrix"][index].sum()
            row["accuracy" if weights == "raw" else f"{weights}_accuracy"] = result["class_accuracy"][index]
        classes.append(row)
    return {
        "results": {weights: scalars(result) for weights, result in results.items()},
        "train": train_metrics,
        "classes": classes,
        "confusion_matrix": {weights: result["confusion_matrix"] for weights, result in results.items()},
    }


def environment(num_processes: int = 1) -> dict[str, dict]:
    """The hardware of this process and the versions of the packages that matter to a run."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    hardware = {
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "processes": num_processes,
        "system": f"{platform.system()} {platform.machine()}",
    }
    return {"hardware": hardware, "versions": versions}


def cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def to_json(value: Any, indent: str = "") -> str:
    """JSON that a person can read: what contains no further list or dict takes one line, so 1000 x 1000 counts take
    1000. A float that is not finite becomes null, which is all that JSON has for it."""
    value = value.tolist() if isinstance(value, np.ndarray | np.generic) else value
    if isinstance(value, list) and all(type(item) is int for item in value):
        return json.dumps(value)  # at once: there may be a million counts
    if isinstance(value, dict):
        items = [
            f"{json.dumps(str(key), ensure_ascii=False)}: {to_json(item, indent + '  ')}"
            for key, item in value.items()
        ]
    elif isinstance(value, (list, tuple)):
        items = [to_json(item, indent + "  ") for item in value]
    else:
        value = None if isinstance(value, float) and not math.isfinite(value) else value
        return json.dumps(value, ensure_ascii=False)
    opening, closing = "{}" if isinstance(value, dict) else "[]"
    if not any(item.endswith(("}", "]")) for item in items):
        return opening + ", ".join(items) + closing
    lines = f",\n{indent}  ".join(items)
    return f"{opening}\n{indent}  {lines}\n{indent}{closing}"


def draw_learning_curves(log_history: Sequence[dict], saved: tuple[int, float] | None = None) -> "Figure | None":
    """Loss on the left, top-1 and top-5 on the right; `None` where fewer than two steps were logged.

    A vertical line marks the step and epoch of the `saved` model.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    x_axis = "epoch" if all("epoch" in entry for entry in log_history) else "step"
    if len({entry[x_axis] for entry in log_history if x_axis in entry}) < 2:
        return None
    with rc_context(STYLE):
        figure = Figure(figsize=(10, 4), dpi=150, layout="constrained")
        losses, accuracies = figure.subplots(1, 2)
        _draw_series(losses, log_history, x_axis, "loss", "training", color=TRAINING, linewidth=1)
        for weights, prefix in CURVES.items():
            suffix, color = ", EMA" if weights == "ema" else "", COLORS[weights]
            _draw_series(losses, log_history, x_axis, f"{prefix}_loss", f"evaluation{suffix}", color=color)
            for name, label, line in (("top1", "top-1", "-"), ("top5", "top-5", "--")):
                label = f"{label}{suffix}"
                _draw_series(accuracies, log_history, x_axis, f"{prefix}_{name}", label, 100, color=color, ls=line)
        for axes, title in ((losses, "Loss"), (accuracies, "Accuracy in percent")):
            axes.set(title=title, xlabel=x_axis)
            axes.grid()
            if saved is not None:
                place = saved[x_axis == "epoch"]
                axes.axvline(place, color=TRAINING, linestyle=":", label=f"model: {x_axis} {place:.4g}")
            if axes.lines:
                axes.legend()
    return figure


def _draw_series(
    axes: "Axes",
    log_history: Sequence[dict],
    x_axis: str,
    name: str,
    label: str,
    scale: float = 1,
    **style: Any,
) -> None:
    """The logged values of a name, with the last one in the legend; nothing where none was logged."""
    points = [(entry[x_axis], scale * entry[name]) for entry in log_history if name in entry and x_axis in entry]
    if points:
        x, y = np.asarray(points, dtype=float).T
        y[~np.isfinite(y)] = np.nan
        marker = "o" if len(points) <= 30 and name != "loss" else ""
        axes.plot(x, y, label=f"{label}: {y[-1]:.4g}", marker=marker, markersize=3, **style)


def draw_confusion_matrix(matrix: np.ndarray, class_names: Sequence[str]) -> "Figure":
    """Color is the fraction of the images of a true class (row); counts and names stand where there is room."""
    from matplotlib import colormaps, rc_context
    from matplotlib.colors import LinearSegmentedColormap, PowerNorm
    from matplotlib.figure import Figure

    num_classes = len(matrix)
    inches = float(np.clip(0.45 * num_classes, 4, 12))  # of the matrix itself
    cell = 72 * inches / num_classes  # points
    with rc_context(STYLE):
        figure = Figure(figsize=(inches + 2.5, inches + 1.5), dpi=150, layout="constrained")
        axes = figure.subplots()
        fractions = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
        # The square root shows a few confusions in a hundred; what never happened is white.
        colors = LinearSegmentedColormap.from_list("counts", colormaps["Blues"](np.linspace(0.15, 1, 256)))
        drawn = axes.imshow(np.ma.masked_equal(fractions, 0), colors, PowerNorm(0.5, 0, 1), interpolation="nearest")
        ticks = [0, 0.01, 0.1, 0.25, 0.5, 1]
        figure.colorbar(drawn, ax=axes, shrink=0.6, label="fraction of the true class", ticks=ticks, format="{x:.0%}")
        axes.spines[:].set_visible(True)
        top1 = f"{matrix.trace() / matrix.sum():.2%}"
        axes.set(title=f"{matrix.sum():,} images, top-1 {top1}", xlabel="predicted class", ylabel="true class")
        _name_classes(axes, class_names, size=min(10, 0.7 * cell))
        digits = len(str(matrix.max()))
        _write_counts(axes, matrix, fractions, size=min(9, 0.7 * cell, 1.5 * cell / digits))
    return figure


def _name_classes(axes: "Axes", class_names: Sequence[str], size: float) -> None:
    """Names at the ticks; where a line of text is higher than a row, the indices that matplotlib chooses stay."""
    if size < SMALLEST_TEXT:
        axes.set(xlabel="index of the predicted class", ylabel="index of the true class")
        return
    names = [name if len(name) <= 24 else f"{name[:23]}…" for name in map(str, class_names)]
    places = range(len(names))
    axes.set_yticks(places, names, fontsize=size)
    slant = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if size == 10 else {"rotation": 90}
    axes.set_xticks(places, names, fontsize=size, **slant)


def _write_counts(axes: "Axes", matrix: np.ndarray, fractions: np.ndarray, size: float) -> None:
    """The counts that are not 0, if they fit."""
    if size < SMALLEST_TEXT or len(matrix) > MOST_ROWS_OF_COUNTS:
        return
    for row, column in zip(*matrix.nonzero()):
        color = "white" if fractions[row, column] > 0.2 else "#333333"
        count = f"{matrix[row, column]}"
        axes.text(column, row, count, ha="center", va="center", color=color, fontsize=size)
