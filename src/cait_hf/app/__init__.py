# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""`cait-hf app`: a page to look with, on this machine or as a Hugging Face Space.

`inspection` has what a checkpoint says about an image, `panel` shows it as HTML, `page` is the page itself, in Gradio
and the only file that imports it, and `space` writes the files of a Space.
"""

from .page import launch


__all__ = ["launch"]
