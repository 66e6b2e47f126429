# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""What the training scripts share; works with any image classifier of Transformers, not only with CaiT."""
