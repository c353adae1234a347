// Compiled once for each instruction set, as cpu/softmax/kernels.cpp is.
#include "tests/micro_kernel_probe.h"
#include "cpu/softmax/decode.h"

namespace tileattn::cpu::TILEATTN_ISA {

extern const MicroKernelProbe kProbe;
const MicroKernelProbe kProbe = {
    TILEATTN_STRING(TILEATTN_ISA),
    [](int rows, int columns, int depth, const float* a, std::int64_t a_row_stride,
       std::int64_t a_k_stride, float* b, std::int64_t b_stride, float* c, std::int64_t c_stride,
       float keep) {
      product(rows, columns, depth, {a, a_row_stride, a_k_stride}, {b, b_stride}, {c, c_stride},
              keep);
    },
    [](float* values, int count) {
      for (int i = 0; i < count; i += kWidth) store(values + i, exp(load(values + i)));
    },
    [](float* values, int count) {
      for (int i = 0; i < count; i += kWidth) store(values + i, tanh(load(values + i)));
    },
    [](const float* values) { return sum_lanes(load(values)); },
    [](const float* values) { return max_lanes(load(values)); },
    kWidth,
    [](const float* vectors, float* sums) {
      Vec rows[kWidth];
      for (int i = 0; i < kWidth; ++i) rows[i] = load(vectors + i * kWidth);
      store(sums, sum_each(rows));
    },
    load_row,
    store_row,
    [](const void* rows, DType dtype, std::int64_t stride, int count, int dim, const float* x,
       float* products) {
      alignas(kVecBytes) float strip[(kFewTokens + 1) * kMaxDim];
      FewRows(RowsInARow<const char>{bytes(rows), stride, dtype}, 0, count, dim, strip)
          .dot(x, dim, products);
    },
    [](const void* rows, DType dtype, std::int64_t stride, int count, int dim, const float* factors,
       bool finite, float* sum) {
      alignas(kVecBytes) float strip[(kFewTokens + 1) * kMaxDim];
      FewRows(RowsInARow<const char>{bytes(rows), stride, dtype}, 0, count, dim, strip)
          .add_to(sum, dim, factors, finite);
    },
    [](const float* from, std::int64_t stride, int rows, int dim, float* panel) {
      load_transposed(
          RowsInARow<const char>{reinterpret_cast<const char*>(from), stride * 4, DType::kFloat32},
          rows, dim, panel);
    },
};

}  // namespace tileattn::cpu::TILEATTN_ISA
