# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""Finds words that docs/style.md refuses, paths of the machine that wrote a file, and Python without the license."""

import re
import subprocess
import sys
from pathlib import Path


GLOSSARY = "docs/style.md"
BINARY = (".parquet", ".png", ".safetensors")
ENCODED = re.compile(r"[\w+/]{100,}")  # images in notebooks
MACHINE_PATH = re.compile(r"(?<![\w./])/(?:home|root|work|Users|mnt)/")
LICENSE = "# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.\n"


def main() -> int:
    """Every problem is one line; the exit code is 1 if there is any."""
    words = re.findall(r"\*\*(.+?)\*\*", Path(GLOSSARY).read_text(encoding="utf-8"))
    # In text or in names. The glossary itself is allowed, and JSON, which is data.
    refused = re.compile("|".join(re.sub("[ -]", "[ _-]", word) for word in words), re.IGNORECASE)
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    paths = [path for path in listed if not path.endswith(BINARY) and Path(path).is_file()]
    problems = [] if words and len(paths) > 30 else [f"{len(words)} words and {len(paths)} files to look at"]
    for path in paths:
        text = ENCODED.sub("", Path(path).read_text(encoding="utf-8"))
        if path.endswith(".py") and not text.startswith(LICENSE):
            problems.append(f"{path}:1: does not begin with {LICENSE.strip()!r}")
        for number, line in enumerate(text.splitlines(), start=1):
            found = [] if path == GLOSSARY or path.endswith(".json") else refused.findall(line)
            problems += [f"{path}:{number}: {problem}" for problem in found + MACHINE_PATH.findall(line)]
    for problem in problems:
        print(problem)
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
