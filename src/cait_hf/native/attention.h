// Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
// What attention.cpp (interface, threads, memory) and kernel.h (arithmetic, compiled for each instruction set) share.
//
// Shapes, here and in kernel.h: B images, H heads, N patches, D channels of a head. r is a row of a block of queries.
#pragma once
#include <cstdint>

enum DataType : int64_t { FLOAT32 = 0, BFLOAT16 = 1, FLOAT16 = 2 };

// torch_parallel_for of PyTorch's stable C interface: calls task(begin, end, context) on parts of [begin, end).
typedef void (*Task)(int64_t begin, int64_t end, void* context);
typedef int32_t (*ParallelFor)(int64_t begin, int64_t end, int64_t grain, Task task, void* context);

// One call, as attention_native.py fills it in: the same fields in the same order, each of 8 bytes.
struct Problem {
  const void *query, *key, *value;  // (B, H, N, D) with the strides below; the channels of a head adjoin
  const void* grad_output;          // (B, N, H, D), contiguous; backward only
  void* output;                     // (B, N, H, D), contiguous; in the backward pass the gradient of the queries
  void *grad_key, *grad_value;      // (B, N, H, D), contiguous; backward only
  const float *proj_l, *proj_w;     // (H, H): row h is the weights of output head h
  const float* proj_w_bias;         // (H,)
  float *grad_proj_l, *grad_proj_w, *grad_proj_w_bias;  // as above; backward only
  ParallelFor parallel_for;
  int64_t threads;
  int64_t instruction_set;  // index into the list of cait_hf_instruction_sets
  int64_t data_type;        // of everything but the projections
  int64_t images, heads, patches, head_dim;
  int64_t query_strides[3], key_strides[3], value_strides[3];  // image, head, patch; in elements
  double scaling;
};

constexpr int MOST_HEADS = 16;
constexpr int MOST_HEAD_DIM = 128;  // and a multiple of 16
constexpr int COLUMNS = 3;          // vectors of keys in a register tile: 48 keys with AVX-512

// Both projections as the kernels read them. "from_to": row g has the weights of input head g for every output head.
struct Projections {
  alignas(64) float l_from_to[MOST_HEADS * MOST_HEADS];  // with the scaling of the scores
  alignas(64) float w_from_to[MOST_HEADS * MOST_HEADS];
  alignas(64) float l_to_from[MOST_HEADS * MOST_HEADS];  // both transposed, for gradients
  alignas(64) float w_to_from[MOST_HEADS * MOST_HEADS];
  alignas(64) float w_bias[MOST_HEADS];
};

// The same for every instruction set but for the number of lanes; all sizes are numbers of floats.
struct Sizes {
  int64_t lanes, padded;         // floats of a vector; N rounded up to whole vectors
  int64_t block_rows, blocks;    // query rows worked on at a time; such blocks of an image
  int64_t packed;                // an image's keys or values, rearranged
  int64_t forward, backward;     // working memory of a block
};

// What one instruction set computes for one number of heads.
struct Kernel {
  int64_t lanes;
  int64_t forward_rows;  // the most query rows of a block; see sizes_of
  // keys and values of one head of an image, rearranged for forward_block
  void (*forward_pack)(const Problem&, const Sizes&, int64_t image, int64_t head, float* keys, float* values);
  // output of the query rows [row, row + rows) of an image
  void (*forward_block)(const Problem&, const Projections&, const Sizes&, int64_t image, int64_t row, int64_t rows,
                        const float* keys, const float* values, float* work);
  // keys and values of one head twice: transposed for scores and gradients of maps, and keys as rows
  void (*backward_pack)(const Problem&, const Sizes&, int64_t image, int64_t head, float* keys_t, float* values_t,
                        float* keys);
  // gradient of these query rows; adds to (N, H, D) gradients of keys and values and, a vector of lanes for each
  // entry, to the (2, H, H) gradients of the projections
  void (*backward_block)(const Problem&, const Projections&, const Sizes&, int64_t image, int64_t row, int64_t rows,
                         const float* keys_t, const float* values_t, const float* keys, float* grad_query,
                         float* grad_key, float* grad_value, float* grad_projections, float* work);
  // n numbers (a multiple of 16) between float and the data type of the problem
  void (*load)(int64_t data_type, const void* numbers, int64_t offset, int64_t n, float* out);
  void (*store)(int64_t data_type, const float* numbers, int64_t n, void* out, int64_t offset);
};

namespace amx { bool kernel(const Problem&, Kernel*); }  // false: not for this data type
namespace avx512_bf16 { bool kernel(const Problem&, Kernel*); }  // likewise
namespace avx512 { bool kernel(const Problem&, Kernel*); }
namespace avx2 { bool kernel(const Problem&, Kernel*); }
namespace neon { bool kernel(const Problem&, Kernel*); }
