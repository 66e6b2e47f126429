# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""What the workflows take for granted about the rest of the repository; linters cannot know it."""

import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml


ROOT = Path(__file__).resolve().parents[1]
WORKFLOWS = {
    path.stem: yaml.safe_load(path.read_text(encoding="utf-8")) for path in (ROOT / ".github/workflows").glob("*.yml")
}
MAKE = re.compile(r"^\s*make (.+)$", re.MULTILINE)


def values(job: dict, text: str) -> set[str]:
    """What a setting of a job is in its runs: the values in its matrix where it names one, else itself."""
    variable = re.fullmatch(r"\$\{\{ matrix\.(\w+) \}\}", text)
    if variable is None:
        return {text}
    matrix, name = job["strategy"]["matrix"], variable.group(1)
    return {*matrix.get(name, ()), *(row[name] for row in matrix.get("include", ()) if name in row)}


def settings(workflow: str, find) -> set[str]:
    """All values that `find` gets out of the steps of a workflow."""
    jobs = WORKFLOWS[workflow]["jobs"].values()
    return {value for job in jobs for step in job["steps"] for text in find(step) for value in values(job, text)}


def make_targets(workflow: str) -> set[str]:
    return settings(workflow, lambda step: MAKE.findall(step.get("run", "")))


def pythons(workflow: str) -> set[tuple[int, ...]]:
    versions = settings(workflow, lambda step: [step["with"]["python-version"]] if "setup-python" in str(step) else [])
    return {tuple(map(int, version.split("."))) for version in versions}


@pytest.mark.parametrize("name", WORKFLOWS)
def test_jobs_end_and_may_only_read_unless_they_say_so(name):
    assert WORKFLOWS[name]["permissions"] == {"contents": "read"}
    assert all(job["timeout-minutes"] <= 120 for job in WORKFLOWS[name]["jobs"].values())


def test_make_targets_exist():
    phony = re.search(r"^\.PHONY: (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE).group(1).split()
    assert make_targets("tests") | make_targets("newest") <= set(phony)
    assert make_targets("newest") == {"test-newest"}
    # ... and no check that is made before a change lands is missing
    before_landing = set(MAKE.findall((ROOT / ".ci/run").read_text()))
    assert len(before_landing) > 3 and before_landing <= make_targets("tests")


def test_pythons_are_the_oldest_that_setup_allows_and_one_newest():
    oldest = re.search(r'python_requires=">=([\d.]+)"', (ROOT / "setup.py").read_text()).group(1)
    oldest = tuple(map(int, oldest.split(".")))
    assert min(pythons("tests")) == min(pythons("release")) == oldest
    assert max(pythons("tests")) == max(pythons("release")) == max(pythons("newest"))


def test_hooks_are_the_versions_of_make_quality():
    locked = (ROOT / "requirements/quality.txt").read_text()
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    versions = {hook["repo"].rsplit("/", 1)[1]: hook["rev"].removeprefix("v") for hook in hooks}
    for repository, package in {"ruff-pre-commit": "ruff", "codespell": "codespell"}.items():
        assert re.search(rf"^{package}==(\S+)", locked, re.MULTILINE).group(1) == versions[repository]


CHANGELOG = """# Changelog

## 1.10.0 (2027-01-31)

- New.
  More.

## 1.1.0 (2026-12-01)

- Old.

## 1.0.0 (2026-11-01)
"""


@pytest.mark.parametrize(
    "tag, version, changelog, error",
    [
        ("v1.10.0", "1.10.0", CHANGELOG, None),
        ("v1.10.0", "1.1.0", CHANGELOG, "The tag is v1.10.0, but src/cait_hf/__init__.py has version 1.1.0."),
        ("1.10.0", "1.10.0", CHANGELOG, "The tag is 1.10.0, but"),
        ("v1.0.0", "1.0.0", CHANGELOG, "CHANGELOG.md has no text below a heading '## 1.0.0 (YEAR-MONTH-DAY)'."),
        ("v1.10.0", "1.10.0", CHANGELOG.replace("2027-01-31", "not released"), "CHANGELOG.md has no text below"),
    ],
)
def test_release_compares_tag_version_and_changelog(tmp_path, tag, version, changelog, error):
    (tmp_path / "src/cait_hf").mkdir(parents=True)
    (tmp_path / "src/cait_hf/__init__.py").write_text(f'__version__ = "{version}"\n')
    (tmp_path / "CHANGELOG.md").write_text(changelog)
    steps = WORKFLOWS["release"]["jobs"]["build"]["steps"]
    script = next(step["run"] for step in steps if step.get("name") == "Compare tag, version and changelog")

    environment = {**os.environ, "GITHUB_REF_NAME": tag}
    command = ["bash", "-e", "-o", "pipefail", "-c", script]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    if error:
        assert result.returncode == 1 and f"::error::{error}" in result.stdout
    else:
        assert result.returncode == 0, result.stderr
        assert (tmp_path / "notes.md").read_text().strip() == "- New.\n  More."
