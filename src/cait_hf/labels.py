# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""Names of the ImageNet-1k classes, and labels in the form in which a configuration contains them."""

import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any


IMAGENET_1K_CLASSES = 1000


@cache
def _read_imagenet_1k_labels() -> tuple[str, ...]:
    file = Path(__file__).with_name("imagenet_1k_labels.json")
    return tuple(json.loads(file.read_text(encoding="utf-8"))["labels"])


def imagenet_1k_labels() -> dict[int, str]:
    """Names of the 1000 ImageNet-1k classes by class index (`id2label`), all different.

    Raises:
        FileNotFoundError: if `imagenet_1k_labels.json` was not installed beside this module.
    """
    return dict(enumerate(_read_imagenet_1k_labels()))


def label_kwargs(labels: Iterable[str] | dict[int, str]) -> dict[str, Any]:
    """`id2label` and `label2id` for `CaitConfig` from the class names in their order, or by class index."""
    id2label = dict(labels) if isinstance(labels, dict) else dict(enumerate(labels))
    return {"id2label": id2label, "label2id": {label: index for index, label in id2label.items()}}


__all__ = ["IMAGENET_1K_CLASSES", "imagenet_1k_labels", "label_kwargs"]
