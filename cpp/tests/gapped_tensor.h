// Tensors whose surroundings are NaN, so that anything read or written beyond them shows.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
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
  /// The same in bfloat16, to which ref() and const_ref() then point.
  std::uint16_t* copy = nullptr;

  /// Standard normal elements, or NaN without a generator.
  GappedTensor(int tokens, int heads, int dim, std::mt19937* generator = nullptr)
      : tokens(tokens), heads(heads), dim(dim), values(tokens * heads * (dim + kGap) + kGap, kNan) {
    std::normal_distribution<float> normal;
    for (int t = 0; t < tokens && generator; ++t)
      for (int h = 0; h < heads; ++h)
        for (int d = 0; d < dim; ++d) at(t, h, d) = normal(*generator);
  }
  float& at(int t, int h, int d) { return values[kGap + (t * heads + h) * (dim + kGap) + d]; }
  TensorRef ref() { return {first(), 0, std::int64_t{heads} * (dim + kGap), dim + kGap}; }
  ConstTensorRef const_ref() {
    return {first(), 0, std::int64_t{heads} * (dim + kGap), dim + kGap};
  }
  /// Rounds the elements, towards zero.
  void round_to_bfloat16() {
    for (float& value : values) {
      std::uint32_t bits = bits_of(value) & 0xffff0000;
      std::memcpy(&value, &bits, sizeof value);
    }
  }
  /// The same in bfloat16, and back.
  std::vector<std::uint16_t> to_bfloat16() const {
    std::vector<std::uint16_t> halves;
    for (float value : values) halves.push_back(static_cast<std::uint16_t>(bits_of(value) >> 16));
    return halves;
  }
  void from_bfloat16(const std::vector<std::uint16_t>& halves) {
    for (std::size_t i = 0; i < values.size(); ++i) {
      std::uint32_t bits = std::uint32_t{halves[i]} << 16;
      std::memcpy(&values[i], &bits, sizeof bits);
    }
  }
  bool gaps_untouched() const {
    for (std::size_t i = 0; i < values.size(); ++i)
      if (static_cast<int>(i % (dim + kGap)) < kGap && !std::isnan(values[i])) return false;
    return true;
  }

 private:
  void* first() {
    return copy ? static_cast<void*>(copy + kGap) : static_cast<void*>(values.data() + kGap);
  }
  static std::uint32_t bits_of(float value) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
  }
};

}  // namespace tileattn
