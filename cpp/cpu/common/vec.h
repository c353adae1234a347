// Vectors of floats in the width of the instruction set being compiled, written
// with the compiler's vector extensions. Comparisons give integer lanes of all
// ones or zeros, and `mask ? a : b` selects lane by lane.
#pragma once

#include <cstdint>

#define TILEATTN_STRING_OF(x) #x
#define TILEATTN_STRING(x) TILEATTN_STRING_OF(x)

namespace tileattn::cpu::TILEATTN_ISA {

#if defined(__AVX512F__)
constexpr int kVecBytes = 64;
#elif defined(__AVX2__)
constexpr int kVecBytes = 32;
#else
constexpr int kVecBytes = 16;
#endif
constexpr int kWidth = kVecBytes / 4;  // floats in a vector

typedef float Vec __attribute__((vector_size(kVecBytes)));
typedef std::int32_t IntVec __attribute__((vector_size(kVecBytes)));
typedef std::uint32_t BitVec __attribute__((vector_size(kVecBytes)));
// The same in memory: no alignment is asked for.
typedef float VecInMemory __attribute__((vector_size(kVecBytes), aligned(4), may_alias));

constexpr float kInfinity = __builtin_inff();

inline Vec load(const float* from) { return *reinterpret_cast<const VecInMemory*>(from); }
inline void store(float* to, Vec value) { *reinterpret_cast<VecInMemory*>(to) = value; }
/// Past the caches, to an aligned place; other threads see it after finish_streams().
inline void stream(float* to, Vec value) {
#if defined(__AVX512F__)
  __builtin_ia32_movntps512(to, value);
#elif defined(__AVX2__)
  __builtin_ia32_movntps256(to, value);
#else
  store(to, value);
#endif
}
inline void finish_streams() {
#if defined(__AVX2__)
  __builtin_ia32_sfence();
#endif
}
inline Vec broadcast(float value) { return value - Vec{}; }

/// The larger of each pair; b where either is NaN (as the hardware's instruction does).
inline Vec max(Vec a, Vec b) { return a > b ? a : b; }

/// Lane i of permute(a, b, table) is lane table[i] of a and b laid end to end.
struct LaneTable {
  std::int32_t lane[kWidth];
};
inline Vec permute(Vec a, Vec b, const LaneTable& table) {
  IntVec lanes;
  __builtin_memcpy(&lanes, table.lane, kVecBytes);
  return __builtin_shuffle(a, b, lanes);
}

template <int Lanes>
constexpr LaneTable rotation() {
  LaneTable table{};
  for (int i = 0; i < kWidth; ++i) table.lane[i] = (i + Lanes) % kWidth;
  return table;
}

/// Combines all lanes, each with the one half a vector further, then half of that.
template <int Lanes = kWidth / 2, class Combine>
float reduce(Vec x, Combine combine) {
  constexpr LaneTable kTable = rotation<Lanes>();
  x = combine(x, permute(x, x, kTable));
  if constexpr (Lanes > 1) return reduce<Lanes / 2>(x, combine);
  return x[0];
}

inline float sum_lanes(Vec x) {
  return reduce(x, [](Vec a, Vec b) { return a + b; });
}
inline float max_lanes(Vec x) {
  return reduce(x, [](Vec a, Vec b) { return max(a, b); });
}

/// Of a pair of rows a, b: their lanes without bit Half, those of b moved up by Half into the
/// gaps; or (Upper) their lanes with bit Half, those of a moved down.
template <int Half, bool Upper>
constexpr LaneTable interleaving() {
  LaneTable table{};
  for (int i = 0; i < kWidth; ++i) {
    int lane = (i & ~Half) | (Upper ? Half : 0);
    table.lane[i] = lane + (i & Half ? kWidth : 0);
  }
  return table;
}

/// Transposes the square of kWidth vectors in log2(kWidth) rounds of 2 x 2 block swaps.
template <int Half = kWidth / 2>
void transpose(Vec (&rows)[kWidth]) {
  constexpr LaneTable kLower = interleaving<Half, false>(), kUpper = interleaving<Half, true>();
#pragma GCC unroll 16
  for (int i = 0; i < kWidth; ++i) {
    if (i & Half) continue;
    Vec lower = permute(rows[i], rows[i | Half], kLower);
    rows[i | Half] = permute(rows[i], rows[i | Half], kUpper);
    rows[i] = lower;
  }
  if constexpr (Half > 1) transpose<Half / 2>(rows);
}

/// Lane i of the result is the sum of rows[i]'s lanes; the rows are overwritten.
template <int Half = kWidth / 2>
Vec sum_each(Vec (&rows)[kWidth]) {
  constexpr LaneTable kLower = interleaving<Half, false>(), kUpper = interleaving<Half, true>();
#pragma GCC unroll 8
  for (int i = 0; i < Half; ++i)
    rows[i] = permute(rows[i], rows[i + Half], kLower) + permute(rows[i], rows[i + Half], kUpper);
  if constexpr (Half > 1) return sum_each<Half / 2>(rows);
  return rows[0];
}

/// e^x for x <= 88; relative error about 1e-7 (1 + |x| / 2), or a third of it where there is a
/// fused multiply-add. Results below 2^-126 become 0, NaN stays.
inline Vec exp(Vec x) {
  constexpr float kLog2E = 1.44269504088896340736f;
  constexpr float kSmallest = -87.3365f;  // ln(2^-126)
  constexpr float kRound = 12582912.0f;   // 1.5 * 2^23: adding it leaves no fraction bits
  Vec rounded = x * kLog2E + kRound;
  Vec f = x * kLog2E - (rounded - kRound);  // in [-1/2, 1/2]
  // Minimax polynomial of 2^f, relative error 2e-9.
  Vec y = 1.534581064e-4f * f + 1.339993150e-3f;
  y = y * f + 9.618488965e-3f;
  y = y * f + 5.550328776e-2f;
  y = y * f + 2.402264689e-1f;
  y = y * f + 6.931472057e-1f;
  y = y * f + 1.0f;
  // The low bits of `rounded` are the integer part; it joins the exponent.
  y = reinterpret_cast<Vec>(reinterpret_cast<BitVec>(y) +
                            (reinterpret_cast<BitVec>(rounded) << 23));
  return x < kSmallest ? Vec{} : y;
}

/// tanh(x), within a few ulp.
inline Vec tanh(Vec x) {
  constexpr float kBend = 0.55f;  // below, 1 - 2 / (e^2x + 1) would cancel
  Vec size = x < 0.0f ? -x : x;
  Vec square = x * x;
  // Minimax polynomial of (tanh(x) - x) / x^3 in x^2.
  Vec y = -6.282468368e-3f * square + 2.107775491e-2f;
  y = y * square - 5.385385712e-2f;
  y = y * square + 1.333260168e-1f;
  y = y * square - 3.333331805e-1f;
  Vec small = x + x * square * y;
  Vec bounded = size > 20.0f ? broadcast(20.0f) : size;  // where the result is 1
  Vec large = 1.0f - 2.0f / (exp(2.0f * bounded) + 1.0f);
  return size < kBend ? small : (x < 0.0f ? -large : large);
}

}  // namespace tileattn::cpu::TILEATTN_ISA
