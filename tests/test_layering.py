# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""Who imports whom, and that the model's files can be copied beside a checkpoint (CONTRIBUTING.md)."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
import remote_code
from transformers.dynamic_module_utils import get_relative_import_files


ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "cait_hf"
REMOTE_CODE = {Path(name).stem for name in remote_code.MODEL}
# What command lines are made of; `import cait_hf` loads none of them.
COMMANDS = {"cait_hf_cli", "command_line", "conversion", "model_card", "publish", "sources", "verify"}
NO_TEXT = {".parquet", ".png", ".safetensors"}
# Modules of the package that another module may import; one that is not listed may import none.
MAY_IMPORT = {
    "modeling_cait": {
        *("configuration_cait", "attention_cait", "attention_fused", "losses", "state_dict"),
    },
    "losses": {"configuration_cait"},
    "attention_fused": {"attention_cait", "attention_blocked", "attention_triton"},
    "checkpoints": {"timm_format"},
    "timm_format": {"labels"},
    "configuration_cait": {"timm_format"},
    "state_dict": {"timm_format"},
    "image_processing_cait": {"image_processing_pil_cait"},
    "loading": {"configuration_cait", "modeling_cait", "state_dict"},
    "model_card": {"checkpoints", "configuration_cait"},
    "verify": {"configuration_cait", "loading", "modeling_cait", "state_dict", "timm_format"},
    "sources": {
        *("checkpoints", "configuration_cait", "files", "image_processing_pil_cait", "labels", "loading"),
        *("publish", "state_dict", "timm_format"),
    },
    "conversion": {
        *("checkpoints", "configuration_cait", "files", "loading", "model_card", "publish", "sources", "verify"),
    },
    "visualization": {"files", "image_processing_pil_cait"},
    "image_datasets": {"corrupt_images"},
    "corrupt_images": {"files"},
    "evaluation.imagenet": {"image_datasets", "image_processing_pil_cait", "labels"},
    "evaluation.metrics": {"topk_accuracy"},
    "evaluation.ranks": {"files"},
    "training.ema": {"files"},
    "training.arguments": set(),
    "training.streaming": {"corrupt_images", "image_datasets"},
    "training.data": {"corrupt_images", "image_datasets", "training.arguments", "training.streaming"},
    "training.transforms": {"image_processing_pil_cait", "training.arguments", "training.randomness"},
    "training.sampling": {"training.arguments", "training.randomness"},
    "training.optimization": {"training.arguments"},
    "training.distillation": {"evaluation.imagenet", "labels", "training.arguments", "training.transforms"},
    "training.models": {
        "configuration_cait",
        "image_processing_pil_cait",
        *(f"training.{name}" for name in ("arguments", "data", "optimization")),
    },
    "training.report": {"evaluation.metrics", "files"},
    "training.card": {"files"},
    "training.resume": {"training.arguments", "training.ema"},
    "training.trainer": {
        "evaluation.metrics",
        "losses",
        *(
            f"training.{name}"
            for name in (
                *("arguments", "distillation", "ema", "models", "optimization", "progress"),
                *("randomness", "resume", "sampling", "streaming", "transforms"),
            )
        ),
    },
    "training.experiment": {  # the assembler: of the package only what writes the outputs imports it
        f"training.{name}"
        for name in (
            *("arguments", "card", "data", "distillation", "ema", "models", "optimization", "randomness", "resume"),
            *("streaming", "transforms"),
        )
    },
    "training.outputs": {
        "files",
        *(
            f"training.{name}"
            for name in ("arguments", "card", "data", "ema", "experiment", "models", "report", "resume", "streaming")
        ),
    },
}
OPTIONAL = {"triton", "timm", "torchvision", "sklearn", "matplotlib", "evaluate"}
MAY_IMPORT_OPTIONAL = {
    "attention_triton": {"triton"},
    "topk_accuracy": {"evaluate"},
    "evaluation.imagenet": {"timm"},
    "training.ema": {"timm"},
    "training.report": {"matplotlib"},
    "training.sampling": {"timm"},
    "training.transforms": {"timm"},
    "verify": {"timm"},
}
# So that these modules load without the packages.
IMPORTED_IN_FUNCTIONS = {
    "training.ema": {"timm"},
    "training.report": {"matplotlib"},
    "training.sampling": {"timm"},
    "training.transforms": {"timm"},
    "verify": {"timm"},
}


def modules() -> dict[str, Path]:
    files = {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in PACKAGE.rglob("*.py")}
    assert "training.data" in files and len(files) > 8
    return files | {"cait_hf_cli": PACKAGE.parent / "cait_hf_cli.py"}


def imports(name: str, path: Path) -> list[tuple[str, bool]]:
    """(module, whether it is of this package); relative imports are resolved to names such as "checkpoints"."""
    found = []
    package = name.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(alias.name, alias.name.startswith("cait_hf")) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.append((node.module, node.module.startswith("cait_hf")))
        elif isinstance(node, ast.ImportFrom):
            parents = package[: len(package) - node.level + 1]
            found.append((".".join([*parents, *filter(None, [node.module])]), True))
    return found


@pytest.mark.parametrize("name, path", modules().items(), ids=modules())
def test_module_imports_only_what_lies_to_its_right(name, path):
    inner = {module for module, own in imports(name, path) if own}
    if name == "__init__":
        assert inner and not inner & COMMANDS
    elif name != "cait_hf_cli":
        assert inner <= MAY_IMPORT.get(name, set())
    assert not any(module.split(".")[0] in ("tests", "scripts", "conversion") for module, _ in imports(name, path))


@pytest.mark.parametrize("name, path", modules().items(), ids=modules())
def test_optional_packages_stay_in_leaves(name, path):
    outer = {module.split(".")[0] for module, own in imports(name, path) if not own}
    assert outer & OPTIONAL <= MAY_IMPORT_OPTIONAL.get(name, set())
    if name in REMOTE_CODE:
        allowed = {*sys.stdlib_module_names, "torch", "transformers", "huggingface_hub"}
        assert outer <= allowed | MAY_IMPORT_OPTIONAL.get(name, set())


def test_import_adds_little_to_transformers_own_modules():
    """`import cait_hf` costs what the model's base classes cost: nothing heavy comes on top, nor our own commands."""
    heavy = {"datasets", "evaluate", "matplotlib", "onnx", "openvino", "pandas", "peft", "pyarrow"}
    heavy |= {
        "sklearn",
        "timm",
        *(f"cait_hf.{name}" for name in (*COMMANDS, "evaluation", "training", "visualization")),
    }
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


def test_modules_load_without_what_they_import_in_functions():
    for name, packages in IMPORTED_IN_FUNCTIONS.items():
        tree = ast.parse(modules()[name].read_text(encoding="utf-8"))
        at_once = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
        assert not {ast.unparse(node).split()[1].split(".")[0] for node in at_once} & packages


def test_remote_code_is_flat_and_complete():
    files = get_relative_import_files(PACKAGE / "modeling_cait.py")
    assert {Path(file).stem for file in files} | {"modeling_cait"} == REMOTE_CODE
    assert all(Path(file).parent == PACKAGE and Path(file).is_file() for file in files)
    for name in REMOTE_CODE:
        text = (PACKAGE / f"{name}.py").read_text(encoding="utf-8")
        assert not re.search(r"^\s*(from \. import|import \.)", text, re.MULTILINE)
        in_code = [module for module, own in imports(name, PACKAGE / f"{name}.py") if own]
        # Transformers reads lines, docstrings included: it must find just what the code imports.
        assert sorted(re.findall(r"^\s*from\s+\.(\S+)\s+import", text, re.MULTILINE)) == sorted(in_code)


def repository_files() -> list[Path]:
    skipped = {"build", "data", "dist", "outputs"}  # besides hidden folders: not part of the repository
    folders = [path for path in ROOT.iterdir() if path.is_dir() and path.name not in skipped]
    folders = [path for path in folders if not path.name.startswith(".") or path.name == ".ci"]
    files = [path for path in ROOT.iterdir() if path.is_file() and path.name != ".git"]  # a file in a worktree
    files += [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    return [path for path in files if "__pycache__" not in path.parts and ".egg-info" not in str(path)]


def test_no_machine_paths():
    """No file names a place of the machine on which it was written."""
    assert len(repository_files()) > 30
    places = re.compile(r"(?<![\w./])/(home|root|work|Users|mnt)/")
    found = []
    for path in repository_files():
        if path.suffix in NO_TEXT:
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            if places.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()}")
    assert found == []


def test_words_of_the_glossary():
    """What the glossary of docs/style.md has in bold stands nowhere else, in text or in names; JSON files are data."""
    glossary = ROOT / "docs" / "style.md"
    words = re.findall(r"\*\*(.+?)\*\*", glossary.read_text(encoding="utf-8"))
    assert len(words) > 10
    pattern = re.compile("|".join(re.sub("[ -]", "[ _-]", word) for word in words), re.IGNORECASE)
    found = []
    for path in repository_files():
        if path.suffix not in NO_TEXT and path.suffix != ".json" and path != glossary:
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
                found += [f"{path.relative_to(ROOT)}:{number}: {word}" for word in pattern.findall(line)]
    assert found == []


def test_every_python_file_names_its_license():
    files = [path for path in repository_files() if path.suffix == ".py"]
    header = "# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.\n"
    assert [str(path) for path in files if not path.read_text(encoding="utf-8").startswith(header)] == []
