// Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
// Forward pass of bfloat16 on the matrix unit of Intel's server processors (AMX), which multiplies tiles of 16 rows by
// 16 pairs of numbers.
#define INSTRUCTION_SET amx
#include "kernel.h"

namespace amx {

constexpr int64_t KEYS_OF_A_STEP = 16, MOST_ROWS = 16;

// What each tile register holds: results of up to three vectors of columns, and both operands of a step of 16 pairs and
// of one of 8, which ends a product whose number of pairs is not a multiple of 16.
// Macros, for GCC's intrinsics make the names of the registers from them.
#define RESULT_0 0
#define RESULT_1 1
#define RESULT_2 2
#define LEFT 3
#define RIGHT 4
#define LEFT_HALF 5
#define RIGHT_HALF 6

struct TileConfiguration {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes_of_a_row[16] = {64, 64, 64, 64, 64, 32, 64};
  uint8_t rows[16] = {};
};

// For blocks of so many query rows, until the end of the scope: what is left configured slows down every switch of
// threads.
struct Tiles {
  explicit Tiles(int64_t block_rows) {
    TileConfiguration tiles;
    const uint8_t m = static_cast<uint8_t>(block_rows), rows[] = {m, m, m, m, 16, m, 8};
    std::copy(rows, rows + 7, tiles.rows);
    asm volatile("ldtilecfg %0" ::"m"(tiles));  // the intrinsic of GCC 12 promises to read 8 of the 64 bytes
  }
  ~Tiles() { _tile_release(); }
};

// c (rows of the tiles, V vectors) = a (rows, pairs) b (pairs, V vectors); rows are `..._bytes` apart. The numbers of tiles are
// part of the instructions' text: a function for both steps could not take them.
template <int V>
static ALWAYS_INLINE void dot_columns(const uint16_t* a, int64_t a_bytes, const uint16_t* b, int64_t b_bytes,
                                      int64_t pairs, float* c, int64_t c_bytes) {
  asm volatile("" ::: "memory");  // GCC does not know that the intrinsics read memory
  _tile_zero(RESULT_0);
  if constexpr (V > 1) _tile_zero(RESULT_1);
  if constexpr (V > 2) _tile_zero(RESULT_2);
  int64_t k = 0;
  for (; k + 16 <= pairs; k += 16) {
    const char* const column = reinterpret_cast<const char*>(b) + k * b_bytes;
    _tile_loadd(LEFT, a + 2 * k, a_bytes);
    _tile_loadd(RIGHT, column, b_bytes);
    _tile_dpbf16ps(RESULT_0, LEFT, RIGHT);
    if constexpr (V > 1) {
      _tile_loadd(RIGHT, column + 64, b_bytes);
      _tile_dpbf16ps(RESULT_1, LEFT, RIGHT);
    }
    if constexpr (V > 2) {
      _tile_loadd(RIGHT, column + 128, b_bytes);
      _tile_dpbf16ps(RESULT_2, LEFT, RIGHT);
    }
  }
  if (k < pairs) {
    const char* const column = reinterpret_cast<const char*>(b) + k * b_bytes;
    _tile_loadd(LEFT_HALF, a + 2 * k, a_bytes);
    _tile_loadd(RIGHT_HALF, column, b_bytes);
    _tile_dpbf16ps(RESULT_0, LEFT_HALF, RIGHT_HALF);
    if constexpr (V > 1) {
      _tile_loadd(RIGHT_HALF, column + 64, b_bytes);
      _tile_dpbf16ps(RESULT_1, LEFT_HALF, RIGHT_HALF);
    }
    if constexpr (V > 2) {
      _tile_loadd(RIGHT_HALF, column + 128, b_bytes);
      _tile_dpbf16ps(RESULT_2, LEFT_HALF, RIGHT_HALF);
    }
  }
  _tile_stored(RESULT_0, c, c_bytes);
  if constexpr (V > 1) _tile_stored(RESULT_1, c + LANES, c_bytes);
  if constexpr (V > 2) _tile_stored(RESULT_2, c + 2 * LANES, c_bytes);
}

static void dots(int64_t, int64_t vectors, const uint16_t* a, int64_t a_row, const uint16_t* b, int64_t b_row,
                 int64_t pairs, float* c, int64_t c_row) {
  if (vectors == 3) dot_columns<3>(a, 2 * a_row, b, 2 * b_row, pairs, c, 4 * c_row);
  if (vectors == 2) dot_columns<2>(a, 2 * a_row, b, 2 * b_row, pairs, c, 4 * c_row);
  if (vectors == 1) dot_columns<1>(a, 2 * a_row, b, 2 * b_row, pairs, c, 4 * c_row);
}

}  // namespace amx

#include "kernel_pairs.h"
