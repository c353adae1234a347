// Lets the tests call the inner parts of the kernels that multiply pairs of bfloat16.
#pragma once

#include <cstdint>

namespace tileattn::cpu {

/// Operands as in cpu/softmax/operands.h; a pair's first number is in the lower half.
struct BFloat16Probe {
  struct A {
    const std::uint32_t* data;
    std::int64_t row_stride, k_stride;
  };
  void (*product)(int rows, int columns, int pairs, A a, const std::uint32_t* b,
                  std::int64_t b_stride, float* c, std::int64_t c_stride, float keep);
  void (*load_a)(const std::uint16_t* from, std::int64_t stride, int rows, int dim,
                 std::uint32_t* a, std::int64_t a_stride);
  void (*load_b)(const std::uint16_t* from, std::int64_t stride, int rows, int dim,
                 std::uint32_t* b, std::int64_t b_stride);
  void (*load_panel)(const std::uint16_t* from, std::int64_t stride, int rows, int dim,
                     std::uint32_t* panel);
  // Of x[rows][stride]; what they leave there, as A from (row, column) on.
  void (*pack_weights)(float* row, int begin, int end);
  void (*pack_gradients)(float* x, std::int64_t stride, int rows, int begin, int end, float* along);
  A (*by_rows)(float* x, std::int64_t stride, int row, int column);
  A (*transposed)(float* x, std::int64_t stride, int row, int column);
};

/// Null where this machine has no instruction for it.
const BFloat16Probe* runnable_bfloat16_probe();

}  // namespace tileattn::cpu
