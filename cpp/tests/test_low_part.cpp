// The byte that is left of a number when it is rounded to 16 bits.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>

#include "tileattn/low_part.h"

namespace tileattn {
namespace {

/// x rounded to `kept` bits of a float's fraction, and to infinity above `largest`.
float rounded(float x, int kept, float largest) {
  std::uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  const int gone = 23 - kept;
  bits = (bits + ((1u << (gone - 1)) - 1) + ((bits >> gone) & 1)) >> gone << gone;
  std::memcpy(&x, &bits, sizeof(bits));
  return std::abs(x) > largest ? std::copysign(std::numeric_limits<float>::infinity(), x) : x;
}

struct Type {
  DType dtype;
  int kept;
  float largest, smallest_exponent;
};
constexpr Type kTypes[] = {{DType::kFloat16, 10, 65504.0f, -14},
                           {DType::kBFloat16, 7, 3.3895314e38f, -120}};

TEST(LowPart, LeavesAHundredthOfTheErrorOfRounding) {
  std::mt19937 generator(1);
  std::uniform_real_distribution<float> fraction(1.0f, 2.0f);
  for (const Type& type : kTypes)
    for (int n = 0; n < 100000; ++n) {
      std::uniform_int_distribution<int> exponent(int(type.smallest_exponent), 15);
      float exact = std::ldexp(fraction(generator), exponent(generator));
      if (n % 2) exact = -exact;
      const float high = rounded(exact, type.kept, type.largest);
      if (std::isinf(high)) continue;
      const float restored = with_low_part(high, low_part(exact, high, type.dtype), type.dtype);
      const float last_place = std::ldexp(1.0f, std::ilogb(exact) - type.kept);
      ASSERT_LE(std::abs(restored - exact), last_place / 250) << exact;
    }
}

TEST(LowPart, IsZeroOfWhatIsExactOrNotFinite) {
  const float infinity = std::numeric_limits<float>::infinity();
  for (const Type& type : kTypes) {
    for (float exact : {0.0f, -0.0f, 1.0f, -3.5f, infinity, -infinity}) {
      EXPECT_EQ(low_part(exact, exact, type.dtype), 0) << exact;
      EXPECT_EQ(with_low_part(exact, 0, type.dtype), exact);
    }
    EXPECT_EQ(low_part(-3.3e38f, -infinity, type.dtype), 0);  // rounded up to it
    EXPECT_EQ(low_part(std::nanf(""), std::nanf("1"), type.dtype), 0);
  }
}

TEST(LowPart, NeverLeadsAway) {
  // Where rounding loses more than a byte holds: subnormals, and what becomes 0.
  for (float exact : {1e-9f, -1e-9f, 3e-8f, 1.23e-7f, -4.2e-6f, 5.97e-5f}) {
    const float unit = std::ldexp(1.0f, -24);
    const float high = std::copysign(std::nearbyint(exact / unit) * unit, exact);
    const float restored =
        with_low_part(high, low_part(exact, high, DType::kFloat16), DType::kFloat16);
    EXPECT_LE(std::abs(restored - exact), std::abs(high - exact)) << exact;
  }
}

}  // namespace
}  // namespace tileattn
