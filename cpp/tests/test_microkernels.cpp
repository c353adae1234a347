// The inner parts of the CPU kernels, for every instruction set this machine runs.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "cpu/common/instruction_set.h"
#include "cpu/softmax/plan.h"
#include "tests/micro_kernel_probe.h"
#include "tests/product_error.h"

namespace tileattn::cpu {

namespace portable {
extern const MicroKernelProbe kProbe;
}
#if defined(TILEATTN_X86_VARIANTS)
namespace avx2 {
extern const MicroKernelProbe kProbe;
}
namespace avx512 {
extern const MicroKernelProbe kProbe;
}
#endif

std::vector<MicroKernelProbe> runnable_probes() {
  std::vector<MicroKernelProbe> probes{portable::kProbe};
#if defined(TILEATTN_X86_VARIANTS)
  if (machine_has(InstructionSet::kAvx2)) probes.push_back(avx2::kProbe);
  if (machine_has(InstructionSet::kAvx512)) probes.push_back(avx512::kProbe);
#endif
  return probes;
}

namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

double product_error(const MicroKernelProbe& probe, const ProductShape& s) {
  const int b_stride = s.columns + 5;
  const auto a = random_floats(s.rows * s.depth + 1, 1);
  auto b = random_floats((s.depth + 1) * b_stride, 2);
  const int row_stride = s.transposed ? 1 : s.depth, k_stride = s.transposed ? s.rows : 1;
  return tileattn::product_error(
      s,
      [&](float* c, int stride) {
        probe.product(s.rows, s.columns, s.depth, a.data(), row_stride, k_stride, b.data(),
                      b_stride, c, stride, s.keep);
      },
      [&](int r, int k) { return a[r * row_stride + k * k_stride]; },
      [&](int k, int n) { return b[k * b_stride + n]; });
}

TEST(MicroKernels, ProductMatchesItsDefinition) {
  for (const auto& probe : runnable_probes())
    for (int rows : {1, 2, 3, 4, 5, 6, 7, 13, 64})
      for (int columns : {16, 32, 48, 64, 80, 112, 256})
        for (int depth : {0, 1, 2, 40, 129})
          for (bool transposed : {false, true})
            for (float keep : {0.0f, 1.0f, 0.5f})
              ASSERT_LE(product_error(probe, {rows, columns, depth, transposed, keep}), depth + 1)
                  << probe.name << " " << rows << "x" << columns << "x" << depth << " transposed "
                  << transposed << " keep " << keep;
}

TEST(MicroKernels, Exp) {
  for (const auto& probe : runnable_probes()) {
    std::vector<float> x;
    for (float value = -87.3f; value < 88.0f; value += 0.00371f) x.push_back(value);
    while (x.size() % 16 != 0) x.push_back(0.0f);
    auto y = x;
    probe.exp(y.data(), static_cast<int>(y.size()));
    for (std::size_t i = 0; i < x.size(); ++i) {
      double exact = std::exp(double{x[i]});
      // x * log2(e) is rounded, which shows in proportion to x.
      ASSERT_NEAR(y[i] / exact, 1.0, 1.5e-7 + 8e-8 * std::abs(x[i]))
          << probe.name << " x = " << x[i];
    }
    std::vector<float> special(16, 0.0f);
    special[0] = -kInf;
    special[1] = kNan;
    special[2] = -1e30f;
    special[3] = -88.0f;
    probe.exp(special.data(), 16);
    EXPECT_EQ(special[0], 0.0f);
    EXPECT_TRUE(std::isnan(special[1])) << probe.name;
    EXPECT_EQ(special[2], 0.0f);
    EXPECT_EQ(special[3], 0.0f);
    EXPECT_EQ(special[4], 1.0f);
  }
}

TEST(MicroKernels, Tanh) {
  for (const auto& probe : runnable_probes()) {
    std::vector<float> x{kInf, -kInf, 0.0f, 1e30f, -1e30f, 1e-20f};
    for (float value = -12.0f; value < 12.0f; value += 0.00137f) x.push_back(value);
    while (x.size() % 16 != 0) x.push_back(0.0f);
    auto y = x;
    probe.tanh(y.data(), static_cast<int>(y.size()));
    for (std::size_t i = 0; i < x.size(); ++i) {
      double exact = std::tanh(double{x[i]});
      ASSERT_NEAR(y[i], exact, 2.5e-7 * std::abs(exact)) << probe.name << " x = " << x[i];
    }
    std::vector<float> nans(16, kNan);
    probe.tanh(nans.data(), 16);
    EXPECT_TRUE(std::isnan(nans[0])) << probe.name;
  }
}

TEST(MicroKernels, LaneReductions) {
  for (const auto& probe : runnable_probes())
    for (int lane = 0; lane < probe.width; ++lane) {
      std::vector<float> values(probe.width, -2.0f);
      values[lane] = 5.0f;
      EXPECT_EQ(probe.max(values.data()), 5.0f) << probe.name << " lane " << lane;
      EXPECT_EQ(probe.sum(values.data()), 5.0f - 2.0f * (probe.width - 1)) << probe.name;
    }
}

/// The value of a 16-bit float from its definition.
double half_value(std::uint16_t bits, int fraction_bits, int bias) {
  int exponent_mask = (1 << (15 - fraction_bits)) - 1;
  int exponent = bits >> fraction_bits & exponent_mask;
  int fraction = bits & ((1 << fraction_bits) - 1);
  double sign = bits >> 15 ? -1.0 : 1.0;
  if (exponent == exponent_mask) return fraction ? kNan : sign * kInf;
  if (exponent == 0) return sign * std::ldexp(fraction, 1 - bias - fraction_bits);
  return sign * std::ldexp((1 << fraction_bits) + fraction, exponent - bias - fraction_bits);
}

struct HalfFormat {
  DType dtype;
  int fraction_bits, bias;
};
constexpr HalfFormat kFloat16Format{DType::kFloat16, 10, 15};
constexpr HalfFormat kBFloat16Format{DType::kBFloat16, 7, 127};

TEST(MicroKernels, EveryHalfIsReadExactlyAndSurvivesTheRoundTrip) {
  std::vector<std::uint16_t> all(1 << 16), back(1 << 16);
  for (std::size_t i = 0; i < all.size(); ++i) all[i] = static_cast<std::uint16_t>(i);
  std::vector<float> values(all.size());
  for (const auto& probe : runnable_probes())
    for (const HalfFormat& format : {kFloat16Format, kBFloat16Format}) {
      probe.load_row(all.data(), format.dtype, values.data(), 1 << 16, 1.0f);
      probe.store_row(values.data(), back.data(), format.dtype, 1 << 16, 1.0f);
      for (std::size_t i = 0; i < all.size(); ++i) {
        double expected = half_value(all[i], format.fraction_bits, format.bias);
        if (std::isnan(expected)) {
          ASSERT_TRUE(std::isnan(values[i])) << probe.name << " bits " << i;
          ASSERT_TRUE(std::isnan(half_value(back[i], format.fraction_bits, format.bias)));
        } else {
          ASSERT_EQ(values[i], expected) << probe.name << " bits " << i;
          ASSERT_EQ(back[i], all[i]) << probe.name;
        }
      }
    }
}

TEST(MicroKernels, HalvesRoundToNearestEven) {
  for (const auto& probe : runnable_probes())
    for (const HalfFormat& format : {kFloat16Format, kBFloat16Format}) {
      const std::uint16_t infinity = ((1 << (15 - format.fraction_bits)) - 1)
                                     << format.fraction_bits;
      for (std::uint16_t bits = 0; bits + 1 < infinity; ++bits) {
        double low = half_value(bits, format.fraction_bits, format.bias);
        double high = half_value(bits + 1, format.fraction_bits, format.bias);
        auto middle = static_cast<float>((low + high) / 2);  // exact in fp32
        float x[3] = {std::nextafter(middle, 0.0f), middle, std::nextafter(middle, kInf)};
        std::uint16_t rounded[3];
        probe.store_row(x, rounded, format.dtype, 3, 1.0f);
        ASSERT_EQ(rounded[0], bits) << probe.name;
        ASSERT_EQ(rounded[1], bits + (bits & 1)) << probe.name;
        ASSERT_EQ(rounded[2], bits + 1) << probe.name;
      }
      float large[3] = {3.4e38f, -kInf, 65519.0f};
      std::uint16_t rounded[3];
      probe.store_row(large, rounded, format.dtype, 3, 1.0f);
      if (format.dtype == DType::kFloat16) {
        EXPECT_EQ(rounded[0], infinity);
        EXPECT_EQ(rounded[2], infinity - 1);
      }
      EXPECT_EQ(rounded[1], 0x8000 | infinity);
    }
}

TEST(MicroKernels, SumsOfSeveralVectors) {
  for (const auto& probe : runnable_probes()) {
    std::vector<float> vectors(probe.width * probe.width), sums(probe.width);
    for (std::size_t i = 0; i < vectors.size(); ++i) vectors[i] = static_cast<float>(i * i % 97);
    probe.sum_each(vectors.data(), sums.data());
    for (int n = 0; n < probe.width; ++n) {
      float expected = 0;
      for (int lane = 0; lane < probe.width; ++lane) expected += vectors[n * probe.width + lane];
      EXPECT_EQ(sums[n], expected) << probe.name << " vector " << n;
    }
  }
}

/// kFewTokens rows of `dim` small whole numbers, `stride` apart, in a dtype that holds them.
std::vector<float> few_rows(const MicroKernelProbe& probe, DType dtype, int count, int dim,
                            int stride, std::vector<unsigned char>& stored) {
  std::vector<float> values(kFewTokens * dim, 0.0f);  // those that are not there count as zeros
  stored.assign(kFewTokens * stride * size_of(dtype), 0xff);  // NaN between and after the rows
  for (int j = 0; j < count; ++j) {
    for (int d = 0; d < dim; ++d)
      values[j * dim + d] = static_cast<float>((7 * j + 3 * d) % 11 - 5);
    probe.store_row(&values[j * dim], &stored[j * stride * size_of(dtype)], dtype, dim, 1.0f);
  }
  return values;
}

TEST(MicroKernels, FewRowsAreReadWhereTheyLie) {
  for (const auto& probe : runnable_probes())
    for (DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16})
      for (int count : {1, 7, kFewTokens})
        for (int dim : {8, 24, 64, 256}) {
          const int stride = dim + 8, padded = round_up(dim, kColumnGranule);
          const auto bytes_apart = static_cast<std::int64_t>(stride * size_of(dtype));
          std::vector<unsigned char> stored;
          const auto rows = few_rows(probe, dtype, count, dim, stride, stored);
          std::vector<float> x(padded, 0.0f), products(kFewTokens, kNan), sum(padded, 2.0f);
          for (int d = 0; d < dim; ++d) x[d] = static_cast<float>(d % 5 - 2);
          probe.few_rows_dot(stored.data(), dtype, bytes_apart, count, dim, x.data(),
                             products.data());
          std::vector<float> factors(kFewTokens);
          for (int j = 0; j < kFewTokens; ++j) factors[j] = static_cast<float>(j % 4);
          probe.few_rows_add(stored.data(), dtype, bytes_apart, count, dim, factors.data(), true,
                             sum.data());
          for (int j = 0; j < kFewTokens; ++j) {
            float expected = 0;
            for (int d = 0; d < dim; ++d) expected += x[d] * rows[j * dim + d];
            ASSERT_EQ(products[j], expected) << probe.name << " row " << j << " dim " << dim;
          }
          for (int d = 0; d < dim; ++d) {
            float expected = 2.0f;
            for (int j = 0; j < kFewTokens; ++j) expected += factors[j] * rows[j * dim + d];
            ASSERT_EQ(sum[d], expected) << probe.name << " channel " << d << " dim " << dim;
          }
        }
}

TEST(MicroKernels, RowsWithFactorZeroAreLeftOutWhereNotAllAreFinite) {
  constexpr int kDim = 64;
  for (const auto& probe : runnable_probes()) {
    std::vector<float> rows = random_floats(kFewTokens * kDim, 5), factors(kFewTokens, 0.5f);
    factors[3] = 0.0f;
    auto add = [&](bool finite) {
      std::vector<float> sum(kDim, 1.0f);
      probe.few_rows_add(rows.data(), DType::kFloat32, kDim * 4, kFewTokens, kDim, factors.data(),
                         finite, sum.data());
      return sum;
    };
    const auto clean = add(true);
    rows[3 * kDim] = kNan;
    EXPECT_EQ(add(false), clean) << probe.name;
    EXPECT_TRUE(std::isnan(add(true)[0])) << probe.name;
    factors[3] = 1.0f;
    EXPECT_TRUE(std::isnan(add(false)[0])) << probe.name;
  }
}

TEST(MicroKernels, RowsAreScaled) {
  const float x[3] = {1.0f, -2.0f, 0.5f};
  for (const auto& probe : runnable_probes())
    for (DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
      unsigned char stored[12];
      float back[3];
      probe.store_row(x, stored, dtype, 3, 4.0f);
      probe.load_row(stored, dtype, back, 3, 0.5f);
      for (int i = 0; i < 3; ++i) EXPECT_EQ(back[i], 2.0f * x[i]) << probe.name;
    }
}

TEST(MicroKernels, TransposedPanelIsPaddedWithZeros) {
  for (const auto& probe : runnable_probes())
    for (int rows : {1, 17, 63, 64})
      for (int dim : {8, 24, 64, 256}) {
        const int stride = dim + 8;
        auto from = random_floats(rows * stride, 4);
        std::vector<float> panel(dim * kPanel, kNan);
        probe.load_transposed(from.data(), stride, rows, dim, panel.data());
        for (int d = 0; d < dim; ++d)
          for (int r = 0; r < round_up(rows, kColumnGranule); ++r)
            ASSERT_EQ(panel[d * kPanel + r], r < rows ? from[r * stride + d] : 0.0f) << probe.name;
      }
}

}  // namespace
}  // namespace tileattn::cpu
