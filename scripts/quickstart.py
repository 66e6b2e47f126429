# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""What a trained CaiT does, and how it learns something new: `make demo`. Needs no network and no GPU.

First the small checkpoint that comes with the package names real images of clothes (Fashion-MNIST's test split) and
shows where its class token looks; then it is fine-tuned on scikit-learn's handwritten digits (1,797 scans of 8 x 8
pixels, from the UCI repository's "Optical Recognition of Handwritten Digits"). The last 360 digits, in the order of
the set, are held out: neighbors in the set were often written by the same hand, so mixing it would make the test
easier than it looks.
"""

import argparse
import shutil
import tempfile
from pathlib import Path

import cait_hf  # noqa: F401 - first: the Auto classes know CaiT from here on


# isort: split

import datasets
import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from transformers import AutoModelForImageClassification, TrainingArguments, pipeline, set_seed
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from cait_hf.fashion_mnist import CHECKPOINT, load_sample
from cait_hf.training.trainer import ImageClassificationTrainer
from cait_hf.visualization import class_attention_maps, overlay_attention, prediction_grid


DRAWN = 12
HELD_OUT = 360


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--output_dir", type=Path, default=Path(__file__).resolve().parents[1] / "outputs", help="default: %(default)s"
    )
    parser.add_argument("--epochs", type=float, default=8, help="epochs over the digits (default: %(default)s)")
    parser.add_argument("--max_steps", type=int, default=-1, help="stop after this many steps, whatever --epochs says")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)

    # Tensors this small gain little from more threads, which wait long for each other on a machine that is busy.
    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    image_file, model_dir = args.output_dir / "demo.png", args.output_dir / "cait-digits"
    classify_clothes(image_file)
    learn_digits(model_dir, args)
    print("\nWritten:")
    print(f"  {image_file}  (images, predictions and attention)")
    print(f"  {model_dir}  (the fine-tuned model and its image processor)")


def classify_clothes(image_file: Path):
    """Name the images of the sample, and draw the first ones with what the class token looks at."""
    model = AutoModelForImageClassification.from_pretrained(CHECKPOINT, dtype=torch.float32)
    image_processor = AutoImageProcessor.from_pretrained(CHECKPOINT)
    classifier = pipeline("image-classification", model=model, image_processor=image_processor)
    images, labels = load_sample()

    print(f"CaiT, {model.num_parameters():,} parameters, trained on Fashion-MNIST, names images of its test split:")
    predictions = classifier(images, top_k=3, batch_size=50)
    for label, prediction in zip(labels[:DRAWN], predictions):
        guesses = ", ".join(f"{guess['label']} ({guess['score']:.1%})" for guess in prediction)
        print(f"  {label:<10}  {guesses}")
    correct = [label == prediction[0]["label"] for label, prediction in zip(labels, predictions)]
    print(f"Of all {len(images)} images of the sample it names {sum(correct)} correctly, {np.mean(correct):.1%}.")

    pixel_values = image_processor(images[:DRAWN], return_tensors="pt")["pixel_values"]
    maps = class_attention_maps(model, pixel_values)[:, -1].mean(axis=1)  # last class layer, mean of its heads
    enlarged = [image.resize((168, 168), Image.Resampling.BICUBIC) for image in images[:DRAWN]]
    overlays = [overlay_attention(image, attention) for image, attention in zip(enlarged, maps)]
    title = f"CaiT's best guesses ({sum(correct[:DRAWN])} of {DRAWN} correct) and where its class token looked"
    drawing = prediction_grid(enlarged, predictions[:DRAWN], labels[:DRAWN], overlays, title=title, image_size=168)
    drawing.save(image_file)


def learn_digits(model_dir: Path, args: argparse.Namespace):
    """Fine-tune the same checkpoint on ten classes that it has never seen."""
    set_seed(args.seed)
    digits = load_digits()
    pixels, labels = digits.images / 16, digits.target
    model = AutoModelForImageClassification.from_pretrained(
        CHECKPOINT,
        dtype=torch.float32,
        num_labels=10,
        id2label={digit: str(digit) for digit in range(10)},
        label2id={str(digit): digit for digit in range(10)},
    )
    torch.nn.init.trunc_normal_(model.classifier.weight, std=0.02)  # ten new classes
    torch.nn.init.zeros_(model.classifier.bias)
    image_processor = AutoImageProcessor.from_pretrained(CHECKPOINT)
    images = datasets.Dataset.from_dict(
        {"image": [Image.fromarray((scan * 255).round().astype(np.uint8)) for scan in pixels], "label": labels},
        datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")}),
    )

    def to_model_inputs(batch: dict[str, list], shifted: bool) -> dict:
        scans = [shift(image) for image in batch["image"]] if shifted else batch["image"]
        return {**image_processor(scans, return_tensors="pt"), "labels": batch["label"]}

    seen, held_out = range(len(labels) - HELD_OUT), range(len(labels) - HELD_OUT, len(labels))
    train_set = images.select(seen).with_transform(lambda batch: to_model_inputs(batch, shifted=True))
    test_set = images.select(held_out).with_transform(lambda batch: to_model_inputs(batch, shifted=False))
    with tempfile.TemporaryDirectory() as scratch:
        trainer = ImageClassificationTrainer(
            model=model,
            args=TrainingArguments(
                output_dir=scratch,
                num_train_epochs=args.epochs,
                max_steps=args.max_steps,
                per_device_train_batch_size=32,
                per_device_eval_batch_size=120,
                learning_rate=2e-3,
                lr_scheduler_type="cosine",
                warmup_steps=0.1,
                weight_decay=0.05,
                logging_strategy="epoch",
                save_strategy="no",
                remove_unused_columns=False,
                dataloader_pin_memory=torch.cuda.is_available(),
                seed=args.seed,
            ),
            train_dataset=train_set,
            eval_dataset=test_set,
            compute_metrics=lambda prediction: {
                "accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())
            },
        )
        print(f"\nNow it learns to read: {len(train_set):,} handwritten digits, {HELD_OUT} held out.", flush=True)
        before = trainer.evaluate()["eval_accuracy"]
        trainer.train()
        after = trainer.evaluate()["eval_accuracy"]

    baseline = LogisticRegression(max_iter=1000).fit(digits.data[:-HELD_OUT] / 16, labels[:-HELD_OUT])
    print(f"\nAccuracy on the {HELD_OUT} digits that were held out:")
    print(f"  CaiT before, its new classifier untrained  {before:6.1%}")
    print(f"  CaiT after                                 {after:6.1%}")
    linear = baseline.score(digits.data[-HELD_OUT:] / 16, labels[-HELD_OUT:])
    print(f"  logistic regression on pixels              {linear:6.1%}")
    save(model_dir, model, image_processor)


def shift(image: Image.Image) -> Image.Image:
    """The scan moved by up to one of its pixels in each direction."""
    right, down = torch.empty(2).uniform_(-1, 1).tolist()
    return image.transform(image.size, Image.Transform.AFFINE, (1, 0, right, 0, 1, down), Image.Resampling.BICUBIC)


def save(model_dir: Path, model, image_processor):
    """Write the folder completely, or leave the old one."""
    with tempfile.TemporaryDirectory(dir=model_dir.parent, prefix=".cait-digits-") as scratch:
        written = Path(scratch) / "model"
        model.save_pretrained(written)
        image_processor.save_pretrained(written)
        if model_dir.exists():
            shutil.move(model_dir, Path(scratch) / "old")
        written.replace(model_dir)


if __name__ == "__main__":
    main()
