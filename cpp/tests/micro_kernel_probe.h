// Lets the tests call the inner parts of the kernels of each instruction set.
#pragma once

#include <cstdint>
#include <vector>

#include "tileattn/tensor_ref.h"

namespace tileattn::cpu {

struct MicroKernelProbe {
  const char* name;
  void (*product)(int rows, int columns, int depth, const float* a, std::int64_t a_row_stride,
                  std::int64_t a_k_stride, float* b, std::int64_t b_stride, float* c,
                  std::int64_t c_stride, float keep);
  void (*exp)(float* values, int count);  // in place; count a multiple of 16
  void (*tanh)(float* values, int count);
  float (*sum)(const float* values);  // of one vector of `width` floats
  float (*max)(const float* values);
  int width;
  /// sums[i] of the lanes of each of `width` vectors
  void (*sum_each)(const float* vectors, float* sums);
  void (*load_row)(const void* from, DType dtype, float* to, int count, float factor);
  void (*store_row)(const float* from, void* to, DType dtype, int count, float factor);
  /// Of kFewTokens rows of one head of which `count` are there, as decoding reads them
  void (*few_rows_dot)(const void* rows, DType dtype, std::int64_t stride, int count, int dim,
                       const float* x, float* products);
  void (*few_rows_add)(const void* rows, DType dtype, std::int64_t stride, int count, int dim,
                       const float* factors, bool finite, float* sum);
  void (*load_transposed)(const float* from, std::int64_t stride, int rows, int dim, float* panel);
};

/// The probes that this machine can run.
std::vector<MicroKernelProbe> runnable_probes();

}  // namespace tileattn::cpu
