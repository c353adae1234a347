// How far a matrix product is from its definition.
#pragma once

#include <cmath>
#include <limits>
#include <random>
#include <vector>

namespace tileattn {

inline std::vector<float> random_floats(std::size_t count, unsigned seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(count);
  for (float& value : values) value = normal(generator);
  return values;
}

struct ProductShape {
  int rows, columns, depth;
  bool transposed;
  float keep;
};

/// Runs multiply(c, stride), which is to make C = keep * C + A B, with a(row, k) and b(k, column).
/// Returns the largest error over all elements, in units of epsilon times the sum of magnitudes;
/// NaN where an element outside C was written.
template <class Multiply, class A, class B>
double product_error(const ProductShape& s, Multiply multiply, A a, B b) {
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  const int stride = s.columns + 3;
  const auto before = random_floats((s.rows + 1) * stride, 3);
  auto c = before;
  if (s.keep == 0)  // then C is only written, and may hold anything
    for (int r = 0; r < s.rows; ++r)
      for (int n = 0; n < s.columns; ++n) c[r * stride + n] = kNan;
  multiply(c.data(), stride);
  double worst = 0;
  for (int r = 0; r <= s.rows; ++r)
    for (int n = 0; n < stride; ++n) {
      const double got = c[r * stride + n], old = before[r * stride + n];
      if (r == s.rows || n >= s.columns) {
        if (got != old) return kNan;
        continue;
      }
      double sum = s.keep * old, magnitude = std::abs(sum) + 1e-30;
      for (int k = 0; k < s.depth; ++k) {
        const double term = double{a(r, k)} * b(k, n);
        sum += term;
        magnitude += std::abs(term);
      }
      const double error = std::abs(got - sum) / (magnitude * 6e-8);
      if (!(error <= worst)) worst = error;
    }
  return worst;
}

}  // namespace tileattn
