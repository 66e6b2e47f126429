# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""What `.importlinter` cannot say of imports: what loads when, and that the model's files work beside a checkpoint."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
import remote_code
from transformers.dynamic_module_utils import get_relative_import_files


PACKAGE = Path(__file__).resolve().parents[1] / "src" / "cait_hf"
OPTIONAL = {"gradio", "matplotlib", "mlflow", "optuna", "sklearn", "timm", "torchvision", "trackio", "triton", "wandb"}
# What command lines are made of; `import cait_hf` loads none of them.
COMMANDS = ("app", "cards", "command_line", "commands", "conversion", "publish", "sources", "verify")


def imports(nodes) -> list[tuple[int, str]]:
    """(number of dots, module) of each import among the nodes."""
    found = [(0, alias.name) for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    return found + [(node.level, node.module or "") for node in nodes if isinstance(node, ast.ImportFrom)]


def outer(nodes) -> set[str]:
    return {module.split(".")[0] for level, module in imports(nodes) if level == 0}


@pytest.mark.parametrize("path", PACKAGE.rglob("*.py"), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_modules_load_without_optional_packages(path):
    assert not outer(ast.parse(path.read_text(encoding="utf-8")).body) & OPTIONAL


def test_import_adds_little_to_transformers_own_modules():
    """`import cait_hf` costs what the model's base classes cost: nothing heavy comes on top, nor our own commands."""
    heavy = {"datasets", "evaluate", "gradio", "matplotlib", "onnx", "openvino", "pandas", "peft", "pyarrow"}
    heavy |= {"sklearn", "timm"}
    heavy |= {"cait_hf_cli", *(f"cait_hf.{name}" for name in (*COMMANDS, "evaluation", "training", "visualization"))}
    program = f"""
import sys
import transformers.modeling_utils
from transformers import AutoModel
from transformers.models.auto.image_processing_auto import AutoImageProcessor
before = set(sys.modules)
import cait_hf
print(sorted((sys.modules.keys() - before) & {heavy}))
"""
    child = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (child.returncode, child.stdout) == (0, "[]\n"), child.stderr


def test_remote_code_is_flat_and_complete():
    files = get_relative_import_files(PACKAGE / "modeling_cait.py")
    assert {Path(file).name for file in files} | {"modeling_cait.py"} == remote_code.MODEL
    assert all(Path(file).parent == PACKAGE and Path(file).is_file() for file in files)


@pytest.mark.parametrize("name", sorted(remote_code.MODEL))
def test_remote_code_imports_what_transformers_finds(name):
    text = (PACKAGE / name).read_text(encoding="utf-8")
    nodes = list(ast.walk(ast.parse(text)))
    allowed = {*sys.stdlib_module_names, "torch", "transformers", "huggingface_hub"}
    assert outer(nodes) <= allowed | ({"triton"} if name == "attention_triton.py" else set())
    assert not re.search(r"^\s*(from \. import|import \.)", text, re.MULTILINE)
    # Transformers reads lines, docstrings included: it must find just what the code imports.
    own = [module for level, module in imports(nodes) if level]
    assert sorted(re.findall(r"^\s*from\s+\.(\S+)\s+import", text, re.MULTILINE)) == sorted(own)
