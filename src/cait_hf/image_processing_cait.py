# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""CaiT image processor on torchvision: the pipeline of `image_processing_pil_cait.py` on tensors, on any device."""

import PIL.Image
import torch
from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_utils import SizeDict

from .image_processing_pil_cait import CaitImageProcessorKwargs, CaitImageProcessorMixin, pil_resize


# The filters that torchvision has for tensors and that agree with Pillow's, which does the others on the CPU.
_TENSOR_FILTERS = (PIL.Image.Resampling.BILINEAR, PIL.Image.Resampling.BICUBIC)


class CaitImageProcessor(CaitImageProcessorMixin, TorchvisionBackend):
    r"""CaiT image processor on torchvision: the shortest edge to `size`, center crop, values to [0, 1], normalization.

    Arguments, accepted images and errors are those of [`CaitImageProcessorPil`]; the result differs from it by at
    most 2/255 a pixel before normalization (measured on the CPU), because torchvision rounds the bicubic filter's
    weights otherwise. Two more arguments:

    - `device` (`str` or `torch.device`, *optional*): where to compute; tensors stay on their own device by default.
    - `disable_grouping` (`bool`, *optional*): whether not to stack the images for rescaling and normalization. By
      default they are stacked except on the CPU.

    Example:

    ```python
    >>> from cait_hf import CaitImageProcessor

    >>> image_processor = CaitImageProcessor.from_pretrained("timm/cait_xxs24_224.fb_dist_in1k")
    >>> pixel_values = image_processor("image.jpg", return_tensors="pt").pixel_values  # (1, 3, 224, 224)
    ```"""

    valid_kwargs = CaitImageProcessorKwargs  # Transformers' shared tests look the class up in this module

    def _resize_full(
        self, pixels: torch.Tensor, height: int, width: int, resample: PIL.Image.Resampling
    ) -> torch.Tensor:
        # From 13.0 on Pillow resizes images that lose much height over the height first (2:1 and taller, if the
        # aspect is kept), torch never; the clipping between the passes would make a visible difference.
        rows, columns = pixels.shape[-2] - height, pixels.shape[-1] - width
        if resample not in _TENSOR_FILTERS or (rows > 0 and rows > 2 * columns):
            return pil_resize(pixels, height, width, resample)
        return self.resize(pixels, SizeDict(height=height, width=width), resample)


__all__ = ["CaitImageProcessor"]
