// Compiled for the instruction set that multiplies pairs of bfloat16.
#include "tests/bfloat16_probe.h"

#include "cpu/softmax/operands_bf16.h"

namespace tileattn::cpu::TILEATTN_ISA {

namespace {

BFloat16Pair* pairs(std::uint32_t* x) { return reinterpret_cast<BFloat16Pair*>(x); }
const BFloat16Pair* pairs(const std::uint32_t* x) {
  return reinterpret_cast<const BFloat16Pair*>(x);
}
RowsInARow<const char> rows_from(const std::uint16_t* from, std::int64_t stride) {
  return {reinterpret_cast<const char*>(from), 2 * stride, DType::kBFloat16};
}
BFloat16Probe::A probed(StridedA<BFloat16Pair> a) {
  return {reinterpret_cast<const std::uint32_t*>(a.data), a.row_stride, a.k_stride};
}

}  // namespace

extern const BFloat16Probe kBFloat16Probe;
const BFloat16Probe kBFloat16Probe = {
    [](int rows, int columns, int depth, BFloat16Probe::A a, const std::uint32_t* b,
       std::int64_t b_stride, float* c, std::int64_t c_stride, float keep) {
      product<BFloat16Pair>(rows, columns, depth, {pairs(a.data), a.row_stride, a.k_stride},
                            {pairs(b), b_stride}, {c, c_stride}, keep);
    },
    [](const std::uint16_t* from, std::int64_t stride, int rows, int dim, std::uint32_t* a,
       std::int64_t a_stride) {
      BFloat16Operands::load_a(rows_from(from, stride), rows, dim, 1.0f, {pairs(a), a_stride});
    },
    [](const std::uint16_t* from, std::int64_t stride, int rows, int dim, std::uint32_t* b,
       std::int64_t b_stride) {
      BFloat16Operands::load_b(rows_from(from, stride), rows, dim, {pairs(b), b_stride});
    },
    [](const std::uint16_t* from, std::int64_t stride, int rows, int dim, std::uint32_t* panel) {
      BFloat16Operands::load_panel(rows_from(from, stride), rows, dim, pairs(panel));
    },
    [](float* row, int begin, int end) { BFloat16Operands::pack_weights(row, {begin, end}); },
    [](float* x, std::int64_t stride, int rows, int begin, int end, float* along) {
      BFloat16Operands::pack_gradients({x, stride}, {0, rows}, {begin, end}, {along, stride});
    },
    [](float* x, std::int64_t stride, int row, int column) {
      return probed(BFloat16Operands::by_rows({x, stride}, row, column));
    },
    [](float* x, std::int64_t stride, int row, int column) {
      return probed(BFloat16Operands::transposed({x, stride}, row, column));
    },
};

}  // namespace tileattn::cpu::TILEATTN_ISA
