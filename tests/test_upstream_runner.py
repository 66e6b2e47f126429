# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""What runs Transformers' shared tests (`tests/upstream`): the archive's hash and cache, counts, the list of skips.

The tests themselves are run by `make test-upstream`, which needs the package index; nothing here does.
"""

import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest


UPSTREAM = Path(__file__).parent / "upstream"
sys.path.insert(0, str(UPSTREAM))
import archive  # noqa: E402
import run  # noqa: E402


CONTENT = b"the source distribution"
DIGEST = archive.hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv(archive.CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def downloads(monkeypatch) -> list:
    """The versions that are downloaded, each as a file of `CONTENT`."""
    versions = []

    def download(version, folder):
        versions.append(version)
        file = folder / f"transformers-{version}.tar.gz"
        file.write_bytes(CONTENT)
        return file

    monkeypatch.setattr(archive, "download", download)
    return versions


# --- the archive


@pytest.mark.parametrize("pinned", [True, False])
def test_archive_is_downloaded_once(cache, downloads, monkeypatch, capsys, pinned):
    if pinned:
        monkeypatch.setitem(archive.SHA256, "9.9.9", DIGEST)
    file = archive.fetch("9.9.9")
    assert file.parent == cache and file.read_bytes() == CONTENT
    assert archive.fetch("9.9.9") == file
    assert downloads == ["9.9.9"]
    assert list(cache.iterdir()) == [file]  # no temporary folder
    assert (f'"9.9.9": "{DIGEST}",' in capsys.readouterr().out) != pinned


def test_damaged_archive_is_downloaded_again(cache, downloads):
    file = archive.fetch("9.9.9")
    file.write_bytes(CONTENT[:5])
    assert archive.fetch("9.9.9").read_bytes() == CONTENT
    assert downloads == ["9.9.9", "9.9.9"]


def test_archive_with_another_hash_is_refused(cache, downloads, monkeypatch):
    archive.fetch("9.9.9")
    monkeypatch.setitem(archive.SHA256, "9.9.9", "0" * 64)  # pinned later: the one in the cache is not taken either
    with pytest.raises(OSError, match=f"transformers 9.9.9 has SHA-256 {DIGEST}, but it must be {'0' * 64}"):
        archive.fetch("9.9.9")
    assert downloads == ["9.9.9", "9.9.9"]


def test_without_network_there_is_one_error_message(cache, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setattr(run, "version", lambda name: "9.9.9")
    assert run.main([]) == 1
    output, error = capsys.readouterr()
    assert output == "" and error.count("\n") == 1
    assert error.startswith("error: The source distribution of transformers 9.9.9") and str(cache) in error
    assert list(cache.iterdir()) == []


def test_cache_is_where_the_user_has_it(monkeypatch, tmp_path):
    for name, folder in {"HOME": ".cache/cait-hf/upstream", "XDG_CACHE_HOME": "cait-hf/upstream"}.items():
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        monkeypatch.setenv(name, str(tmp_path))
        assert archive.cache_folder() == tmp_path / folder


def test_unpacking_takes_the_tests_and_adds_what_they_lack(tmp_path):
    names = ("tests/test_modeling_common.py", "src/transformers/__init__.py", "tests/models/vit.py", "docs/conf.py")
    (tmp_path / "file").write_bytes(CONTENT)
    with tarfile.open(tmp_path / "archive.tar.gz", "w:gz") as tar:
        for name in names:
            tar.add(tmp_path / "file", f"transformers-9.9.9/{name}")
    run.unpack(tmp_path / "archive.tar.gz", tmp_path / "out")
    from_archive = [file for file in (tmp_path / "out").rglob("*.py") if file.read_bytes() == CONTENT]
    assert from_archive == [tmp_path / "out" / "tests" / "test_modeling_common.py"]
    assert (tmp_path / "out" / "tests" / "exporters" / "test_export.py").is_file()


# --- counts and reasons


REPORT = """<testsuites><testsuite>
<testcase classname="cait.modeling.CaitModelTest" name="test_save_load"/>
<testcase classname="cait.modeling.CaitModelTest" name="test_rope_0"><skipped message="no RoPE"/></testcase>
<testcase classname="cait.modeling.CaitModelTest" name="test_config"><failure message="differs"/></testcase>
<testcase classname="cait.modeling.CaitModelTest" name="test_broken"><error message="in setUp"/></testcase>
<testcase classname="cait.modeling.CaitModelTest" name="test_subtests"><skipped message="of one"/><failure
 message="of another"/></testcase>
</testsuite></testsuites>"""
EXPECTED = """
counts:
  9.9.9: {cait: {passed: 1, skipped: 2}, vit: {passed: 7, skipped: 9}}
cannot_apply:
  - why: Rotary positions.
    tests: [test_rope*, test_axial]
  - why: Tests that came later.
    tests: [test_later]
    transformers: ">=10"
lacking:
  - why: An accelerator.
    tests: [test_on_gpu]
"""


@pytest.fixture(autouse=True)
def expected(tmp_path_factory, monkeypatch) -> run.Expected:
    monkeypatch.setattr(run, "EXPECTED", tmp_path_factory.mktemp("expected") / "expected.yaml")
    run.EXPECTED.write_text(EXPECTED)
    return run.read_expected("9.9.9")


def test_report_is_counted(tmp_path):
    (tmp_path / "report.xml").write_text(REPORT)
    outcome = run.read_report(tmp_path / "report.xml", 1)
    failed = {"test_config": "differs", "test_broken": "in setUp", "test_subtests": "of another"}
    assert outcome == run.Outcome(
        ["CaitModelTest.test_save_load"],
        {f"CaitModelTest.{name}": reason for name, reason in failed.items()},
        {"CaitModelTest.test_rope_0": "no RoPE"},
        returncode=1,
    )
    assert str(outcome) == "executed 4, passed 1, failed 3, skipped 1"


def outcome(passed: str, skipped: str) -> run.Outcome:
    return run.Outcome(
        passed=[f"CaitModelTest.test_{name}" for name in passed.split()],
        skipped={f"CaitModelTest.test_{name}": "a reason" for name in skipped.split()},
    )


USUAL = outcome("save_load", "rope_0 axial on_gpu")
WITH_GPU = outcome("save_load on_gpu", "rope_0 axial")
MORE = outcome("save_load new", "rope_0 axial on_gpu")


def test_expected_is_what_happened(expected):
    assert run.compare(expected, USUAL) == run.compare(expected, WITH_GPU) == []
    assert run.summary(expected, USUAL).splitlines() == [
        "Cannot apply to CaiT: 2",
        "      2  Rotary positions.",
        "Lack something where they ran: 1",
        "      1  An accelerator.",
    ]


UNEXPLAINED = "CaitModelTest.test_{} is skipped (a reason), but expected.yaml does not say why."
EXECUTED = "CaitModelTest.test_{0} is executed, but expected.yaml says with 'test_{0}' that it cannot apply."
UNKNOWN = "expected.yaml explains 'test_{}', but no test has such a name."


@pytest.mark.parametrize(
    ("installed", "happened", "errors"),
    [
        ("9.9.9", outcome("save_load", "rope_0 axial on_gpu new"), [UNEXPLAINED.format("new")]),
        ("9.9.9", outcome("save_load", "rope_0 axial on_gpu later"), [UNEXPLAINED.format("later")]),
        ("9.9.9", outcome("axial", "rope_0 on_gpu"), [EXECUTED.format("axial")]),
        ("9.9.9", outcome("save_load", "axial on_gpu"), [UNKNOWN.format("rope*")]),
        ("10.0", USUAL, [UNKNOWN.format("later")]),
        ("10.1.0.dev0", USUAL, [UNKNOWN.format("later")]),
        ("10.1.0.dev0", outcome("save_load", "rope_0 axial on_gpu later"), []),
    ],
)
def test_expected_is_not_what_happened(installed, happened, errors):
    assert run.compare(run.read_expected(installed), happened) == errors


def test_counts(expected, capsys):
    assert run.compare_counts(expected, "9.9.9", {"cait": USUAL}) == []
    assert run.compare_counts(expected, "9.9.9", {"cait": WITH_GPU}) == []
    assert run.compare_counts(expected, "9.9.9", {"cait": MORE, "vit": USUAL}) == [
        "expected.yaml states {'passed': 1, 'skipped': 2} for cait with transformers 9.9.9, but it is "
        "{'passed': 2, 'skipped': 2}.",
        "expected.yaml states {'passed': 7, 'skipped': 9} for vit with transformers 9.9.9, but it is "
        "{'passed': 1, 'skipped': 2}.",
    ]
    assert capsys.readouterr().out == ""


def test_counts_of_an_unknown_version_are_printed(expected, capsys):
    assert run.compare_counts(expected, "9.9.10", {"cait": USUAL}) == []
    assert '  9.9.10: {"cait": {"passed": 1, "skipped": 2}}' in capsys.readouterr().out


@pytest.mark.parametrize(
    ("happened", "status", "said"),
    [
        (USUAL, 0, ""),
        (run.Outcome(["CaitModelTest.test_save_load"], returncode=1), 1, "exit status 1 for cait, but its report has"),
        (run.Outcome([], {"CaitModelTest.test_config": "differs"}, returncode=1), 1, "failed 1"),
        (MORE, 1, "expected.yaml states {'passed': 1, 'skipped': 2} for cait"),
        (outcome("save_load", "new"), 1, "expected.yaml does not say why"),
    ],
)
def test_exit_status(happened, status, said, monkeypatch, capsys):
    monkeypatch.setattr(run, "version", lambda name: "9.9.9")
    monkeypatch.setattr(run.torch.accelerator, "is_available", lambda: False)
    monkeypatch.setattr(run, "fetch", lambda version: None)
    monkeypatch.setattr(run, "unpack", lambda *_: None)
    monkeypatch.setattr(run, "run", lambda *_: happened)
    assert run.main(["--models", "cait"]) == status
    assert said in capsys.readouterr().out


@pytest.mark.parametrize(("second", "status"), [(run.Outcome(["T.test_a"]), 0), (None, 1)])
def test_reference_that_fails_is_run_once_more(second, status, monkeypatch):
    failed = run.Outcome([], {"T.test_a": "not close"}, returncode=1)
    outcomes = [failed, second or failed]
    monkeypatch.setattr(run, "fetch", lambda version: None)
    monkeypatch.setattr(run, "unpack", lambda *_: None)
    monkeypatch.setattr(run, "run", lambda *_: outcomes.pop(0))
    assert run.main(["--models", "vit", "--", "-k", "a"]) == status
    assert outcomes == []


def test_tables_of_readme(tmp_path, monkeypatch, expected):
    monkeypatch.setattr(run, "README", tmp_path / "README.md")
    blocks = {
        name: f"<!-- {name} of expected.yaml -->\n{{}}<!-- end of {name} -->\n" for name in ("counts", *run.KINDS)
    }
    template = "Text.\n" + "\nMore text.\n".join(blocks.values())
    run.README.write_text(template.format("", "an old row\n", ""))
    for _ in range(2):  # the second time nothing changes
        assert run.main(["--write_readme"]) == 0
        assert run.README.read_text() == template.format(
            "| transformers | CaiT passed | CaiT skipped | ViT passed | ViT skipped |\n|---|---|---|---|---|\n"
            "| 9.9.9 | 1 | 2 | 7 | 9 |\n",
            "| tests | why |\n|---|---|\n| `test_rope*`, `test_axial` | Rotary positions. |\n"
            "| `test_later` (transformers >=10) | Tests that came later. |\n",
            "| tests | why |\n|---|---|\n| `test_on_gpu` | An accelerator. |\n",
        )


def test_our_own_readme_and_expected(monkeypatch):
    monkeypatch.setattr(run, "EXPECTED", UPSTREAM / "expected.yaml")
    readme, expected = run.README.read_text(encoding="utf-8"), run.read_expected()
    assert run.with_tables(readme, expected) == readme, "run tests/upstream/run.py --write_readme"
    assert expected.counts.keys() <= archive.SHA256.keys()
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in archive.SHA256.values())
    skips = expected.cannot_apply + expected.lacking
    patterns = [(pattern, entry.transformers) for entry in skips for pattern in entry.tests]
    assert len(patterns) == len(set(patterns))
    assert all(len(entry.why) > 10 for entry in skips)


def test_plain_pytest_collects_none_of_it():
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", str(UPSTREAM)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=UPSTREAM.parents[1])
    assert "no tests collected" in result.stdout and result.returncode == 5, result.stdout + result.stderr
