// The state of a block, [kDim, kValues] in fp32: it stays in registers as accumulators, and its
// copy of the element type in shared memory is what queries are multiplied with.
#pragma once

#include "config.cuh"
#include "linear/range.cuh"

namespace tileattn::cuda {

/// Where the r-th row and the c-th column of a thread's values lie in the products of
/// LinearConfig::Mma (see by_rows).
CUTE_DEVICE int row_of(int r, int thread = threadIdx.x) {
  return thread / 32 * 16 + thread % 32 / 4 + r % 2 * 8 + r / 2 * kChunk;
}
CUTE_DEVICE int column_of(int c, int thread = threadIdx.x) {
  return thread % 4 * 2 + c % 2 + c / 2 * 8;
}

/// A state of one (sequence, head) in memory, seen as [key channels, value channels].
struct StatePart {
  float* s;  // null: zero
  float* z;
  int rows, columns;  // that exist
  std::int64_t row_stride, column_stride;

  CUTE_DEVICE bool has(int row, int column) const { return row < rows && column < columns; }
  CUTE_DEVICE float* at(int row, int column) const {
    return s + row * row_stride + column * column_stride;
  }
};

/// The state number `index`, from a value column on.
CUTE_DEVICE StatePart state_part(const LinearShape& shape, float* s, float* z, std::int64_t index,
                                 bool transposed, int column) {
  int rows = transposed ? shape.dim_v : shape.dim, columns = transposed ? shape.dim : shape.dim_v;
  StatePart part{nullptr,
                 nullptr,
                 rows,
                 columns - column,
                 transposed ? 1 : shape.dim_v,
                 transposed ? shape.dim_v : 1};
  if (s) part.s = s + index * shape.dim * shape.dim_v + column * part.column_stride;
  if (z) part.z = z + index * shape.dim + (transposed ? column : 0);
  return part;
}

/// A number as one of Element, or what that leaves of it.
enum class Term { kFirst, kSecond };

template <class Element>
CUTE_DEVICE float term_of(float x, Term term) {
  return term == Term::kFirst ? x : x - float(Element(x));
}

template <class Config>
struct State {
  using Element = typename Config::Element;
  using Mma = typename Config::Mma;
  static constexpr int kRows = Config::kDim / kChunk * 2;
  static constexpr int kColumns = kValues / 4;

  using Sum = decltype(partition_fragment_C(Mma{}, Shape<Int<Config::kDim>, Int<kValues>>{}));
  using Column = decltype(make_tensor<float>(
      Shape<Shape<_2, _2>, Int<Config::kDim / kChunk>, _1>{}));  // of an 8-column tile
  Sum s;
  Column z;  // of Extra::kValues: the same in all eight columns

  CUTE_DEVICE void load(const StatePart& from, bool with_z) {
    for_each([&](float& value, int row, int column) {
      value = from.s && from.has(row, column) ? *from.at(row, column) : 0.0f;
    });
    auto z_rows = by_rows(z);
    CUTE_UNROLL
    for (int r = 0; r < kRows; ++r) {
      float value = with_z && from.z && row_of(r) < from.rows ? from.z[row_of(r)] : 0.0f;
      z_rows(r, 0) = z_rows(r, 1) = value;
    }
  }

  CUTE_DEVICE void store(const StatePart& to, bool with_z) {
    for_each([&](float value, int row, int column) {
      if (to.has(row, column)) *to.at(row, column) = value;
    });
    if (!with_z || threadIdx.x % 4 != 0) return;
    CUTE_UNROLL
    for (int r = 0; r < kRows; ++r)
      if (row_of(r) < to.rows) to.z[row_of(r)] = by_rows(z)(r, 0);
  }

  /// The thread's share of <s, other>.
  CUTE_DEVICE float product(const StatePart& other) {
    float sum = 0.0f;
    for_each([&](float value, int row, int column) {
      if (other.has(row, column)) sum += value * *other.at(row, column);
    });
    return sum;
  }

  CUTE_DEVICE void scale(float factor) {
    CUTE_UNROLL
    for (int n = 0; n < size(s); ++n) s(n) *= factor;
  }

  CUTE_DEVICE void scale(float factor, float factor_of_z) {
    scale(factor);
    CUTE_UNROLL
    for (int n = 0; n < size(z); ++n) z(n) *= factor_of_z;
  }

  /// The largest of the warp's values in size.
  CUTE_DEVICE float peak() const {
    float found = 0.0f;
    CUTE_UNROLL
    for (int n = 0; n < size(s); ++n) found = fmaxf(found, fabsf(s(n)));
    return peak_of_warp(found);
  }

  /// The state to shared memory, rounded.
  CUTE_DEVICE void share(Element* to, Term term) const {
    Tensor values = make_fragment_like(s);
    CUTE_UNROLL
    for (int n = 0; n < size(s); ++n) values(n) = term_of<Element>(s(n), term);
    round_to_shared<Element>(Mma{}, values, to, typename Config::StateSmem::Plain{});
  }

  /// z to [kDim] in shared memory.
  CUTE_DEVICE void share_z(float* to) const {
    CUTE_UNROLL
    for (int r = 0; r < kRows; ++r)
      if (threadIdx.x % 4 == 0) to[row_of(r)] = by_rows(z)(r, 0);
  }

 private:
  /// visit(value, row, column) for this thread's values of s, a row after the other: the addresses
  /// of all at once would spill.
  template <class Visit>
  CUTE_DEVICE void for_each(Visit&& visit) {
    auto rows = by_rows(s);
    CUTE_UNROLL
    for (int r = 0; r < kRows; ++r) {
      int thread = fresh_thread_index();
      CUTE_UNROLL
      for (int c = 0; c < kColumns; ++c) visit(rows(r, c), row_of(r, thread), column_of(c, thread));
    }
  }
};

/// The A operand (channels x tokens) that a chunk adds to the state: keys, times their weights.
/// `tile`: of 16 tokens.
template <class Config, class Operand>
CUTE_DEVICE void weigh_keys(Operand&& keys, const float* weights, int tile, Term term) {
  using Element = typename Config::Element;
  const float* first = weights + tile * 16 + threadIdx.x % 4 * 2;
  CUTE_UNROLL
  for (int n = 0; n < size(keys); n += 2) {  // pairs: (row, row + 8) x (token, token + 8)
    auto* pair = reinterpret_cast<cutlass::Array<Element, 2>*>(&keys(n));
    const float* weight = first + n % 8 / 4 * 8;
    auto wide = cutlass::NumericArrayConverter<float, Element, 2>{}(*pair);
    wide[0] = term_of<Element>(wide[0] * weight[0], term);
    wide[1] = term_of<Element>(wide[1] * weight[1], term);
    *pair = cutlass::NumericArrayConverter<Element, float, 2>{}(wide);
  }
}

}  // namespace tileattn::cuda
