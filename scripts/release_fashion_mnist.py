# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""Make `src/cait_hf/fashion_mnist` of trainings by the recipe `fashion_mnist`, one for each seed.

    python scripts/release_fashion_mnist.py outputs/seed0 outputs/seed1 outputs/seed2 --teacher outputs/teacher \\
        --tried outputs/tried/* --data data/fashion-mnist --hardware "two cores of an Intel Xeon server"

Of a training with EMA weights these are taken. The training that is best on the validation split is shipped, stored in
float16 and loaded in float32. All are scored on the 10,000 test images, and the card states their mean with a 95 %
interval over the seeds (Student's t).
"""

import argparse
import json
import math
import sys
import tempfile
from pathlib import Path

import cait_hf  # noqa: F401 - first, so that Transformers' optional packages import without messages


# isort: split

import datasets
import numpy as np
import torch
from huggingface_hub import ModelCardData
from scipy import stats  # comes with scikit-learn
from transformers import AutoModelForImageClassification

from cait_hf import CaitConfig, CaitImageProcessorPil
from cait_hf.cards import render
from cait_hf.fashion_mnist import FOLDER
from cait_hf.files import write_json, write_text
from cait_hf.training.run_record import RunRecord


SAMPLE = 500
LENGTH = ["max_train_samples", "num_train_epochs"]


def main(argv: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="output folders of the trainings")
    parser.add_argument("--data", type=Path, required=True, help="folder that prepare_fashion_mnist.py wrote")
    parser.add_argument("--teacher", type=Path, required=True, help="output folder of its training")
    parser.add_argument("--tried", type=Path, nargs="*", default=[], help="output folders of short trainings before")
    parser.add_argument("--output_dir", type=Path, default=FOLDER, help="default: %(default)s")
    parser.add_argument("--hardware", required=True, help="what trained them, for the card")
    args = parser.parse_args(argv)
    try:
        train, test = (datasets.Dataset.from_parquet(str(args.data / f"{name}.parquet")) for name in ("train", "test"))
        validation = [metrics_of(run)["eval_top1"] for run in args.runs]
        trainings = [what_was_logged(run, len(train)) for run in args.runs]
        tried = what_was_tried(args.tried) if args.tried else []
        teacher = about_teacher(args.teacher, len(train), test)
        predictions = [predict(weights_of(run), test) for run in args.runs]
    except KeyError as error:
        sys.exit(f"error: a training has no {error} in its log: it is not finished.")
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")

    args.output_dir.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.output_dir.parent, prefix=".release-") as scratch:
        results = write(Path(scratch), args.runs, test, validation, predictions)
        results |= {"trainings": trainings, "teacher": teacher, "tried": tried}
        results |= {"hardware": args.hardware, "pytorch": torch.__version__}
        write_json(Path(scratch, "results.json"), results, indent=1)
        write_text(Path(scratch, "README.md"), card(results, CaitConfig.from_pretrained(scratch)))
        args.output_dir.mkdir(exist_ok=True)
        for path in Path(scratch).iterdir():
            path.replace(args.output_dir / path.name)
    print(json.dumps({name: value for name, value in results.items() if name != "confusion_matrix"}, indent=1))
    return results


def weights_of(run: Path) -> Path:
    """The folder of a training's model: the one with EMA weights, if it has them."""
    return run / "ema" if (run / "ema").is_dir() else run


def metrics_of(run: Path) -> dict[str, float]:
    """What the training script wrote; "eval_..." are those of the weights that [`weights_of`] names.

    Raises:
        KeyError: if it is not finished.
    """
    metrics = json.loads((run / "all_results.json").read_text(encoding="utf-8"))
    if weights_of(run) != run:
        metrics |= {name: metrics[name.replace("eval", "eval_ema")] for name in ("eval_top1", "eval_loss")}
    return metrics


def record_of(run: Path) -> RunRecord:
    """The record of a training.

    Raises:
        FileNotFoundError: if it has none.
    """
    record = RunRecord.read(run)
    if record is None:
        raise FileNotFoundError(f"{run} has no record of a training")
    return record


def what_was_tried(runs: list[Path]) -> list[list]:
    """A head and, best first, a row for each training: its length, the flags in which they differ, its accuracy."""
    settings = []
    for run in runs:
        flags = record_of(run).flags
        fields = (flags.pop("config_overrides") or "").split(",")
        flags["teacher"] = "yes" if flags.pop("teacher_model_name_or_path") else "no"
        if flags.get("timm_optimizer"):
            flags["adam_beta2"] = None  # Transformers' optimizers have it
        settings.append(flags | dict(field.split("=") for field in fields if field))
    names = sorted({name for flags in settings for name in flags} - {"output_dir", *LENGTH})
    differ = [*LENGTH, *(name for name in names if len({str(flags.get(name)) for flags in settings}) > 1)]
    rows = [
        [*("" if flags.get(name) is None else flags[name] for name in differ), metrics_of(run)["eval_top1"]]
        for flags, run in zip(settings, runs)
    ]
    return [[*differ, "held-out accuracy"], *sorted(rows, key=lambda row: row[-1], reverse=True)]


def about_teacher(run: Path, images: int, test: datasets.Dataset) -> dict:
    """What the card says of the teacher."""
    folder = weights_of(run)
    model = AutoModelForImageClassification.from_pretrained(folder)
    return what_was_logged(run, images) | {
        "model_type": model.config.model_type,
        "parameters": model.num_parameters(),
        "validation_accuracy": metrics_of(run)["eval_top1"],
        "test_accuracy": float((predict(folder, test) == np.array(test["label"])).mean()),
    }


def what_was_logged(run: Path, images: int) -> dict:
    """Epochs, seconds and last losses of a training on so many images, and the flags that were changed on a resume.

    The seconds are those of all epochs at the mean speed since the training was last resumed, without evaluation.

    Raises:
        KeyError: if it is not finished.
    """
    state = json.loads((run / "trainer_state.json").read_text(encoding="utf-8"))
    found = {name: value for entry in state["log_history"] for name, value in entry.items()}  # the last of each
    metrics = metrics_of(run)
    return {
        "epochs": state["epoch"],
        "seconds": state["epoch"] * images / metrics["train_images_per_second"],
        "loss": found["loss"],
        "validation_loss": metrics["eval_loss"],
        "changes": record_of(run).changes,
    }


def write(
    folder: Path, runs: list[Path], test: datasets.Dataset, validation: list[float], predictions: list[np.ndarray]
) -> dict:
    """Write the checkpoint of the run that is best on the validation split, and the sample; return what it reaches."""
    best = int(np.argmax(validation))
    weights = weights_of(runs[best])
    model = AutoModelForImageClassification.from_pretrained(weights).half()
    model.save_pretrained(folder)
    # float16 is for the size of the file: it neither trains nor is it fast on a CPU. New heads, for which the
    # initialization of a training from scratch is too large, begin as CaiT's.
    model.config.dtype, model.config.initializer_range = torch.float32, type(model.config).initializer_range
    model.config.save_pretrained(folder)
    CaitImageProcessorPil.from_pretrained(weights).save_pretrained(folder)
    test.select(range(SAMPLE)).to_parquet(folder / "sample.parquet")
    labels, shipped = np.array(test["label"]), predict(folder, test)

    return {
        "validation_accuracy": validation,
        "test_accuracy": [float((prediction == labels).mean()) for prediction in predictions],
        "shipped_run": best,
        "shipped_test_accuracy": float((shipped == labels).mean()),
        "shipped_agrees_with_float32": float((shipped == predictions[best]).mean()),
        "sample_images": SAMPLE,
        "sample_correct": int((shipped[:SAMPLE] == labels[:SAMPLE]).sum()),
        "confusion_matrix": confusion(labels, shipped).tolist(),
        "parameters": model.num_parameters(),
    }


@torch.no_grad()
def predict(folder: Path, images: datasets.Dataset, batch_size: int = 250) -> np.ndarray:
    """Class of each image, computed in float32 whatever the file contains."""
    model = AutoModelForImageClassification.from_pretrained(folder, dtype=torch.float32).eval()
    image_processor = CaitImageProcessorPil.from_pretrained(folder)
    found = []
    for batch in images.iter(batch_size):
        logits = model(image_processor(batch["image"], return_tensors="pt")["pixel_values"]).logits
        found.append(logits.argmax(-1))
    return torch.cat(found).numpy()


def confusion(labels: np.ndarray, predictions: np.ndarray) -> np.ndarray:
    """Images by true (rows) and predicted class."""
    return np.bincount(labels * 10 + predictions, minlength=100).reshape(10, 10)


def interval(accuracies: list[float]) -> str:
    """Mean and half width of its 95 % interval, in percent."""
    values = 100 * np.array(accuracies)
    if len(values) < 2:
        return f"{values.mean():.2f}"
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values))
    return f"{values.mean():.2f} ± {half:.2f}"


def fraction(accuracy: float, images: int) -> str:
    """A fraction of correct answers in percent with Wilson's 95 % interval."""
    z = stats.norm.ppf(0.975)
    middle = (accuracy + z**2 / (2 * images)) / (1 + z**2 / images)
    half = z / (1 + z**2 / images) * math.sqrt(accuracy * (1 - accuracy) / images + (z / (2 * images)) ** 2)
    return f"{accuracy:.2%} ({100 * (middle - half):.1f} to {100 * (middle + half):.1f} %)"


def card(results: dict, config: CaitConfig) -> str:
    """The README.md of the checkpoint: what it is, what it was measured to reach, and how to make it again."""
    names, matrix = [config.id2label[index] for index in range(10)], results["confusion_matrix"]
    metadata = ModelCardData(
        library_name="transformers",
        pipeline_tag="image-classification",
        license="apache-2.0",
        tags=["cait", "cait-hf"],
        metrics=["accuracy"],
    )
    tried = results["tried"][:1] + [[*row[:-1], f"{row[-1]:.1%}"] for row in results["tried"][1:]]
    return render(
        "fashion_mnist.md",
        metadata,
        **{**results, "tried": tried},
        config=config,
        interval=interval(results["test_accuracy"]),
        shipped=fraction(results["shipped_test_accuracy"], sum(map(sum, matrix))),
        head=("", *names, "correct"),
        rows=[(name, *row, f"{row[index] / sum(row):.1%}") for index, (name, row) in enumerate(zip(names, matrix))],
    )


if __name__ == "__main__":
    main()
