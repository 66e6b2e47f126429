// Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
// Exact talking-heads attention of one block of query rows, forward and backward, in float32 arithmetic.
//
// For H heads at once, so that nothing of the size of an (N, N) map leaves the cache:
//
//   scores[r][g][n]        = query[r][g] . key[n][g]
//   logits[r][h][n]        = sum over g of scaling * proj_l[h][g] * scores[r][g][n]      (its bias has no effect)
//   probabilities[r][h][n] = softmax over n of logits[r][h]
//   mixed[r][h][n]         = sum over g of proj_w[h][g] * probabilities[r][g][n] + proj_w_bias[h]
//   output[r][h]           = sum over n of mixed[r][h][n] * value[n][h]
//
// Keys are packed once an image as tiles [D][keys of the tile], so that a product reads both operands in order; values
// as rows [N][D]. N is padded to whole vectors (`padded`), whose last lanes contain no key: packed keys are zero there,
// and the softmax gives them the probability 0.
//
// Numbers of heads of the official architectures are template parameters H, whose loops unroll; H = 0 reads the number
// from the problem.
#pragma once
#include <algorithm>
#include <cmath>
#include "attention.h"
#include "vectors.h"

namespace INSTRUCTION_SET {

template <int H>
static ALWAYS_INLINE int number_of_heads(const Problem& p) {
  return H > 0 ? H : static_cast<int>(p.heads);
}

// ---------------------------------------------------------------------------------------------------------- products

// c (M, V vectors) = a (M, depth) b (depth, V vectors), or added to c; numbers of a are a_row and a_depth apart
template <int M, int V, bool ADD>
static ALWAYS_INLINE void product_tile(const float* a, int64_t a_row, int64_t a_depth, const float* b, int64_t b_row,
                                       int64_t depth, float* c, int64_t c_row) {
  Vector total[M][V];
  UNROLL for (int m = 0; m < M; m++)
    UNROLL for (int j = 0; j < V; j++) total[m][j] = ADD ? load(c + m * c_row + j * LANES) : Vector{};
  for (int64_t k = 0; k < depth; k++) {
    Vector column[V];
    UNROLL for (int j = 0; j < V; j++) column[j] = load(b + j * LANES);
    UNROLL for (int m = 0; m < M; m++) {
      const float factor = a[m * a_row];
      UNROLL for (int j = 0; j < V; j++) total[m][j] += factor * column[j];
    }
    a += a_depth;
    b += b_row;
  }
  UNROLL for (int m = 0; m < M; m++)
    UNROLL for (int j = 0; j < V; j++) store(c + m * c_row + j * LANES, total[m][j]);
}

template <int V, bool ADD>
static void product_columns(int64_t rows, const float* a, int64_t a_row, int64_t a_depth, const float* b, int64_t b_row,
                            int64_t depth, float* c, int64_t c_row) {
  int64_t m = 0;
  for (; m + ROWS <= rows; m += ROWS)
    product_tile<ROWS, V, ADD>(a + m * a_row, a_row, a_depth, b, b_row, depth, c + m * c_row, c_row);
  if constexpr (ROWS > 4)
    for (; m + 4 <= rows; m += 4)
      product_tile<4, V, ADD>(a + m * a_row, a_row, a_depth, b, b_row, depth, c + m * c_row, c_row);
  for (; m < rows; m++)
    product_tile<1, V, ADD>(a + m * a_row, a_row, a_depth, b, b_row, depth, c + m * c_row, c_row);
}

// c (rows, vectors) = a (rows, depth) b (depth, vectors), or added to c
template <bool ADD>
static void product(int64_t rows, int64_t vectors, const float* a, int64_t a_row, int64_t a_depth, const float* b,
                    int64_t b_row, int64_t depth, float* c, int64_t c_row) {
  int64_t j = 0;
  for (; j + COLUMNS <= vectors; j += COLUMNS)
    product_columns<COLUMNS, ADD>(rows, a, a_row, a_depth, b + j * LANES, b_row, depth, c + j * LANES, c_row);
  if (vectors - j == 2)
    product_columns<2, ADD>(rows, a, a_row, a_depth, b + j * LANES, b_row, depth, c + j * LANES, c_row);
  if (vectors - j == 1)
    product_columns<1, ADD>(rows, a, a_row, a_depth, b + j * LANES, b_row, depth, c + j * LANES, c_row);
}

// ------------------------------------------------------------------------------------------ talking-heads projections

// mixed[h] = bias[h] + sum over g of from_to[g * heads + h] * maps[g] for M output heads and V vectors of keys. A Number
// is a float or a bfloat16.
template <int H, int M, int V, class Number>
static ALWAYS_INLINE void mix_tile(int heads, const float* maps, int64_t map, const float* from_to, const float* bias,
                                   Number* mixed, int64_t mixed_map) {
  Vector total[M][V];
  UNROLL for (int h = 0; h < M; h++)
    UNROLL for (int j = 0; j < V; j++) total[h][j] = bias ? all(bias[h]) : Vector{};
  UNROLL for (int g = 0; g < (H > 0 ? H : heads); g++) {
    Vector column[V];
    UNROLL for (int j = 0; j < V; j++) column[j] = load(maps + g * map + j * LANES);
    UNROLL for (int h = 0; h < M; h++) {
      const float weight = from_to[g * heads + h];
      UNROLL for (int j = 0; j < V; j++) total[h][j] += weight * column[j];
    }
  }
  UNROLL for (int h = 0; h < M; h++)
    UNROLL for (int j = 0; j < V; j++) store(mixed + h * mixed_map + j * LANES, total[h][j]);
}

// The most output heads that a tile has room for and that divide H.
template <int H>
constexpr int mixed_at_once() {
  for (int m = MOST_MIXED; m > 1; m--)
    if (H % m == 0) return m;
  return 1;
}

template <int H, int V, class Number>
static ALWAYS_INLINE void mix_columns(int heads, const float* maps, int64_t map, const float* from_to,
                                      const float* bias, Number* mixed, int64_t mixed_map) {
  constexpr int M = H > 0 ? mixed_at_once<H>() : 4;
  int h = 0;
  for (; h + M <= heads; h += M)
    mix_tile<H, M, V>(heads, maps, map, from_to + h, bias ? bias + h : nullptr, mixed + h * mixed_map, mixed_map);
  if constexpr (H == 0)
    for (; h < heads; h++)
      mix_tile<H, 1, V>(heads, maps, map, from_to + h, bias ? bias + h : nullptr, mixed + h * mixed_map, mixed_map);
}

// As mix_tile for all heads and all vectors of one query row; maps and mixed may not overlap.
template <int H, class Number>
static ALWAYS_INLINE void mix(int heads, int64_t vectors, const float* maps, int64_t map, const float* from_to,
                              const float* bias, Number* mixed, int64_t mixed_map) {
  int64_t j = 0;
  for (; j + COLUMNS <= vectors; j += COLUMNS)
    mix_columns<H, COLUMNS>(heads, maps + j * LANES, map, from_to, bias, mixed + j * LANES, mixed_map);
  for (; j < vectors; j++)
    mix_columns<H, 1>(heads, maps + j * LANES, map, from_to, bias, mixed + j * LANES, mixed_map);
}

// gradient[h * heads + g] += left[h] * right[g], lane by lane, over the vectors of one query row
template <int M, int G>
static ALWAYS_INLINE void add_projection_gradient_tile(int heads, int64_t vectors, const float* left, int64_t left_map,
                                                       const float* right, int64_t right_map, float* gradient) {
  Vector total[M][G];
  UNROLL for (int h = 0; h < M; h++) UNROLL for (int g = 0; g < G; g++) total[h][g] = Vector{};
  for (int64_t j = 0; j < vectors; j++) {
    Vector column[G];
    UNROLL for (int g = 0; g < G; g++) column[g] = load(right + g * right_map + j * LANES);
    UNROLL for (int h = 0; h < M; h++) {
      const Vector factor = load(left + h * left_map + j * LANES);
      UNROLL for (int g = 0; g < G; g++) total[h][g] += factor * column[g];
    }
  }
  UNROLL for (int h = 0; h < M; h++) UNROLL for (int g = 0; g < G; g++) {
    float* entry = gradient + (h * heads + g) * LANES;
    store(entry, load(entry) + total[h][g]);
  }
}

template <int H>
static ALWAYS_INLINE void add_projection_gradient(int heads, int64_t vectors, const float* left, int64_t left_map,
                                                  const float* right, int64_t right_map, float* gradient) {
  constexpr int G = H % 4 == 0 ? 4 : H % 3 == 0 ? 3 : H % 2 == 0 ? 2 : 1;  // H = 0: 4, and one by one at the end
  constexpr int M = G == 4 && LANES == 8 ? 2 : G;                          // AVX2 has 16 registers
  int h = 0;
  for (; h + M <= heads; h += M) {
    int g = 0;
    for (; g + G <= heads; g += G)
      add_projection_gradient_tile<M, G>(heads, vectors, left + h * left_map, left_map, right + g * right_map,
                                         right_map, gradient + (h * heads + g) * LANES);
    if constexpr (H == 0)
      for (; g < heads; g++)
        add_projection_gradient_tile<M, 1>(heads, vectors, left + h * left_map, left_map, right + g * right_map,
                                           right_map, gradient + (h * heads + g) * LANES);
  }
  if constexpr (H == 0)
    for (; h < heads; h++)
      for (int g = 0; g < heads; g++)
        add_projection_gradient_tile<1, 1>(heads, vectors, left + h * left_map, left_map, right + g * right_map,
                                           right_map, gradient + (h * heads + g) * LANES);
}

// ----------------------------------------------------------------------------------------------------------- softmax

// result = exp(logits - their maximum); returns 1 / sum. The last vector has `last` keys; result may be logits.
static ALWAYS_INLINE float exponentials(int64_t vectors, int last, float* logits, float* result) {
  float* const tail = logits + (vectors - 1) * LANES;
  Vector most = only_first(load(tail), last), most_odd = most;
  store(tail, most);
  int64_t j = 0;
  for (; j + 2 <= vectors; j += 2) {
    most = larger(most, load(logits + j * LANES));
    most_odd = larger(most_odd, load(logits + j * LANES + LANES));
  }
  const float top = largest(larger(most, most_odd));
  Vector total = Vector{}, total_odd = Vector{};
  for (j = 0; j + 2 <= vectors; j += 2) {
    const Vector even = exponential(load(logits + j * LANES) - top);
    const Vector odd = exponential(load(logits + j * LANES + LANES) - top);
    store(result + j * LANES, even);
    store(result + j * LANES + LANES, odd);
    total += even;
    total_odd += odd;
  }
  if (j < vectors) {
    const Vector even = exponential(load(logits + j * LANES) - top);
    store(result + j * LANES, even);
    total += even;
  }
  return 1.f / sum(total + total_odd);
}

// ------------------------------------------------------------------------------------------------- packing, half precision

static void load_numbers(int64_t data_type, const void* numbers, int64_t offset, int64_t n, float* out) {
  if (data_type == FLOAT32) {
    memcpy(out, static_cast<const float*>(numbers) + offset, n * sizeof(float));
  } else if (data_type == BFLOAT16) {
    const uint16_t* from = static_cast<const uint16_t*>(numbers) + offset;
    for (int64_t i = 0; i < n; i += LANES) store(out + i, load_bfloat16(from + i));
  } else {
    const uint16_t* from = static_cast<const uint16_t*>(numbers) + offset;
    for (int64_t i = 0; i < n; i += LANES) store(out + i, load_float16(from + i));
  }
}

static void store_numbers(int64_t data_type, const float* numbers, int64_t n, void* out, int64_t offset) {
  if (data_type == FLOAT32) {
    memcpy(static_cast<float*>(out) + offset, numbers, n * sizeof(float));
  } else if (data_type == BFLOAT16) {
    uint16_t* to = static_cast<uint16_t*>(out) + offset;
    for (int64_t i = 0; i < n; i += LANES) store_bfloat16(to + i, load(numbers + i));
  } else {
    uint16_t* to = static_cast<uint16_t*>(out) + offset;
    for (int64_t i = 0; i < n; i += LANES) store_float16(to + i, load(numbers + i));
  }
}

// Rows (N, words of 32 bits), `row` bytes apart, into tiles [words][keys of a tile], zero where there is no key.
static void pack_tiles(const char* rows, int64_t row, int64_t n, int64_t words, char* out) {
  const int64_t vectors = (n + LANES - 1) / LANES;
  for (int64_t j = 0; j < vectors; j += COLUMNS) {
    const int64_t width = std::min<int64_t>(COLUMNS, vectors - j) * LANES, first = j * LANES;
    int64_t i = 0;
    for (; i < width && first + i + 4 <= n; i += 4)
      for (int64_t d = 0; d < words; d += 4)
        transpose_4x4(rows + (first + i) * row + d * 4, row, out + (d * width + i) * 4, width * 4);
    for (; i < width; i++)
      for (int64_t d = 0; d < words; d++) {
        if (first + i < n) memcpy(out + (d * width + i) * 4, rows + (first + i) * row + d * 4, 4);
        else memset(out + (d * width + i) * 4, 0, 4);
      }
    out += words * width * 4;
  }
}

// Rows (N, D) of any data type, `row` numbers apart, into float tiles [D][keys of a tile].
static void pack_transposed(int64_t data_type, const void* rows, int64_t offset, int64_t row, int64_t n, int64_t d,
                            float* out) {
  if (data_type == FLOAT32) {
    const float* from = static_cast<const float*>(rows) + offset;
    return pack_tiles(reinterpret_cast<const char*>(from), row * 4, n, d, reinterpret_cast<char*>(out));
  }
  float tile[COLUMNS * LANES * MOST_HEAD_DIM];
  for (int64_t first = 0; first < n; first += COLUMNS * LANES) {
    const int64_t used = std::min<int64_t>(COLUMNS * LANES, n - first);
    for (int64_t i = 0; i < used; i++) load_numbers(data_type, rows, offset + (first + i) * row, d, tile + i * d);
    pack_tiles(reinterpret_cast<const char*>(tile), d * 4, used, d, reinterpret_cast<char*>(out + first * d));
  }
}

// Rows (N, D) of any data type, `row` numbers apart, into float rows without gaps.
static void pack_rows(int64_t data_type, const void* rows, int64_t offset, int64_t row, int64_t n, int64_t d,
                      float* out) {
  for (int64_t i = 0; i < n; i++) load_numbers(data_type, rows, offset + i * row, d, out + i * d);
}

static ALWAYS_INLINE int64_t offset_of(const int64_t* strides, int64_t image, int64_t head, int64_t patch) {
  return image * strides[0] + head * strides[1] + patch * strides[2];
}

// products[r][g] = left[r][g] . packed[g] for `vectors` vectors of keys from vector `first` on, a tile of the packed rows;
// left (rows, heads, D) without gaps, products (rows, heads) with the given steps
template <int H>
static void products_with_packed(const Problem& p, const Sizes& s, int64_t rows, int64_t first, int64_t vectors,
                                 const float* left, const float* packed, float* products, int64_t row, int64_t map) {
  const int heads = number_of_heads<H>(p);
  const int64_t d = p.head_dim;
  for (int g = 0; g < heads; g++)
    product<false>(rows, vectors, left + g * d, heads * d, 1, packed + g * d * s.padded + first * LANES * d,
                   vectors * LANES, d, products + g * map, row);
}

// ----------------------------------------------------------------------------------------------------------- forward

static void forward_pack(const Problem& p, const Sizes& s, int64_t image, int64_t head, float* keys, float* values) {
  const int64_t n = p.patches, d = p.head_dim;
  pack_transposed(p.data_type, p.key, offset_of(p.key_strides, image, head, 0), p.key_strides[2], n, d,
                  keys + head * d * s.padded);
  pack_rows(p.data_type, p.value, offset_of(p.value_strides, image, head, 0), p.value_strides[2], n, d,
            values + head * d * s.padded);
}

// The rows of queries of all heads without gaps: (rows, heads, D)
static void load_queries(const Problem& p, int64_t image, int64_t row, int64_t rows, float* out) {
  const int64_t d = p.head_dim;
  for (int64_t r = 0; r < rows; r++)
    for (int64_t h = 0; h < p.heads; h++)
      load_numbers(p.data_type, p.query, offset_of(p.query_strides, image, h, row + r), d, out + (r * p.heads + h) * d);
}

// floats that forward_block works in: logits [rows][H][padded], exponentials [H][padded], a tile of scores
// [rows][H][COLUMNS * LANES], queries and output [rows][H][D] each
template <int H>
static void forward_block(const Problem& p, const Projections& w, const Sizes& s, int64_t image, int64_t row,
                          int64_t rows, const float* keys, const float* values, float* work) {
  const int heads = number_of_heads<H>(p);
  const int64_t n = p.patches, d = p.head_dim, padded = s.padded, vectors = padded / LANES;
  const int last = static_cast<int>(n - (vectors - 1) * LANES);
  const int64_t logits_row = heads * padded;
  float* const logits = work;
  float* const exps = logits + s.block_rows * logits_row;
  float* const scores = exps + logits_row;
  float* const queries = scores + s.block_rows * heads * COLUMNS * LANES;
  float* const results = queries + s.block_rows * heads * d;

  load_queries(p, image, row, rows, queries);
  for (int64_t j = 0; j < vectors; j += COLUMNS) {
    const int64_t width = std::min<int64_t>(COLUMNS, vectors - j), map = width * LANES;
    products_with_packed<H>(p, s, rows, j, width, queries, keys, scores, heads * map, map);
    for (int64_t r = 0; r < rows; r++)
      mix<H>(heads, width, scores + r * heads * map, map, w.l_from_to, nullptr,
             logits + r * logits_row + j * LANES, padded);
  }
  for (int64_t r = 0; r < rows; r++) {
    float* const maps = logits + r * logits_row;
    alignas(64) float from_to[MOST_HEADS * MOST_HEADS];  // proj_w divided by the sums of the softmax
    for (int g = 0; g < heads; g++) {
      const float inverse = exponentials(vectors, last, maps + g * padded, exps + g * padded);
      for (int h = 0; h < heads; h++) from_to[g * heads + h] = w.w_from_to[g * heads + h] * inverse;
    }
    mix<H>(heads, vectors, exps, padded, from_to, w.w_bias, maps, padded);
  }
  const int64_t offset = (image * n + row) * heads * d;
  float* const out = p.data_type == FLOAT32 ? static_cast<float*>(p.output) + offset : results;
  for (int h = 0; h < heads; h++)
    product<false>(rows, d / LANES, logits + h * padded, logits_row, 1, values + h * d * padded, d, n, out + h * d,
                   heads * d);
  if (p.data_type != FLOAT32) store_numbers(p.data_type, results, rows * heads * d, p.output, offset);
}

// ---------------------------------------------------------------------------------------------------------- backward

static void backward_pack(const Problem& p, const Sizes& s, int64_t image, int64_t head, float* keys_t, float* values_t,
                          float* keys) {
  const int64_t n = p.patches, d = p.head_dim, key = offset_of(p.key_strides, image, head, 0);
  pack_transposed(p.data_type, p.key, key, p.key_strides[2], n, d, keys_t + head * d * s.padded);
  pack_transposed(p.data_type, p.value, offset_of(p.value_strides, image, head, 0), p.value_strides[2], n, d,
                  values_t + head * d * s.padded);
  pack_rows(p.data_type, p.key, key, p.key_strides[2], n, d, keys + head * d * s.padded);
}

// floats that backward_block works in: scores, probabilities and two more [rows][H][padded], a tile
// [rows][H][COLUMNS * LANES], queries and their output's gradient [rows][H][D] each
template <int H>
static void backward_block(const Problem& p, const Projections& w, const Sizes& s, int64_t image, int64_t row,
                           int64_t rows, const float* keys_t, const float* values_t, const float* keys,
                           float* grad_query, float* grad_key, float* grad_value, float* grad_projections,
                           float* work) {
  const int heads = number_of_heads<H>(p);
  const int64_t n = p.patches, d = p.head_dim, padded = s.padded, vectors = padded / LANES;
  const int last = static_cast<int>(n - (vectors - 1) * LANES);
  const int64_t maps_row = heads * padded, maps = s.block_rows * maps_row;
  float* const scores = work;
  float* const probabilities = scores + maps;
  float* const mixed = probabilities + maps;  // later the gradient of the scores
  float* const grad_logits = mixed + maps;    // first the gradient of the probabilities
  float* const tile = grad_logits + maps;
  float* const queries = tile + s.block_rows * heads * COLUMNS * LANES;
  float* const grad_output = queries + s.block_rows * heads * d;
  float* const mixed_as_grad_scores = mixed;

  load_queries(p, image, row, rows, queries);
  load_numbers(p.data_type, p.grad_output, (image * n + row) * heads * d, rows * heads * d, grad_output);

  for (int64_t j = 0; j < vectors; j += COLUMNS) {
    const int64_t width = std::min<int64_t>(COLUMNS, vectors - j);
    products_with_packed<H>(p, s, rows, j, width, queries, keys_t, scores + j * LANES, maps_row, padded);
    for (int64_t r = 0; r < rows; r++)
      mix<H>(heads, width, scores + r * maps_row + j * LANES, padded, w.l_from_to, nullptr,
             probabilities + r * maps_row + j * LANES, padded);
  }
  for (int64_t r = 0; r < rows; r++) {
    float* const of_row = probabilities + r * maps_row;
    for (int g = 0; g < heads; g++) {
      float* const map = of_row + g * padded;
      const float inverse = exponentials(vectors, last, map, map);
      for (int64_t j = 0; j < vectors; j++) store(map + j * LANES, load(map + j * LANES) * inverse);
    }
    mix<H>(heads, vectors, of_row, padded, w.w_from_to, w.w_bias, mixed + r * maps_row, padded);
  }
  for (int h = 0; h < heads; h++)
    product<true>(n, d / LANES, mixed + h * padded, 1, maps_row, grad_output + h * d, heads * d, rows,
                  grad_value + h * d, heads * d);

  for (int64_t j = 0; j < vectors; j += COLUMNS) {
    const int64_t width = std::min<int64_t>(COLUMNS, vectors - j), map = width * LANES;
    products_with_packed<H>(p, s, rows, j, width, grad_output, values_t, tile, heads * map, map);
    for (int64_t r = 0; r < rows; r++) {
      const float* const grad_mixed = tile + r * heads * map;
      add_projection_gradient<H>(heads, width, grad_mixed, map, probabilities + r * maps_row + j * LANES, padded,
                                 grad_projections + heads * heads * LANES);
      mix<H>(heads, width, grad_mixed, map, w.w_to_from, nullptr, grad_logits + r * maps_row + j * LANES, padded);
    }
  }
  for (int64_t r = 0; r < rows; r++) {
    for (int g = 0; g < heads; g++) {  // through the softmax
      const float* const prob = probabilities + r * maps_row + g * padded;
      float* const grad = grad_logits + r * maps_row + g * padded;
      Vector total = Vector{};
      for (int64_t j = 0; j < padded; j += LANES) total += load(prob + j) * load(grad + j);
      const float mean = sum(total);
      for (int64_t j = 0; j < padded; j += LANES) store(grad + j, load(prob + j) * (load(grad + j) - mean));
    }
    add_projection_gradient<H>(heads, vectors, grad_logits + r * maps_row, padded, scores + r * maps_row, padded,
                               grad_projections);
    mix<H>(heads, vectors, grad_logits + r * maps_row, padded, w.l_to_from, nullptr,
           mixed_as_grad_scores + r * maps_row, padded);
  }
  for (int h = 0; h < heads; h++) {
    product<false>(rows, d / LANES, mixed_as_grad_scores + h * padded, maps_row, 1, keys + h * d * padded, d, n,
                   grad_query + h * d, heads * d);
    product<true>(n, d / LANES, mixed_as_grad_scores + h * padded, 1, maps_row, queries + h * d, heads * d, rows,
                  grad_key + h * d, heads * d);
  }
}

}  // namespace INSTRUCTION_SET
