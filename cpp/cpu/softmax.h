// Normaliser: rows of scores become weights, tile by tile (online softmax).
#pragma once

#include "cpu/plan.h"
#include "cpu/vec.h"

namespace tileattn::cpu::TILEATTN_ISA {

/// The running maximum and sum of each row of a query tile.
class OnlineSoftmax {
 public:
  /// A sink is a logit that joins the sum of every row.
  OnlineSoftmax(int rows, float sink) {
    bool has_sink = sink != -kInfinity;
    for (int r = 0; r < rows; ++r) {
      max_[r] = sink;
      store(sum_[r], Vec{});
      sum_[r][0] = has_sink ? 1.0f : 0.0f;
    }
  }

  /// Turns s[0, count) into weights relative to the maximum so far. Returns what the
  /// row's earlier weights must be multiplied with. count is a multiple of
  /// kColumnGranule.
  float absorb(int row, float* s, int count) {
    constexpr int kStep = 4 * kWidth;  // as many independent maxima
    int whole = count / kStep * kStep;
    Vec top[4] = {load(s), load(s), load(s), load(s)};
    for (int j = 0; j < whole; j += kStep)
      for (int v = 0; v < 4; ++v) top[v] = max(top[v], load(s + j + v * kWidth));
    for (int j = whole; j < count; j += kWidth) top[0] = max(top[0], load(s + j));
    float tile_max = max_lanes(max(max(top[0], top[1]), max(top[2], top[3])));
    float new_max = tile_max > max_[row] ? tile_max : max_[row];
    float base = new_max == -kInfinity ? 0.0f : new_max;  // nothing visible yet: -inf - -inf
    float rescale = new_max == max_[row]      ? 1.0f
                    : max_[row] == -kInfinity ? 0.0f
                                              : exp(broadcast(max_[row] - base))[0];
    Vec sum = load(sum_[row]) * rescale;
    for (int j = 0; j < count; j += kWidth) {
      Vec weight = exp(load(s + j) - base);
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
    return sum == 0 ? -kInfinity : max_[row] + __builtin_logf(sum);
  }

 private:
  float max_[kTile.queries];
  alignas(kVecBytes) float sum_[kTile.queries][kWidth];
};

}  // namespace tileattn::cpu::TILEATTN_ISA
