// Normaliser: rows of base-2 scores become weights, tile by tile (online softmax).
#pragma once

#include "cpu/plan.h"
#include "cpu/vec.h"

namespace tileattn::cpu::TILEATTN_ISA {

/// The running maximum and sum of each row of a query tile.
class OnlineSoftmax {
 public:
  /// A sink is a logit that joins the sum of every row.
  explicit OnlineSoftmax(float sink = -kInfinity) {
    bool has_sink = sink != -kInfinity;
    for (int r = 0; r < kTile.queries; ++r) {
      max_[r] = sink * kLog2E;
      store(sum_[r], Vec{});
      sum_[r][0] = has_sink ? 1.0f : 0.0f;
    }
  }

  /// Turns s[0, count) into weights relative to the maximum so far. Returns what the
  /// row's earlier weights must be multiplied with. count is a multiple of kPanel.
  float absorb(int row, float* s, int count) {
    Vec top[4];
    for (int v = 0; v < 4; ++v) top[v] = load(s + v * kWidth);
    for (int j = 4 * kWidth; j < count; j += 4 * kWidth)
      for (int v = 0; v < 4; ++v) top[v] = max(top[v], load(s + j + v * kWidth));
    float tile_max = max_lanes(max(max(top[0], top[1]), max(top[2], top[3])));
    float new_max = tile_max > max_[row] ? tile_max : max_[row];
    float base = new_max == -kInfinity ? 0.0f : new_max;  // nothing visible yet: -inf - -inf
    float rescale = new_max == max_[row] ? 1.0f : exp2(broadcast(max_[row] - base))[0];
    Vec sum = load(sum_[row]) * rescale;
    for (int j = 0; j < count; j += kWidth) {
      Vec weight = exp2(load(s + j) - base);
      store(s + j, weight);
      sum += weight;
    }
    store(sum_[row], sum);
    max_[row] = new_max;
    return rescale;
  }

  /// 1 / sum, or 0 for a row that saw no key.
  float inverse_sum(int row) const {
    float sum = sum_lanes(load(sum_[row]));
    return sum == 0 ? 0.0f : 1.0f / sum;
  }

  /// Natural log of the row's sum; -inf for a row that saw no key.
  float lse(int row) const {
    float sum = sum_lanes(load(sum_[row]));
    return sum == 0 ? -kInfinity : max_[row] * kLn2 + __builtin_logf(sum);
  }

 private:
  float max_[kTile.queries];
  alignas(kVecBytes) float sum_[kTile.queries][kWidth];
};

}  // namespace tileattn::cpu::TILEATTN_ISA
