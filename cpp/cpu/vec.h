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
// The same in memory: no alignment is asked for.
typedef float VecInMemory __attribute__((vector_size(kVecBytes), aligned(4), may_alias));

constexpr float kInfinity = __builtin_inff();
constexpr float kLog2E = 1.44269504088896340736f;
constexpr float kLn2 = 0.69314718055994530942f;

inline Vec load(const float* from) { return *reinterpret_cast<const VecInMemory*>(from); }
inline void store(float* to, Vec value) { *reinterpret_cast<VecInMemory*>(to) = value; }
inline Vec broadcast(float value) { return value - Vec{}; }

/// The larger of each pair; b where either is NaN (as the hardware's instruction does).
inline Vec max(Vec a, Vec b) { return a > b ? a : b; }

inline Vec rotate(Vec x, int lanes) {
  IntVec index;
  for (int i = 0; i < kWidth; ++i) index[i] = (i + lanes) % kWidth;
  return __builtin_shuffle(x, index);
}

inline float sum_lanes(Vec x) {
#pragma GCC unroll 4
  for (int lanes = kWidth / 2; lanes > 0; lanes /= 2) x += rotate(x, lanes);
  return x[0];
}

inline float max_lanes(Vec x) {
#pragma GCC unroll 4
  for (int lanes = kWidth / 2; lanes > 0; lanes /= 2) x = max(x, rotate(x, lanes));
  return x[0];
}

/// 2^x for x <= 127, within 1 ulp or so; results below 2^-126 become 0, NaN stays.
inline Vec exp2(Vec x) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it leaves no fraction bits
  Vec rounded = x + kRound;
  Vec f = x - (rounded - kRound);  // in [-1/2, 1/2]
  // Minimax polynomial of 2^f, relative error 2e-9.
  Vec y = 1.534581064e-4f * f + 1.339993150e-3f;
  y = y * f + 9.618488965e-3f;
  y = y * f + 5.550328776e-2f;
  y = y * f + 2.402264689e-1f;
  y = y * f + 6.931472057e-1f;
  y = y * f + 1.0f;
  // The low bits of `rounded` are the integer part; it joins the exponent.
  y = reinterpret_cast<Vec>(reinterpret_cast<IntVec>(y) +
                            (reinterpret_cast<IntVec>(rounded) << 23));
  return x < -126.0f ? Vec{} : y;
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
  Vec power = size * (2.0f * kLog2E);
  power = power > 60.0f ? broadcast(60.0f) : power;
  Vec large = 1.0f - 2.0f / (exp2(power) + 1.0f);
  return size < kBend ? small : (x < 0.0f ? -large : large);
}

}  // namespace tileattn::cpu::TILEATTN_ISA
