# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""The notebook of docs/ runs from top to bottom without network, and its stored outputs are those of its code."""

import re
from pathlib import Path

import pytest
from test_scripts import load_script
from transformers import AutoModelForImageClassification

from cait_hf import CaitForImageClassification


for package in ("nbclient", "nbformat", "ipykernel", "matplotlib", "peft", "torchvision"):
    pytest.importorskip(package, reason=f"the notebook needs {package}")

import nbformat  # noqa: E402
from nbclient.exceptions import CellTimeoutError  # noqa: E402


FILE = Path(__file__).resolve().parents[1] / "docs" / "notebooks" / "fine_tuning.ipynb"
ACCURACY = re.compile(r"^(.+?) +([\d,]+) +([\d.]+)%$", re.MULTILINE)
run_notebook = load_script("run_notebook")


@pytest.fixture
def stored() -> nbformat.NotebookNode:
    return nbformat.read(FILE, as_version=4)


@pytest.fixture
def environment(monkeypatch, tmp_path):
    """Jupyter as it comes, whatever the user has set."""
    for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.delenv("MPLBACKEND", raising=False)  # figures are shown in the notebook


def code_cells(notebook: nbformat.NotebookNode) -> dict[str, nbformat.NotebookNode]:
    return {cell.id: cell for cell in notebook.cells if cell.cell_type == "code"}


def kinds(notebook: nbformat.NotebookNode) -> dict[str, list]:
    """What each cell shows: streams, and formats of everything else."""
    return {
        name: [output.get("name") or sorted(output.data) for output in cell.outputs]
        for name, cell in code_cells(notebook).items()
    }


def accuracies(notebook: nbformat.NotebookNode) -> dict[str, float]:
    """Of the last table, in percent."""
    (output,) = code_cells(notebook)["compare"].outputs
    return {method: float(percent) for method, _, percent in ACCURACY.findall(output.data["text/plain"])}


def test_every_cell_runs(environment, stored, hub, repo_id, tmp_path):
    """Two steps of each training, and the push to the loopback Hub, which is asked nothing before."""
    shown = kinds(stored)
    run_notebook.run(stored, tmp_path, max_steps=2, hub_model_id=repo_id)
    run_notebook.keep_what_is_the_same_everywhere(stored)
    assert kinds(stored) == {**shown, "push": []}

    assert hub.requests[0].path == "/api/repos/create"
    pushed = AutoModelForImageClassification.from_pretrained(repo_id)
    assert isinstance(pushed, CaitForImageClassification) and pushed.config.id2label[7] == "7"
    adapted = AutoModelForImageClassification.from_pretrained(tmp_path / "outputs" / "cait-digits-lora-merged")
    assert adapted.num_parameters() == pushed.num_parameters()


def test_cell_that_does_not_end(environment, tmp_path, monkeypatch):
    assert 0 < run_notebook.CELL_TIMEOUT <= 15 * 60
    monkeypatch.setattr(run_notebook, "CELL_TIMEOUT", 1)
    endless = nbformat.v4.new_code_cell("while True:\n    pass", metadata={"tags": ["parameters"]})
    with pytest.raises(CellTimeoutError):
        run_notebook.run(nbformat.v4.new_notebook(cells=[endless]), tmp_path)


def test_stored_outputs_are_those_of_the_code(stored):
    """`scripts/run_notebook.py` wrote them, in one run from top to bottom, and nothing of the machine is in them."""
    assert stored.metadata["code_sha256"] == run_notebook.code_sha256(stored)
    cells = code_cells(stored).values()
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    text = FILE.read_text(encoding="utf-8")
    assert re.findall(r"<progress|Warning|Traceback| at 0x|\d:\d\d\b|site-packages|\"stderr\"", text) == []
    assert len(text) < 600_000
    images = [output for cell in cells for output in cell.outputs if "image/png" in output.get("data", ())]
    assert len(images) == 5


def test_stored_metrics_convince(stored):
    reached = accuracies(stored)
    baseline = reached.pop("logistic regression on pixels")
    assert len(reached) == 2 and all(accuracy > baseline + 2 for accuracy in reached.values())


@pytest.mark.slow
def test_complete_run_reaches_what_is_stored(environment, stored, tmp_path, monkeypatch):
    """Two minutes. Other processors round differently: 360 images leave room for a few."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    expected = accuracies(stored)
    run_notebook.run(stored, tmp_path)
    assert accuracies(stored) == pytest.approx(expected, abs=3)
