// Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
#define INSTRUCTION_SET neon
#include "kernel_table.h"
