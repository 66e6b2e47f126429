// Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
// A vector of floats, on the compilers' vector extension (GCC, Clang): + - * < ?: work lane by lane. What the extension
// lacks, or compiles badly, is an intrinsic here and nowhere else.
#pragma once
#include <cstdint>
#include <cstring>
#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define ALWAYS_INLINE inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

namespace INSTRUCTION_SET {

// ROWS x COLUMNS accumulators and a column of operands fill the registers: 32 of them, 16 with AVX2.
#if defined(__AVX512F__)
constexpr int LANES = 16, ROWS = 8, MOST_MIXED = 8;
#elif defined(__AVX2__)
constexpr int LANES = 8, ROWS = 4, MOST_MIXED = 4;
#else
constexpr int LANES = 4, ROWS = 8, MOST_MIXED = 8;
#endif

typedef float Vector __attribute__((vector_size(LANES * 4)));
typedef int32_t Integers __attribute__((vector_size(LANES * 4)));
typedef float Unaligned __attribute__((vector_size(LANES * 4), aligned(4), may_alias));

static ALWAYS_INLINE Vector load(const float* from) { return *(const Unaligned*)from; }
static ALWAYS_INLINE void store(float* to, Vector x) { *(Unaligned*)to = x; }
static ALWAYS_INLINE Vector all(float x) { return x - Vector{}; }

// Of an ordered pair the larger; b where either is not a number.
static ALWAYS_INLINE Vector larger(Vector a, Vector b) {
#if defined(__AVX512F__)
  return (Vector)_mm512_max_ps((__m512)a, (__m512)b);
#else
  return a > b ? a : b;
#endif
}

static ALWAYS_INLINE float largest(Vector x) {
  float most = x[0];
  UNROLL for (int i = 1; i < LANES; i++) most = most > x[i] ? most : x[i];
  return most;
}

static ALWAYS_INLINE float sum(Vector x) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps((__m512)x);
#else
  float total = 0;
  UNROLL for (int i = 0; i < LANES; i++) total += x[i];
  return total;
#endif
}

// x in the first `used` lanes, -infinity in the others
static ALWAYS_INLINE Vector only_first(Vector x, int used) {
  Integers lane;
  UNROLL for (int i = 0; i < LANES; i++) lane[i] = i;
  return (lane < used) ? x : all(-__builtin_inff());
}

// exp(x) for x <= 0 to about one unit in the last place; 0 in place of anything below 1.2e-38, for what comes of numbers
// so small is denormal, which Intel's processors compute a hundred times as slowly. NaN stays NaN.
static ALWAYS_INLINE Vector exponential(Vector x) {
  const Integers tiny = x < -87.33f;
  x = larger(all(-87.33f), x);
  // x = n log 2 + r: adding 1.5 * 2^23 rounds to an integer n, which lies in the low bits of the sum; with 127 more, 2^n
  // is those bits as the exponent of a float. It is multiplied: bits added to a NaN could make it a number.
  const float magic = 12582912.f + 127.f;
  Vector shifted = x * 1.44269504088896341f + magic;
  const Integers n = (Integers)shifted;
  shifted = shifted - magic;
  Vector r = shifted * -0.693145751953125f + x;  // log 2 in two parts, the first with few bits: the product is exact
  r = shifted * -1.42860682030941723e-6f + r;
  Vector p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + (r + 1.f);
  return tiny ? Vector{} : p * (Vector)(n << 23);
}

// ---- half precision, as 16 bits each

static ALWAYS_INLINE Vector load_bfloat16(const uint16_t* from) {
#if defined(__AVX512F__)
  return (Vector)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)from)), 16);
#elif defined(__AVX2__)
  return (Vector)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)from)), 16);
#elif defined(__aarch64__)
  return (Vector)vshll_n_u16(vld1_u16(from), 16);
#endif
}

static ALWAYS_INLINE Vector load_float16(const uint16_t* from) {
#if defined(__AVX512F__)
  return (Vector)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)from));
#elif defined(__AVX2__)
  return (Vector)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)from));
#elif defined(__aarch64__)
  return (Vector)vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(from)));
#endif
}

static ALWAYS_INLINE void store_bfloat16(uint16_t* to, Vector x) {
  typedef uint32_t Bits __attribute__((vector_size(LANES * 4)));
  const Bits bits = (Bits)x, rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;  // to the nearest, ties to even
  const Bits result = (x == x) ? rounded : (bits >> 16) | 0x40;                     // a NaN stays one
#if defined(__AVX512F__)
  _mm256_storeu_si256((__m256i*)to, _mm512_cvtepi32_epi16((__m512i)result));
#elif defined(__AVX2__)
  const __m256i packed = _mm256_packus_epi32((__m256i)result, (__m256i)result);
  _mm_storeu_si128((__m128i*)to, _mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x08)));
#elif defined(__aarch64__)
  vst1_u16(to, vmovn_u32((uint32x4_t)result));
#endif
}

#if defined(__AVX512BF16__)
// As bfloat16 in one instruction, which takes numbers below 1e-38 for zero.
static ALWAYS_INLINE void store(uint16_t* to, Vector x) {
  _mm256_storeu_si256((__m256i*)to, (__m256i)_mm512_cvtneps_pbh((__m512)x));
}
#endif

static ALWAYS_INLINE void store_float16(uint16_t* to, Vector x) {
#if defined(__AVX512F__)
  _mm256_storeu_si256((__m256i*)to, _mm512_cvtps_ph((__m512)x, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__AVX2__)
  _mm_storeu_si128((__m128i*)to, _mm256_cvtps_ph((__m256)x, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__aarch64__)
  vst1_u16(to, vreinterpret_u16_f16(vcvt_f16_f32((float32x4_t)x)));
#endif
}

// ---- transposition, of 32-bit numbers or pairs of 16-bit ones

typedef int32_t Four __attribute__((vector_size(16)));
typedef int32_t FourUnaligned __attribute__((vector_size(16), aligned(2), may_alias));

// out[column * out_step + row] = in[row * in_step + column] of 4 x 4 words; steps in bytes
static ALWAYS_INLINE void transpose_4x4(const char* in, int64_t in_step, char* out, int64_t out_step) {
#if defined(__clang__)
#define PICK(a, b, i, j, k, l) __builtin_shufflevector(a, b, i, j, k, l)
#else
#define PICK(a, b, i, j, k, l) __builtin_shuffle(a, b, Four{i, j, k, l})
#endif
  const Four a = *(const FourUnaligned*)in, b = *(const FourUnaligned*)(in + in_step);
  const Four c = *(const FourUnaligned*)(in + 2 * in_step), d = *(const FourUnaligned*)(in + 3 * in_step);
  const Four ab_low = PICK(a, b, 0, 4, 1, 5), ab_high = PICK(a, b, 2, 6, 3, 7);
  const Four cd_low = PICK(c, d, 0, 4, 1, 5), cd_high = PICK(c, d, 2, 6, 3, 7);
  *(FourUnaligned*)out = PICK(ab_low, cd_low, 0, 1, 4, 5);
  *(FourUnaligned*)(out + out_step) = PICK(ab_low, cd_low, 2, 3, 6, 7);
  *(FourUnaligned*)(out + 2 * out_step) = PICK(ab_high, cd_high, 0, 1, 4, 5);
  *(FourUnaligned*)(out + 3 * out_step) = PICK(ab_high, cd_high, 2, 3, 6, 7);
#undef PICK
}

}  // namespace INSTRUCTION_SET
