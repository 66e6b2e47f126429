# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""What `gpu.sh` can run here, and how it went. Imports no package before it knows that it is there.

    python scripts/benchmark/gpu.py plan outputs/gpu "a b c d e"
    python scripts/benchmark/gpu.py summary outputs/gpu ENDED

`plan` writes packages and parts to `gpu.json`, says which parts can run, and prints their letters to standard output.
`summary` adds how they ended, by the lines "PART STATUS SECONDS" of the file ENDED; it exits with 1 if one failed or
none could run.
"""

import importlib.metadata
import json
import os
import re
import sys
from pathlib import Path

from report import GPU_PARTS, read_json


# of setup.py, where it has one
OLDEST = {"torch": "2.11", "transformers": "5.17", "timm": "1.0.21"}
OLDEST |= {"accelerate": "1.1", "datasets": "4.0", "evaluate": "0.4.6"}
KERNELS = ("torch", "triton", "transformers")
TRAINING = ("torch", "transformers", "accelerate", "datasets", "evaluate", "pillow", "pyyaml")
NEEDS = {"a": KERNELS, "b": KERNELS, "c": (*KERNELS, "timm"), "d": TRAINING, "e": (*TRAINING, "timm")}
FASHION_MNIST_FILES = ("train.parquet", "validation.parquet")


def main(argv: list[str] | None = None):
    command, folder, third = sys.argv[1:] if argv is None else argv
    if command == "plan":
        print(*plan(Path(folder), third.split()))
    else:
        sys.exit(summary(Path(folder), Path(third)))


def plan(folder: Path, asked: list[str]) -> list[str]:
    """The parts that can run."""
    if (folder / "gpu.json").exists():
        sys.exit(f"error: OUT is {folder}, which has the results of another run: choose a folder without.")
    unknown = sorted({*asked} - {*GPU_PARTS})
    if unknown:
        sys.exit(f"error: PARTS has {' '.join(unknown)}, but each must be one of {' '.join(GPU_PARTS)}.")
    packages = {package: version_of(package) for packages in NEEDS.values() for package in packages}
    say("packages: " + ", ".join(f"{name} {version or 'MISSING'}" for name, version in packages.items()))
    device = device_name() if packages["torch"] else None
    say(f"device: {device or 'none'}")
    parts = {}
    for letter in asked:
        reason = why_not(letter, packages) or (None if device else "PyTorch sees no NVIDIA GPU: try SIZE=tiny")
        parts[letter] = {"status": "skipped" if reason else "planned", "reason": reason, "seconds": 0}
        say(f"part {letter}, {GPU_PARTS[letter]}: {f'SKIPPED, {reason}' if reason else 'will run'}")
    folder.mkdir(parents=True, exist_ok=True)
    content = {"packages": packages, "device": device, "parts": parts}
    (folder / "gpu.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
    return [letter for letter, part in parts.items() if part["status"] == "planned"]


def say(text: str):
    print(text, file=sys.stderr, flush=True)


def version_of(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def device_name() -> str | None:
    if os.environ.get("TRITON_INTERPRET") == "1":
        return "CPU, Triton's interpreter"
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def why_not(letter: str, packages: dict[str, str | None]) -> str | None:
    for package in NEEDS[letter]:
        found, oldest = packages[package], OLDEST.get(package, "0")
        if found is None:
            return f"{package} is not installed"
        if numbers(found) < numbers(oldest):
            return f"{package} is {found}, but it must be {oldest} or newer"
    data = Path(os.environ["FASHION_MNIST"]) if letter == "e" else None
    if data and not all((data / name).is_file() for name in FASHION_MNIST_FILES):
        return f"FASHION_MNIST is {data}, which lacks what scripts/prepare_fashion_mnist.py --output_dir {data} writes"
    return None


def numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)[:3]]


def summary(folder: Path, ended: Path) -> int:
    """Exit status: 1 if a part that was asked for failed."""
    result = read_json(folder / "gpu.json")
    for line in ended.read_text().splitlines() if ended.exists() else ():
        letter, status, seconds = line.split()
        part = result["parts"][letter]
        part["seconds"] += int(seconds)
        if part["status"] in ("planned", "passed"):  # else an earlier step of the part failed
            timed_out = status in ("124", "137")
            part["status"] = "passed" if status == "0" else "timed out" if timed_out else "failed"
            part["reason"] = None if status == "0" else f"exit status {status}, see log.txt"
    for part in result["parts"].values():
        if part["status"] == "planned":
            part |= {"status": "failed", "reason": "it never ended"}
    (folder / "gpu.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
    for letter, part in result["parts"].items():
        reason = f": {part['reason']}" if part["reason"] else ""
        say(f"part {letter}, {GPU_PARTS[letter]}: {part['status']} after {part['seconds']} s{reason}")
    found = {part["status"] for part in result["parts"].values()}
    return int(bool(found & {"failed", "timed out"}) or "passed" not in found)


if __name__ == "__main__":
    main()
