// Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
// Interface of the library: choice of the instruction set, division of the work among threads, memory.
//
// Needs neither Python nor PyTorch at build time: attention_native.py calls it through ctypes and passes PyTorch's own
// parallel_for. What is computed in which order depends on shapes alone, so that results are equal to the bit for any
// number of threads.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <sys/mman.h>
#include "attention.h"
#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#define EXPORTED extern "C" __attribute__((visibility("default")))

namespace {

// ----------------------------------------------------------------------------------------------------- instruction sets

struct InstructionSet {
  const char* name;
  bool (*kernel)(const Problem&, Kernel*);
  bool (*is_available)();
};

#if defined(__x86_64__)
bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}

bool has_avx512_bf16() { return has_avx512() && __builtin_cpu_supports("avx512bf16"); }

// F16C, whose name Clang before 19 does not know.
bool has_float16_conversion() {
  unsigned a, b, c, d;
  return __get_cpuid(1, &a, &b, &c, &d) && (c & 1u << 29);
}

// Linux gives the tiles' registers to a process that asks for them. To be asked once: in a virtual machine the
// instruction that describes the processor takes microseconds.
bool has_amx() {
#if defined(__linux__) && !defined(WITHOUT_AMX)
  constexpr unsigned BF16 = 1u << 22, TILE = 1u << 24;
  constexpr long REQUEST_PERMISSION = 0x1023, TILE_DATA = 18;  // of arch_prctl
  unsigned a, b, c, d;
  return has_avx512_bf16() && __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & BF16) && (d & TILE) &&
         syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
#else
  return false;
#endif
}
#endif

// The best first.
const InstructionSet INSTRUCTION_SETS[] = {
#if defined(__x86_64__)
#if !defined(WITHOUT_AMX)
    {"amx", amx::kernel, [] { static const bool has = has_amx(); return has; }},
#endif
    {"avx512_bf16", avx512_bf16::kernel, has_avx512_bf16},
    {"avx512", avx512::kernel, has_avx512},
    {"avx2", avx2::kernel,
     [] { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_float16_conversion(); }},
#elif defined(__aarch64__)
    {"neon", neon::kernel, [] { return true; }},
#endif
};
constexpr int NUMBER_OF_SETS = sizeof(INSTRUCTION_SETS) / sizeof(INSTRUCTION_SETS[0]);

// The kernel of the wanted instruction set, or of the next one that has the data type.
bool find_kernel(const Problem& p, Kernel* kernel) {
  for (int i = static_cast<int>(p.instruction_set); i < NUMBER_OF_SETS; i++)
    if (INSTRUCTION_SETS[i].is_available() && INSTRUCTION_SETS[i].kernel(p, kernel)) return true;
  return false;
}

// --------------------------------------------------------------------------------------------------------------- memory

constexpr size_t KEPT = 32 << 20;  // bytes; more is returned after the call

// Working memory of a thread, kept for its next call. Mapped, not allocated: what stays for so long would keep the heap
// of PyTorch's tensors from shrinking.
struct Memory {
  float* numbers = nullptr;
  size_t bytes = 0;
  float* at_least(int64_t floats) {  // nullptr if there is none left
    const size_t wanted = floats * sizeof(float);
    if (wanted > bytes) {
      release();
      void* const mapped = mmap(nullptr, wanted, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      if (mapped == MAP_FAILED) return nullptr;
      numbers = static_cast<float*>(mapped);
      bytes = wanted;
    }
    return numbers;
  }
  void release() {
    if (numbers) munmap(numbers, bytes);
    numbers = nullptr;
    bytes = 0;
  }
  ~Memory() { release(); }
};

thread_local Memory own_memory;     // what a thread packs and works in
thread_local Memory shared_memory;  // of the calling thread; what its helpers read and add to

// Releases what is larger than KEPT at the end of a scope.
struct Lease {
  Memory& memory;
  ~Lease() { if (memory.bytes > KEPT) memory.release(); }
};

// -------------------------------------------------------------------------------------------------------------- division

int64_t rounded_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// For blocks of equal size of at most so many rows. Packed keys and values are read once a block: where they do not fit
// the second-level cache, small blocks cost more than maps that do not fit it either.
Sizes sizes_of(const Problem& p, const Kernel& kernel, int64_t most) {
  Sizes s;
  s.lanes = kernel.lanes;
  s.padded = rounded_up(p.patches, kernel.lanes);
  const int64_t blocks = (p.patches + most - 1) / most;
  s.block_rows = rounded_up((p.patches + blocks - 1) / blocks, 4);
  s.blocks = (p.patches + s.block_rows - 1) / s.block_rows;
  s.packed = rounded_up(p.heads * p.head_dim * s.padded, 16);
  const int64_t maps = s.block_rows * p.heads * s.padded;
  const int64_t rows = s.block_rows * p.heads * (COLUMNS * kernel.lanes + 2 * p.head_dim);
  s.forward = rounded_up(maps + p.heads * s.padded + rows, 16);
  s.backward = rounded_up(4 * maps + rows, 16);
  return s;
}

int64_t rows_of(const Problem& p, const Sizes& s, int64_t block) {
  return std::min(s.block_rows, p.patches - block * s.block_rows);
}

Projections projections_of(const Problem& p) {
  Projections w;
  for (int64_t h = 0; h < p.heads; h++)
    for (int64_t g = 0; g < p.heads; g++) {
      const float l = p.proj_l[h * p.heads + g] * static_cast<float>(p.scaling), mix = p.proj_w[h * p.heads + g];
      w.l_from_to[g * p.heads + h] = w.l_to_from[h * p.heads + g] = l;
      w.w_from_to[g * p.heads + h] = w.w_to_from[h * p.heads + g] = mix;
    }
  std::copy(p.proj_w_bias, p.proj_w_bias + p.heads, w.w_bias);
  return w;
}

// Calls work(i) for every i in [0, n), on the threads of PyTorch; false if they did not run.
template <class Work>
bool for_each(const Problem& p, int64_t n, const Work& work) {
  const Task task = [](int64_t begin, int64_t end, void* context) {
    for (int64_t i = begin; i < end; i++) (*static_cast<const Work*>(context))(i);
  };
  void* const context = const_cast<Work*>(&work);
  const bool is_small = p.images * p.heads * p.patches * p.patches * p.head_dim < (1 << 19);
  if (p.threads > 1 && n > 1 && !is_small && p.parallel_for) return p.parallel_for(0, n, 1, task, context) == 0;
  task(0, n, context);
  return true;
}

enum Result { DONE = 0, UNSUPPORTED = 1, NO_MEMORY = 2, NOT_RUN = 3 };

bool is_supported(const Problem& p) {
  return p.heads >= 1 && p.heads <= MOST_HEADS && p.head_dim >= 16 && p.head_dim <= MOST_HEAD_DIM &&
         p.head_dim % 16 == 0 && p.instruction_set >= 0;
}

}  // namespace

// --------------------------------------------------------------------------------------------------------------- interface

// Changes with `Problem` and with these functions; attention_native.py refuses a library of another version.
EXPORTED int cait_hf_interface_version() { return 1; }

// Names of those that this CPU has, the best first, separated by spaces; "-" in place of one that it lacks.
EXPORTED const char* cait_hf_instruction_sets() {
  static char names[128] = "";
  static const bool done = [] {
#if defined(__x86_64__)
    __builtin_cpu_init();
#endif
    for (const InstructionSet& set : INSTRUCTION_SETS) {
      if (*names) strcat(names, " ");
      strcat(names, set.is_available() ? set.name : "-");
    }
    return true;
  }();
  (void)done;
  return names;
}

EXPORTED int cait_hf_attention_forward(const Problem* problem) {
  const Problem& p = *problem;
  Kernel kernel;
  if (!is_supported(p) || !find_kernel(p, &kernel)) return UNSUPPORTED;
  if (p.images == 0 || p.patches == 0) return DONE;
  const Sizes s = sizes_of(p, kernel, kernel.forward_rows);
  const Projections w = projections_of(p);
  std::atomic<int> result{DONE};

  // Each thread takes whole images as long as there is one for every thread ...
  const int64_t whole = p.threads == 1 ? p.images : p.images / p.threads * p.threads;
  if (whole) {
    const bool ran = for_each(p, whole, [&](int64_t image) {
      const Lease lease{own_memory};
      float* const keys = own_memory.at_least(2 * s.packed + s.forward);
      if (!keys) { result = NO_MEMORY; return; }
      float *const values = keys + s.packed, *const work = values + s.packed;
      for (int64_t h = 0; h < p.heads; h++) kernel.forward_pack(p, s, image, h, keys, values);
      for (int64_t i = 0; i < s.blocks; i++)
        kernel.forward_block(p, w, s, image, i * s.block_rows, rows_of(p, s, i), keys, values, work);
    });
    if (!ran) return NOT_RUN;
  }

  // ... and blocks of the remaining images, which are packed first, a head at a time.
  if (const int64_t rest = p.images - whole) {
    const Lease lease{shared_memory};
    float* const packed = shared_memory.at_least(rest * 2 * s.packed);
    if (!packed) return NO_MEMORY;
    const bool were_packed = for_each(p, rest * p.heads, [&](int64_t i) {
      float* const keys = packed + i / p.heads * 2 * s.packed;
      kernel.forward_pack(p, s, whole + i / p.heads, i % p.heads, keys, keys + s.packed);
    });
    const bool ran = were_packed && for_each(p, rest * s.blocks, [&](int64_t i) {
      const Lease lease{own_memory};
      float* const work = own_memory.at_least(s.forward);
      if (!work) { result = NO_MEMORY; return; }
      const int64_t image = i / s.blocks, block = i % s.blocks;
      const float* const keys = packed + image * 2 * s.packed;
      kernel.forward_block(p, w, s, whole + image, block * s.block_rows, rows_of(p, s, block), keys, keys + s.packed,
                           work);
    });
    if (!ran) return NOT_RUN;
  }
  return result;
}

EXPORTED int cait_hf_attention_backward(const Problem* problem) {
  const Problem& p = *problem;
  Kernel kernel;
  if (!is_supported(p) || !find_kernel(p, &kernel)) return UNSUPPORTED;
  const int64_t heads = p.heads, d = p.head_dim, n = p.patches, squared = heads * heads;
  std::fill_n(p.grad_proj_l, squared, 0.f);
  std::fill_n(p.grad_proj_w, squared, 0.f);
  std::fill_n(p.grad_proj_w_bias, heads, 0.f);
  if (p.images == 0 || n == 0) return DONE;
  const Sizes s = sizes_of(p, kernel, 32);
  const Projections w = projections_of(p);
  const int64_t lanes = kernel.lanes, numbers = n * heads * d;  // of one gradient of an image
  std::atomic<int> result{DONE};

  // An image is one task or, where there are few, several parts of about equal numbers of blocks, whose gradients of
  // keys and values are added afterwards: up to 16 tasks, of up to 32 MB. In float32 a single part adds to the result.
  const int64_t most_parts = std::max<int64_t>(1, (int64_t{8} << 20) / (p.images * 2 * numbers));
  const int64_t parts = std::min({std::max<int64_t>(1, 16 / p.images), s.blocks, most_parts});
  const int64_t tasks = p.images * parts;
  const bool in_place = parts == 1 && p.data_type == FLOAT32;
  const int64_t projections = 2 * squared + heads;  // of proj_l, proj_w and the bias of proj_w
  const Lease shared{shared_memory};
  float* const of_projections = shared_memory.at_least(tasks * projections + (parts > 1 ? tasks * 2 * numbers : 0));
  if (!of_projections) return NO_MEMORY;
  float* const of_parts = of_projections + tasks * projections;

  bool ran = for_each(p, tasks, [&](int64_t task) {
    const Lease lease{own_memory};
    const int64_t image = task / parts, part = task % parts;
    const int64_t in_lanes = 2 * squared * lanes, row_numbers = s.block_rows * heads * d;
    const int64_t gradients = parts == 1 && !in_place ? 2 * numbers : 0;
    float* const keys_t =
        own_memory.at_least(3 * s.packed + s.backward + in_lanes + row_numbers + heads * d + gradients);
    if (!keys_t) { result = NO_MEMORY; return; }
    float *const values_t = keys_t + s.packed, *const keys = values_t + s.packed, *const work = keys + s.packed;
    float *const grad_lanes = work + s.backward, *const grad_rows = grad_lanes + in_lanes;
    float *const value_sum = grad_rows + row_numbers, *const own_gradients = value_sum + heads * d;
    const int64_t offset = image * numbers;
    float* grad_key = in_place ? static_cast<float*>(p.grad_key) + offset
                      : parts > 1 ? of_parts + task * 2 * numbers : own_gradients;
    float* grad_value = in_place ? static_cast<float*>(p.grad_value) + offset : grad_key + numbers;
    std::fill_n(grad_key, numbers, 0.f);
    std::fill_n(grad_value, numbers, 0.f);
    std::fill_n(grad_lanes, in_lanes, 0.f);
    for (int64_t h = 0; h < heads; h++) kernel.backward_pack(p, s, image, h, keys_t, values_t, keys);

    // The bias of proj_w adds bias[h] * sum over n of value[n][h] to every row: its gradient is that of all rows.
    float* const grad_output_sum = work;  // free until the first block
    std::fill_n(value_sum, heads * d, 0.f);
    float number[MOST_HEAD_DIM];
    for (int64_t h = 0; h < heads; h++)
      for (int64_t i = 0; i < n; i++) {
        const int64_t from = image * p.value_strides[0] + h * p.value_strides[1] + i * p.value_strides[2];
        kernel.load(p.data_type, p.value, from, d, number);
        for (int64_t c = 0; c < d; c++) value_sum[h * d + c] += number[c];
      }
    const int64_t first = part * s.blocks / parts, end = (part + 1) * s.blocks / parts;
    float* const of_bias = of_projections + task * projections + 2 * squared;
    for (int64_t h = 0; h < heads; h++) {
      std::fill_n(grad_output_sum, d, 0.f);
      for (int64_t i = first * s.block_rows; i < std::min(n, end * s.block_rows); i++) {
        kernel.load(p.data_type, p.grad_output, offset + (i * heads + h) * d, d, number);
        for (int64_t c = 0; c < d; c++) grad_output_sum[c] += number[c];
      }
      of_bias[h] = 0;
      for (int64_t c = 0; c < d; c++) of_bias[h] += grad_output_sum[c] * value_sum[h * d + c];
    }

    for (int64_t i = first; i < end; i++) {
      const int64_t row = i * s.block_rows, rows = rows_of(p, s, i), at = offset + row * heads * d;
      float* const grad_query = p.data_type == FLOAT32 ? static_cast<float*>(p.output) + at : grad_rows;
      kernel.backward_block(p, w, s, image, row, rows, keys_t, values_t, keys, grad_query, grad_key, grad_value,
                            grad_lanes, work);
      if (p.data_type != FLOAT32) kernel.store(p.data_type, grad_rows, rows * heads * d, p.output, at);
    }
    for (int64_t i = 0; i < 2 * squared; i++) {
      float total = 0;
      for (int64_t lane = 0; lane < lanes; lane++) total += grad_lanes[i * lanes + lane];
      of_projections[task * projections + i] = total;
    }
    if (gradients) {
      kernel.store(p.data_type, grad_key, numbers, p.grad_key, offset);
      kernel.store(p.data_type, grad_value, numbers, p.grad_value, offset);
    }
  });
  if (!ran || result != DONE) return ran ? result.load() : NOT_RUN;

  if (parts > 1)
    ran = for_each(p, 2 * p.images, [&](int64_t i) {
      float* const total = of_parts + (i / 2 * parts * 2 + i % 2) * numbers;
      for (int64_t part = 1; part < parts; part++)
        for (int64_t j = 0; j < numbers; j++) total[j] += total[part * 2 * numbers + j];
      kernel.store(p.data_type, total, numbers, i % 2 ? p.grad_value : p.grad_key, i / 2 * numbers);
    });
  for (int64_t i = 0; i < projections; i++) {
    double total = 0;
    for (int64_t task = 0; task < tasks; task++) total += of_projections[task * projections + i];
    if (i < squared) p.grad_proj_l[i] = static_cast<float>(total * p.scaling);
    else if (i < 2 * squared) p.grad_proj_w[i - squared] = static_cast<float>(total);
    else p.grad_proj_w_bias[i - 2 * squared] = static_cast<float>(total);
  }
  return ran ? DONE : NOT_RUN;
}
