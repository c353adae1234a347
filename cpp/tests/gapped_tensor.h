// Tensors whose surroundings are NaN, so that anything read or written beyond them shows.
#pragma once

#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "tileattn/tensor_ref.h"

namespace tileattn {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

/// A [token, head, dim] tensor with a gap of NaN after each head's elements.
struct GappedTensor {
  static constexpr int kGap = 3;
  int tokens, heads, dim;
  std::vector<float> values;

  /// Standard normal elements, or NaN without a generator.
  GappedTensor(int tokens, int heads, int dim, std::mt19937* generator = nullptr)
      : tokens(tokens), heads(heads), dim(dim), values(tokens * heads * (dim + kGap) + kGap, kNan) {
    std::normal_distribution<float> normal;
    for (int t = 0; t < tokens && generator; ++t)
      for (int h = 0; h < heads; ++h)
        for (int d = 0; d < dim; ++d) at(t, h, d) = normal(*generator);
  }
  float& at(int t, int h, int d) { return values[kGap + (t * heads + h) * (dim + kGap) + d]; }
  TensorRef ref() {
    return {values.data() + kGap, 0, std::int64_t{heads} * (dim + kGap), dim + kGap};
  }
  ConstTensorRef const_ref() {
    return {values.data() + kGap, 0, std::int64_t{heads} * (dim + kGap), dim + kGap};
  }
  bool gaps_untouched() const {
    for (std::size_t i = 0; i < values.size(); ++i)
      if (static_cast<int>(i % (dim + kGap)) < kGap && !std::isnan(values[i])) return false;
    return true;
  }
};

}  // namespace tileattn
