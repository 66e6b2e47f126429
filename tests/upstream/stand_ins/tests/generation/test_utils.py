# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""Stand-in for a file that the source distribution lacks: tests of text generation, which no image model takes."""


class GenerationTesterMixin:
    """The mixins only ask whether a test class derives from it."""
