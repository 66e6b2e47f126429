# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""Make `src/cait_hf/fashion_mnist` of trainings by `recipes/fashion_mnist.yaml`, one for each seed.

    python scripts/release_fashion_mnist.py outputs/seed0 outputs/seed1 outputs/seed2 \\
        --data data/fashion-mnist --hardware "one core of an AMD EPYC server"

The training that is best on the validation split is shipped, stored in float16 and loaded in float32. All are scored
on the 10,000 test images, and the card states their mean with a 95 % interval over the seeds (Student's t).
"""

import argparse
import json
import math
import sys
import tempfile
from pathlib import Path

import datasets
import numpy as np
import torch
from scipy import stats  # comes with scikit-learn
from transformers import AutoConfig, AutoModelForImageClassification

from cait_hf import CaitImageProcessorPil
from cait_hf.fashion_mnist import FOLDER


SAMPLE = 500


def main(argv: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="output folders of the trainings")
    parser.add_argument("--data", type=Path, required=True, help="folder that prepare_fashion_mnist.py wrote")
    parser.add_argument("--output_dir", type=Path, default=FOLDER, help="default: %(default)s")
    parser.add_argument("--hardware", required=True, help="what trained them, for the card")
    args = parser.parse_args(argv)
    try:
        test = datasets.Dataset.from_parquet(str(args.data / "test.parquet"))
        validation = [json.loads((run / "all_results.json").read_text())["eval_top1"] for run in args.runs]
        trainings = [what_was_logged(run) for run in args.runs]
        predictions = [predict(run, test) for run in args.runs]
    except KeyError as error:
        sys.exit(f"error: a training has no {error} in its all_results.json: it is not finished.")
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")

    args.output_dir.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.output_dir.parent, prefix=".release-") as scratch:
        results = write(Path(scratch), args.runs, test, validation, predictions)
        results |= {"trainings": trainings, "hardware": args.hardware, "pytorch": torch.__version__}
        describe(Path(scratch), results)
        args.output_dir.mkdir(exist_ok=True)
        for path in Path(scratch).iterdir():
            path.replace(args.output_dir / path.name)
    print(json.dumps({name: value for name, value in results.items() if name != "confusion_matrix"}, indent=1))
    return results


def what_was_logged(run: Path) -> dict[str, float]:
    """Epochs, seconds and last losses of a training; the seconds of one that was interrupted are its last part's.

    Raises:
        ValueError: if it is not finished.
    """
    state = json.loads((run / "trainer_state.json").read_text(encoding="utf-8"))
    found = {name: value for entry in state["log_history"] for name, value in entry.items()}  # the last of each
    missing = {"loss", "eval_loss", "train_runtime"} - {*found}
    if missing:
        raise ValueError(f"{run / 'trainer_state.json'} has no {', '.join(sorted(missing))}: it is not finished.")
    return {
        "epochs": state["epoch"],
        "seconds": found["train_runtime"],
        "loss": found["loss"],
        "validation_loss": found["eval_loss"],
    }


def write(
    folder: Path, runs: list[Path], test: datasets.Dataset, validation: list[float], predictions: list[np.ndarray]
) -> dict:
    """Write the checkpoint of the run that is best on the validation split, and the sample; return what it reaches."""
    best = int(np.argmax(validation))
    model = AutoModelForImageClassification.from_pretrained(runs[best]).half()
    model.save_pretrained(folder)
    # float16 is for the size of the file: it neither trains nor is it fast on a CPU. New heads, for which the
    # initialization of a training from scratch is too large, begin as CaiT's.
    model.config.dtype, model.config.initializer_range = torch.float32, type(model.config).initializer_range
    model.config.save_pretrained(folder)
    CaitImageProcessorPil.from_pretrained(runs[best]).save_pretrained(folder)
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


def describe(folder: Path, results: dict):
    """Write the results and the card that states them."""
    config = AutoConfig.from_pretrained(folder)
    (folder / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(card(results, config), encoding="utf-8")


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


def card(results: dict, config) -> str:
    """The README.md of the checkpoint: what it is, what it was measured to reach, and how to make it again."""
    names = [config.id2label[index] for index in range(10)]
    matrix = results["confusion_matrix"]
    rows = [
        f"| {name} | " + " | ".join(str(count) for count in row) + f" | {row[index] / sum(row):.1%} |"
        for index, (name, row) in enumerate(zip(names, matrix))
    ]
    trainings = results["trainings"]
    accuracies = ", ".join(f"{accuracy:.2%}" for accuracy in results["test_accuracy"])
    return CARD.format(
        **results,
        layers=config.num_hidden_layers,
        class_layers=config.num_class_attention_layers,
        hidden_size=config.hidden_size,
        heads=config.num_attention_heads,
        interval=interval(results["test_accuracy"]),
        accuracies=accuracies,
        seeds=len(results["test_accuracy"]),
        minutes=", ".join(f"{training['seconds'] / 60:.0f}" for training in trainings),
        loss=", ".join(f"{training['loss']:.2f}" for training in trainings),
        validation_loss=", ".join(f"{training['validation_loss']:.2f}" for training in trainings),
        epochs=f"{trainings[0]['epochs']:g}",
        image_size=config.image_size,
        patch_size=config.patch_size,
        shipped=fraction(results["shipped_test_accuracy"], sum(map(sum, matrix))),
        header=" | ".join(names),
        rule="|".join(["---"] * 12),
        rows="\n".join(rows),
    )


CARD = """---
library_name: transformers
pipeline_tag: image-classification
license: apache-2.0
tags: [cait, cait-hf]
metrics: [accuracy]
---

# A small CaiT for Fashion-MNIST

{parameters:,} parameters: {layers} layers with talking heads and {class_layers} with class-attention, {hidden_size}
channels, {heads} heads, LayerScale, patches of {patch_size} x {patch_size} pixels in images of
{image_size} x {image_size}; weights stored in float16 and loaded in
float32. It is there to try the package and to be looked into; as a classifier of clothes it is nothing special.

```python
from transformers import pipeline
from cait_hf.fashion_mnist import CHECKPOINT, load_sample

images, labels = load_sample()
print(pipeline("image-classification", CHECKPOINT)(images[0]), labels[0])
```

## Accuracy

On the 10,000 test images, by which nothing was chosen: {interval} % (mean of {seeds} seeds, 95 % interval over
seeds: {accuracies}). The shipped one, the best of them on 5,000 held-out training images, names
{shipped} correct (95 % interval over images, Wilson's); its float16 file and the float32
training result agree on {shipped_agrees_with_float32:.2%} of the images.
Of the {sample_images} in `sample.parquet`, the first of the test
split, it names {sample_correct} correctly.

True class in the rows, prediction in the columns:

| | {header} | correct |
|{rule}|
{rows}

## Training

55,000 of Fashion-MNIST's 60,000 training images (Zalando SE, MIT license, `LICENSE-fashion-mnist`), from scratch.
The seeds took {minutes} minutes for {epochs} epochs each on {hardware} with PyTorch {pytorch}. At the end the
loss was {loss} on training images, cropped and mirrored, and {validation_loss} on held-out ones.

```bash
python scripts/prepare_fashion_mnist.py --output_dir data/fashion-mnist
python scripts/run_image_classification.py scripts/recipes/fashion_mnist.yaml \\
    --dataset_name data/fashion-mnist --seed 0 --output_dir outputs/seed0
python scripts/release_fashion_mnist.py outputs/seed0 outputs/seed1 outputs/seed2 \\
    --data data/fashion-mnist --hardware "{hardware}"
```
"""


if __name__ == "__main__":
    main()
