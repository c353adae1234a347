// Normaliser: rows of scores become weights, tile by tile (online softmax).
#pragma once

#include "cpu/common/micro_kernel.h"

namespace tileattn::cpu::TILEATTN_ISA {

/// A number for each row of a group.
struct RowFactors {
  float row[round_up(kGroup, kWidth)];
};

/// A number as the sum of its rounded value and the rest.
struct TwoFloats {
  float high, low;
};

/// The running maximum and sum of each row of a query tile.
class OnlineSoftmax {
 public:
  /// Rows begin one by one, or all alike.
  OnlineSoftmax() = default;
  OnlineSoftmax(int rows, float sink) {
    for (int r = 0; r < rows; ++r) begin(r, sink);
  }

  /// A sink is a logit that joins the row's sum; -inf for none.
  void begin(int row, float sink) {
    max_[row] = sink;
    store(sum_[row], Vec{});
    sum_[row][0] = sink != -kInfinity ? 1.0f : 0.0f;
  }

  /// Turns the rows' s[0, count) into weights relative to their maxima so far; s begins with
  /// the first of them. Returns what their earlier weights must be multiplied with. count is a
  /// multiple of kColumnGranule.
  RowFactors absorb(Range rows, RowMajor s, int count) {
    RowFactors base{}, rescale{};
    // A maximum is known long after the last score was read: those of all rows come first.
    for (int r = 0; r < rows.size(); ++r) {
      float& top = max_[rows.begin + r];
      const float before = top, found = max_of(part(s, r).data, count);
      top = found > before ? found : before;
      base.row[r] = top == -kInfinity ? 0.0f : top;  // nothing visible yet: -inf - -inf
      rescale.row[r] = before - base.row[r];
    }
    for (int r = 0; r < rows.size(); r += kWidth)
      store(rescale.row + r, exp(load(rescale.row + r)));
    for (int r = 0; r < rows.size(); ++r) {
      float* sum = sum_[rows.begin + r];
      const Vec earlier = load(sum) * rescale.row[r];
      store(sum, weigh(part(s, r).data, count, broadcast(base.row[r]), earlier));
    }
    return rescale;
  }

  /// 1 / sum, or 0 for a row that saw no key.
  float inverse_sum(int row) const {
    float sum = sum_lanes(load(sum_[row]));
    return sum == 0 ? 0.0f : 1.0f / sum;
  }

  /// Natural log of the row's sum; -inf for a row that saw no key.
  TwoFloats lse(int row) const {
    float sum = sum_lanes(load(sum_[row]));
    if (sum == 0) return {-kInfinity, 0.0f};
    float log_sum = __builtin_logf(sum), lse = max_[row] + log_sum;
    return {lse, (max_[row] - lse) + log_sum};
  }

 private:
  static float max_of(const float* s, int count) {
    constexpr int kStep = 4 * kWidth;  // as many independent maxima
    const int whole = count / kStep * kStep;
    Vec top[4] = {load(s), load(s), load(s), load(s)};
    for (int j = 0; j < whole; j += kStep)
      for (int v = 0; v < 4; ++v) top[v] = max(top[v], load(s + j + v * kWidth));
    for (int j = whole; j < count; j += kWidth) top[0] = max(top[0], load(s + j));
    return max_lanes(max(max(top[0], top[1]), max(top[2], top[3])));
  }

  /// s[0, count) become weights relative to `base`. Returns `sum` and theirs.
  static Vec weigh(float* s, int count, Vec base, Vec sum) {
    for (int j = 0; j < count; j += kWidth) {
      const Vec weight = exp(load(s + j) - base);
      store(s + j, weight);
      sum += weight;
    }
    return sum;
  }

  float max_[kTile.queries];
  alignas(kVecBytes) float sum_[kTile.queries][kWidth];
};

}  // namespace tileattn::cpu::TILEATTN_ISA
