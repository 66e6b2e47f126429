# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""Convert an official CaiT checkpoint, or timm's copy of one, to a folder that `from_pretrained` loads.

    python conversion/convert_cait_to_hf.py --source XXS24_224.pth --output_dir cait-xxs24-224 --verify

`--source` is a file in the official format (`.pth`, or `.safetensors` with the same keys), the name of an official
checkpoint to download (`XXS24_224`), a repository of timm on the Hub (`timm/cait_xxs24_224.fb_dist_in1k`), or a folder
with timm's `config.json` and weights. The folder written contains config.json, model.safetensors,
preprocessor_config.json and a model card; it appears complete or not at all.

The same command in an installed package is `cait-hf convert`.
"""

import argparse
import signal
import sys

from cait_hf.command_line import add_debug_argument, run_command
from cait_hf_cli import add_convert_arguments, convert


def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv` (default: the process's own); return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_convert_arguments(parser)
    add_debug_argument(parser)
    return run_command(convert, parser.parse_args(argv))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # clean up when terminated, too
    sys.exit(main())
