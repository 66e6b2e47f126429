# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""Write REPRODUCTION.md and its plots from the results that `run.py` left: `python scripts/reproduce/report.py`."""

import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path

import matplotlib
import numpy as np
from run import EXPERIMENTS, HIGH, LOW, RATE_DEPTHS, RATE_SCALES, RATES, RESULTS, SCALES

from cait_hf.fashion_mnist import FOLDER


matplotlib.use("Agg")
from matplotlib import pyplot as plt


ROOT = Path(__file__).resolve().parents[2]
PLOTS = "scripts/reproduce/plots"
DEPTHS = (12, 24, 36, 48)
SCALE_NAMES = {
    "none": "none",
    "0.1": "LayerScale, 0.1 at first",
    "1e-4": "LayerScale, 1e-4 at first",
    "1e-5": "LayerScale, 1e-5 at first",
    "1e-6": "LayerScale, 1e-6 at first",
    "scalar": "one factor a branch, 0 at first (ReZero's)",
}
HEAD = """# What the paper claims, asked of small models

Written by `scripts/reproduce/report.py` from the JSON files in `scripts/reproduce/results`, which
`scripts/reproduce/run.py` wrote: {runs} trainings, {seeds} seeds of each model, {hours} hours of training
({machine}). In the sections on the class token, talking heads and the teacher
the models `separate`, `with` and `labels` are the same one, trained from the same seeds.

This is not ImageNet. The models have 32 channels and four heads, the images are Fashion-MNIST's, a few thousand of
them, seen a few times; the accuracies are on 5,000 held-out images, as mean ± standard deviation over the seeds. A
claim that does not show here may well hold at the paper's scale, and the other way round.
"""
WINDOW = 20  # losses that a smoothed one is the mean of
LEARNED = 1.0  # a smoothed training loss below which a model has begun to tell classes apart; ln(10) is chance


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS, help="default: %(default)s")
    parser.add_argument("--output_dir", type=Path, default=ROOT, help=f"gets REPRODUCTION.md and {PLOTS}/*.png")
    args = parser.parse_args(argv)
    try:
        results = {name: read_results(args.results / name) for name in EXPERIMENTS}
    except OSError as error:
        sys.exit(f"error: {error}; run scripts/reproduce/run.py first.")
    plots = args.output_dir / PLOTS
    plots.mkdir(parents=True, exist_ok=True)
    comments = args.results / "comments.json"  # on the results in this repository; others have none
    comments = json.loads(comments.read_text(encoding="utf-8")) if comments.is_file() else {}
    sections = [HEAD.format(**facts(results))]
    for name, (experiment, title, table, plot) in SECTIONS.items():
        plot(results[experiment], plots / f"{name}.png")
        image = f"![{title}]({PLOTS}/{name}.png)"
        sections.append(section(title, comments.get(name), table(results[experiment]), image))
    if table_of_teacher := checkpoint_table():
        sections.append(section(CHECKPOINT_TITLE, comments.get("checkpoint"), table_of_teacher))
    (args.output_dir / "REPRODUCTION.md").write_text("\n".join(sections), encoding="utf-8")


def section(title: str, *parts: str | None) -> str:
    return "\n\n".join(filter(None, (f"## {title}", *parts))) + "\n"


Results = dict[str, list[dict]]  # a variant's name: its runs, a seed each


def read_results(folder: Path) -> Results:
    """The runs of an experiment by variant, in the order of `run.py`.

    Raises:
        FileNotFoundError: if there is none for a variant.
    """
    found = defaultdict(list)
    for path in sorted(folder.glob("*.json")):
        run = json.loads(path.read_text(encoding="utf-8"))
        found[run["variant"]["name"]].append(run)
    names = [variant.name for variant in EXPERIMENTS[folder.name].variants]
    for name in names:
        if name not in found:
            raise FileNotFoundError(f"{folder} has no result of {name!r}")
    return {name: found[name] for name in names}


def facts(results: dict[str, Results]) -> dict[str, str]:
    runs = [run for experiment in results.values() for variant in experiment.values() for run in variant]
    counts = {len(variant) for experiment in results.values() for variant in experiment.values()}
    return {
        "runs": str(len(runs)),
        "seeds": " or ".join(map(str, sorted(counts))),
        "hours": f"{sum(run['seconds'] for run in runs) / 3600:.1f}",
        "machine": "; ".join(sorted({run["machine"] for run in runs})),
    }


def accuracies(runs: list[dict], size: int | None = None) -> list[float]:
    return [run["accuracy"][str(size)] if size else list(run["accuracy"].values())[0] for run in runs]


def mean_and_spread(values: list[float]) -> str:
    """Mean and sample standard deviation, as percentages."""
    values = 100 * np.array(values)
    return f"{values.mean():.1f}" + (f" ± {spread(values):.1f}" if len(values) > 1 else "")


def spread(values: np.ndarray) -> float:
    """Sample standard deviation; 0 for a single value."""
    return values.std(ddof=1) if len(values) > 1 else 0.0


def first_step_below(losses: list[float], threshold: float) -> int | None:
    """The first step at which the mean of the last `WINDOW` losses is below `threshold`."""
    below = np.flatnonzero(smoothed(losses) < threshold)
    return int(below[0]) + WINDOW if len(below) else None


def smoothed(losses: list[float]) -> np.ndarray:
    """Means of `WINDOW` losses; none if there are fewer."""
    if len(losses) < WINDOW:
        return np.array([])
    return np.convolve(losses, np.ones(WINDOW) / WINDOW, mode="valid")


def table_of(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def depth_table(results: Results) -> str:
    rows = [
        [SCALE_NAMES[name], *(accuracy_and_begin(results[f"{depth}-{name}"]) for depth in DEPTHS)] for name in SCALES
    ]
    return table_of(["residual branches", *(f"{depth} layers" for depth in DEPTHS)], rows)


def accuracy_and_begin(runs: list[dict]) -> str:
    """The accuracy, and in brackets when the runs began to tell classes apart, or how many did."""
    begins = [first_step_below(run["losses"], LEARNED) for run in runs]
    begun = [step for step in begins if step is not None]
    when = f"step {np.mean(begun):.0f}" if len(begun) == len(runs) else f"{len(begun)} of {len(runs)} runs"
    return f"{mean_and_spread(accuracies(runs))} ({when})"


def learning_rate_table(results: Results) -> str:
    rows = [
        [str(depth), SCALE_NAMES[name], *(accuracy_and_begin(results[f"{depth}-{name}-{rate}"]) for rate in RATES)]
        for depth in RATE_DEPTHS
        for name in RATE_SCALES
    ]
    return table_of(["layers", "residual branches", *(f"at {rate}" for rate in RATES)], rows)


def plain_table(results: Results) -> str:
    rows = [
        [
            name,
            mean_and_spread(accuracies(runs)),
            mean_and_spread([run["training_accuracy"] for run in runs]),
            f"{runs[0]['parameters']:,}",
            f"{runs[0]['macs'] / 1e6:.2f} M",
        ]
        for name, runs in results.items()
    ]
    header = [
        "model",
        "accuracy, %",
        "on images of the training, %",
        "trained parameters",
        "MACs per image",
    ]
    return table_of(header, rows)


def resolution_table(results: Results) -> str:
    costs = {runs[0]["variant"]["stages"][-1][0]: runs[0]["macs"] for runs in results.values()}
    rows = []
    for name, runs in results.items():
        stages = runs[0]["variant"]["stages"]
        cells = [
            mean_and_spread(accuracies(runs, size)) if str(size) in runs[0]["accuracy"] else "" for size in (LOW, HIGH)
        ]
        cost = sum(fraction * costs[size] for size, fraction in stages) / max(costs.values())
        trained_at = " then ".join(f"{size} px ({fraction:.0%})" for size, fraction in stages)
        rows.append([name, trained_at, *cells, f"{cost:.2f}"])
    header = [
        "model",
        "trained at",
        f"accuracy at {LOW} px, %",
        f"accuracy at {HIGH} px, %",
        f"MACs in training, against {HIGH} px throughout",
    ]
    return table_of(header, rows)


def distillation_table(results: Results) -> str:
    teachers = [run["teacher_accuracy"] for runs in results.values() for run in runs if run["teacher_accuracy"]]
    return plain_table(results) + f"\n\nThe teacher alone: {mean_and_spread(teachers)} %."


def checkpoint_table() -> str | None:
    """Of the short trainings before the checkpoint in the package those that differ in the teacher alone, if any."""
    tried = json.loads((FOLDER / "results.json").read_text(encoding="utf-8"))["tried"]
    by_settings = defaultdict(lambda: defaultdict(list))
    for row in tried[1:]:
        run = dict(zip(tried[0], row))
        accuracy, teacher, _ = run.pop("held-out accuracy"), run.pop("teacher", None), run.pop("seed", None)
        by_settings[str(run)][teacher].append(accuracy)
    pair = next((found for found in by_settings.values() if len(found) == 2), None)
    if pair is None:
        return None
    names = {"no": "labels", "yes": "hard distillation"}
    return table_of(
        ["model", "seeds", "accuracy, %"],
        [[names[teacher], str(len(values)), mean_and_spread(values)] for teacher, values in sorted(pair.items())],
    )


def depth_plot(results: Results, path: Path):
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4))
    for name in SCALES:
        values = [100 * np.array(accuracies(results[f"{depth}-{name}"])) for depth in DEPTHS]
        means, spreads = [value.mean() for value in values], [spread(value) for value in values]
        drawn = left.errorbar(DEPTHS, means, spreads, marker="o", capsize=3, label=SCALE_NAMES[name])
        for run in results[f"{DEPTHS[-1]}-{name}"]:  # a line each, for one that diverged is shorter
            right.plot(smoothed(run["losses"]), color=drawn[0].get_color(), linewidth=0.8)
    left.set(xlabel="layers", ylabel="accuracy, %", xticks=DEPTHS)
    left.legend(fontsize=8)
    right.set(xlabel="step", ylabel="training loss", title=f"{DEPTHS[-1]} layers")
    save(figure, path)


def learning_rate_plot(results: Results, path: Path):
    figure, (panels,) = plt.subplots(1, len(RATE_DEPTHS), figsize=(11, 4), sharey=True, squeeze=False)
    for panel, depth in zip(panels, RATE_DEPTHS):
        for name in RATE_SCALES:
            runs = [[100 * value for value in accuracies(results[f"{depth}-{name}-{rate}"])] for rate in RATES]
            (line,) = panel.plot(RATES, [np.mean(values) for values in runs], label=SCALE_NAMES[name])
            for rate, values in zip(RATES, runs):
                panel.plot([rate] * len(values), values, "o", color=line.get_color(), alpha=0.6)
        panel.set(xlabel="learning rate", title=f"{depth} layers")
    panels[0].set(ylabel="accuracy, % (a point each seed, lines: means)")
    panels[0].legend(fontsize=8)
    save(figure, path)


def accuracy_plot(results: Results, path: Path):
    figure, axes = plt.subplots(figsize=(6, 0.6 * len(results) + 1.2))
    for row, runs in enumerate(results.values()):
        values = [100 * value for value in accuracies(runs)]
        axes.plot(values, [row] * len(values), "o", color="tab:blue", alpha=0.5)
        axes.plot(np.mean(values), row, "|", color="black", markersize=18)
    axes.set_yticks(range(len(results)), list(results))
    axes.set(xlabel="accuracy, % (a point each seed, a line their mean)", ylim=(len(results) - 0.5, -0.5))
    save(figure, path)


def resolution_plot(results: Results, path: Path):
    at_high = {
        name: [{"accuracy": {HIGH: run["accuracy"][str(HIGH)]}} for run in runs] for name, runs in results.items()
    }
    accuracy_plot(at_high, path)


def ratio_table(results: Results) -> str:
    rows = []
    for name in SCALES:
        runs = results[f"36-{name}"]
        cells = []
        for branch in ("attention", "mlp"):
            ratios = np.mean([run["branch_ratios"][branch] for run in runs], axis=0)
            cells.append(f"{ratios.mean():.3f} ({ratios.min():.3f} to {ratios.max():.3f})")
        rows.append([SCALE_NAMES[name], *cells])
    return table_of(["36 layers, residual branches", "attention", "MLP"], rows)


def ratio_plot(results: Results, path: Path):
    figure, panels = plt.subplots(1, 2, figsize=(11, 4), sharey=True)
    for panel, branch, title in zip(panels, ("attention", "mlp"), ("attention", "MLP")):
        for name in SCALES:
            ratios = np.mean([run["branch_ratios"][branch] for run in results[f"36-{name}"]], axis=0)
            panel.plot(range(1, len(ratios) + 1), ratios, label=SCALE_NAMES[name])
        panel.set(xlabel="layer", title=title, yscale="log")
    panels[0].set(ylabel="|branch| / |main path|")
    panels[0].legend(fontsize=8)
    save(figure, path)


def save(figure, path: Path):
    figure.tight_layout()
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)


CHECKPOINT_TITLE = "Teacher or labels, for the checkpoint in the package?"
# Of each other section: the experiment of `run.py` that it is about, title, table and plot.
SECTIONS = {
    "depth": ("depth", "Does LayerScale make deep models train?", depth_table, depth_plot),
    "learning_rates": (
        "learning_rates",
        "Does LayerScale widen the range of learning rates that train?",
        learning_rate_table,
        learning_rate_plot,
    ),
    "branch_ratios": ("depth", "How large are the residual branches?", ratio_table, ratio_plot),
    "class_attention": ("class_attention", "Where should the class token enter?", plain_table, accuracy_plot),
    "talking_heads": ("talking_heads", "Do talking heads help?", plain_table, accuracy_plot),
    "drop_path": ("drop_path", "Does constant drop path help?", plain_table, accuracy_plot),
    "resolution": ("resolution", "Low resolution first, then high?", resolution_table, resolution_plot),
    "distillation": ("distillation", "Does a convolutional teacher help?", distillation_table, accuracy_plot),
}


if __name__ == "__main__":
    main()
