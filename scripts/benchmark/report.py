# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""What `run.py` measures, by name, and the Markdown tables and charts of its results. Needs no torch.

A result is one row of `results.json`: a [`Work`] and, for each baseline, one sample a round, in seconds a call or
bytes. The baselines of a round ran one after the other, so what the machine did meanwhile hit all of them: ratios
are taken round by round, and their median and 10 % and 90 % quantiles are what is reported.
"""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np


MODES = {
    "inference": "Inference",
    "training": "Training step (forward, cross-entropy, backward)",
    "attention": "One attention without its linear projections, forward",
    "attention_training": "One attention without its linear projections, forward and backward",
    "inference_memory": "Peak memory of inference",
    "training_memory": "Peak memory of a training step",
    "attention_memory": "Peak memory of one attention, forward",
    "attention_training_memory": "Peak memory of one attention, forward and backward",
}
BASELINES = {
    "ours": "cait-hf",
    "ours_eager": "cait-hf eager",
    "ours_compiled": "cait-hf compiled",
    "timm": "timm",
    "timm_compiled": "timm compiled",
    "timm_wrapper": "TimmWrapper",
    "openvino": "OpenVINO",
    "onnxruntime": "ONNX Runtime",
    "vit": "ViT, SDPA",  # among attentions: scaled_dot_product_attention, without talking heads
}
RUNTIMES = ("openvino", "onnxruntime")  # of our export, on the CPU
COLORS = ("#1b5e9e", "#a9cdea", "#5b9bd5", "#e07b39", "#c0571b", "#f3b98f", "#3d8b6e", "#8fc7b1", "#8a8f98")
COLORS = dict(zip(BASELINES, COLORS))
COMPARISONS = (("timm", "ours"), ("timm_compiled", "ours"), ("timm_compiled", "ours_compiled"), ("ours", "vit"))

NOTES = """\
- **cait-hf**: `CaitForImageClassification` as it is built by default; *eager* with `attn_implementation="eager"`;
  *compiled* by `torch.compile(dynamic=False)`. **timm**: its CaiT with the same weights. **TimmWrapper**: the
  `TimmWrapperForImageClassification` of transformers around it. **OpenVINO**, **ONNX Runtime**: what `cait-hf export`
  writes, with the options of the runtime as they are but for float32. Equal logits are checked before anything is
  timed.
- **ViT, SDPA**, the floor: the `ViTForImageClassification` of transformers with `scaled_dot_product_attention`. It has
  CaiT's hidden size, heads, MLP width, image and patch size, and as many layers as CaiT has patch layers. Its class
  token passes through all of them (N + 1 tokens where CaiT has N); it has no LayerScale and no class-attention layers.
- An attention alone goes from projected queries, keys and values to the attended values; *ViT, SDPA* then is
  `scaled_dot_product_attention` on the same tensors (FlashAttention on CUDA in half precision), without talking heads.
- A training step is forward, cross-entropy and backward; the optimizer, equal for all, is left out. Peak memory is
  what one step adds to the memory in use before it: resident memory of a process of its own on the CPU, memory
  allocated by PyTorch on CUDA. 1 GB is 1e9 bytes.
- Times are medians over the rounds. A ratio is taken in each round: its median (and its 10 % and 90 % quantiles),
  which is not the ratio of the medians where the machine's speed drifts from round to round.
"""


@dataclass(frozen=True)
class Work:
    """What the baselines of a row all do."""

    mode: str
    model: str
    image_size: int
    batch_size: int
    dtype: str = "float32"
    device: str = "cpu"

    @property
    def is_memory(self) -> bool:
        return self.mode.endswith("_memory")

    @property
    def is_training(self) -> bool:
        return "training" in self.mode

    @property
    def is_attention(self) -> bool:
        return self.mode.startswith("attention")

    def __str__(self) -> str:
        return f"{self.mode} {self.model}-{self.image_size} batch {self.batch_size} {self.dtype} {self.device}"


class Goal(NamedTuple):
    """`numerator`'s time or memory over `denominator`'s, which must be `at_least` or `at_most` a bound."""

    work: Work
    numerator: str
    denominator: str
    at_least: float | None = None
    at_most: float | None = None

    def is_reached(self, ratio: float) -> bool:
        return ratio >= self.at_least if self.at_least is not None else ratio <= self.at_most


# By model, image size and batch size at inference: how many times as fast as timm in float32, and at most which
# fraction of the ViT's time, in float32 and in bfloat16.
CPU_BOUNDS = {
    ("XXS24", 224, 1): (1.35, 1.04, 1.03),
    ("XXS24", 224, 8): (2.0, 1.00, 0.82),
    ("XXS24", 224, 32): (1.9, 0.97, 0.81),
    ("S24", 224, 8): (1.25, 1.01, 0.89),
    ("XXS24", 384, 4): (2.3, 0.84, 0.56),
    ("S24", 384, 2): (2.2, 0.96, 0.73),
}


def cpu_goals() -> list[Goal]:
    """On 2 CPU cores."""
    goals = []
    for size, (faster_than_timm, *times_of_vit) in CPU_BOUNDS.items():
        goals.append(Goal(Work("inference", *size), "timm", "ours", at_least=faster_than_timm))
        for dtype, time_of_vit in zip(("float32", "bfloat16"), times_of_vit):
            goals.append(Goal(Work("inference", *size, dtype), "ours", "vit", at_most=time_of_vit))
    for size in (("XXS24", 224, 8), ("XXS24", 384, 4)):
        goals.append(Goal(Work("inference", *size), "timm_compiled", "ours_compiled", at_least=1.3))
    for mode, size, than_timm, than_vit in (
        ("training", ("XXS24", 384, 4), {"at_least": 1.9}, 1.3),
        ("training", ("S24", 224, 8), {"at_least": 1.15}, 1.1),
        ("training_memory", ("XXS24", 384, 4), {"at_most": 0.30}, 1.2),
        ("training_memory", ("S24", 224, 8), {"at_most": 0.65}, 1.2),
    ):
        pair = ("timm", "ours") if "at_least" in than_timm else ("ours", "timm")
        goals.append(Goal(Work(mode, *size), *pair, **than_timm))
        goals.append(Goal(Work(mode, *size), "ours", "vit", at_most=than_vit))
    return goals


def cpu_rows() -> list[tuple[Work, list[str]]]:
    """What is measured on a CPU, and of which baselines: the goals, other runtimes, the largest models."""
    names_of: dict[Work, set[str]] = {}
    for goal in cpu_goals():
        names_of.setdefault(goal.work, {"timm"}).update((goal.numerator, goal.denominator))
    names_of[Work("inference", "XXS24", 224, 8)].update(("timm_wrapper", *RUNTIMES))
    names_of[Work("inference", "S24", 224, 8)].update(RUNTIMES)
    for size in (("XXS24", 224, 8), ("XXS24", 384, 4)):
        names_of[Work("inference_memory", *size)] = {"ours", "timm", "vit"}
    for size in (("M36", 384, 1), ("M48", 448, 1)):
        for dtype in ("float32", "bfloat16"):
            names_of[Work("inference", *size, dtype)] = {"ours", "timm", "vit"}
    return [(work, [name for name in BASELINES if name in names]) for work, names in names_of.items()]


# By model and image size: images of a batch at inference, and of a training step that fits 80 GB with timm too.
CUDA_SIZES = {("S24", 224): (256, 64), ("S24", 384): (128, 32), ("XXS24", 224): (256, 128), ("M36", 384): (64, 8)}
CUDA_MODES = ("inference", "attention", "attention_training", "training_memory", "training")


def cuda_work(mode: str, model: str, image_size: int) -> Work:
    inference, training = CUDA_SIZES[model, image_size]
    return Work(mode, model, image_size, training if "training" in mode else inference, "bfloat16", "cuda")


def cuda_rows() -> list[tuple[Work, list[str]]]:
    """What is measured on a GPU, and of which baselines, the most telling first."""
    rows = []
    for mode in CUDA_MODES:
        names = ["ours", "timm", "vit"] if mode.endswith("memory") else ["ours", "timm", "timm_compiled", "vit"]
        rows += [(cuda_work(mode, *size), names) for size in CUDA_SIZES]
    return rows


def cuda_goals() -> list[Goal]:
    """On an H100 or H200, bfloat16."""
    return [
        Goal(cuda_work("inference", "S24", 224), "timm", "ours", at_least=2.0),
        Goal(cuda_work("inference", "S24", 224), "ours", "vit", at_most=1.2),
        Goal(cuda_work("training", "S24", 384), "timm", "ours", at_least=2.0),
        *(Goal(cuda_work("training_memory", model, 384), "ours", "timm", at_most=0.33) for model in ("S24", "M36")),
        *(
            Goal(cuda_work(mode, "S24", size), "ours", "vit", at_most=2.0)
            for size in (224, 384)
            for mode in ("attention", "attention_training")
        ),
    ]


def work_of(row: dict) -> Work:
    return Work(**{name: row[name] for name in Work.__dataclass_fields__})


def in_order(rows: list[dict]) -> list[dict]:
    """Models as they were first measured, then by image size and batch."""
    models = list(dict.fromkeys(row["model"] for row in rows))
    return sorted(rows, key=lambda row: (models.index(row["model"]), row["image_size"], row["batch_size"]))


def baselines_of(row: dict) -> set[str]:
    """Every baseline that the row was measured with, those that failed included."""
    return {*row["samples"], *row["failures"]}


def find_row(rows: list[dict], work: Work) -> dict | None:
    return next((row for row in rows if work_of(row) == work), None)


class Quantiles(NamedTuple):
    low: float
    median: float
    high: float


def ratio(row: dict, numerator: str, denominator: str) -> Quantiles | None:
    """Quantiles (10, 50, 90 %) over the rounds of one baseline's sample over the other's in the same round.

    `None` where one of them is missing or the denominator was 0 (memory of a very small step).
    """
    pairs = list(zip(row["samples"].get(numerator, ()), row["samples"].get(denominator, ())))
    if not pairs or not all(b for _, b in pairs):
        return None
    over_rounds = [a / b for a, b in pairs]
    return Quantiles(*np.quantile(over_rounds, (0.1, 0.5, 0.9)).tolist())


def hardware_text(results: dict) -> str:
    hardware = results["hardware"]
    gpu = f", {hardware['gpu']}" if hardware["gpu"] else ""
    versions = ", ".join(f"{name} {version}" for name, version in hardware["versions"].items())
    loads = [load for row in results["rows"] for load in row["load_average"]]
    load = f" Load average (1 minute) from {min(loads):.1f} to {max(loads):.1f}." if loads else ""
    return (
        f"{hardware['cpu']}, {hardware['cores']} cores, {hardware['threads']} threads{gpu}; {hardware['system']}; "
        f"attention {hardware['attention']}; {versions}.{load}"
    )


def tables(results: dict) -> str:
    """All rows as Markdown: the machine, the goals that were measured, then one table for each mode, dtype, device."""
    rows = results["rows"]
    parts = [hardware_text(results), goal_table(rows)]
    groups = {}
    for row in in_order(rows):
        groups.setdefault((row["device"], row["dtype"], list(MODES).index(row["mode"])), []).append(row)
    parts += [mode_table(groups[key]) for key in sorted(groups)]
    return "\n\n".join([*filter(None, parts), NOTES.rstrip()]) + "\n"


GPU_PARTS = {
    "a": "kernels against float64",
    "b": "search over launches of the kernels",
    "c": "attention and models",
    "d": "training scripts",
    "e": "Fashion-MNIST in three minutes",
}


def gpu_tables(folder: Path) -> str:
    """All that `gpu.sh` wrote into a folder as Markdown; what is missing there is named."""
    gpu = read_json(folder / "gpu.json")
    versions = ", ".join(f"{name} {version or 'missing'}" for name, version in gpu["packages"].items())
    parts = [f"{gpu['device']}; {versions}."]
    incomplete = [
        f"- {GPU_PARTS[letter]}: {part['status']}, {part['reason'] or 'without an end'}"
        for letter, part in gpu["parts"].items()
        if part["status"] != "passed"
    ]
    if incomplete:
        parts.append("Incomplete:\n\n" + "\n".join(incomplete))
    sections = {
        "models": tables,
        "kernels": exactness_table,
        "launches": launch_tables,
        "training": training_table,
        "fashion_mnist": fashion_mnist_text,
    }
    for name, section in sections.items():
        if (folder / f"{name}.json").is_file():
            parts.append(section(read_json(folder / f"{name}.json")).rstrip())
    return "\n\n".join(parts) + "\n"


def exactness_table(result: dict) -> str:
    lines = []
    for row in sorted(result["cases"], key=lambda row: (row["dtype"], row["heads"], row["patches"])):
        found = row["errors"]
        gradients = [error for name, error in found.items() if name != "output"]
        line = [", ".join(row["architectures"]), str(row["heads"]), str(row["patches"]), row["dtype"]]
        line += [f"{found['output']:.1e}", f"{max(gradients):.1e}"] if found else ["", ""]
        lines.append([*line, f"{row['tolerance']:.1e}", row["failure"] or "exact"])
    head = ("architectures", "heads", "patches", "dtype", "output", "gradients", "allowed", "")
    missing = result["planned"] - len(lines)
    text = f"### Largest relative errors of the Triton kernels against float64\n\n{markdown(head, lines)}"
    return text + (f"\n\n{missing} of {result['planned']} cases were not reached." if missing else "")


def launch_tables(result: dict) -> str:
    lines = []
    for shape in result["shapes"]:
        line = [str(shape[name]) for name in ("heads", "patches", "batch")]
        for name in ("forward", "backward"):
            line += [digits(shape[name][which]) for which in ("now", "best")]
        best = [
            f"{kernel} {'/'.join(map(str, min(rows, key=lambda row: row['milliseconds'])['launch']))}"
            for kernel, rows in shape["kernels"].items()
        ]
        lines.append([*line, ", ".join(best)])
    head = ("heads", "patches", "batch", "forward", "by the best", "backward", "by the best")
    text = markdown((*head, "best launch of each kernel: outer/inner/warps/stages"), lines)
    text = f"### Launches of the Triton kernels, ms (bfloat16)\n\n{text}"
    return text + "".join(f"\n{line}" for line in ("", "```python", *result["entries"], "```") if result["entries"])


def training_table(result: dict) -> str:
    lines = []
    for run in result["runs"]:
        line = [f"`{run['script']}.py`", run["precision"]]
        if run["failure"]:
            lines.append([*line, "failed: " + run["failure"], "", "", ""])
            continue
        line += [digits(run["train_images_per_second"]), f"{run['train_data_wait_fraction']:.0%}"]
        lines.append([*line, digits(run["train_peak_memory_mib"]), digits(run["train_first_step_seconds"])])
    head = ("script", "precision", "images/s", "of it waiting for data", "peak memory, MiB", "first step, s")
    title = f"{result['model']}, batch {result['batch_size']}, {result['steps']} steps"
    return f"### Training scripts, {title}\n\n{markdown(head, lines)}"


def fashion_mnist_text(result: dict) -> str:
    if result["failure"]:
        return f"### Fashion-MNIST\n\nFailed: {result['failure']}"
    lines = [
        f"The recipe `{recipe}` for {training['epochs']} epochs, {digits(training['seconds'])} s with a short run "
        f"before it, {digits(training['train_images_per_second'])} images/s: top-1 {training['eval_ema_top1']:.2%} of "
        "the validation split."
        for recipe, training in (("fashion_mnist_teacher", result["teacher"]), ("fashion_mnist", result))
    ]
    return "\n\n".join(("### Fashion-MNIST", *lines))


def goal_table(rows: list[dict]) -> str:
    lines = []
    for goal in cpu_goals() + cuda_goals():
        row = find_row(rows, goal.work)
        if row and {goal.numerator, goal.denominator} <= baselines_of(row):
            measured = ratio(row, goal.numerator, goal.denominator)
            bound = f">= {goal.at_least:.2f}" if goal.at_least is not None else f"<= {goal.at_most:.2f}"
            pair = f"{BASELINES[goal.numerator]} / {BASELINES[goal.denominator]}"
            reached = measured is not None and goal.is_reached(measured.median)
            verdict = "reached" if reached else "**not reached**"
            lines.append((str(goal.work), pair, quantiles_text(measured) or "failed", bound, verdict))
    return "### Goals\n\n" + markdown(("work", "ratio", "measured", "goal", ""), lines) if lines else ""


def mode_table(rows: list[dict]) -> str:
    first = work_of(rows[0])
    unit = "GB" if first.is_memory else "ms an image"
    names = [name for name in BASELINES if any(name in baselines_of(row) for row in rows)]
    pairs = [pair for pair in COMPARISONS if any(ratio(row, *pair) for row in rows)]
    head = ["model", "batch", *(BASELINES[name] for name in names)]
    head += [f"{BASELINES[a]} / {BASELINES[b]}" for a, b in pairs]
    lines = []
    for row in rows:
        line = [f"{row['model']}-{row['image_size']}", str(row["batch_size"])]
        line += [sample_text(row, name) for name in names]
        line += [quantiles_text(ratio(row, *pair)) for pair in pairs]
        lines.append(line)
    text = f"### {MODES[first.mode]}, {unit} ({first.device}, {first.dtype})\n\n{markdown(head, lines)}"
    first_calls = {}
    for row in rows:
        for name, seconds in row["first_call_seconds"].items():
            first_calls.setdefault(name, []).append(seconds)
    if first_calls:
        spans = [f"{BASELINES[name]} {min(all_):.0f} to {max(all_):.0f} s" for name, all_ in first_calls.items()]
        text += f"\n\nFirst call, which compiles and is not part of the times: {', '.join(spans)}."
    failures = [f"- {work_of(row)}, {name}: {text}" for row in rows for name, text in row["failures"].items()]
    return text + ("\n\nFailed:\n\n" + "\n".join(failures) if failures else "")


def sample_text(row: dict, name: str) -> str:
    """Memory in GB, or the time of an image with, for whole models at inference, the images a second."""
    if name not in row["samples"]:
        return "failed" if name in row["failures"] else ""
    median = float(np.median(row["samples"][name]))
    if work_of(row).is_memory:
        return digits(median / 1e9)
    text = digits(1000 * median / row["batch_size"])
    return f"{text} ({digits(row['batch_size'] / median)}/s)" if row["mode"] == "inference" else text


def digits(value: float) -> str:
    """Three significant digits, never in exponent form."""
    if value == 0:
        return "0"
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


def quantiles_text(quantiles: Quantiles | None) -> str:
    return f"{quantiles.median:.2f} ({quantiles.low:.2f} to {quantiles.high:.2f})" if quantiles else ""


def markdown(head, lines) -> str:
    rule = ["---"] * len(head)
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, rule, *lines))


def draw_charts(results: dict, folder: Path) -> list[Path]:
    """Write one PNG of bars for each mode, dtype and device, and `scaling.png` where the sizes allow; return them."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    from cait_hf.files import replacing
    from cait_hf.training.report import STYLE

    groups, scaling, growth = {}, {}, {}
    grown = {work for works in growth_rows().values() for work in works.values()}
    for row in in_order([row for row in results["rows"] if row["samples"]]):
        target = scaling if work_of(row).model == SCALING_MODEL else groups
        if work_of(row) in grown:
            target = growth
        target.setdefault((row["mode"], row["device"], row["dtype"]), []).append(row)
    written = []
    with pyplot.rc_context({**STYLE, "text.parse_math": True}):  # exponents
        figures = {"_".join(key): bar_chart(rows) for key, rows in groups.items()}
        machines = {key[1:] for key in scaling}
        for machine in machines:
            of_machine = {key[0]: rows for key, rows in scaling.items() if key[1:] == machine}
            figures["_".join(("scaling", *machine))] = scaling_chart(of_machine, ", ".join(machine))
        figures |= {"_".join(("growth", *key[1:])): growth_chart(rows) for key, rows in growth.items()}
        for name, figure in figures.items():
            figure.text(0, -0.02, hardware_text(results), fontsize=6, color="#666666", va="top", wrap=True)
            written.append(folder / f"{name}.png")
            with replacing(written[-1]) as temporary:
                figure.savefig(temporary, format="png", dpi=150, bbox_inches="tight")
            pyplot.close(figure)
    return written


def bar_chart(rows: list[dict]):
    """Horizontal bars relative to timm in the same rounds, with the median itself at their ends."""
    from matplotlib import pyplot
    from matplotlib.patches import Patch

    first = work_of(rows[0])
    names = [name for name in BASELINES if any(row["samples"].get(name) for row in rows)]
    base = "timm" if "timm" in names else names[0]
    rows = [row for row in rows if row["samples"].get(base)]
    height = 0.25 * len(rows) * (len(names) + 1) + 1
    figure, axes = pyplot.subplots(figsize=(8, max(height, 2.5)), layout="constrained")
    width = 1 / (len(names) + 1)
    for index, name in enumerate(names):
        for position, row in enumerate(rows):
            # speed for times, so that longer is better; for memory shorter is
            pair = (name, base) if first.is_memory else (base, name)
            relative = ratio(row, *pair)
            if relative is None:
                continue
            place = position + (index + 1) * width
            low, middle, high = relative
            axes.barh(place, middle, width * 0.9, color=COLORS[name])
            axes.plot((low, high), (place, place), color="#222222", linewidth=1)
            unit = "GB" if first.is_memory else "ms"
            text = f"{digits(np.median(row['samples'][name]) / 1e9) if first.is_memory else sample_text(row, name)}"
            axes.text(high, place, f"  {text.split(' ')[0]} {unit}", va="center", fontsize=7, color="#444444")
    axes.axvline(1, color="#444444", linewidth=0.8, linestyle=":")
    labels = [f"{row['model']}-{row['image_size']}\nbatch {row['batch_size']}" for row in rows]
    axes.set_yticks([position + 0.5 for position in range(len(rows))], labels)
    axes.set_ylim(len(rows), 0)
    axes.grid(axis="x")
    quantity = "memory, shorter is better" if first.is_memory else "speed, longer is better (labels: ms an image)"
    axes.set_xlabel(f"relative to {BASELINES[base]}: {quantity}")
    axes.set_title(f"{MODES[first.mode]} ({first.device}, {first.dtype})", loc="left")
    handles = [Patch(color=COLORS[name], label=BASELINES[name]) for name in names]
    axes.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.02, 1))
    return figure


SCALING_MODEL = "shallow"  # 4 layers of XXS24
SCALING_MODES = ("attention", "attention_training", "training")


def scaling_chart(rows_by_mode: dict[str, list[dict]], machine: str):
    """Time above memory against the number of patches, both axes logarithmic, one column for each kind of work."""
    from matplotlib import pyplot

    figure, grid = pyplot.subplots(2, len(SCALING_MODES), figsize=(12, 6.5), sharex=True, layout="constrained")
    titles = ("attention, forward", "attention, forward and backward", "4-layer model, training step")
    for column, (mode, title) in enumerate(zip(SCALING_MODES, titles)):
        for axes, kind, scale in ((grid[0, column], mode, 1e3), (grid[1, column], f"{mode}_memory", 1e-6)):
            rows = rows_by_mode.get(kind, [])
            for name in BASELINES:
                points = [
                    ((row["image_size"] // 16) ** 2, np.median(row["samples"][name]) * scale)
                    for row in rows
                    if row["samples"].get(name)
                ]
                if points:
                    axes.plot(*zip(*points), "o-", color=COLORS[name], label=BASELINES[name], markersize=4)
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            axes.grid(which="major")
        grid[0, column].set_title(title, loc="left")
        grid[1, column].set_xlabel("patches N")
    patches = sorted({(row["image_size"] // 16) ** 2 for rows in rows_by_mode.values() for row in rows})
    grid[1, 0].set_xticks(patches, patches)
    grid[0, 0].set_ylabel("time, ms")
    grid[1, 0].set_ylabel("peak memory, MB")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    figure.suptitle(f"Scaling with the number of patches, batch 1 ({machine})", x=0.01, ha="left", weight="bold")
    return figure


def growth_rows() -> dict[str, dict[int, Work]]:
    """What grows, from 4 layers of XXS24 at one image of 224 pixels on: the work at each of its values."""

    def work(model: str = SCALING_MODEL, image_size: int = 224, batch_size: int = 1) -> Work:
        return Work("inference", model, image_size, batch_size)

    return {
        "images of a batch": {size: work(batch_size=size) for size in (1, 2, 4, 8, 16, 32)},
        "pixels of a side": {size: work(image_size=size) for size in (224, 320, 448, 640)},
        "heads of 48 channels": {4: work(), **{heads: work(f"heads{heads}") for heads in (8, 12, 16)}},
        "layers": {4: work(), **{layers: work(f"depth{layers}") for layers in (8, 16, 32)}},
    }


def growth_chart(rows: list[dict]):
    """Speed relative to each baseline in the same rounds, median and quantiles, as one size grows."""
    from matplotlib import pyplot

    figure, grid = pyplot.subplots(1, 4, figsize=(12, 3.4), sharey=True, layout="constrained")
    for axes, (title, works) in zip(grid, growth_rows().items()):
        for name in BASELINES:
            points = [
                (value, *relative)
                for value, work in works.items()
                if name != "ours" and (row := find_row(rows, work)) and (relative := ratio(row, name, "ours"))
            ]
            if points:
                values, low, middle, high = zip(*points)
                axes.plot(values, middle, "o-", color=COLORS[name], label=f"{BASELINES[name]} = 1", markersize=4)
                axes.vlines(values, low, high, color=COLORS[name], linewidth=1)
        axes.axhline(1, color="#444444", linewidth=0.8, linestyle=":")
        axes.set_xscale("log", base=2)
        axes.set_xticks([*works], [*works])
        axes.minorticks_off()
        axes.set_xlabel(title)
        axes.grid(which="major")
    grid[0].set_ylim(bottom=0)
    grid[0].set_ylabel("speed of cait-hf")
    grid[-1].legend(loc="upper right")
    figure.suptitle(
        "Inference of 4 layers of XXS24 at 224 pixels, and what grows from there", x=0.01, ha="left", weight="bold"
    )
    return figure


def read_json(path: Path):
    return json.loads(path.read_text(encoding="utf-8"))


def as_row(work: Work, **measured) -> dict:
    return {**asdict(work), **measured}
