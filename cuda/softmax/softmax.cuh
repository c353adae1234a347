// Normaliser: rows of logits become weights, tile by tile (online softmax).
#pragma once

#include "common/tile.cuh"
#include "row_sum.cuh"

namespace tileattn::cuda {

/// One factor for each of a thread's rows.
template <int kRows>
using RowFactors = cute::array<float, kRows>;

/// The running maximum and sum of this thread's rows; four neighbouring lanes
/// share a row and hold each a part of the sum.
template <int kRows>
class OnlineSoftmax {
 public:
  /// A sink is a natural logit that joins the sum of every row; -inf: none. `natural`: what the
  /// scores are, in the units of row_sum.cuh.
  CUTE_DEVICE OnlineSoftmax(float sink, bool natural) : natural_(natural) {
    bool counts_sink = sink != -INFINITY && threadIdx.x % 4 == 0;
    CUTE_UNROLL
    for (int r = 0; r < kRows; ++r) {
      max_[r] = natural ? sink : sink * kLog2E;
      sum_[r] = counts_sink ? 1.0f : 0.0f;
    }
  }

  /// Turns scores (times `factor` > 0, they are logits; natural ones are as they are) into weights
  /// relative to the maximum so far, and rescales what the earlier weights added up to.
  template <class Scores, class Sum>
  CUTE_DEVICE void absorb(Scores&& scores, Sum&& out, float factor) {
    CUTE_UNROLL
    for (int r = 0; r < kRows; ++r) rescale_row(out, r, weigh_row(scores, r, factor));
  }

  /// The first half of absorb, for an `out` that is still being added to.
  template <class Scores>
  CUTE_DEVICE RowFactors<kRows> weigh(Scores&& scores, float factor) {
    RowFactors<kRows> rescale;
    CUTE_UNROLL
    for (int r = 0; r < kRows; ++r) rescale[r] = weigh_row(scores, r, factor);
    return rescale;
  }

  /// The second half.
  template <class Sum>
  CUTE_DEVICE static void rescale(Sum&& out, const RowFactors<kRows>& factors) {
    CUTE_UNROLL
    for (int r = 0; r < kRows; ++r) rescale_row(out, r, factors[r]);
  }

  /// Joins the parts of the rows' sums, and divides out by them; a row that saw no key stays 0.
  template <class Sum>
  CUTE_DEVICE void finish(Sum&& out) {
    CUTE_UNROLL
    for (int r = 0; r < kRows; ++r) {
      sum_[r] += __shfl_xor_sync(0xffffffff, sum_[r], 1);
      sum_[r] += __shfl_xor_sync(0xffffffff, sum_[r], 2);
      rescale_row(out, r, sum_[r] == 0.0f ? 0.0f : 1.0f / sum_[r]);
    }
  }

  /// After finish(): the row's maximum, and the sum of its weights relative to that.
  CUTE_DEVICE float max(int r) const { return max_[r]; }
  CUTE_DEVICE float sum(int r) const { return sum_[r]; }
  CUTE_DEVICE TwoFloats lse(int r) const { return lse_of(max_[r], sum_[r], natural_); }

 private:
  /// Returns what the earlier weights must be multiplied by.
  template <class Scores>
  CUTE_DEVICE float weigh_row(Scores&& scores, int r, float factor) {
    float top = scores(r, 0);
    CUTE_UNROLL
    for (int c = 1; c < size<1>(scores); ++c) top = fmaxf(top, scores(r, c));
    top = fmaxf(top, __shfl_xor_sync(0xffffffff, top, 1));
    top = fmaxf(top, __shfl_xor_sync(0xffffffff, top, 2));
    float new_max = fmaxf(max_[r], top * factor);
    float base = new_max == -INFINITY ? 0.0f : new_max;  // nothing visible yet
    float rescale = exp_of_logit(max_[r] - base, natural_);
    max_[r] = new_max;
    float sum = sum_[r] * rescale;
    if (natural_) {
      CUTE_UNROLL
      for (int c = 0; c < size<1>(scores); ++c) scores(r, c) -= base;
      base = 0.0f;
      factor = kLog2E;
    }
    CUTE_UNROLL
    for (int c = 0; c < size<1>(scores); ++c) {
      scores(r, c) = exp2_approx(fmaf(scores(r, c), factor, -base));
      sum += scores(r, c);
    }
    sum_[r] = sum;
    return rescale;
  }

  template <class Sum>
  CUTE_DEVICE static void rescale_row(Sum&& out, int r, float factor) {
    CUTE_UNROLL
    for (int c = 0; c < size<1>(out); ++c) out(r, c) *= factor;
  }

  float max_[kRows];
  float sum_[kRows];
  bool natural_;
};

}  // namespace tileattn::cuda
