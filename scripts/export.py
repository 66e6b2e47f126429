# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""`cait-hf export` as a script: a CaiT classifier to ONNX, to torch.export's format or to OpenVINO.

    python scripts/export.py cait-xxs24-224 cait-xxs24-224-onnx

The code is `cait_hf/commands/export.py`; `--help` shows the flags.
"""

import signal
import sys

from cait_hf.commands.export import main


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # clean up when terminated, too
    sys.exit(main())
