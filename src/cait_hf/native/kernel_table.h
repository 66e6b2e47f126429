// Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
// The kernel of one instruction set for any number of heads. AMX and AVX-512 BF16 replace a part of it: kernel_pairs.h.
#pragma once
#include "kernel.h"

namespace INSTRUCTION_SET {

template <int H>
static Kernel kernel_of() {
  return {LANES, 24, forward_pack, forward_block<H>, backward_pack, backward_block<H>, load_numbers, store_numbers};
}

bool kernel(const Problem& p, Kernel* kernel) {
  switch (p.heads) {  // 4, 6, 8 and 16 heads: the official architectures
    case 4: *kernel = kernel_of<4>(); break;
    case 6: *kernel = kernel_of<6>(); break;
    case 8: *kernel = kernel_of<8>(); break;
    case 16: *kernel = kernel_of<16>(); break;
    default: *kernel = kernel_of<0>();
  }
  return true;
}

}  // namespace INSTRUCTION_SET
