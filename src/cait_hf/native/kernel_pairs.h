// Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
// Forward pass of bfloat16 with products of pairs of numbers, summed in float32. Softmax and projections stay in float32;
// the mixed maps are rounded to bfloat16 for the product with the values.
//
// The instruction set defines KEYS_OF_A_STEP, keys that a product consumes at a time; MOST_ROWS of a block of queries;
// Tiles(rows), which sets up its products; and
//   dots(rows, vectors, a, a_row, b, b_row, pairs, c, c_row): c (rows, vectors) = a (rows, pairs) b (pairs, vectors),
//     a and b pairs of bfloat16; a_row and b_row count 16-bit numbers.
#pragma once
#include "kernel.h"

namespace INSTRUCTION_SET {

static ALWAYS_INLINE int64_t whole_steps(int64_t keys) {
  return (keys + KEYS_OF_A_STEP - 1) / KEYS_OF_A_STEP * KEYS_OF_A_STEP;
}

static ALWAYS_INLINE __m512i load_words(const uint16_t* from) {
  return _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)from));
}

// Keys into tiles [D / 2][keys of a tile][2], values into [N, rounded up to KEYS_OF_A_STEP][D] with two keys
// adjoining: [pairs][D][2].
static void forward_pack_pairs(const Problem& p, const Sizes& s, int64_t image, int64_t head, float* keys,
                               float* values) {
  const int64_t n = p.patches, d = p.head_dim, keys_padded = whole_steps(n);
  const uint16_t* key = static_cast<const uint16_t*>(p.key) + offset_of(p.key_strides, image, head, 0);
  pack_tiles(reinterpret_cast<const char*>(key), p.key_strides[2] * 2, n, d / 2,
             reinterpret_cast<char*>(keys + head * (d / 2) * s.padded));
  const uint16_t* value = static_cast<const uint16_t*>(p.value) + offset_of(p.value_strides, image, head, 0);
  uint16_t* out = reinterpret_cast<uint16_t*>(values + head * (d / 2) * s.padded);
  for (int64_t i = 0; i < keys_padded; i += 2)
    for (int64_t c = 0; c < d; c += LANES) {
      const uint16_t* at = value + i * p.value_strides[2] + c;
      const __m512i even = i < n ? load_words(at) : _mm512_setzero_si512();
      const __m512i odd = i + 1 < n ? load_words(at + p.value_strides[2]) : _mm512_setzero_si512();
      _mm512_storeu_si512(out + i * d + 2 * c, _mm512_or_si512(even, _mm512_slli_epi32(odd, 16)));
    }
}

// As forward_block of kernel.h, in the same working memory, but for queries and mixed maps in bfloat16.
template <int H>
static void forward_block_pairs(const Problem& p, const Projections& w, const Sizes& s, int64_t image, int64_t row,
                                int64_t rows, const float* packed_keys, const float* packed_values, float* work) {
  const int heads = number_of_heads<H>(p);
  const int64_t n = p.patches, d = p.head_dim, padded = s.padded, vectors = padded / LANES;
  const int64_t keys_padded = whole_steps(n);
  const int last = static_cast<int>(n - (vectors - 1) * LANES);
  const int64_t logits_row = heads * padded;
  float* const logits = work;
  float* const exps = logits + s.block_rows * logits_row;
  float* const scores = exps + logits_row;
  float* const results = scores + s.block_rows * heads * COLUMNS * LANES;
  const uint16_t* const keys = reinterpret_cast<const uint16_t*>(packed_keys);
  const uint16_t* const values = reinterpret_cast<const uint16_t*>(packed_values);
  const uint16_t* const queries = static_cast<const uint16_t*>(p.query);

  const Tiles tiles(rows);
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
    mix<H>(heads, vectors, exps, padded, from_to, w.w_bias, mixed, padded);
  }
  // Beyond the last key the values are zero, and so have to be the maps, which could be NaN there.
  if (n < keys_padded)
    for (int64_t r = 0; r < rows; r++)
      for (int h = 0; h < heads; h++)
        std::fill_n(reinterpret_cast<uint16_t*>(logits + r * logits_row) + h * padded + n, keys_padded - n, 0);
  for (int h = 0; h < heads; h++)
    for (int64_t j = 0; j < d / LANES; j += COLUMNS)
      dots(rows, std::min<int64_t>(COLUMNS, d / LANES - j), reinterpret_cast<const uint16_t*>(logits) + h * padded,
           2 * logits_row, values + h * d * padded + j * 2 * LANES, 2 * d, keys_padded / 2,
           results + h * d + j * LANES, heads * d);
  store_numbers(BFLOAT16, results, rows * heads * d, p.output, (image * n + row) * heads * d);
}

bool kernel(const Problem& p, Kernel* kernel) {
  if (p.data_type != BFLOAT16) return false;
  avx512::kernel(p, kernel);
  kernel->forward_rows = MOST_ROWS;
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

}  // namespace INSTRUCTION_SET
