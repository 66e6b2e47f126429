# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""Stand-in for a file that the source distribution lacks: images that upstream takes from the network."""

import tempfile
from pathlib import Path

from PIL import Image


def url_to_local_path(url: str) -> str:
    """A file with an image of our own, of no square shape, whatever the address."""
    image = Path(tempfile.gettempdir()) / "cait_hf_upstream_image.png"
    if not image.exists():
        fractal = Image.effect_mandelbrot((640, 480), (-2, -1.5, 1, 1.5), 100)
        Image.merge("RGB", (fractal, fractal.rotate(180), fractal.transpose(Image.Transpose.FLIP_LEFT_RIGHT))).save(
            image
        )
    return str(image)
