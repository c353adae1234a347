// Products in float16: where sums over many tokens, products of large numbers or quotients by large
// ones are rounded, powers of two bring them to where it has all of its digits. bfloat16 has the
// range of float32.
#pragma once

#include <cutlass/half.h>

#include <cute/tensor.hpp>
#include <type_traits>

namespace tileattn::cuda {

using namespace cute;

template <class Element>
constexpr bool kNarrow = std::is_same_v<Element, cutlass::half_t>;

/// The power of two that takes `peak` into (2^(exponent - 1), 2^exponent]; a tiny peak stays below,
/// lest what is multiplied with it becomes infinite.
CUTE_DEVICE float power_to(float peak, int exponent) {
  constexpr int kBias = 127, kSmallest = -30;
  int of_peak = ((__float_as_int(peak) - 1) >> 23) - (kBias - 1);
  return __int_as_float((kBias + exponent - max(of_peak, kSmallest)) << 23);
}

/// 1, or the power of two that brings numbers up to `peak` into the range.
CUTE_DEVICE float range_factor(float peak) {
  constexpr int kLargest = 15;
  return peak >= 1.0f && peak <= 32768.0f ? 1.0f : power_to(peak, kLargest);
}

/// The same for weights of numbers that are in the range: they shall not be above 1.
CUTE_DEVICE float weight_factor(float peak) {
  constexpr float kSmall = 1.0f / 64.0f;
  return peak >= kSmall && peak <= 1.0f ? 1.0f : power_to(peak, 0);
}

/// 1 / x of a power of two.
CUTE_DEVICE float inverse_power(float x) { return __int_as_float((254 << 23) - __float_as_int(x)); }

/// The largest over the four lanes that share a row.
CUTE_DEVICE float peak_of_row(float peak) {
  peak = fmaxf(peak, __shfl_xor_sync(0xffffffff, peak, 1));
  return fmaxf(peak, __shfl_xor_sync(0xffffffff, peak, 2));
}

/// The largest of the warp's values.
CUTE_DEVICE float peak_of_warp(float peak) {
  CUTE_UNROLL
  for (int distance = 1; distance < 32; distance *= 2)
    peak = fmaxf(peak, __shfl_xor_sync(0xffffffff, peak, distance));
  return peak;
}

/// Brings a thread's two rows of scores into the range, each with the row of `out` that their
/// products with values are to be added to.
template <class Element>
class RowRange {
 public:
  template <class Scores, class Out>
  CUTE_DEVICE RowRange(Scores&& scores, Out&& out) {
    if constexpr (kNarrow<Element>) {
      CUTE_UNROLL
      for (int r = 0; r < 2; ++r) {
        float peak = 0.0f;
        CUTE_UNROLL
        for (int c = 0; c < size<1>(scores); ++c) peak = fmaxf(peak, fabsf(scores(r, c)));
        float factor = range_factor(peak_of_row(peak));
        inverse_[r] = inverse_power(factor);
        scale(scores, r, factor);
        scale(out, r, factor);
      }
    }
  }

  /// To be called when they have been added.
  template <class Out>
  CUTE_DEVICE void leave(Out&& out) const {
    if constexpr (kNarrow<Element>) {
      CUTE_UNROLL
      for (int r = 0; r < 2; ++r) scale(out, r, inverse_[r]);
    }
  }

 private:
  template <class Rows>
  CUTE_DEVICE static void scale(Rows&& rows, int r, float factor) {
    if (factor == 1.0f) return;
    CUTE_UNROLL
    for (int c = 0; c < size<1>(rows); ++c) rows(r, c) *= factor;
  }

  float inverse_[2];
};

}  // namespace tileattn::cuda
