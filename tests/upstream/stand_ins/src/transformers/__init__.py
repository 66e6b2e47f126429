# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""Where the mixins look for the sources of transformers; what they get is the module that is installed."""
