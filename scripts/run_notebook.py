# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""Run a notebook from top to bottom and store its outputs in it, but nothing that differs from machine to machine.

    python scripts/run_notebook.py docs/notebooks/fine_tuning.ipynb

Needs `pip install --editable ".[notebook]"`, no network and no GPU. Rerun it after a change of the notebook's code:
`tests/test_notebook.py` compares the code with what the outputs came from.
"""

import argparse
import hashlib
import re
import tempfile
from pathlib import Path
from typing import Any

import nbclient
import nbformat

from cait_hf.files import write_text


CELL_TIMEOUT = 15 * 60  # seconds
PROGRESS = re.compile(r"\s*<div>\s*<progress.*?</div>\s*", re.DOTALL)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebook", type=Path)
    file = parser.parse_args(argv).notebook
    notebook = nbformat.read(file, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        run(notebook, folder)
    keep_what_is_the_same_everywhere(notebook)
    notebook.metadata["code_sha256"] = code_sha256(notebook)
    write_text(file, nbformat.writes(notebook) + "\n")


def run(notebook: nbformat.NotebookNode, folder: str | Path, **parameters: Any) -> None:
    """Execute all cells in place, `folder` being the working directory.

    Args:
        parameters: assigned after the cell tagged `parameters`, as papermill does.

    Raises:
        nbclient.exceptions.CellExecutionError: if a cell fails.
        nbclient.exceptions.CellTimeoutError: if it runs for longer than `CELL_TIMEOUT`.
    """
    (cell,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ()))
    written = cell.source
    cell.source = "\n".join([written, *(f"{name} = {value!r}" for name, value in parameters.items())])
    client = nbclient.NotebookClient(
        notebook,
        kernel_name="python3",
        timeout=CELL_TIMEOUT,
        record_timing=False,
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute()
    cell.source = written


def keep_what_is_the_same_everywhere(notebook: nbformat.NotebookNode) -> None:
    """Drop warnings, progress bars with their times, second formats of images, and the version of Python."""
    notebook.metadata["language_info"] = {"name": "python"}
    for cell in notebook.cells:
        if cell.cell_type == "code":
            for output in cell.outputs:
                data = output.get("data", {})
                if "text/html" in data:  # of Trainer: its table stays, without the bar and the time above
                    data["text/html"] = PROGRESS.sub("", data["text/html"])
                if "image/png" in data:
                    data.pop("image/jpeg", None)
            cell.outputs = [
                output
                for output in cell.outputs
                if output.get("name") != "stderr" and output.get("data", {}).get("text/html") != ""
            ]


def code_sha256(notebook: nbformat.NotebookNode) -> str:
    """Hash of the code of all cells."""
    code = "\0".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    return hashlib.sha256(code.encode()).hexdigest()


if __name__ == "__main__":
    main()
