# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""A small trained CaiT and images to try it on, in the package, so that neither needs the network.

    from transformers import pipeline
    from cait_hf.fashion_mnist import CHECKPOINT, load_sample

    classify = pipeline("image-classification", CHECKPOINT)
    images, labels = load_sample()
    print(classify(images[0]), labels[0])

The card beside this file says what it was trained on and what it reaches; `scripts/release_fashion_mnist.py` wrote
all files of the folder but this one and the license of the images.
"""

import tempfile
from pathlib import Path

import datasets
from PIL import Image


FOLDER = Path(__file__).resolve().parent
CHECKPOINT = str(FOLDER)
"""Folder for `from_pretrained`: a classifier of Fashion-MNIST's ten classes, stored in float16, loaded in float32."""


def load_sample() -> tuple[list[Image.Image], list[str]]:
    """The first 500 images of Fashion-MNIST's test split, in its order, gray, 28 x 28, and their classes' names.

    (Xiao, Rasul and Vollgraf 2017, arXiv 1708.07747; copyright Zalando SE, MIT license: `LICENSE-fashion-mnist`.)
    """
    with tempfile.TemporaryDirectory() as cache:  # instead of the user's, which need not be writable
        rows = datasets.Dataset.from_parquet(str(FOLDER / "sample.parquet"), cache_dir=cache, keep_in_memory=True)
    return list(rows["image"]), rows.features["label"].int2str(rows["label"])
