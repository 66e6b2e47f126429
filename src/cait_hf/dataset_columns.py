# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""Which columns of a dataset contain images and labels, for training and evaluation."""

IMAGE_COLUMNS, LABEL_COLUMNS = ("image", "img"), ("label", "labels", "cls")  # usual names, where no type decides


def find_column(types: dict, kind: str, feature_type: type, usual_names: tuple[str, ...], asked: str | None) -> str:
    """The column `asked` for, else the only one of a type, else the only one with a usual name.

    Args:
        types: of the columns by name; its keys are the names that an error message offers.
        kind: "image" or "label", the flag `--{kind}_column_name` being where a user asks.
        feature_type: of `datasets`, such as `datasets.Image`.

    Raises:
        ValueError: if there is not exactly one.
    """
    if asked is None:
        found = [name for name, type in types.items() if isinstance(type, feature_type)]
        found = found or [name for name in usual_names if name in types]
        problem = f"{len(found)} columns of the data look like {kind}s"
    else:
        found = [name for name in types if name == asked]
        problem = f"--{kind}_column_name is {asked}"
    if len(found) != 1:
        raise ValueError(f"{problem}: set --{kind}_column_name to one of {', '.join(types)}.")
    return found[0]
