# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""Which files of the package lie beside a checkpoint that is shared with its code: the tests' one list of them."""

CONFIGURATION = {"configuration_cait.py", "labels.py", "timm_format.py"}
MODEL = CONFIGURATION | {
    "attention_blocked.py",
    "attention_cait.py",
    "attention_fused.py",
    "attention_native.py",
    "attention_triton.py",
    "losses.py",
    "modeling_cait.py",
    "state_dict.py",
}
IMAGE_PROCESSORS = {"image_processing_cait.py", "image_processing_pil_cait.py", "image_input.py"}
