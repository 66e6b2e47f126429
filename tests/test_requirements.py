# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""The Makefile's environments install exact versions, of everything that they need."""

import os
import re
import subprocess
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version


ROOT = Path(__file__).resolve().parents[1]
REQUIREMENTS = ROOT / "requirements"
LOCKED = ("app", "full", "minimal", "oldest", "quality")
CUDA = re.compile("(nvidia|cuda)-|triton$")  # depends on the platform: not locked


def lines(file: str) -> list[str]:
    """Requirements of a file and of those that it includes, without comments and options."""
    found = []
    for line in (REQUIREMENTS / file).read_text().splitlines():
        if line.startswith("--requirement "):
            found += lines(line.split()[1])
        elif line and not line.startswith("#"):
            found.append(line)
    return found


def lock(name: str) -> list[Requirement]:
    return [Requirement(line) for line in lines(f"{name}.txt")]


def locked_versions(name: str) -> dict[str, str]:
    """The versions that this Python gets from a lock, by canonical name."""
    here = [requirement for requirement in lock(name) if requirement.marker is None or requirement.marker.evaluate()]
    return {canonicalize_name(requirement.name): str(requirement.specifier)[2:] for requirement in here}


def requirements_of(package: str, extras: set[str]) -> list[Requirement]:
    """What an installed package needs here, with some of its extras."""
    requirements = map(Requirement, distribution(package).requires or ())
    environments = [{"extra": extra} for extra in ("", *extras)]
    return [each for each in requirements if each.marker is None or any(map(each.marker.evaluate, environments))]


def extras_of(name: str) -> set[str]:
    """The extras of this package that an environment installs."""
    editable = next(line for line in lines(f"{name}.in") if line.startswith("--editable"))
    return set(re.search(r"\[(.+)\]", editable).group(1).split(","))


@pytest.mark.parametrize("name", LOCKED)
def test_locks_are_exact_and_for_every_platform(name):
    assert len(lock(name)) > 10
    for requirement in lock(name):
        assert re.fullmatch(r"==[0-9][0-9a-z.]*", str(requirement.specifier)), requirement  # no local version (+cpu)
        assert requirement.url is None
        assert not CUDA.match(requirement.name), requirement


@pytest.mark.parametrize("name", ["app", "full", "minimal", "oldest"])
def test_every_requirement_is_locked_in_a_version_that_is_allowed(name):
    versions = locked_versions(name)
    requirements = requirements_of("cait-hf", extras_of(name))
    assert len(requirements) > 10
    for requirement in requirements:
        assert requirement.specifier.contains(versions[canonicalize_name(requirement.name)]), requirement


def test_oldest_transformers_is_the_one_that_is_tried():
    allowed = next(r for r in requirements_of("cait-hf", set()) if r.name == "transformers")
    tried = Version(locked_versions("oldest")["transformers"])
    assert Version(str(allowed.specifier).removeprefix(">=")) == tried


def test_all_that_is_installed_is_locked():
    """Requirements of requirements, too: walks them in the environment that runs this test."""
    names = [name for name in ("app", "full", "minimal", "oldest") if installed_from(name)]
    if not names:
        pytest.skip("this environment has other versions than each of the locks")
    versions = locked_versions(names[0])
    seen, todo = set(), [("cait-hf", extras_of(names[0]))]
    while todo:
        package, extras = todo.pop()
        for requirement in requirements_of(package, extras):
            key = (canonicalize_name(requirement.name), frozenset(requirement.extras))
            if key not in seen and not CUDA.match(key[0]):
                seen.add(key)
                installed = version(key[0]).partition("+")[0]  # 2.13.0+cpu is a build of 2.13.0
                assert versions.get(key[0]) == installed, f"{key[0]}, which {package} needs"
                todo.append(key)
    assert len(seen) > 40


def installed_from(name: str) -> bool:
    """Whether this environment has what sets a lock apart: the packages that its .in file pins."""
    pins = [Requirement(line) for line in lines(f"{name}.in") if "==" in line]
    try:
        different = [pin for pin in pins if not pin.specifier.contains(version(pin.name))]
        return not different and all(map(version, locked_versions(name)))
    except PackageNotFoundError:
        return False


@pytest.mark.parametrize(
    "target", ["demo", "test", "test-slow", "test-upstream", "test-minimal", "test-oldest", "test-app", "quality"]
)
def test_make_installs_from_the_lock(target):
    environment = target.removeprefix("test-")
    name = environment if environment in LOCKED else "full"
    installs = pip_installs(target)
    assert len(installs) == 2
    assert all(command.endswith(f"--constraint requirements/{name}.txt") for command in installs)
    assert f"--requirement requirements/{name}.in" in installs[1]


def test_newest_is_not_locked():
    assert len(pip_installs("test-newest")) == 2
    assert not any("--constraint" in command for command in pip_installs("test-newest"))


def pip_installs(target: str) -> list[str]:
    """The installations that `make TARGET` runs where there is no environment yet."""
    command = ["make", "--dry-run", "--no-print-directory", "VENV=no-such-environment", target]
    of_make = ("MAKEFLAGS", "MAKEOVERRIDES", "MFLAGS", "LOCKS", "PYTHON")  # of a make that runs this test
    environment = {name: value for name, value in os.environ.items() if name not in of_make}
    output = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout
    return [line for line in output.splitlines() if " pip install " in line]
