# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""Metrics of any image classifier, and the ImageNet test sets."""
