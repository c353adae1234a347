// What rounding to 16 bits takes from a float32, kept in a byte: eight more bits of its fraction.
#pragma once

#include <cstdint>
#include <cstring>

#include "tileattn/macros.h"
#include "tileattn/tensor_ref.h"

namespace tileattn {
namespace low_part_detail {

TILEATTN_HOST_DEVICE std::uint32_t bits_of(float x) {
  std::uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return bits;
}

/// Bits of a float32's fraction that lie below the byte; a rounded fraction lacks 13 or 16.
TILEATTN_HOST_DEVICE constexpr int bits_below(DType dtype) {
  return dtype == DType::kFloat16 ? 13 - 8 : 16 - 8;
}

}  // namespace low_part_detail

/// `exact` less `rounded`, which is `exact` rounded to the dtype.
TILEATTN_HOST_DEVICE std::int8_t low_part(float exact, float rounded, DType dtype) {
  using namespace low_part_detail;
  // The bits of floats of one sign are ordered as they are, across exponents too.
  const int below = bits_below(dtype);
  const std::uint32_t difference = bits_of(exact) - bits_of(rounded) + (1u << (below - 1));
  const std::int32_t low = static_cast<std::int32_t>(difference) >> below;
  const bool finite = (bits_of(rounded) & 0x7f800000) != 0x7f800000;
  return static_cast<std::int8_t>(!finite ? 0 : low < -128 ? -128 : low > 127 ? 127 : low);
}

/// `rounded` and what low_part() kept.
TILEATTN_HOST_DEVICE float with_low_part(float rounded, std::int8_t low, DType dtype) {
  using namespace low_part_detail;
  const std::uint32_t bits =
      bits_of(rounded) + (static_cast<std::uint32_t>(std::int32_t{low}) << bits_below(dtype));
  float exact;
  std::memcpy(&exact, &bits, sizeof(exact));
  return exact;
}

}  // namespace tileattn
