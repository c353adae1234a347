// Products of pairs of bfloat16, and how numbers become pairs.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "cpu/common/instruction_set.h"
#include "cpu/softmax/plan.h"
#include "tests/bfloat16_probe.h"
#include "tests/micro_kernel_probe.h"
#include "tests/product_error.h"

namespace tileattn::cpu {

#if defined(TILEATTN_X86_VARIANTS)
namespace avx512_bf16 {
extern const BFloat16Probe kBFloat16Probe;
}
#endif

const BFloat16Probe* runnable_bfloat16_probe() {
#if defined(TILEATTN_X86_VARIANTS)
  if (machine_has(InstructionSet::kAvx512Bf16)) return &avx512_bf16::kBFloat16Probe;
#endif
  return nullptr;
}

namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

float value_of(std::uint16_t half) {
  std::uint32_t bits = std::uint32_t{half} << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
std::uint16_t low(std::uint32_t pair) { return static_cast<std::uint16_t>(pair); }
std::uint16_t high(std::uint32_t pair) { return static_cast<std::uint16_t>(pair >> 16); }

/// Number k of row r.
std::uint16_t number(BFloat16Probe::A a, int r, int k) {
  const std::uint32_t pair = a.data[r * a.row_stride + k / 2 * a.k_stride];
  return k % 2 ? high(pair) : low(pair);
}

std::uint16_t rounded(float x) {
  std::uint16_t half;
  runnable_probes()[0].store_row(&x, &half, DType::kBFloat16, 1, 1.0f);
  return half;
}

std::vector<std::uint16_t> random_halves(std::size_t count, unsigned seed) {
  std::vector<std::uint16_t> halves;
  for (float value : random_floats(count, seed)) halves.push_back(rounded(value));
  return halves;
}

std::vector<std::uint32_t> random_pairs(std::size_t count, unsigned seed) {
  const auto halves = random_halves(2 * count, seed);
  std::vector<std::uint32_t> pairs(count);
  for (std::size_t i = 0; i < count; ++i)
    pairs[i] = halves[2 * i] | std::uint32_t{halves[2 * i + 1]} << 16;
  return pairs;
}

class BFloat16Operands : public testing::Test {
 protected:
  void SetUp() override {
    probe = runnable_bfloat16_probe();
    if (!probe) GTEST_SKIP() << "this machine multiplies no pairs of bfloat16";
  }
  const BFloat16Probe* probe;
};

double product_error(const BFloat16Probe& probe, const ProductShape& s) {
  const int pairs = s.depth / 2, b_stride = s.columns + 5;
  const auto a = random_pairs(s.rows * pairs + 1, 1), b = random_pairs((pairs + 1) * b_stride, 2);
  const BFloat16Probe::A of_a{a.data(), s.transposed ? 1 : pairs, s.transposed ? s.rows : 1};
  const BFloat16Probe::A of_b{b.data(), 1, b_stride};
  return tileattn::product_error(
      s,
      [&](float* c, int stride) {
        probe.product(s.rows, s.columns, pairs, of_a, b.data(), b_stride, c, stride, s.keep);
      },
      [&](int r, int k) { return value_of(number(of_a, r, k)); },
      [&](int k, int n) { return value_of(number(of_b, n, k)); });
}

TEST_F(BFloat16Operands, ProductMatchesItsDefinition) {
  for (int rows : {1, 2, 3, 4, 5, 6, 7, 13})
    for (int columns : {16, 32, 48, 64, 80, 112, 256})
      for (int depth : {0, 2, 4, 40, 130})
        for (bool transposed : {false, true})
          for (float keep : {0.0f, 1.0f, 0.5f})
            ASSERT_LE(product_error(*probe, {rows, columns, depth, transposed, keep}), depth + 1)
                << rows << "x" << columns << "x" << depth << " transposed " << transposed
                << " keep " << keep;
}

TEST_F(BFloat16Operands, TensorsAreMovedBitByBit) {
  // Two halves may look like a subnormal float or a signalling NaN, which no arithmetic may touch.
  std::vector<std::uint16_t> all(1 << 16);
  for (std::size_t i = 0; i < all.size(); ++i) all[i] = static_cast<std::uint16_t>(i * 40503);
  for (int dim : {8, 40, 64, 256})
    for (int rows : {1, 2, 17, 63, 64})
      for (std::size_t first = 0; first + rows * (dim + 8) < all.size(); first += 9000) {
        const int stride = dim + 8, padded = round_up(dim, kColumnGranule) + kColumnGranule;
        const std::uint16_t* from = all.data() + first;
        std::vector<std::uint32_t> a(rows * padded, ~0u), b(33 * padded, ~0u), panel(129 * 64, ~0u);
        probe->load_a(from, stride, rows, dim, a.data(), padded);
        probe->load_b(from, stride, rows, dim, b.data(), padded);
        probe->load_panel(from, stride, rows, dim, panel.data());
        for (int r = 0; r < round_up(rows, kColumnGranule); ++r)
          for (int d = 0; d < dim; ++d) {
            const std::uint16_t expected = r < rows ? from[r * stride + d] : 0;
            const std::uint32_t across = panel[d / 2 * kPanel + r];
            ASSERT_EQ(d % 2 ? high(across) : low(across), expected) << r << ", " << d;
            if (r >= round_up(rows, 2)) continue;
            const std::uint32_t along = b[r / 2 * padded + d];
            ASSERT_EQ(r % 2 ? high(along) : low(along), expected) << r << ", " << d;
            if (r < rows) ASSERT_EQ(number({a.data(), padded, 1}, r, d), expected);
          }
        for (int d = dim; d < padded; ++d) ASSERT_EQ(b[(rows - 1) / 2 * padded + d], 0u);
        ASSERT_EQ(b[(rows + 1) / 2 * padded], ~0u);
        ASSERT_EQ(panel[dim / 2 * kPanel], ~0u);
      }
}

/// Numbers of which every other one has to be rounded, with some that are special.
std::vector<float> numbers_to_round(int count) {
  auto x = random_floats(count, 5);
  for (int i = 0; i < count; i += 2) x[i] = value_of(rounded(x[i])) * (1 + 1.0f / 256);  // a tie
  x[3] = kInf;
  x[40] = -kInf;
  x[18] = 0.0f;
  x[35] = 3.39e38f;  // rounds to infinity
  return x;
}

TEST_F(BFloat16Operands, WeightsAreRoundedToNearestEven) {
  constexpr int kColumns = 96, kBegin = 16, kEnd = 80;
  const auto before = numbers_to_round(kColumns);
  auto row = before;
  probe->pack_weights(row.data(), kBegin, kEnd);
  const auto a = probe->by_rows(row.data(), kColumns, 0, kBegin);
  for (int j = kBegin; j < kEnd; ++j) ASSERT_EQ(number(a, 0, j - kBegin), rounded(before[j])) << j;
  for (int j = kEnd; j < kColumns; ++j) ASSERT_EQ(row[j], before[j]);

  std::vector<float> nan(16, kNan);
  probe->pack_weights(nan.data(), 0, 16);
  for (int j = 0; j < 16; ++j)
    EXPECT_TRUE(std::isnan(value_of(number(probe->by_rows(nan.data(), 16, 0, 0), 0, j))));
}

TEST_F(BFloat16Operands, GradientsArePairedAlongBothAxes) {
  constexpr int kColumns = 96, kBegin = 16, kEnd = 80;
  for (int rows : {1, 2, 5, 6}) {
    const auto before = numbers_to_round(rows * kColumns);
    auto x = before;
    x.resize(round_up(rows, 2) * kColumns, kNan);  // a row that is not there
    std::vector<float> along(x.size(), kNan);
    probe->pack_gradients(x.data(), kColumns, rows, kBegin, kEnd, along.data());
    const auto by_rows = probe->by_rows(along.data(), kColumns, 0, kBegin);
    const auto transposed = probe->transposed(x.data(), kColumns, 0, kBegin);
    for (int j = kBegin; j < kEnd; ++j)
      for (int r = 0; r < round_up(rows, 2); ++r) {
        const std::uint16_t expected = r < rows ? rounded(before[r * kColumns + j]) : 0;
        ASSERT_EQ(number(transposed, j - kBegin, r), expected) << r << ", " << j;
        ASSERT_EQ(number(by_rows, r, j - kBegin), expected) << r << ", " << j;
      }
  }
}

}  // namespace
}  // namespace tileattn::cpu
