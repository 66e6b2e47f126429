// Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
#define INSTRUCTION_SET avx2
#include "kernel.h"

bool avx2::kernel(const Problem& p, Kernel* kernel) {
  switch (p.heads) {  // 4, 6, 8 and 16 heads: the official architectures
    case 4: *kernel = kernel_of<4>(); break;
    case 6: *kernel = kernel_of<6>(); break;
    case 8: *kernel = kernel_of<8>(); break;
    case 16: *kernel = kernel_of<16>(); break;
    default: *kernel = kernel_of<0>();
  }
  return true;
}
