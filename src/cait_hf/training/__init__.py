# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""Shared code of the training scripts; works with any image classifier of Transformers, not only with CaiT."""
