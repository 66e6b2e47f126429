# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""The source distribution of transformers: downloaded once, checked, and kept in the user's cache folder.

The archive contains the tests that Transformers shares between its models; nothing of it is part of this repository.
"""

import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path


CACHE_VARIABLE = "CAIT_HF_UPSTREAM_CACHE"
# SHA-256 of transformers-<version>.tar.gz. Of another version pip compares the archive with what the index states
# of it, and the runner prints the line to add here.
SHA256 = {
    "5.17.0": "a153be279169b55b92d8000bf4af294aed684503d091cca7804da2dd8a9de000",
    "5.23.0": "19d647a4d5d903a7c644ca5cde2d86efc3dde7d8c687ae7988806ff2205efa71",
    "5.24.0": "906cb8c3cb2123575e263962586a4d21a979ce97feeb95fe6aaf66fe6ae88bf3",
}


def cache_folder() -> Path:
    """The folder that CAIT_HF_UPSTREAM_CACHE names, else one beside the Hub's in the user's caches."""
    if os.environ.get(CACHE_VARIABLE):
        return Path(os.environ[CACHE_VARIABLE])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cait-hf" / "upstream"


def fetch(version: str) -> Path:
    """The archive of a version, from the cache or downloaded into it.

    Its name there ends in its hash, which is checked at every use. The file is complete or not there.

    Raises:
        OSError: if it is not in the cache and pip cannot download it, or its hash is not the pinned one.
    """
    folder = cache_folder()
    for archive in sorted(folder.glob(f"transformers-{version}-*.tar.gz")):
        if archive.name == cached_name(version, sha256(archive)) and is_pinned(version, sha256(archive)):
            return archive
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        downloaded = download(version, Path(temporary))
        digest = sha256(downloaded)
        if not is_pinned(version, digest):
            raise OSError(
                f"The source distribution of transformers {version} has SHA-256 {digest}, but it must be "
                f"{SHA256[version]} (tests/upstream/archive.py)."
            )
        if version not in SHA256:
            print(f'Not pinned in tests/upstream/archive.py, add to SHA256:\n    "{version}": "{digest}",')
        return downloaded.replace(folder / cached_name(version, digest))


def cached_name(version: str, digest: str) -> str:
    return f"transformers-{version}-{digest}.tar.gz"


def is_pinned(version: str, digest: str) -> bool:
    """Whether the hash is the one in this file for the version, or there is none."""
    return SHA256.get(version, digest) == digest


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def download(version: str, folder: Path) -> Path:
    """Let pip, with the user's settings of it, download the archive."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:", "--quiet"]
    command += ["--disable-pip-version-check", "--dest", str(folder), f"transformers=={version}"]
    result = subprocess.run(command, capture_output=True, text=True)
    archives = list(folder.glob("*.tar.gz"))
    if result.returncode or len(archives) != 1:
        said = (result.stderr.strip() or "no archive").splitlines()[-1].removeprefix("ERROR: ")
        raise OSError(
            f"The source distribution of transformers {version}, whose tests are to run, is not in {cache_folder()} "
            f"and pip could not download it: {said}"
        )
    return archives[0]
