# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""Run the tests that Transformers shares between its own models on CaiT, and on ViT beside it, and count them.

    make test-upstream
    python tests/upstream/run.py --write_readme    # the tables of README.md, from expected.yaml

The tests come from the source distribution of the installed version (`archive.py`); what they import and it lacks is
in `stand_ins/`. expected.yaml says of every test that is skipped why: where the two differ, the run fails as it does
with a failed test.
"""

import argparse
import fnmatch
import json
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

import torch
import yaml
from archive import fetch
from packaging.specifiers import SpecifierSet


HERE = Path(__file__).resolve().parent
EXPECTED = HERE / "expected.yaml"
README = HERE / "README.md"
MODELS = ("cait", "vit")
KINDS = {"cannot_apply": "Cannot apply to CaiT", "lacking": "Lack something where they ran"}


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


@dataclass
class Skips:
    """Tests that are skipped for one reason: patterns of their names, and which versions of transformers have them."""

    why: str
    tests: list[str]
    transformers: str = ""

    def matching(self, name: str) -> list[str]:
        return [pattern for pattern in self.tests if fnmatch.fnmatchcase(name.partition(".")[2], pattern)]


@dataclass
class Expected:
    """The content of expected.yaml; `counts[version][model]` has `passed` and `skipped`."""

    counts: dict[str, dict[str, dict[str, int]]]
    cannot_apply: list[Skips]
    lacking: list[Skips]


def read_expected(installed: str | None = None) -> Expected:
    """expected.yaml, without the skips of versions of transformers other than the installed one."""
    content = yaml.safe_load(EXPECTED.read_text(encoding="utf-8"))
    expected = Expected(**{**content, **{kind: [Skips(**skips) for skips in content[kind]] for kind in KINDS}})
    if installed:
        for kind in KINDS:
            skips = [s for s in getattr(expected, kind) if SpecifierSet(s.transformers).contains(installed, True)]
            setattr(expected, kind, skips)
    return expected


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


def compare(expected: Expected, outcome: Outcome) -> list[str]:
    """Error messages where expected.yaml and a complete run differ.

    A test that cannot apply must be skipped; one that lacks something here may run elsewhere.
    """
    executed = [*outcome.passed, *outcome.failed]
    errors = []
    for name, reason in outcome.skipped.items():
        if not any(skips.matching(name) for skips in expected.cannot_apply + expected.lacking):
            errors.append(f"{name} is skipped ({reason}), but expected.yaml does not say why.")
    for name in executed:
        for pattern in (pattern for skips in expected.cannot_apply for pattern in skips.matching(name)):
            errors.append(f"{name} is executed, but expected.yaml says with {pattern!r} that it cannot apply.")
    for pattern in (pattern for skips in expected.cannot_apply + expected.lacking for pattern in skips.tests):
        if not fnmatch.filter([*executed, *outcome.skipped], f"*.{pattern}"):
            errors.append(f"expected.yaml explains {pattern!r}, but no test has such a name.")
    return errors


def count(expected: Expected, outcome: Outcome) -> dict[str, int]:
    """How many tests passed and were skipped, without those that depend on what is installed here."""

    def number(names) -> int:
        return sum(not any(skips.matching(name) for skips in expected.lacking) for name in names)

    return {"passed": number(outcome.passed), "skipped": number(outcome.skipped)}


def compare_counts(expected: Expected, installed: str, outcomes: dict[str, Outcome]) -> list[str]:
    """Error messages where the counts of expected.yaml differ from complete runs; none for a version it lacks."""
    counts = {model: count(expected, outcome) for model, outcome in outcomes.items()}
    if installed not in expected.counts:
        print(f"\nNo counts in tests/upstream/expected.yaml, add:\n  {installed}: {json.dumps(counts)}")
        return []
    return [
        f"expected.yaml states {stated} for {model} with transformers {installed}, but it is {counts[model]}."
        for model, stated in expected.counts[installed].items()
        if model in counts and counts[model] != stated
    ]


def summary(expected: Expected, outcome: Outcome) -> str:
    """How many of the skipped tests each reason explains."""
    lines = []
    for kind, heading in KINDS.items():
        numbers = [sum(bool(s.matching(name)) for name in outcome.skipped) for s in getattr(expected, kind)]
        lines += [f"{heading}: {sum(numbers)}"]
        lines += [f"{number:>7}  {s.why}" for number, s in zip(numbers, getattr(expected, kind)) if number]
    return "\n".join(lines)


def with_tables(readme: str, expected: Expected) -> str:
    """README.md with the tables that are made from expected.yaml, each between two comments."""
    rows = ["| transformers | CaiT passed | CaiT skipped | ViT passed | ViT skipped |", "|---|---|---|---|---|"]
    for installed, counts in expected.counts.items():
        numbers = [str(counts[model][key]) for model in MODELS for key in ("passed", "skipped")]
        rows.append(f"| {' | '.join([installed, *numbers])} |")
    tables = {"counts": rows}
    for kind in KINDS:
        tables[kind] = ["| tests | why |", "|---|---|"]
        for skips in getattr(expected, kind):
            versions = f" (transformers {skips.transformers})" if skips.transformers else ""
            tables[kind].append(f"| {', '.join(f'`{test}`' for test in skips.tests)}{versions} | {skips.why} |")
    for name, rows in tables.items():
        before, start, rest = readme.partition(f"<!-- {name} of expected.yaml -->\n")
        end = f"<!-- end of {name} -->\n"
        readme = before + start + "\n".join(rows) + f"\n{end}" + rest.partition(end)[2]
    return readme


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--processes", type=int, default=0, help="how many share the tests (pytest-xdist)")
    parser.add_argument("pytest_options", nargs="*", help="after --, for pytest; expected.yaml is then not compared")
    parser.add_argument("--write_readme", action="store_true", help="only write expected.yaml's tables into README.md")
    arguments = parser.parse_args(argv)
    if arguments.write_readme:
        README.write_text(with_tables(README.read_text(encoding="utf-8"), read_expected()), encoding="utf-8")
        return 0
    installed = version("transformers")
    options = [*arguments.pytest_options]
    if arguments.processes:
        options += ["--numprocesses", str(arguments.processes), "--dist", "worksteal"]
    try:
        archive = fetch(installed)
        with tempfile.TemporaryDirectory(prefix="cait-hf-upstream-") as folder:
            unpack(archive, Path(folder))
            outcomes = {model: run(model, Path(folder), options) for model in arguments.models}
            if "vit" in outcomes and outcomes["vit"].failed:  # Transformers' own, with random numbers
                print("\nViT fails: once more, for what fails by chance.")
                outcomes["vit"] = run("vit", Path(folder), options)
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
        expected = read_expected(installed)
        if "cait" in outcomes:
            print(f"\nSkipped for CaiT (tests/upstream/expected.yaml)\n{summary(expected, outcomes['cait'])}")
            problems += compare(expected, outcomes["cait"])
        if not torch.accelerator.is_available():
            problems += compare_counts(expected, installed, outcomes)
    print(*problems, sep="\n")
    return int(bool(problems) or any(outcome.failed for outcome in outcomes.values()))


if __name__ == "__main__":
    sys.exit(main())
