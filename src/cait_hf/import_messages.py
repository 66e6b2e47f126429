# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""Messages that optional packages print when Transformers imports them, and that are about no one's model.

Dropped are these, and nothing else that their loggers say.
"""

import logging


MESSAGES = {
    "torch.utils._pytree": "is an Enum subclass and is now natively supported by torch.compile",  # of torchao
    "bitsandbytes.backends.cpu.ops": "Failed to load CPU gemm_4bit_forward from kernels-community",  # quantized only
}


def _is_wanted(record: logging.LogRecord) -> bool:
    return MESSAGES[record.name] not in record.getMessage()


for _name in MESSAGES:
    logging.getLogger(_name).addFilter(_is_wanted)
