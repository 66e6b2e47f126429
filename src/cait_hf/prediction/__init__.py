# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""Images in, a table of labels, embeddings and logits out: any number of images, on any number of processes."""
