# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""Write Fashion-MNIST as parquet files that `run_image_classification.py` reads.

Fashion-MNIST (Xiao, Rasul and Vollgraf 2017; Zalando SE, MIT license) has 60,000 images to train on and 10,000 to
test on, 28 x 28 pixels, gray, ten classes of clothing. This reads its four original files, as the Debian package
`dataset-fashion-mnist` installs them or github.com/zalandoresearch/fashion-mnist offers them:

    python scripts/prepare_fashion_mnist.py --output_dir data/fashion-mnist

Of the 60,000, 5,000 (500 of each class, drawn with a fixed seed) become the validation split, so that nothing has to
be chosen by the test split.
"""

import argparse
import gzip
import sys
import zlib
from pathlib import Path

import datasets
import numpy as np
from PIL import Image

from cait_hf.files import replacing


CLASSES = ["T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"]
VALIDATION = 5_000
DEBIAN = "/usr/share/datasets/fashion-mnist"  # of the package dataset-fashion-mnist
FILES = {"train": "train-{}-ubyte.gz", "test": "t10k-{}-ubyte.gz"}


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, default=Path(DEBIAN), help="folder of the four files (%(default)s)")
    parser.add_argument("--output_dir", type=Path, required=True, help="gets train, validation and test.parquet")
    args = parser.parse_args(argv)
    try:
        splits = read_splits(args.source)
        args.output_dir.mkdir(parents=True, exist_ok=True)
        for name, (scans, labels) in splits.items():
            write_parquet(args.output_dir / f"{name}.parquet", scans, labels)
            print(f"{args.output_dir / f'{name}.parquet'}: {len(labels):,} images")
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")


def read_splits(source: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Scans `(images, 28, 28)`, uint8, and labels `(images,)` of "train", "validation" and "test".

    Raises:
        OSError: if a file is missing or cannot be read.
        ValueError: if a file is not what its name says.
    """
    splits = {
        split: (read_idx(source / name.format("images-idx3")), read_idx(source / name.format("labels-idx1")))
        for split, name in FILES.items()
    }
    scans, labels = splits["train"]
    order = np.random.default_rng(0).permutation(len(labels))
    fraction = VALIDATION / 60_000  # of each class
    held_out = np.zeros(len(labels), dtype=bool)
    for label in range(len(CLASSES)):
        of_class = order[labels[order] == label]
        held_out[of_class[: round(len(of_class) * fraction)]] = True
    return {
        "train": (scans[~held_out], labels[~held_out]),
        "validation": (scans[held_out], labels[held_out]),
        "test": splits["test"],
    }


def read_idx(path: Path) -> np.ndarray:
    """The array of an IDX file of bytes: magic number, sizes as big-endian int32, values."""
    try:
        with gzip.open(path) as file:
            content = file.read()
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{path} does not exist: install Debian's package dataset-fashion-mnist, or pass the folder as --source."
        ) from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is no IDX file of bytes: {error}") from error
    dimensions = content[3] if len(content) > 3 else 0
    sizes = np.frombuffer(content, ">i4", count=dimensions, offset=4) if len(content) >= 4 + 4 * dimensions else ()
    if content[:3] != b"\0\0\x08" or len(content) != 4 + 4 * dimensions + np.prod(sizes, dtype=int):
        raise ValueError(f"{path} is no IDX file of bytes.")
    return np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(sizes)


def write_parquet(path: Path, scans: np.ndarray, labels: np.ndarray):
    """Images as PNG in the column "image", their classes by name in "label"."""
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=CLASSES)})
    rows = {"image": [Image.fromarray(scan) for scan in scans], "label": labels.tolist()}
    with replacing(path) as temporary:
        datasets.Dataset.from_dict(rows, features).to_parquet(temporary)


if __name__ == "__main__":
    main()
