// Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
// Forward pass of bfloat16 on the dot instructions of AVX-512: a pair of products in one step.
#define INSTRUCTION_SET avx512_bf16
#include "kernel.h"

namespace avx512_bf16 {

constexpr int64_t KEYS_OF_A_STEP = 2, MOST_ROWS = 24;

struct Tiles {  // of registers: nothing to set up
  explicit Tiles(int64_t) {}
};

// c (M, V vectors) = a (M, pairs) b (pairs, V vectors)
template <int M, int V>
static ALWAYS_INLINE void dot_tile(const uint16_t* a, int64_t a_row, const uint16_t* b, int64_t b_row, int64_t pairs,
                                   float* c, int64_t c_row) {
  __m512 total[M][V];
  UNROLL for (int m = 0; m < M; m++) UNROLL for (int j = 0; j < V; j++) total[m][j] = _mm512_setzero_ps();
  for (int64_t k = 0; k < pairs; k++) {
    __m512i column[V];
    UNROLL for (int j = 0; j < V; j++) column[j] = _mm512_loadu_si512(b + j * 2 * LANES);
    UNROLL for (int m = 0; m < M; m++) {
      int32_t pair;
      memcpy(&pair, a + m * a_row, 4);
      const __m512bh factor = (__m512bh)_mm512_set1_epi32(pair);
      UNROLL for (int j = 0; j < V; j++) total[m][j] = _mm512_dpbf16_ps(total[m][j], factor, (__m512bh)column[j]);
    }
    a += 2;
    b += b_row;
  }
  UNROLL for (int m = 0; m < M; m++)
    UNROLL for (int j = 0; j < V; j++) _mm512_storeu_ps(c + m * c_row + j * LANES, total[m][j]);
}

template <int V>
static void dot_columns(int64_t rows, const uint16_t* a, int64_t a_row, const uint16_t* b, int64_t b_row,
                        int64_t pairs, float* c, int64_t c_row) {
  int64_t m = 0;
  for (; m + ROWS <= rows; m += ROWS) dot_tile<ROWS, V>(a + m * a_row, a_row, b, b_row, pairs, c + m * c_row, c_row);
  for (; m + 4 <= rows; m += 4) dot_tile<4, V>(a + m * a_row, a_row, b, b_row, pairs, c + m * c_row, c_row);
  for (; m < rows; m++) dot_tile<1, V>(a + m * a_row, a_row, b, b_row, pairs, c + m * c_row, c_row);
}

static void dots(int64_t rows, int64_t vectors, const uint16_t* a, int64_t a_row, const uint16_t* b, int64_t b_row,
                 int64_t pairs, float* c, int64_t c_row) {
  if (vectors == 3) dot_columns<3>(rows, a, a_row, b, b_row, pairs, c, c_row);
  if (vectors == 2) dot_columns<2>(rows, a, a_row, b, b_row, pairs, c, c_row);
  if (vectors == 1) dot_columns<1>(rows, a, a_row, b, b_row, pairs, c, c_row);
}

}  // namespace avx512_bf16

#include "kernel_pairs.h"
