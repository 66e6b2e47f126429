# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""Train a small CaiT on real pictures, save it, load it again and look at what it sees: `make demo`.

The pictures are scikit-learn's handwritten digits (1,797 scans of 8 x 8 pixels, from the UCI repository's "Optical
Recognition of Handwritten Digits"). The last 360, in the order of the set, are held out: neighbours in the set were
often written by the same hand, so mixing it would make the test easier than it looks. Needs no network and no GPU.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import datasets
import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from transformers import AutoModelForImageClassification, TrainingArguments, pipeline, set_seed
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from cait_hf import CaitConfig, CaitForImageClassification, CaitImageProcessorPil
from cait_hf.training.trainer import ImageClassificationTrainer
from cait_hf.visualization import class_attention_maps, overlay_attention, prediction_grid


HELD_OUT = 360
DRAWN = 12
IMAGE_SIZE, PATCH_SIZE = 32, 4  # 8 x 8 patches: one for each pixel of a scan


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--output_dir", type=Path, default=Path(__file__).resolve().parents[1] / "outputs", help="default: %(default)s"
    )
    parser.add_argument("--epochs", type=float, default=15, help="passes over the training pictures")
    parser.add_argument("--max_steps", type=int, default=-1, help="stop after this many steps, whatever --epochs says")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--skip_training", action="store_true", help="use the model of an earlier run")
    args = parser.parse_args(argv)

    # Tensors this small gain little from more threads, which wait long for each other on a machine that is busy.
    torch.set_num_threads(1)
    model_dir, picture_file = args.output_dir / "cait-digits", args.output_dir / "demo.png"
    if args.skip_training:
        classify(model_dir, picture_file)
        return
    args.output_dir.mkdir(parents=True, exist_ok=True)
    train(model_dir, args)
    print("\nA fresh process loads the model and classifies single pictures:", flush=True)
    again = [sys.executable, __file__, "--skip_training", "--output_dir", str(args.output_dir)]
    subprocess.run(again, check=True)
    print("\nWritten:")
    print(f"  {model_dir}  (the model and its image processor)")
    print(f"  {picture_file}  (pictures, predictions and attention)")


def load_pictures() -> tuple[list[Image.Image], np.ndarray]:
    """The scans as grayscale pictures, and which digit each shows."""
    digits = load_digits()
    scans = (digits.images * (255 / 16)).round().astype(np.uint8)
    return [Image.fromarray(scan) for scan in scans], digits.target


def train(model_dir: Path, args: argparse.Namespace):
    set_seed(args.seed)
    images, labels = load_pictures()
    config = CaitConfig(
        hidden_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=256,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        # With the usual 0.02 a narrow model hardly tells positions apart at first, and starts to learn late.
        initializer_range=0.1,
        id2label={digit: str(digit) for digit in range(10)},
        label2id={str(digit): digit for digit in range(10)},
    )
    model = CaitForImageClassification(config)
    image_processor = CaitImageProcessorPil(size=IMAGE_SIZE, crop_size=IMAGE_SIZE)
    print(
        f"CaiT with {model.num_parameters():,} parameters, {len(images) - HELD_OUT:,} pictures to train on.\n",
        flush=True,
    )

    def to_model_inputs(batch: dict[str, list], shifted: bool) -> dict:
        pictures = [shift(image) for image in batch["image"]] if shifted else batch["image"]
        return {**image_processor(pictures, return_tensors="pt"), "labels": batch["label"]}

    pictures = datasets.Dataset.from_dict(
        {"image": images, "label": labels},
        datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")}),
    )
    train_set = pictures.select(range(len(images) - HELD_OUT))
    test_set = pictures.select(range(len(images) - HELD_OUT, len(images)))

    with tempfile.TemporaryDirectory() as scratch:
        trainer = ImageClassificationTrainer(
            model=model,
            args=TrainingArguments(
                output_dir=scratch,
                num_train_epochs=args.epochs,
                max_steps=args.max_steps,
                per_device_train_batch_size=32,
                per_device_eval_batch_size=120,
                learning_rate=3e-3,
                lr_scheduler_type="cosine",
                warmup_steps=0.15,
                weight_decay=0.05,
                logging_strategy="epoch",
                save_strategy="no",
                remove_unused_columns=False,
                dataloader_pin_memory=torch.cuda.is_available(),
                seed=args.seed,
            ),
            train_dataset=train_set.with_transform(lambda batch: to_model_inputs(batch, shifted=True)),
            eval_dataset=test_set.with_transform(lambda batch: to_model_inputs(batch, shifted=False)),
            compute_metrics=lambda prediction: {
                "accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())
            },
        )
        trainer.train()
        accuracy = trainer.evaluate()["eval_accuracy"]

    print_accuracies(images, labels, accuracy)
    save(model_dir, model, image_processor)


def shift(image: Image.Image) -> Image.Image:
    """The scan moved by up to one of its pixels in each direction."""
    right, down = torch.empty(2).uniform_(-1, 1).tolist()
    return image.transform(image.size, Image.Transform.AFFINE, (1, 0, right, 0, 1, down), Image.Resampling.BICUBIC)


def print_accuracies(images: list[Image.Image], labels: np.ndarray, accuracy: float):
    pixels = np.stack([np.asarray(image).ravel() for image in images]) / 255
    baseline = LogisticRegression(max_iter=1000).fit(pixels[:-HELD_OUT], labels[:-HELD_OUT])
    chance = np.bincount(labels[-HELD_OUT:]).max() / HELD_OUT
    print(f"\nAccuracy on {HELD_OUT} pictures that were not trained on:")
    print(f"  always the most frequent digit  {chance:6.1%}")
    print(f"  logistic regression on pixels   {baseline.score(pixels[-HELD_OUT:], labels[-HELD_OUT:]):6.1%}")
    print(f"  CaiT                            {accuracy:6.1%}")


def save(model_dir: Path, model: CaitForImageClassification, image_processor: CaitImageProcessorPil):
    """Write the folder completely, or leave the old one."""
    with tempfile.TemporaryDirectory(dir=model_dir.parent, prefix=".cait-digits-") as scratch:
        written = Path(scratch) / "model"
        model.save_pretrained(written)
        image_processor.save_pretrained(written)
        if model_dir.exists():
            shutil.move(model_dir, Path(scratch) / "old")
        written.replace(model_dir)


def classify(model_dir: Path, picture_file: Path):
    """What a user of the saved model does: load it, classify pictures, ask where the class token looked."""
    if not model_dir.is_dir():
        sys.exit(f"error: there is no model in {model_dir}: run once without --skip_training.")
    images, labels = load_pictures()
    step = HELD_OUT // DRAWN
    images, labels = images[-HELD_OUT::step], [str(label) for label in labels[-HELD_OUT::step]]

    model = AutoModelForImageClassification.from_pretrained(model_dir)
    image_processor = AutoImageProcessor.from_pretrained(model_dir)
    classifier = pipeline("image-classification", model=model, image_processor=image_processor)
    predictions = [classifier(image, top_k=3) for image in images]
    for label, prediction in zip(labels, predictions):
        guesses = ", ".join(f"{guess['label']} ({guess['score']:.1%})" for guess in prediction)
        print(f"  a {label}: {guesses}")

    pixel_values = image_processor(images, return_tensors="pt")["pixel_values"]
    maps = class_attention_maps(model, pixel_values)[:, -1].mean(axis=1)  # last class layer, mean of its heads
    enlarged = [image.resize((128, 128), Image.Resampling.BICUBIC) for image in images]
    overlays = [overlay_attention(image, attention) for image, attention in zip(enlarged, maps)]
    right = sum(label == prediction[0]["label"] for label, prediction in zip(labels, predictions))
    title = f"Held-out digits, CaiT's best guesses ({right} of {len(labels)} right) and where its class token looked"
    prediction_grid(enlarged, predictions, references=labels, overlays=overlays, title=title).save(picture_file)


if __name__ == "__main__":
    main()
