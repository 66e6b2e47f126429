# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""Commands with flags of their own, which `cait-hf` and the scripts of the same kind run."""
