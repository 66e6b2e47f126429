# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""Model cards. The text of each is the template of its name in this folder; Python adds what was measured or set.

- `checkpoint.md`: official checkpoints and every conversion, with the values of `checkpoint.py`;
- `training.md`: a training run, with the values of `training.py`;
- `fashion_mnist.md`: the checkpoint in the package, with the values of `scripts/release_fashion_mnist.py`.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined


def render(template: str, metadata: ModelCardData, **values: object) -> str:
    """The text of a card, ending with one newline.

    Args:
        template: name of a file in this folder. Besides Jinja's own filters it has `literal` and `table`.
        metadata: written on top as YAML.
        values: by the names that the template uses.

    Raises:
        jinja2.UndefinedError: if the template uses a name that has no value.
    """
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined)
    environment.filters |= {"literal": literal, "table": table}
    text = environment.get_template(template).render(values)
    return str(ModelCard(f"---\n{metadata.to_yaml()}\n---\n\n{text}")).rstrip("\n") + "\n"


def cell(value: object) -> str:
    """Text that cannot end a cell of a Markdown table, nor its row."""
    return " ".join(str(value).replace("|", "\\|").split())


def literal(text: str) -> str:
    """Text as a string of Python code, quotes included."""
    return json.dumps(text, ensure_ascii=False)


def table(rows: Iterable[Sequence[object]], head: Sequence[object]) -> str:
    lines = (head, ["---"] * len(head), *rows)
    return "\n".join(f"| {' | '.join(map(cell, line))} |" for line in lines)
