# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""Convert all ten official CaiT checkpoints, one after the other, each to a folder that `from_pretrained` loads.

    python conversion/convert_all.py --output_dir converted --verify
    python conversion/convert_all.py --source downloads --output_dir converted --push_to_hub ORG --remote_code

`--source` is `official` (the authors' files from their server), `timm` (timm's repositories on the Hub) or a folder
that contains the authors' files (`XXS24_224.pth`) or timm's repositories (`cait_xxs24_224.fb_dist_in1k/`).

What is finished is written down in `conversion.json` in the output folder: a checkpoint whose source and files still
have the hashes written there is not converted again. One that fails does not stop the others; the exit code is then 1.
"""

import argparse
import shutil
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import constants
from tqdm import tqdm

from cait_hf.checkpoints import CHECKPOINTS, CaitCheckpoint, find_checkpoint
from cait_hf.command_line import add_debug_argument, one_line, run_command
from cait_hf.conversion import convert
from cait_hf.files import read_json, read_manifest, sha256_of, write_json
from cait_hf.publish import push_folder
from cait_hf.sources import official_cache_file
from cait_hf.verify import require_timm
from cait_hf_cli import add_folder_arguments, add_push_arguments


RECORD = "conversion.json"
BYTES_BESIDE_TENSORS = 2**20  # headers, configuration and card of one checkpoint


@dataclass
class Row:
    """One line of the table at the end, and of the record."""

    name: str
    parameters: int | None = None
    largest_difference: float | None = None
    sha256: str | None = None
    seconds: float | None = None
    remark: str = ""
    failed: bool = False


def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv` (default: the process's own); return its exit code."""
    return run_command(convert_all, parse_args(argv))


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", default="official", help="official (default), timm, or a folder.")
    parser.add_argument("--output_dir", required=True, type=Path, help="Folder for the ten folders.")
    parser.add_argument(
        "--checkpoints", nargs="+", metavar="NAME", help="Convert only these, such as XXS24_224 (default: all)."
    )
    parser.add_argument("--push_to_hub", metavar="ORG", help="Upload each to a repository of this owner on the Hub.")
    add_folder_arguments(parser)
    add_push_arguments(parser)
    add_debug_argument(parser)
    return parser.parse_args(argv)


def convert_all(args: argparse.Namespace) -> int:
    """Convert what is not finished, push if asked to, print the table; the exit code is 1 if anything failed."""
    if args.verify:
        require_timm()
    if args.source not in ("official", "timm") and not Path(args.source).is_dir():
        raise FileNotFoundError(f"source is {args.source}, but it must be official, timm or an existing folder.")
    checkpoints = [find_checkpoint(name) for name in args.checkpoints] if args.checkpoints else CHECKPOINTS
    finished = {checkpoint.official_name: finished_row(checkpoint, args) for checkpoint in checkpoints}
    check_disk_space([checkpoint for checkpoint in checkpoints if finished[checkpoint.official_name] is None], args)

    rows = []
    with tqdm(checkpoints, unit="checkpoint", disable=None) as progress:  # None: only on a terminal
        for checkpoint in progress:
            progress.set_description(checkpoint.official_name)
            rows.append(convert_one(checkpoint, finished[checkpoint.official_name], args))
    print_table(rows)
    return int(any(row.failed for row in rows))


def convert_one(checkpoint: CaitCheckpoint, finished: Row | None, args: argparse.Namespace) -> Row:
    """Convert and push one checkpoint; what goes wrong becomes the remark of its row."""
    row = finished or Row(checkpoint.official_name)
    folder = args.output_dir / checkpoint.hub_name
    repo_id = f"{args.push_to_hub}/{checkpoint.hub_name}" if args.push_to_hub else None
    try:
        if finished is None:
            started = time.monotonic()
            source = source_of(checkpoint, args.source)
            # A folder that this script wrote is its own to replace, also if it was killed before the record had it.
            is_own = checkpoint.official_name in read_record(args.output_dir) or is_from(source, folder)
            overwrite = args.overwrite or is_own
            converted = convert(
                source, folder, repo_id or checkpoint.hub_name, checkpoint, overwrite, args.verify, args.remote_code
            )
            row.parameters, row.largest_difference = converted.num_parameters, converted.largest_difference
            row.seconds = round(time.monotonic() - started, 1)
            row.sha256 = sha256_of(folder / "model.safetensors")
            write_record(args, row, source, converted.source_sha256, folder)
        if repo_id:
            push_folder(folder, repo_id, args.private, args.revision, args.tag)
            row.remark = f"{row.remark}, pushed".removeprefix(", ")
    except Exception as error:  # whatever it is, the others can still succeed
        row.failed, row.remark = True, one_line(error)
        print(f"error: {checkpoint.official_name}: {row.remark}", file=sys.stderr)
    return row


def source_of(checkpoint: CaitCheckpoint, source: str) -> str:
    """The source of one checkpoint, as `cait_hf.sources` reads it.

    Raises:
        FileNotFoundError: if the folder `source` has none.
    """
    if source == "official":
        return checkpoint.official_name
    if source == "timm":
        return checkpoint.timm_repo
    repository = checkpoint.timm_repo.removeprefix("timm/")
    names = (checkpoint.filename, f"{checkpoint.official_name}.safetensors", repository, checkpoint.timm_name)
    found = next((Path(source, name) for name in names if Path(source, name).exists()), None)
    if found is None:
        raise FileNotFoundError(f"{source} has none of {', '.join(names)}.")
    return str(found)


# The record of what is finished


def is_from(source: str, folder: Path) -> bool:
    """Whether `folder` says that it was converted from `source`."""
    return read_manifest(folder).get("source") == Path(source).name


def read_record(output_dir: Path) -> dict[str, dict]:
    """Entries by official name; a record that is missing or damaged is an empty one."""
    try:
        record = read_json(output_dir / RECORD)
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def write_record(args: argparse.Namespace, row: Row, source: str, source_sha256: str, folder: Path):
    entry = {
        "source": source,
        "source_sha256": source_sha256,
        "options": options_of(args),
        "parameters": row.parameters,
        "largest_difference": row.largest_difference,
        "seconds": row.seconds,
        "files": {file.name: sha256_of(file) for file in sorted(folder.iterdir())},
    }
    write_json(args.output_dir / RECORD, {**read_record(args.output_dir), row.name: entry}, indent=2)


def options_of(args: argparse.Namespace) -> dict:
    """Options that change what is written."""
    return {"remote_code": args.remote_code, "push_to_hub": args.push_to_hub}


def finished_row(checkpoint: CaitCheckpoint, args: argparse.Namespace) -> Row | None:
    """The row of a checkpoint whose source and files are what the record says, else None."""
    entry = read_record(args.output_dir).get(checkpoint.official_name)
    folder = args.output_dir / checkpoint.hub_name
    try:
        if entry["source"] != source_of(checkpoint, args.source) or entry["options"] != options_of(args):
            return None
        if args.verify and entry["largest_difference"] is None:
            return None
        weights_file = local_weights(entry["source"], checkpoint)
        if weights_file is not None and sha256_of(weights_file) != entry["source_sha256"]:
            return None
        if {file.name: sha256_of(file) for file in folder.iterdir()} != entry["files"]:
            return None
        return Row(
            checkpoint.official_name,
            entry["parameters"],
            entry["largest_difference"],
            entry["files"]["model.safetensors"],
            entry["seconds"],
            "was finished",
        )
    except (OSError, KeyError, TypeError):  # no entry, or not one of this version; files that are gone
        return None


def local_weights(source: str, checkpoint: CaitCheckpoint) -> Path | None:
    """The file whose hash the record contains; None for a repository on the Hub and for what is not downloaded yet."""
    if source == checkpoint.official_name:
        path = official_cache_file(checkpoint)
        return path if path.is_file() else None
    if source == checkpoint.timm_repo:
        return None
    if Path(source).is_file():
        return Path(source)
    names = ("model.safetensors", "pytorch_model.bin")
    return next((Path(source, name) for name in names if Path(source, name).is_file()), None)


# Room on the disk


def check_disk_space(checkpoints: list[CaitCheckpoint], args: argparse.Namespace):
    """Raise OSError if the folders to write, and the files to download, do not fit on their disks.

    What is in a cache already is counted as well: telling it apart is not worth a request.
    """
    size = sum(4 * checkpoint.num_parameters + BYTES_BESIDE_TENSORS for checkpoint in checkpoints)
    folders = [args.output_dir]
    if args.source == "official":
        folders.append(Path(torch.hub.get_dir()))
    elif args.source == "timm":
        folders.append(Path(constants.HF_HUB_CACHE))
    needed: dict[int, int] = {}  # by disk
    for folder in folders:
        folder = folder.resolve()
        existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
        disk = existing.stat().st_dev
        needed[disk] = needed.get(disk, 0) + size
        free = shutil.disk_usage(existing).free
        if needed[disk] > free:
            raise OSError(
                f"The disk of {existing} has {free / 1e9:.2f} GB free, but {needed[disk] / 1e9:.2f} GB are needed "
                f"for {len(checkpoints)} checkpoints."
            )


# The table


def print_table(rows: list[Row]):
    header = ("checkpoint", "parameters", "difference", "sha256", "seconds", "")
    cells = [
        (
            row.name,
            "-" if row.parameters is None else f"{row.parameters:,}",
            "-" if row.largest_difference is None else f"{row.largest_difference:.1e}",
            row.sha256 or "-",
            "-" if row.seconds is None else f"{row.seconds:.1f}",
            f"FAILED: {row.remark}" if row.failed else row.remark,
        )
        for row in rows
    ]
    widths = [max(len(line[column]) for line in (header, *cells)) for column in range(5)]
    print("Difference: of the logits from timm's, in units of the largest logit. SHA-256: of model.safetensors.")
    for name, *numbers, remark in (header, *cells):
        right = (f"{number:>{width}}" for number, width in zip(numbers, widths[1:]))
        print("  ".join((f"{name:<{widths[0]}}", *right, remark)).rstrip())


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # clean up when terminated, too
    sys.exit(main())
