# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""Commands and Python code of README.md and docs/ run as they stand; links, tables and names of tests are true.

Only what has to come from the Hub is replaced, by a local folder of the same format with random weights.
"""

import contextlib
import functools
import importlib
import inspect
import io
import json
import os
import pkgutil
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from official_files import official_tensors, write_pth, write_xxs24_timm_folder
from PIL import Image
from test_scripts import load_script, write_images

import cait_hf
import cait_hf_cli
from cait_hf import CHECKPOINTS, CaitConfig, CaitForImageClassification, CaitImageProcessorPil
from cait_hf.app.page import MODELS
from cait_hf.checkpoints import README as AUTHORS_README
from cait_hf.fashion_mnist import CHECKPOINT
from cait_hf.publish import add_remote_code


ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = "docs/notebooks/fine_tuning.ipynb"
NAMES = ["README.md", *sorted(f"docs/{path.name}" for path in ROOT.glob("docs/*.md")), NOTEBOOK]


def text_of(page: str) -> str:
    """Of a notebook, what stands between its cells of code: test_notebook.py runs those."""
    text = (ROOT / page).read_text(encoding="utf-8")
    if page == NOTEBOOK:
        text = "\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"] if cell["cell_type"] != "code")
    return text


PAGES = {name: text_of(name) for name in NAMES}
HUB_ID = "timm/cait_xxs24_224.fb_dist_in1k"
FEW_STEPS = "--max_steps 1 --per_device_train_batch_size 2 --per_device_eval_batch_size 2 --disable_tqdm true"
FEW_STEPS += " --dataloader_num_workers 0"
CONVERT = "python conversion/convert_cait_to_hf.py"
NOT_RUN = {
    "make demo": "CI and test_scripts.py run the script; the target makes an environment",
    "make test": "CI runs it; it is what runs this test",
    f"cait-hf train finetune --search finetune --model_name_or_path {HUB_ID} --train_dir images/train "
    "--validation_dir images/validation --output_dir outputs/search": "20 trainings; test_search.py runs some",
    f"{CONVERT} --source XXS24_224 --output_dir cait-xxs24-224": "network",
    f"{CONVERT} --source timm/cait_s24_224.fb_dist_in1k --output_dir cait-s24-224": "network",
}


# Until it is interrupted, unless it writes or pushes a Space.
SERVED = re.compile("cait-hf app(?!.*--space)")


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGES[page], re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    """Those of all pages, each once."""
    lines = "".join(block for page in PAGES for block in blocks(page, "bash")).replace("\\\n", " ").splitlines()
    return list(dict.fromkeys(" ".join(shlex.split(line, comments=True)) for line in lines))


def arguments_of(program: str) -> list[list[str]]:
    """Those of each command that runs it, the script included."""
    return [shlex.split(command)[1:] for command in commands() if command.startswith(program)]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Path:
    """A working directory with what the pages take for granted: an image, folders of images, an official file."""
    folder = tmp_path_factory.mktemp("docs")
    noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "image.jpg")
    write_images(folder / "images" / "train", range(3), 5)
    write_images(folder / "images" / "validation", range(3), 2, skip=5)
    write_xxs24_timm_folder(folder / HUB_ID)
    write_pth(folder / "XXS24_224.pth", official_tensors(CaitConfig(num_labels=1000)))
    return folder


@pytest.fixture(autouse=True)
def _in_workplace(workplace, monkeypatch):
    monkeypatch.chdir(workplace)


# What only stands in blocks that need more than the others: tests of their own run those.
NEEDS_MORE = {"from torchao", "ExportedModel", "import onnxruntime"}


@functools.cache
def run_predictions(workplace: Path) -> None:
    """The commands of the page, in two processes those of `accelerate launch`."""
    shards = workplace / "shards"
    shards.mkdir()
    for number, folder in enumerate(sorted((workplace / "images" / "validation").iterdir())):
        with tarfile.open(shards / f"{number}.tar", "w") as tar:
            for file in sorted(folder.iterdir()):
                tar.add(file, f"{number}-{file.name}")
    (workplace / "files.csv").write_text("photo\nimage.jpg\n")
    programs = ("cait-hf predict", "accelerate launch --num_processes 2 scripts/predict.py")
    ran = [shlex.split(command) for command in commands() if command.startswith(programs)]
    assert len(ran) == 4
    for program, *arguments in ran:
        if program == "cait-hf":
            assert cait_hf_cli.main(arguments) == 0
            continue
        launch = [sys.executable, "-m", "accelerate.commands.launch", *in_repository(arguments[1:])]
        finished = subprocess.run(launch, env=on_loopback(), capture_output=True, text=True, timeout=300)
        assert finished.returncode == 0, finished.stderr[-3000:]


@functools.cache
def run_python(page: str) -> tuple[dict, str]:
    """The names that the blocks of a page, run in order, leave behind, and what they print."""
    namespace: dict = {"__name__": page}
    printed = io.StringIO()
    for block in blocks(page, "python"):
        if not any(sign in block for sign in NEEDS_MORE):
            with contextlib.redirect_stdout(printed):
                exec(compile(block, page, "exec"), namespace)
    return namespace, printed.getvalue()


def block_with(sign: str) -> str:
    assert sign in NEEDS_MORE
    (block,) = (block for page in PAGES for block in blocks(page, "python") if sign in block)
    return block


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")])
def test_python_blocks_run_in_order(page, workplace, request):
    """A comment after `print(...)` is what is printed."""
    if page == "docs/prediction.md":
        pytest.importorskip("sklearn", reason="the search is scikit-learn's")
        run_predictions(workplace)
    if page.endswith(".ipynb"):
        pytest.importorskip("torchvision", reason="the notebook takes the processor on torchvision")
    if page == "docs/usage.md":
        request.getfixturevalue("auto_image_processor")
    _, printed = run_python(page)
    stated = [line for block in blocks(page, "python") for line in re.findall(r"^print\(.+\)  # (.+)$", block, re.M)]
    assert [line for line in stated if f"\n{line}\n" not in f"\n{printed}"] == []


def test_python_blocks_show_what_they_promise(workplace):
    assert "'score'" in run_python("README.md")[1]
    run_python("docs/attention_maps.md")
    with Image.open(workplace / "overlay.png") as overlay:
        assert overlay.size == (400, 300)


def test_int8_block_runs():
    pytest.importorskip("torchao", reason="int8 of torchao needs torchao")
    namespace = {"CaitForImageClassification": CaitForImageClassification}
    exec(compile(block_with("from torchao"), "docs", "exec"), namespace)
    quantized = namespace["quantized"]
    assert type(quantized.cait.layers[0].mlp.fc1.weight) is not torch.nn.Parameter
    assert type(quantized.classifier.weight) is torch.nn.Parameter
    assert namespace["bitsandbytes"].load_in_8bit


def test_classification_commands_run(workplace):
    pytest.importorskip("timm", reason="the recipe has timm's augmentations")
    ran = [*arguments_of("cait-hf train"), *arguments_of("python scripts/run_image_classification")]
    ran = [arguments for arguments in ran if "--search" not in arguments]
    assert len(ran) == 3
    for program, *flags in ran:
        if program == "train":
            assert cait_hf_cli.main([program, *flags, *FEW_STEPS.split()]) == 0
        else:
            load_script(Path(program).stem).main([*flags, *FEW_STEPS.split()])
    for name in ("finetuned", "evaluated", "scratch"):
        results = json.loads((workplace / "outputs" / name / "all_results.json").read_text())
        assert 0 <= results["eval_top1"] <= 1


def test_command_for_several_processes_runs(workplace):
    """Two processes on the CPU in the place of eight GPUs."""
    pytest.importorskip("timm", reason="the recipe has timm's augmentations")
    ((_, *command),) = arguments_of("accelerate launch --config_file")
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2", "--mixed_precision", "no"]
    flags = [*in_repository(command), *FEW_STEPS.split()]
    finished = subprocess.run([*launch, *flags], env=on_loopback(), capture_output=True, text=True, timeout=300)
    assert finished.returncode == 0, finished.stderr[-3000:]
    report = json.loads((workplace / "outputs" / "finetuned_on_several" / "metrics.json").read_text())
    assert report["hardware"]["processes"] == 2


def on_loopback() -> dict[str, str]:
    """The environment of processes on the CPU that talk over the loopback interface."""
    loopback = next(interface for _, interface in socket.if_nameindex() if interface.startswith("lo"))
    return os.environ | {"GLOO_SOCKET_IFNAME": loopback, "ACCELERATE_USE_CPU": "true"}


def in_repository(flags: list[str]) -> list[str]:
    """The paths of the repository's own files, which the commands name from its root."""
    return [str(ROOT / flag) if flag.startswith("scripts/") else flag for flag in flags]


def test_conversion_commands_run(workplace):
    pytest.importorskip("timm", reason="--verify and timm's format need timm")
    scripts = {name: load_script(name, ROOT / "conversion") for name in ("convert_cait_to_hf", "convert_hf_to_timm")}
    for command in commands():
        script = Path(shlex.split(command)[1]).stem
        if script in scripts and command not in NOT_RUN:
            scripts[script].main(shlex.split(command)[2:])
    loaded = CaitForImageClassification.from_pretrained(workplace / "cait-xxs24-224-timm")
    stored = CaitForImageClassification.from_pretrained(workplace / "cait-xxs24-224")
    assert all(torch.equal(a, b) for a, b in zip(loaded.state_dict().values(), stored.state_dict().values()))


def test_export_commands_run(workplace):
    """On a folder with the architecture of XXS24, but a layer of each kind: the exporters take minutes for all."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason=f"export to ONNX needs {package}")
    pytest.importorskip("transformers.exporters.metadata", reason="this Transformers has no exporters that save")
    model = CaitForImageClassification(CaitConfig(num_hidden_layers=1, num_class_attention_layers=1, num_labels=10))
    ran = arguments_of("cait-hf export ")
    assert len(ran) == 2
    for command, source, *rest in ran:
        for saved in (model, CaitImageProcessorPil()):
            saved.save_pretrained(workplace / "to-export" / source)
        assert cait_hf_cli.main([command, f"to-export/{source}", *rest]) == 0
        assert (workplace / rest[0] / "model.onnx").is_file()
    namespace: dict = {}
    logits = []
    for sign in ("import onnxruntime", "ExportedModel"):
        exec(compile(block_with(sign), "docs", "exec"), namespace)
        logits.append(torch.as_tensor(namespace["logits"]))
        namespace["pixel_values"] = torch.as_tensor(namespace["pixel_values"])
    expected = model.eval()(namespace["pixel_values"]).logits
    assert expected.shape == (2, 10) and all(torch.allclose(found, expected, atol=1e-4) for found in logits)


def test_attention_commands_run(workplace):
    ran = arguments_of("python scripts/visualize_attention.py ")
    assert len(ran) == 3
    for _, *arguments in ran:
        assert load_script("visualize_attention").main(arguments) == 0
    for name in ("attention.png", "rollout.gif"):
        with Image.open(workplace / name) as drawing:
            assert min(drawing.size) > 150


def write_training_checkpoint(path: Path, official: Path):
    """As deit's training writes it, with EMA weights."""
    model = torch.load(official, weights_only=True)["model"]
    path.parent.mkdir()
    torch.save({"model": model, "model_ema": model, "epoch": 1}, path)


def test_publishing_commands_run_against_the_loopback_hub(workplace, hub, monkeypatch, capsys):
    pytest.importorskip("timm", reason="--verify and --against timm need timm")
    folder = workplace / "official_files"
    folder.mkdir()
    (folder / "XXS24_224.pth").write_bytes((workplace / "XXS24_224.pth").read_bytes())
    if not (workplace / "cait-xxs24-224").exists():  # the test before this one may run in another process
        convert = load_script("convert_cait_to_hf", ROOT / "conversion")
        convert.main(["--source", "XXS24_224.pth", "--output_dir", "cait-xxs24-224"])
    published = ("cait-hf ", "python conversion/convert_all.py ", "python conversion/verify_checkpoint.py ")
    others = tuple(f"cait-hf {name} " for name in ("predict", *cait_hf_cli.MODULES))
    ran = [
        command
        for command in commands()
        if command.startswith(published) and not (command.startswith(others) or SERVED.match(command))
    ]
    assert len(ran) == 10
    write_training_checkpoint(workplace / "output" / "checkpoint.pth", folder / "XXS24_224.pth")
    for command in ran:
        program, *arguments = shlex.split(command.replace("your-name", "tester"))
        main = cait_hf_cli.main
        if program == "python":
            main = load_script(Path(arguments.pop(0)).stem, ROOT / "conversion").main
        assert main(arguments) == 0, command
    printed = capsys.readouterr().out
    assert "M48_448" in printed and "image.jpg" in printed
    assert hub.repositories["tester/my-cait"].tags
    modeling = (ROOT / "src" / "cait_hf" / "modeling_cait.py").read_bytes()
    assert hub.read("tester/cait-xxs24-224", "modeling_cait.py") == modeling


def test_commands_of_the_page_are_understood(monkeypatch):
    """test_app.py opens it."""
    served = []
    monkeypatch.setattr("cait_hf.app.page.launch", lambda *args: served.append(args))
    assert [cait_hf_cli.main(shlex.split(command)[1:]) for command in commands() if SERVED.match(command)] == [0, 0]
    own = ["fashion_mnist", "XXS24_224", "outputs/finetuned"]
    assert served == [(MODELS, "127.0.0.1", None), (own, "127.0.0.1", 8000)]


def test_evaluation_commands_are_understood(capsys):
    """They need ImageNet, so each ends where it is missing; test_evaluate_imagenet.py runs the command."""
    pytest.importorskip("timm", reason="the labels of ImageNet-Real come with timm")
    ran = [*arguments_of("cait-hf eval"), *arguments_of("accelerate launch -m cait_hf_cli eval")]
    assert len(ran) == 4
    for arguments in ran:
        assert cait_hf_cli.main(arguments[arguments.index("evaluate") :]) == 1
        data = next(flag for flag in ("--data_dir", "--dataset_name") if flag in arguments)
        assert arguments[arguments.index(data) + 1] in capsys.readouterr().err


def test_troubleshooting_quotes_what_a_program_without_the_package_says(tmp_path):
    """The indented lines, and in the table what the package itself says."""
    page = PAGES["docs/troubleshooting.md"]
    coded = Path(shutil.copytree(CHECKPOINT, tmp_path / "coded"))
    add_remote_code(coded)
    program = """
import sys
from transformers import AutoModelForImageClassification
for folder in sys.argv[1:]:
    try:
        AutoModelForImageClassification.from_pretrained(folder)
    except ValueError as error:
        print(error)
"""
    command = [sys.executable, "-c", program, CHECKPOINT, str(coded)]
    child = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    quoted = re.findall("^    (.+)$", re.sub(r"^```.*?^```$", "", page, flags=re.M | re.S), re.MULTILINE)
    assert len(quoted) == 2 and [line for line in quoted if line not in child.stdout] == [], child.stdout
    code = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "src" / "cait_hf").rglob("*.py"))
    for said in ("CaitImageProcessor needs torchvision", "--push_to_hub needs", "the Hub within reach and a login"):
        assert said in page and said in code


def test_installed_extras_exist():
    (extras,) = re.findall(r"extras_require=\{(.*?)\n    \}", (ROOT / "setup.py").read_text(), re.DOTALL)
    ran = [command for command in commands() if command.startswith("pip install ")]
    asked = [re.fullmatch(r"pip install --editable \.(?:\[(.+)\])?", command) for command in ran]
    assert len(ran) > 3 and all(asked)
    named = {extra for found in asked if found[1] for extra in found[1].split(",")}
    assert named <= {*re.findall(r'^ +"(\w+)":', extras, re.M)}


def test_every_command_is_run_or_has_a_reason():
    scripts = (
        "python scripts/run_image_classification",
        "accelerate launch --config_file",
        "accelerate launch --num_processes 2 scripts/predict.py",
        "python scripts/visualize_attention.py ",
        "accelerate launch -m cait_hf_cli evaluate ",
        "python conversion/",
        "cait-hf ",
        "pip install ",
    )
    # Slurm: test_recipes.py reads what sbatch is given
    assert [c for c in commands() if c not in NOT_RUN and not c.startswith((*scripts, "sbatch "))] == []
    assert [c for c in NOT_RUN if c not in commands()] == []
    languages = {language for text in PAGES.values() for language in re.findall(r"^```(\w+)$", text, re.MULTILINE)}
    assert languages == {"bash", "python", "bibtex"}  # others would not be run


def test_table_of_checkpoints():
    rows = []
    for checkpoint in CHECKPOINTS:
        published = "" if checkpoint.published_top1 is None else f"{checkpoint.published_top1}"
        if checkpoint.published_top1_source not in (None, AUTHORS_README):
            published += " (quoted)"
        top1, top5 = checkpoint.timm_accuracy.imagenet
        rows.append(
            f"| {checkpoint.official_name} | `{checkpoint.timm_repo}` | {checkpoint.image_size} | "
            f"{checkpoint.num_parameters:,} | {checkpoint.timm_gmacs} | {published} | {top1:.2f} / {top5:.2f} |"
        )
    assert "\n".join(rows) in PAGES["README.md"]


def test_named_tests_exist():
    """Those that pages name with their file, and comments of the package by themselves."""
    files = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "tests").glob("test_*.py")}
    named = {test for text in PAGES.values() for test in re.findall(r"`(test_\w+\.py)(?:::(\w+))?`", text)}
    defined = {(name, test) for name, text in files.items() for test in ["", *re.findall(r"^def (\w+)", text, re.M)]}
    assert named <= defined and len(named) > 30
    code = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "src" / "cait_hf").rglob("*.py"))
    assert {*re.findall(r"`(test_\w+)`", code)} <= {test for _, test in defined}


def test_every_feature_names_its_test():
    rows = re.findall(r"^\| (?!feature)(.+?) \| (.*?) \|", PAGES["docs/compatibility.md"], re.MULTILINE)
    assert len(rows) > 30 and [row for row in rows if "`test_" not in row[1] and "`upstream/" not in row[1]] == []


def test_overridden_private_methods_are_listed():
    """docs/design.md has all private methods of Transformers' classes that this package overrides, and no other."""
    overridden = set()
    for module in pkgutil.walk_packages(cait_hf.__path__, "cait_hf."):
        if module.name == "cait_hf.image_processing_cait":
            pytest.importorskip("torchvision", reason="the image processor on torchvision needs it")
        for cls in vars(importlib.import_module(module.name)).values():
            if inspect.isclass(cls) and cls.__module__ == module.name:
                for name, value in vars(cls).items():
                    bases = [base for base in cls.__mro__[1:] if base.__module__.startswith("transformers.")]
                    if re.match("_[a-z]", name) and callable(value) and any(name in vars(base) for base in bases):
                        overridden.add(name)
    listed = re.findall(r"^\| `(_\w+)` \|", PAGES["docs/design.md"], re.MULTILINE)
    assert len(overridden) > 5 and sorted(overridden) == sorted(listed)


def test_counts_of_the_shared_tests():
    counts = yaml.safe_load((ROOT / "tests" / "upstream" / "expected.yaml").read_text(encoding="utf-8"))["counts"]
    cait, vit = (list(counts.values())[-1][model]["passed"] for model in ("cait", "vit"))
    assert f"`upstream/README.md` ({cait} run) | {vit} run |" in PAGES["docs/compatibility.md"]


def anchors(text: str) -> set[str]:
    """What GitHub makes of the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*PAGES, *(path.name for path in ROOT.glob("*.md") if path.name != "README.md")])
def test_links_lead_somewhere(page):
    broken = []
    for target in re.findall(r"\]\((?!https?://)([^)]+)\)", text_of(page)):
        name, _, anchor = target.partition("#")
        path = (ROOT / page).parent / name if name else ROOT / page
        if not path.exists() or anchor and anchor not in anchors(path.read_text(encoding="utf-8")):
            broken.append(target)
    assert broken == []


def test_every_page_is_linked_from_readme():
    assert [page for page in PAGES if page != "README.md" and f"({page})" not in PAGES["README.md"]] == []
