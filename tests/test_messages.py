# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""What commands print on the standard error: progress and what is about this run, nothing of libraries."""

import ast
import logging
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import warm_process
from official_files import official_tensors, write_pth, write_timm_folder
from PIL import Image
from random_weights import randomize_, tiny_config
from test_scripts import SCRIPTS, write_images

from cait_hf import CaitForImageClassification, CaitImageProcessorPil
from cait_hf.import_messages import MESSAGES


CONVERSION = SCRIPTS.parent / "conversion"
COMMAND = "import sys, cait_hf_cli; sys.exit(cait_hf_cli.main(sys.argv[1:]))"
BAR = re.compile(r"\d+%\||\d examples \[|^\s*$")


def test_imports_print_nothing():
    """In a fresh interpreter: the messages come once in a process."""
    if not (find_spec("torchao") or find_spec("bitsandbytes")):
        pytest.skip("without torchao and bitsandbytes there are no messages")
    program = "import cait_hf, cait_hf.training.trainer"
    child = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (child.returncode, child.stdout, child.stderr) == (0, "", "")


@pytest.mark.parametrize("name, dropped", MESSAGES.items())
def test_only_known_messages_are_dropped(name, dropped, caplog):
    logger = logging.getLogger(name)
    logger.warning("x %s: y", dropped)
    logger.warning("another message")
    assert [record.message for record in caplog.records] == ["another message"]


@pytest.mark.parametrize("script", [*SCRIPTS.glob("*.py"), *CONVERSION.glob("*.py")], ids=lambda script: script.stem)
def test_scripts_import_the_package_before_transformers(script):
    """Or the messages come before the package can drop them."""
    imported = []
    for node in ast.parse(script.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            imported += [alias.name.split(".")[0] for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            imported.append((node.module or "").split(".")[0])
    noisy = [module for module in imported if module in ("accelerate", "cait_hf", "peft", "transformers")]
    assert noisy == [] or noisy[0] == "cait_hf"


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """Images, an official file, a repository of timm's with other classes, and models of 5 and 1000 classes."""
    folder = tmp_path_factory.mktemp("files")
    write_images(folder / "train", range(3), 4)
    (folder / "imagenet" / "7").mkdir(parents=True)
    Image.new("RGB", (40, 40)).save(folder / "imagenet" / "7" / "0.jpeg")
    write_pth(folder / "official.pth", official_tensors(tiny_config()))
    write_timm_folder(folder / "timm", official_tensors(tiny_config()))
    for name, num_labels in (("cait", 5), ("thousand", 1000)):
        randomize_(CaitForImageClassification(tiny_config(num_labels=num_labels))).save_pretrained(folder / name)
        processor = CaitImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
        processor.save_pretrained(folder / name)
    return folder


TRAIN = (
    "{scripts}/{script}.py --do_train --do_eval --train_dir {files}/train --max_steps 2 --save_steps 1 "
    "--logging_steps 1 --model_name_or_path {files}/timm --ignore_mismatched_sizes --output_dir {out} "
    "--disable_tqdm true"
)
NEW_CLASSIFIER = "2 tensors are absent in .*/timm, .* start random: classifier.bias, classifier.weight."
OF_TRAINING = [
    "3 of the 12 training images, .* are held out to evaluate on; .*",
    NEW_CLASSIFIER,
    "One process on .*",
    "Evaluation on 3 images: top-1 accuracy .*",
    "The model is in .*/out, with the weights of step 2 .*",
]
RUNS = {
    "trainer": (TRAIN.replace("{script}", "run_image_classification"), OF_TRAINING),
    "no_trainer": (TRAIN.replace("{script}", "run_image_classification_no_trainer"), OF_TRAINING),
    "lora": (TRAIN.replace("{script}", "run_image_classification") + " --lora_rank 2", OF_TRAINING),
    "evaluate": (
        "{scripts}/evaluate_imagenet.py {files}/thousand --data_dir {files}/imagenet --num_workers 0 --output {out}",
        [],
    ),
    "visualize": ("{scripts}/visualize_attention.py {files}/cait {files}/train/one/0.png --output {out}.png", []),
    "to timm": ("{conversion}/convert_hf_to_timm.py --source {files}/cait --output_dir {out}", []),
    "classify": ("classify {files}/train --model {files}/timm", []),
    "convert": ("convert --source {files}/official.pth --output_dir {out}", []),
    "info": ("info {files}/cait", []),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_prints_what_is_about_it(name, files, tmp_path):
    if name == "lora":
        pytest.importorskip("peft", reason="adapters need PEFT")
    line, expected = RUNS[name]
    line = line.format(scripts=SCRIPTS, conversion=CONVERSION, files=files, out=tmp_path / "out")
    code = warm_process.SCRIPT if line.startswith("/") else COMMAND
    finished = warm_process.run(code, *line.split())
    printed = [text for text in re.split("[\r\n]", finished.stderr) if not BAR.search(text)]
    assert finished.returncode == 0 and len(printed) == len(expected), finished.stderr
    assert all(re.fullmatch(pattern, text) for pattern, text in zip(expected, printed)), printed
