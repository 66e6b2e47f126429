# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""`cait-hf evaluate` as a script, for `accelerate launch`: accuracy of an image classifier on ImageNet-1k test sets.

    python scripts/evaluate_imagenet.py timm/cait_s24_224.fb_dist_in1k --data_dir imagenet/val
    accelerate launch scripts/evaluate_imagenet.py timm/cait_s24_224.fb_dist_in1k --data_dir imagenet/val

The code is `cait_hf/commands/evaluate.py`; `--help` shows the flags.
"""

import signal
import sys

from cait_hf.commands.evaluate import main


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # keep the ranks when terminated, too
    sys.exit(main())
