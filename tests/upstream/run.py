# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""Run the tests that Transformers shares between its own models on CaiT, and on ViT beside it, and count them.

    make test-upstream

The tests come from the source distribution of the installed version (`archive.py`); what they import and it lacks is
in `stand_ins/`. README.md beside this file says of every test that is skipped why: where the two differ, the run fails
as it does with a failed test.
"""

import argparse
import fnmatch
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import torch
from archive import fetch


HERE = Path(__file__).resolve().parent
README = HERE / "README.md"
MODELS = ("cait", "vit")


@dataclass
class Outcome:
    """What became of a model's tests, by name, those that did not pass with the reason; and how pytest ended."""

    passed: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    returncode: int = 0

    def __str__(self):
        executed = len(self.passed) + len(self.failed)
        counts = f"executed {executed}, passed {len(self.passed)}, failed {len(self.failed)}"
        return f"{counts}, skipped {len(self.skipped)}"


def unpack(archive: Path, folder: Path):
    """The archive's tests, and our stand-ins for what they import and it lacks."""
    with tarfile.open(archive) as tar:
        for member in tar.getmembers():
            parts = Path(member.name).parts[1:]  # the first is transformers-<version>
            if member.isfile() and len(parts) == 2 and parts[0] == "tests":
                target = folder / "tests" / parts[1]
                target.parent.mkdir(parents=True, exist_ok=True)
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
    return read_report(report, result.returncode)


def read_report(report: Path, returncode: int) -> Outcome:
    """Counts and reasons from pytest's JUnit file, where a test with subtests may have several outcomes at once."""
    outcome = Outcome(returncode=returncode)
    for case in ElementTree.parse(report).iter("testcase"):
        name = f"{case.get('classname').rpartition('.')[2]}.{case.get('name')}"
        problems = (*case.findall("failure"), *case.findall("error"))
        skipped = case.find("skipped")
        if problems:  # looked for first: other subtests of a failed test may have been skipped
            outcome.failed[name] = problems[0].get("message")
        elif skipped is not None:
            outcome.skipped[name] = skipped.get("message")
        else:
            outcome.passed.append(name)
    return outcome


def explanations(readme: str, heading: str) -> dict[str, str]:
    """Patterns of test names and the reason for skipping them, from the table under a heading of README.md."""
    section = readme.partition(f"### {heading}\n")[2].partition("\n#")[0]
    rows = re.findall(r"^\| (`.+`) \| (.+) \|$", section, re.MULTILINE)
    return {pattern: reason for patterns, reason in rows for pattern in re.findall(r"`([^`]+)`", patterns)}


def compare(readme: str, outcome: Outcome) -> list[str]:
    """Sentences on where README.md and a complete run differ.

    A test that cannot apply must be skipped; one that lacks something here may run elsewhere.
    """
    cannot_apply = explanations(readme, "Cannot apply to CaiT")
    lacking = explanations(readme, "Lack something where they ran")
    executed = [*outcome.passed, *outcome.failed]
    sentences = []
    for name, reason in outcome.skipped.items():
        if not matching({**cannot_apply, **lacking}, name):
            sentences.append(f"{name} is skipped ({reason}), but README.md does not say why.")
    for name in executed:
        for pattern in matching(cannot_apply, name):
            sentences.append(f"{name} is executed, but README.md says with {pattern!r} that it cannot apply.")
    for pattern in {**cannot_apply, **lacking}:
        if not fnmatch.filter([*executed, *outcome.skipped], f"*.{pattern}"):
            sentences.append(f"README.md explains {pattern!r}, but no test has such a name.")
    return sentences


def compare_counts(readme: str, versions: str, outcomes: dict[str, Outcome]) -> list[str]:
    """Sentences on where the table of counts in README.md differs from complete runs of the versions it names."""
    if versions not in readme:
        return []
    rows = re.findall(r"^\| ([a-z ]+) \| (\d+) \| (\d+) \|$", readme, re.MULTILINE)
    stated = {name: dict(zip(MODELS, map(int, counts))) for name, *counts in rows}
    sentences = []
    for model, outcome in outcomes.items():
        counts = {"executed and passed": outcome.passed, "failed": outcome.failed, "skipped": outcome.skipped}
        for name, tests in counts.items():
            if stated[name][model] != len(tests):
                sentences.append(f"README.md states {stated[name][model]} {name} for {model}, but it is {len(tests)}.")
    return sentences


def matching(patterns: dict[str, str], name: str) -> list[str]:
    return [pattern for pattern in patterns if fnmatch.fnmatchcase(name.partition(".")[2], pattern)]


def summary(outcome: Outcome, readme: str) -> str:
    """How many of the skipped tests each reason of README.md explains."""
    lines = []
    for heading in ("Cannot apply to CaiT", "Lack something where they ran"):
        counts: dict[str, int] = {}
        for pattern, reason in explanations(readme, heading).items():
            number = sum(bool(matching({pattern: reason}, name)) for name in outcome.skipped)
            counts[reason] = counts.get(reason, 0) + number
        lines += [f"{heading}: {sum(counts.values())}"]
        lines += [f"{number:>7}  {reason}" for reason, number in counts.items() if number]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--processes", type=int, default=0, help="how many share the tests (pytest-xdist)")
    parser.add_argument("pytest_options", nargs="*", help="after --, for pytest; README.md is then not compared")
    arguments = parser.parse_args(argv)
    installed = version("transformers")
    options = [*arguments.pytest_options]
    if arguments.processes:
        options += ["--numprocesses", str(arguments.processes), "--dist", "worksteal"]
    try:
        archive = fetch(installed)
        with tempfile.TemporaryDirectory(prefix="cait-hf-upstream-") as folder:
            unpack(archive, Path(folder))
            outcomes = {model: run(model, Path(folder), options) for model in arguments.models}
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1

    print(f"\nThe tests that transformers {installed} shares between its models")
    for model, outcome in outcomes.items():
        print(f"{model:>5}: {outcome}")
    problems = [
        f"pytest ended with exit status {outcome.returncode} for {model}, but its report has no failure."
        for model, outcome in outcomes.items()
        if outcome.returncode and not outcome.failed
    ]
    if not arguments.pytest_options:
        readme = README.read_text(encoding="utf-8")
        if "cait" in outcomes:
            print(f"\nSkipped for CaiT (tests/upstream/README.md)\n{summary(outcomes['cait'], readme)}")
            problems += compare(readme, outcomes["cait"])
        if not torch.accelerator.is_available():
            versions = f"transformers {installed}, PyTorch {torch.__version__.partition('+')[0]}, a CPU"
            problems += compare_counts(readme, versions, outcomes)
    print(*problems, sep="\n")
    return int(bool(problems) or any(outcome.failed for outcome in outcomes.values()))


if __name__ == "__main__":
    sys.exit(main())
