# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""Nothing here is collected by itself: `run.py` names the files, whose imports are there only while it runs."""

collect_ignore_glob = ["stand_ins/*"]
