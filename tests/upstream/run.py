# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""Run the tests that Transformers shares between its own models on CaiT, and on ViT beside it, and count them.

    make test-upstream

The tests come from the source distribution of the installed version (`archive.py`); what they import and it lacks is
in `stand_ins/`. README.md beside this file lists every test that is skipped, with the reason: another set of skipped
tests than the listed one is a failure, as a failed test is.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from archive import fetch


HERE = Path(__file__).resolve().parent
MODELS = ("cait", "vit")


@dataclass
class Outcome:
    """What became of a model's tests: their number, and by name those that did not pass."""

    executed: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)

    def __str__(self):
        passed = self.executed - len(self.failed)
        return f"executed {self.executed}, passed {passed}, failed {len(self.failed)}, skipped {len(self.skipped)}"


def unpack(archive: Path, folder: Path):
    """The archive's tests, and our stand-ins for what they import and it lacks."""
    with tarfile.open(archive) as tar:
        for member in tar.getmembers():
            parts = Path(member.name).parts[1:]  # the first is transformers-<version>
            if member.isfile() and len(parts) == 2 and parts[0] == "tests":
                target = folder / "tests" / parts[1]
                target.parent.mkdir(exist_ok=True)
                target.write_bytes(tar.extractfile(member).read())
    shutil.copytree(HERE / "stand_ins", folder, dirs_exist_ok=True)


def run(model: str, folder: Path, pytest_options: list[str]) -> Outcome:
    """Run the tests of a model in a process of its own."""
    report = folder / f"{model}.xml"
    tiny_models = folder / f"{model}-tiny-models"
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(folder), str(HERE), os.environ.get("PYTHONPATH")])),
        "TRANSFORMERS_TINY_MODEL_PATH": str(tiny_models),
    }
    command = [sys.executable, "-m", "pytest", "-p", "plugin", "-p", "no:cacheprovider", "--quiet", "--tb=short"]
    command += ["--override-ini", "addopts=", "--disable-warnings", f"--junitxml={report}"]
    command += [str(HERE / model / name) for name in ("modeling.py", "image_processing.py")]
    result = subprocess.run(command + pytest_options, cwd=HERE.parents[1], env=environment)
    if result.returncode not in (0, 1) or not report.is_file():
        raise OSError(f"pytest ended with exit status {result.returncode}; see above.")
    return read_report(report)


def read_report(report: Path) -> Outcome:
    """Counts and reasons from pytest's JUnit file."""
    outcome = Outcome()
    for case in ElementTree.parse(report).iter("testcase"):
        name = f"{case.get('classname').rpartition('.')[2]}.{case.get('name')}"
        skipped = case.find("skipped")
        if skipped is not None:
            outcome.skipped[name] = skipped.get("message")
            continue
        outcome.executed += 1
        for problem in (*case.findall("failure"), *case.findall("error")):
            outcome.failed[name] = problem.get("message")
    return outcome


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("pytest_options", nargs="*", help="after --, for pytest")
    arguments = parser.parse_args(argv)
    installed = version("transformers")
    try:
        archive = fetch(installed)
        with tempfile.TemporaryDirectory(prefix="cait-hf-upstream-") as folder:
            unpack(archive, Path(folder))
            outcomes = {model: run(model, Path(folder), arguments.pytest_options) for model in arguments.models}
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"\nThe tests that transformers {installed} shares between its models")
    for model, outcome in outcomes.items():
        print(f"{model:>5}: {outcome}")
    for name, reason in outcomes.get("cait", Outcome()).skipped.items():
        print(f"{name}\t{reason}")
    return int(any(outcome.failed for outcome in outcomes.values()))


if __name__ == "__main__":
    sys.exit(main())
