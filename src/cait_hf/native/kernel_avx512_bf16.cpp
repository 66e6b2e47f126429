// Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
// Forward pass of bfloat16 on the dot instructions of AVX-512: a pair of products in one step, summed in float32.
// Softmax and projections stay in float32; the mixed maps are rounded to bfloat16 for the product with the values.
#define INSTRUCTION_SET avx512_bf16
#include "kernel.h"

namespace avx512_bf16 {

// c (M, V vectors) = a (M, pairs) b (pairs, V vectors of pairs); a_row and b_row count 16-bit numbers
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

// Keys into tiles [D / 2][keys of a tile][2], values into [N / 2, rounded up][D][2].
static void forward_pack_pairs(const Problem& p, const Sizes& s, int64_t image, int64_t head, float* keys,
                               float* values) {
  const int64_t n = p.patches, d = p.head_dim;
  const uint16_t* key = static_cast<const uint16_t*>(p.key) + offset_of(p.key_strides, image, head, 0);
  pack_tiles(reinterpret_cast<const char*>(key), p.key_strides[2] * 2, n, d / 2,
             reinterpret_cast<char*>(keys + head * (d / 2) * s.padded));
  const uint16_t* value = static_cast<const uint16_t*>(p.value) + offset_of(p.value_strides, image, head, 0);
  uint16_t* out = reinterpret_cast<uint16_t*>(values + head * (d / 2) * s.padded);
  for (int64_t i = 0; i < n; i += 2)
    for (int64_t c = 0; c < d; c += LANES) {
      const uint16_t* at = value + i * p.value_strides[2] + c;
      const __m512i even = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)at));
      const __m512i odd = i + 1 < n ? _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)(at + p.value_strides[2])))
                                    : _mm512_setzero_si512();
      _mm512_storeu_si512(out + i * d + 2 * c, _mm512_or_si512(even, _mm512_slli_epi32(odd, 16)));
    }
}

// As mix, for M output heads at once, with the result in bfloat16; maps and mixed may not overlap.
template <int H, int M, int V>
static ALWAYS_INLINE void mix_to_bfloat16_tile(int heads, const float* maps, int64_t map, const float* from_to,
                                               const float* bias, uint16_t* mixed, int64_t mixed_map) {
  Vector total[M][V];
  UNROLL for (int h = 0; h < M; h++) UNROLL for (int j = 0; j < V; j++) total[h][j] = all(bias[h]);
  UNROLL for (int g = 0; g < (H > 0 ? H : heads); g++) {
    Vector column[V];
    UNROLL for (int j = 0; j < V; j++) column[j] = load(maps + g * map + j * LANES);
    UNROLL for (int h = 0; h < M; h++) {
      const float weight = from_to[g * heads + h];
      UNROLL for (int j = 0; j < V; j++) total[h][j] += weight * column[j];
    }
  }
  UNROLL for (int h = 0; h < M; h++)
    UNROLL for (int j = 0; j < V; j++)
      _mm256_storeu_si256((__m256i*)(mixed + h * mixed_map + j * LANES),
                          (__m256i)_mm512_cvtneps_pbh((__m512)total[h][j]));
}

template <int H, int V>
static ALWAYS_INLINE void mix_to_bfloat16(int heads, const float* maps, int64_t map, const float* from_to,
                                          const float* bias, uint16_t* mixed, int64_t mixed_map) {
  constexpr int M = H > 0 ? mixed_at_once<H>() : 4;
  int h = 0;
  for (; h + M <= heads; h += M)
    mix_to_bfloat16_tile<H, M, V>(heads, maps, map, from_to + h, bias + h, mixed + h * mixed_map, mixed_map);
  if constexpr (H == 0)
    for (; h < heads; h++)
      mix_to_bfloat16_tile<H, 1, V>(heads, maps, map, from_to + h, bias + h, mixed + h * mixed_map, mixed_map);
}

// As forward_block of kernel.h, in the same working memory, but for queries and mixed maps in bfloat16.
template <int H>
static void forward_block_pairs(const Problem& p, const Projections& w, const Sizes& s, int64_t image, int64_t row,
                                int64_t rows, const float* packed_keys, const float* packed_values, float* work) {
  const int heads = number_of_heads<H>(p);
  const int64_t n = p.patches, d = p.head_dim, padded = s.padded, vectors = padded / LANES;
  const int last = static_cast<int>(n - (vectors - 1) * LANES);
  const int64_t logits_row = heads * padded;
  float* const logits = work;
  float* const exps = logits + s.block_rows * logits_row;
  float* const scores = exps + logits_row;
  float* const results = scores + s.block_rows * heads * COLUMNS * LANES;
  const uint16_t* const keys = reinterpret_cast<const uint16_t*>(packed_keys);
  const uint16_t* const values = reinterpret_cast<const uint16_t*>(packed_values);
  const uint16_t* const queries = static_cast<const uint16_t*>(p.query);

  for (int64_t j = 0; j < vectors; j += COLUMNS) {
    const int64_t width = std::min<int64_t>(COLUMNS, vectors - j), map = width * LANES;
    for (int g = 0; g < heads; g++)
      dots(rows, width, queries + offset_of(p.query_strides, image, g, row), p.query_strides[2],
           keys + g * d * padded + j * LANES * d, 2 * map, d / 2, scores + g * map, heads * map);
    for (int64_t r = 0; r < rows; r++)
      mix<H>(heads, width, scores + r * heads * map, map, w.l_from_to, nullptr,
             logits + r * logits_row + j * LANES, padded);
  }
  for (int64_t r = 0; r < rows; r++) {
    float* const maps = logits + r * logits_row;
    alignas(64) float from_to[MOST_HEADS * MOST_HEADS];
    for (int g = 0; g < heads; g++) {
      const float inverse = exponentials(vectors, last, maps + g * padded, exps + g * padded);
      for (int h = 0; h < heads; h++) from_to[g * heads + h] = w.w_from_to[g * heads + h] * inverse;
    }
    uint16_t* const mixed = reinterpret_cast<uint16_t*>(maps);  // [H][padded] in the first half of the row
    int64_t j = 0;
    for (; j + COLUMNS <= vectors; j += COLUMNS)
      mix_to_bfloat16<H, COLUMNS>(heads, exps + j * LANES, padded, from_to, w.w_bias, mixed + j * LANES, padded);
    for (; j < vectors; j++)
      mix_to_bfloat16<H, 1>(heads, exps + j * LANES, padded, from_to, w.w_bias, mixed + j * LANES, padded);
  }
  // An odd number of keys: the value beyond the last is zero, and so has to be the map, which could be NaN there.
  if (n % 2)
    for (int64_t r = 0; r < rows; r++)
      for (int h = 0; h < heads; h++) reinterpret_cast<uint16_t*>(logits + r * logits_row)[h * padded + n] = 0;
  for (int h = 0; h < heads; h++)
    for (int64_t j = 0; j < d / LANES; j += COLUMNS)
      dots(rows, std::min<int64_t>(COLUMNS, d / LANES - j), reinterpret_cast<const uint16_t*>(logits) + h * padded,
           2 * logits_row, values + h * d * padded + j * 2 * LANES, 2 * d, (n + 1) / 2,
           results + h * d + j * LANES, heads * d);
  store_numbers(BFLOAT16, results, rows * heads * d, p.output, (image * n + row) * heads * d);
}

bool kernel(const Problem& p, Kernel* kernel) {
  if (p.data_type != BFLOAT16) return false;
  avx512::kernel(p, kernel);
  kernel->forward_pack = forward_pack_pairs;
  switch (p.heads) {
    case 4: kernel->forward_block = forward_block_pairs<4>; break;
    case 6: kernel->forward_block = forward_block_pairs<6>; break;
    case 8: kernel->forward_block = forward_block_pairs<8>; break;
    case 16: kernel->forward_block = forward_block_pairs<16>; break;
    default: kernel->forward_block = forward_block_pairs<0>;
  }
  return true;
}

}  // namespace avx512_bf16
