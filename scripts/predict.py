# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""`cait-hf predict` as a script, for `accelerate launch` and torchrun: the same flags.

accelerate launch --num_processes 8 scripts/predict.py images/ --model S24_224 --output_dir predictions
"""

import signal
import sys

from cait_hf_cli import main


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # clean up when terminated, too
    sys.exit(main(["predict", *sys.argv[1:]]))
