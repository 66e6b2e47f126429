// Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
// The attention library against the plain formulas in double precision, forward and backward, without Python: for
// sanitizers and for processors that are emulated. Linked with the library's sources by tests/test_attention_native.py.
//
//   native_check INSTRUCTION_SET    prints the largest errors; 1 if one is too large
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <string>
#include <thread>
#include <vector>
#include "../src/cait_hf/native/attention.h"

extern "C" const char* cait_hf_instruction_sets();
extern "C" int cait_hf_attention_forward(const Problem*);
extern "C" int cait_hf_attention_backward(const Problem*);

using Numbers = std::vector<double>;

static uint16_t to_half(double x, int64_t data_type) {
  const float number = static_cast<float>(x);
  uint32_t bits;
  memcpy(&bits, &number, 4);
  if (data_type == BFLOAT16) return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  // float16, of numbers from 2^-14 to 65504, or zero: 5 bits of exponent, 10 of fraction, ties to even
  const uint32_t sign = bits >> 16 & 0x8000, exponent = bits >> 23 & 255;
  if (exponent < 113) return sign;
  const uint32_t value = (exponent - 112) << 23 | (bits & 0x7fffff);
  return sign | ((value + 0xfff + (value >> 13 & 1)) >> 13);
}

static double from_half(uint16_t half, int64_t data_type) {
  if (data_type == BFLOAT16) {
    const uint32_t bits = static_cast<uint32_t>(half) << 16;
    float number;
    memcpy(&number, &bits, 4);
    return number;
  }
  const int exponent = half >> 10 & 31, fraction = half & 1023;
  if (exponent == 31) return fraction ? NAN : half & 0x8000 ? -INFINITY : INFINITY;
  const double size = exponent ? std::ldexp(1024 + fraction, exponent - 25) : std::ldexp(fraction, -24);
  return half & 0x8000 ? -size : size;
}

// A tensor in the memory of the data type, which is NaN until it is filled, with the numbers that it represents.
struct Tensor {
  std::vector<unsigned char> memory;  // exactly as long as the tensor: the address sanitizer guards its ends
  Numbers numbers;
  int64_t data_type;
  Tensor(int64_t n, int64_t data_type)
      : memory(n * (data_type == FLOAT32 ? 4 : 2), 0xff), numbers(n), data_type(data_type) {}
  void fill(std::mt19937& generator) {
    std::normal_distribution<double> normal;
    for (size_t i = 0; i < numbers.size(); i++) {
      if (data_type == FLOAT32) {
        const float number = static_cast<float>(normal(generator));
        memcpy(memory.data() + 4 * i, &number, 4);
      } else {
        const uint16_t half = to_half(normal(generator), data_type);
        memcpy(memory.data() + 2 * i, &half, 2);
      }
    }
    read();
  }
  void read() {
    for (size_t i = 0; i < numbers.size(); i++) {
      float number;
      uint16_t half;
      if (data_type == FLOAT32) memcpy(&number, memory.data() + 4 * i, 4), numbers[i] = number;
      else memcpy(&half, memory.data() + 2 * i, 2), numbers[i] = from_half(half, data_type);
    }
  }
};

// A tensor of (B, N, H, D) memory with gaps of as many NaNs between its heads, rows, and images; sets its strides.
static Tensor with_gaps(const Tensor& from, int64_t images, int64_t heads, int64_t n, int64_t d, int64_t gap,
                        int64_t* strides) {
  strides[1] = d + gap, strides[2] = heads * strides[1] + gap, strides[0] = n * strides[2] + gap;
  const int64_t last = (images - 1) * strides[0] + (n - 1) * strides[2] + (heads - 1) * strides[1];
  Tensor to(images * n ? last + d : 0, from.data_type);
  const int64_t bytes = from.data_type == FLOAT32 ? 4 : 2;
  for (int64_t i = 0; i < images * n * heads; i++) {
    const int64_t at = i / (n * heads) * strides[0] + i / heads % n * strides[2] + i % heads * strides[1];
    memcpy(to.memory.data() + at * bytes, from.memory.data() + i * d * bytes, d * bytes);
  }
  return to;
}

static double larger(double x, double y) { return std::isnan(x) || y <= x ? x : y; }  // NaN is the largest

static double error(const Numbers& found, const Numbers& expected) {
  double worst = 0, most = 1e-30;
  for (size_t i = 0; i < found.size(); i++) {
    worst = larger(worst, std::fabs(found[i] - expected[i]));
    most = std::max(most, std::fabs(expected[i]));
  }
  return worst / most;
}

static int32_t two_threads(int64_t begin, int64_t end, int64_t, Task task, void* context) {
  const int64_t middle = (begin + end) / 2;
  std::thread other([=] { task(begin, middle, context); });
  task(middle, end, context);
  other.join();
  return 0;
}

// Largest errors of the output and of the gradients for (B, N, H, D) memory seen as (B, H, N, D), and what a NaN in one
// row of the queries does.
static bool check(int64_t instruction_set, int64_t data_type, int64_t images, int64_t heads, int64_t n, int64_t d,
                  int64_t gap) {
  std::mt19937 generator(1);
  const int64_t size = images * n * heads * d;
  Tensor q(size, data_type), k(size, data_type), v(size, data_type), go(size, data_type);
  for (Tensor* tensor : {&q, &k, &v, &go}) tensor->fill(generator);
  Tensor l(heads * heads, FLOAT32), w(heads * heads, FLOAT32), bias(heads, FLOAT32);
  for (Tensor* tensor : {&l, &w, &bias}) tensor->fill(generator);

  const double scaling = 1 / std::sqrt(static_cast<double>(d));
  Numbers out(size), gq(size), gk(size), gv(size), gl(heads * heads), gw(heads * heads), gb(heads);
  for (int64_t b = 0; b < images; b++)
    for (int64_t r = 0; r < n; r++) {
      const auto at = [&](int64_t row, int64_t h, int64_t c) { return ((b * n + row) * heads + h) * d + c; };
      Numbers scores(heads * n), probabilities(heads * n), mixed(heads * n), grad_mixed(heads * n), grad(heads * n);
      for (int64_t h = 0; h < heads; h++)
        for (int64_t j = 0; j < n; j++)
          for (int64_t c = 0; c < d; c++) scores[h * n + j] += scaling * q.numbers[at(r, h, c)] * k.numbers[at(j, h, c)];
      for (int64_t h = 0; h < heads; h++) {
        double* const map = &probabilities[h * n];
        for (int64_t g = 0; g < heads; g++)
          for (int64_t j = 0; j < n; j++) map[j] += l.numbers[h * heads + g] * scores[g * n + j];
        const double top = *std::max_element(map, map + n);
        double total = 0;
        for (int64_t j = 0; j < n; j++) total += map[j] = std::exp(map[j] - top);
        for (int64_t j = 0; j < n; j++) map[j] /= total;
      }
      for (int64_t h = 0; h < heads; h++)
        for (int64_t j = 0; j < n; j++) {
          mixed[h * n + j] = bias.numbers[h];
          for (int64_t g = 0; g < heads; g++) mixed[h * n + j] += w.numbers[h * heads + g] * probabilities[g * n + j];
          for (int64_t c = 0; c < d; c++) {
            out[at(r, h, c)] += mixed[h * n + j] * v.numbers[at(j, h, c)];
            gv[at(j, h, c)] += mixed[h * n + j] * go.numbers[at(r, h, c)];
            grad_mixed[h * n + j] += go.numbers[at(r, h, c)] * v.numbers[at(j, h, c)];
          }
          gb[h] += grad_mixed[h * n + j];
        }
      for (int64_t g = 0; g < heads; g++) {
        double total = 0;
        for (int64_t j = 0; j < n; j++) {
          for (int64_t h = 0; h < heads; h++) {
            grad[g * n + j] += w.numbers[h * heads + g] * grad_mixed[h * n + j];
            gw[h * heads + g] += grad_mixed[h * n + j] * probabilities[g * n + j];
          }
          total += grad[g * n + j] * probabilities[g * n + j];
        }
        for (int64_t j = 0; j < n; j++) grad[g * n + j] = probabilities[g * n + j] * (grad[g * n + j] - total);
      }
      for (int64_t g = 0; g < heads; g++)
        for (int64_t j = 0; j < n; j++) {
          double of_score = 0;
          for (int64_t h = 0; h < heads; h++) {
            of_score += l.numbers[h * heads + g] * grad[h * n + j];
            gl[h * heads + g] += grad[h * n + j] * scores[g * n + j];
          }
          for (int64_t c = 0; c < d; c++) {
            gq[at(r, g, c)] += scaling * of_score * k.numbers[at(j, g, c)];
            gk[at(j, g, c)] += scaling * of_score * q.numbers[at(r, g, c)];
          }
        }
    }

  Tensor found(size, data_type), found_gq(size, data_type), found_gk(size, data_type), found_gv(size, data_type);
  Tensor found_gl(heads * heads, FLOAT32), found_gw(heads * heads, FLOAT32), found_gb(heads, FLOAT32);
  Problem p{};
  Tensor query = with_gaps(q, images, heads, n, d, gap, p.query_strides);
  const Tensor key = with_gaps(k, images, heads, n, d, gap ? gap + 2 : 0, p.key_strides);
  const Tensor value = with_gaps(v, images, heads, n, d, gap ? gap + 4 : 0, p.value_strides);
  p.query = query.memory.data(), p.key = key.memory.data(), p.value = value.memory.data();
  p.grad_output = go.memory.data();
  p.proj_l = reinterpret_cast<float*>(l.memory.data()), p.proj_w = reinterpret_cast<float*>(w.memory.data());
  p.proj_w_bias = reinterpret_cast<float*>(bias.memory.data());
  p.grad_proj_l = reinterpret_cast<float*>(found_gl.memory.data());
  p.grad_proj_w = reinterpret_cast<float*>(found_gw.memory.data());
  p.grad_proj_w_bias = reinterpret_cast<float*>(found_gb.memory.data());
  p.grad_key = found_gk.memory.data(), p.grad_value = found_gv.memory.data();
  p.parallel_for = two_threads, p.threads = 2, p.instruction_set = instruction_set, p.data_type = data_type;
  p.images = images, p.heads = heads, p.patches = n, p.head_dim = d, p.scaling = scaling;
  p.output = found.memory.data();
  if (cait_hf_attention_forward(&p) != 0) return false;
  p.output = found_gq.memory.data();
  if (cait_hf_attention_backward(&p) != 0) return false;
  for (Tensor* tensor : {&found, &found_gq, &found_gk, &found_gv, &found_gl, &found_gw, &found_gb}) tensor->read();

  const double of_output = error(found.numbers, out);
  double of_gradients = 0;
  for (double e : {error(found_gq.numbers, gq), error(found_gk.numbers, gk), error(found_gv.numbers, gv),
                   error(found_gl.numbers, gl), error(found_gw.numbers, gw), n * d > 16 ? error(found_gb.numbers, gb) : 0})
    of_gradients = larger(of_gradients, e);
  // Rounding of the results; bfloat16 rounds the mixed maps, too.
  const double allowed = data_type == FLOAT32 ? 1e-5 : data_type == BFLOAT16 ? 1.2e-2 : 1e-3;
  bool good = of_output < allowed && of_gradients < allowed;

  // All of the row that has a NaN becomes NaN, and nothing changes elsewhere.
  if (size) {
    const int64_t row = n / 2, bytes = data_type == FLOAT32 ? 4 : 2;
    memset(query.memory.data() + row * p.query_strides[2] * bytes, 0xff, bytes);
    Tensor other(size, data_type);
    p.output = other.memory.data();
    if (cait_hf_attention_forward(&p) != 0) return false;
    other.read();
    for (int64_t i = 0; i < size; i++)
      good &= i / (heads * d) == row ? std::isnan(other.numbers[i]) : other.numbers[i] == found.numbers[i];
  }
  printf("%s data type %d, (%d, %d, %d, %d), gap %d: output %.1e, gradients %.1e\n", good ? "ok  " : "FAIL",
         (int)data_type, (int)images, (int)heads, (int)n, (int)d, (int)gap, of_output, of_gradients);
  return good;
}

int main(int, char** arguments) {
  const std::string names = cait_hf_instruction_sets(), wanted = arguments[1];
  int64_t instruction_set = 0;
  size_t begin = 0;
  for (;; instruction_set++) {
    const size_t end = std::min(names.find(' ', begin), names.size());
    if (names.substr(begin, end - begin) == wanted) break;
    if (end == names.size()) return printf("%s is not among %s\n", wanted.c_str(), names.c_str()), 2;
    begin = end + 1;
  }
  const int64_t shapes[][5] = {  // B, H, N, D, and gaps where there are some
      {1, 4, 1, 48}, {2, 4, 17, 48}, {1, 4, 100, 48}, {1, 6, 50, 48}, {3, 8, 33, 48}, {1, 16, 65, 48}, {1, 1, 20, 16},
      {1, 3, 49, 64}, {2, 5, 40, 80}, {1, 7, 19, 128}, {17, 2, 9, 32}, {1, 13, 64, 96}, {1, 4, 196, 16},
      {1, 2, 577, 16}, {0, 4, 20, 48}, {2, 4, 0, 48}, {2, 4, 17, 48, 1}, {3, 8, 33, 48, 1}, {2, 5, 40, 80, 1}};
  bool good = true;
  for (int64_t data_type : {FLOAT32, BFLOAT16, FLOAT16})
    for (const auto& s : shapes) good &= check(instruction_set, data_type, s[0], s[1], s[2], s[3], s[4]);
  return good ? 0 : 1;
}
