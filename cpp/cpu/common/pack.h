// Between tensors in memory (fp32, fp16, bf16, any strides) and fp32 scratch.
#pragma once

#include <type_traits>

#include "cpu/common/blocks.h"
#include "cpu/common/micro_kernel.h"
#include "cpu/common/vec.h"
#include "tileattn/low_part.h"
#include "tileattn/tensor_ref.h"

namespace tileattn::cpu::TILEATTN_ISA {

inline std::uint32_t bits_of(float x) { return __builtin_bit_cast(std::uint32_t, x); }
inline float float_of(std::uint32_t bits) { return __builtin_bit_cast(float, bits); }

inline float from_bfloat16(std::uint16_t x) { return float_of(std::uint32_t{x} << 16); }

inline std::uint16_t to_bfloat16(float x) {  // round to nearest even
  std::uint32_t bits = bits_of(x);
  std::uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  return (bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded;
}

inline float from_float16(std::uint16_t x) {
  std::uint32_t magnitude = std::uint32_t{x & 0x7fffu} << 13;  // exponent and fraction in place
  std::uint32_t normal = magnitude + (112u << 23);             // exponent bias 15 -> 127
  std::uint32_t special = magnitude | (255u << 23);            // infinity, NaN
  // A subnormal is fraction * 2^-24: borrow the exponent of 2^-14 and take it off again.
  std::uint32_t subnormal = bits_of(float_of(magnitude + (113u << 23)) - float_of(113u << 23));
  std::uint32_t value = magnitude >= (31u << 23) ? special
                        : magnitude < (1u << 23) ? subnormal
                                                 : normal;
  return float_of(value | std::uint32_t{x & 0x8000u} << 16);
}

inline std::uint16_t to_float16(float x) {  // round to nearest even
  std::uint32_t bits = bits_of(x), magnitude = bits & 0x7fffffff;
  std::uint32_t normal = (magnitude - (112u << 23) + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  // Below 2^-14, adding 1/2 leaves exactly the bits of the subnormal at the bottom.
  std::uint32_t subnormal = bits_of(float_of(magnitude) + 0.5f) - bits_of(0.5f);
  std::uint32_t special = magnitude > (255u << 23) ? 0x7e00 : 0x7c00;
  std::uint32_t value = magnitude >= bits_of(65520.0f) ? special
                        : magnitude < (113u << 23)     ? subnormal
                                                       : normal;
  return static_cast<std::uint16_t>(value | (bits >> 16 & 0x8000));
}

/// to[i] = factor * from[i]
inline void load_row(const void* from, DType dtype, float* to, int count, float factor) {
  auto half = static_cast<const std::uint16_t*>(from);
  switch (dtype) {
    case DType::kFloat32:
      for (int i = 0; i < count; ++i) to[i] = factor * static_cast<const float*>(from)[i];
      break;
    case DType::kFloat16:
      for (int i = 0; i < count; ++i) to[i] = factor * from_float16(half[i]);
      break;
    case DType::kBFloat16:
      for (int i = 0; i < count; ++i) to[i] = factor * from_bfloat16(half[i]);
      break;
  }
}

/// to[i] = factor * from[i], rounded
inline void store_row(const float* from, void* to, DType dtype, int count, float factor) {
  auto half = static_cast<std::uint16_t*>(to);
  switch (dtype) {
    case DType::kFloat32:
      for (int i = 0; i < count; ++i) static_cast<float*>(to)[i] = factor * from[i];
      break;
    case DType::kFloat16:
      for (int i = 0; i < count; ++i) half[i] = to_float16(factor * from[i]);
      break;
    case DType::kBFloat16:
      for (int i = 0; i < count; ++i) half[i] = to_bfloat16(factor * from[i]);
      break;
  }
}

/// low[i] = what rounding factor * from[i] to rounded[i] took from it
inline void store_low_parts(const float* from, const void* rounded, DType dtype, std::int8_t* low,
                            int count, float factor) {
  float high[kMaxDim];
  load_row(rounded, dtype, high, count, 1.0f);
  for (int i = 0; i < count; ++i) low[i] = low_part(factor * from[i], high[i], dtype);
}

/// row[i], a number of this dtype, gets back what rounding took from it
inline void add_low_parts(float* row, const std::int8_t* low, DType dtype, int count) {
  for (int i = 0; i < count; ++i) row[i] = with_low_part(row[i], low[i], dtype);
}

/// Writes rows of a result. Those of a large one go past the caches where they can: to be stored
/// there, their lines would be read from memory first, and the call does not come back to them.
class RowWriter {
 public:
  /// `elements` of the whole result.
  RowWriter(DType dtype, std::int64_t elements)
      : dtype_(dtype), streams_(dtype == DType::kFloat32 && elements >= kLarge) {}
  RowWriter(const RowWriter&) = delete;
  RowWriter& operator=(const RowWriter&) = delete;
  ~RowWriter() {
    if (streams_) finish_streams();
  }

  /// to[i] = factor * from[i], rounded
  void write(const float* from, void* to, int count, float factor) const {
    int i = 0;
    if (streams_ && reinterpret_cast<std::uintptr_t>(to) % kVecBytes == 0)
      for (; i + kWidth <= count; i += kWidth)
        stream(static_cast<float*>(to) + i, factor * load(from + i));
    if (i == count) return;
    store_row(from + i, static_cast<char*>(to) + i * bytes_of(dtype_), dtype_, count - i, factor);
  }

 private:
  static constexpr std::int64_t kLarge = 1 << 20;  // 4 MiB: more than a core's own caches
  DType dtype_;
  bool streams_;
};

inline const char* bytes(const void* data) { return static_cast<const char*>(data); }
inline char* bytes(void* data) { return static_cast<char*>(data); }

/// Tokens of one head that follow each other in memory.
template <class Byte>
struct RowsInARow {
  Byte* data;
  std::int64_t stride;  // in bytes
  DType dtype;
  Byte* row(int r) const { return data + r * stride; }
};

/// Those from `token` on.
template <class Void>
auto rows_of(const BasicTensorRef<Void>& x, DType dtype, int batch, int head, int token) {
  std::int64_t size = bytes_of(dtype);
  std::int64_t first = batch * x.batch_stride + head * x.head_stride + token * x.token_stride;
  auto* data = bytes(x.data) + first * size;
  return RowsInARow<std::remove_pointer_t<decltype(data)>>{data, x.token_stride * size, dtype};
}

/// Tokens of one head in a box of a grid.
template <class Byte>
struct RowsOfBox {
  Byte* token[kTile.queries];  // of each row; as many as fit into a tile
  DType dtype;
  Byte* row(int r) const { return token[r]; }
};

inline void fill(float* to, std::int64_t count, float value) {
  for (std::int64_t i = 0; i < count; ++i) to[i] = value;
}

/// Calls visit(r) for each of `rows` rows, of `bytes` bytes, and asks for those that follow.
template <class Rows, class Visit>
void for_each_row(const Rows& from, int first, int rows, int bytes, Visit visit) {
  constexpr int kAhead = 8;
  for (int r = 0; r < rows; ++r) {
    if (r + kAhead < rows) prefetch(from.row(first + r + kAhead), bytes);
    visit(r);
  }
}

/// `rows` tokens from `first` to fp32; columns from dim to the stride become 0, and so do the
/// rows up to padded_rows.
template <class Rows>
void load_rows(const Rows& from, int first, int rows, int padded_rows, int dim, float factor,
               RowMajor to) {
  for_each_row(from, first, rows, dim * bytes_of(from.dtype), [&](int r) {
    load_row(from.row(first + r), from.dtype, to.data + r * to.stride, dim, factor);
    fill(to.data + r * to.stride + dim, to.stride - dim, 0.0f);
  });
  fill(to.data + rows * to.stride, (padded_rows - rows) * to.stride, 0.0f);
}

/// Up to kPanel rows of `width` floats to panel[width][kPanel]. Columns of missing rows become 0 up
/// to the next multiple of kColumnGranule; the others are left alone. Bits are only moved.
///
/// copy_rows(first, count, to): the rows as floats, padded to kWidth rows of to.stride floats.
/// Those that are floats in memory (in_place) are read there, where whole vectors fit.
template <class Rows, class CopyRows>
void transpose_rows_to_panel(const Rows& from, bool in_place, int rows, int width, float* panel,
                             CopyRows copy_rows) {
  // Whole vectors, and one more: rows a power of two apart would share cache sets.
  const int stride = round_up(width, kColumnGranule) + kColumnGranule;
  alignas(kVecBytes) float strip[kWidth * (kMaxDim + kColumnGranule)];
  for (int first = 0; first < round_up(rows, kColumnGranule); first += kWidth) {
    int count = imax(0, imin(kWidth, rows - first));
    for (int r = first + count; r < imin(first + 2 * kWidth, rows); ++r)
      prefetch(from.row(r), width * (in_place ? 4 : 2));
    const bool whole = in_place && width % kWidth == 0 && count == kWidth;
    if (!whole) copy_rows(first, count, RowMajor{strip, stride});
    for (int d = 0; d < width; d += kWidth) {
      Vec square[kWidth];
      for (int r = 0; r < kWidth; ++r)
        square[r] = whole ? load(reinterpret_cast<const float*>(from.row(first + r)) + d)
                          : load(strip + r * stride + d);
      transpose(square);
      for (int i = 0; i < imin(kWidth, width - d); ++i)
        store(panel + (d + i) * kPanel + first, square[i]);
    }
  }
}

/// Up to kPanel tokens to panel[dim][kPanel], in fp32 and padded as above.
template <class Rows>
void load_transposed(const Rows& from, int rows, int dim, float* panel) {
  transpose_rows_to_panel(from, from.dtype == DType::kFloat32, rows, dim, panel,
                          [&](int first, int count, RowMajor to) {
                            load_rows(from, first, count, kWidth, dim, 1.0f, to);
                          });
}

}  // namespace tileattn::cpu::TILEATTN_ISA
