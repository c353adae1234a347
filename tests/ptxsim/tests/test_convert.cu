// cvt and comparisons against the host's conversions, with its rounding modes.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cfenv>
#include <cstring>
#include <limits>

#include "check.h"

constexpr int kN = 256;

template <class F>
auto rounded(int mode, F f) {
  std::fesetround(mode);
  auto r = f();
  std::fesetround(FE_TONEAREST);
  return r;
}
// Host conversions that the compiler cannot evaluate ahead of the rounding mode.
template <class To, class From>
To cast(From from) {
  volatile From value = from;
  volatile To to = static_cast<To>(value);
  return to;
}
template <class To>
To saturated(double x) {
  using Limits = std::numeric_limits<To>;
  if (std::isnan(x)) return 0;
  if (x >= std::ldexp(1.0, Limits::digits)) return Limits::max();
  return x <= double(Limits::min()) ? Limits::min() : static_cast<To>(x);
}
float to_float(int mode, double x) {
  return rounded(mode, [&] { return cast<float>(x); });
}
float tf32(float x) {  // nearest, ties away from zero
  uint32_t u;
  std::memcpy(&u, &x, 4);
  u = std::isfinite(x) ? (u + 0x1000) & ~0x1fffu : u;
  std::memcpy(&x, &u, 4);
  return x;
}
uint16_t bits(__half h) {
  uint16_t u;
  std::memcpy(&u, &h, 2);
  return u;
}
uint16_t bits(__nv_bfloat16 h) {
  uint16_t u;
  std::memcpy(&u, &h, 2);
  return u;
}
uint32_t pair(uint16_t high, uint16_t low) { return uint32_t{high} << 16 | low; }
float relu(float x) { return x > 0 || std::isnan(x) ? x : 0; }

// X(result type and constraint, PTX, source and constraint, expected). Sources: f, g float; d
// double; i int; l int64_t; h the bits of a half.
#define CASES(X)                                                                                 \
  X(int, "r", "cvt.rni.s32.f32 %0, %1;", f, "f", saturated<int>(std::nearbyint(f)))              \
  X(int, "r", "cvt.rzi.s32.f32 %0, %1;", f, "f", saturated<int>(std::trunc(f)))                  \
  X(int, "r", "cvt.rmi.s32.f32 %0, %1;", f, "f", saturated<int>(std::floor(f)))                  \
  X(int, "r", "cvt.rpi.s32.f32 %0, %1;", f, "f", saturated<int>(std::ceil(f)))                   \
  X(unsigned, "r", "cvt.rzi.u32.f32 %0, %1;", f, "f", saturated<unsigned>(std::trunc(f)))        \
  X(int64_t, "l", "cvt.rzi.s64.f64 %0, %1;", d, "d", saturated<int64_t>(std::trunc(d)))          \
  X(uint64_t, "l", "cvt.rni.u64.f32 %0, %1;", f, "f", saturated<uint64_t>(std::nearbyint(f)))    \
  X(float, "f", "cvt.rn.f32.s32 %0, %1;", i, "r", float(i))                                      \
  X(float, "f", "cvt.rz.f32.s32 %0, %1;", i, "r", to_float(FE_TOWARDZERO, i))                    \
  X(float, "f", "cvt.rm.f32.s32 %0, %1;", i, "r", to_float(FE_DOWNWARD, i))                      \
  X(float, "f", "cvt.rp.f32.s32 %0, %1;", i, "r", to_float(FE_UPWARD, i))                        \
  X(float, "f", "cvt.rn.f32.s64 %0, %1;", l, "l", float(l))                                      \
  X(double, "d", "cvt.rn.f64.s64 %0, %1;", l, "l", double(l))                                    \
  X(float, "f", "cvt.rn.f32.u64 %0, %1;", l, "l", float(uint64_t(l)))                            \
  X(float, "f", "cvt.rn.f32.f64 %0, %1;", d, "d", float(d))                                      \
  X(float, "f", "cvt.rz.f32.f64 %0, %1;", d, "d", to_float(FE_TOWARDZERO, d))                    \
  X(float, "f", "cvt.rm.f32.f64 %0, %1;", d, "d", to_float(FE_DOWNWARD, d))                      \
  X(float, "f", "cvt.rp.f32.f64 %0, %1;", d, "d", to_float(FE_UPWARD, d))                        \
  X(double, "d", "cvt.f64.f32 %0, %1;", f, "f", double(f))                                       \
  X(float, "f", "cvt.rni.f32.f32 %0, %1;", f, "f", std::nearbyint(f))                            \
  X(float, "f", "cvt.sat.f32.f32 %0, %1;", f, "f", f > 0 ? std::fmin(f, 1.0f) : 0.0f)            \
  X(float, "f", "cvt.rna.tf32.f32 %0, %1;", f, "f", tf32(f))                                     \
  X(uint16_t, "h", "cvt.rn.f16.f32 %0, %1;", f, "f", bits(__float2half_rn(f)))                   \
  X(uint16_t, "h", "cvt.rz.f16.f32 %0, %1;", f, "f", bits(__float2half_rz(f)))                   \
  X(uint16_t, "h", "cvt.rn.bf16.f32 %0, %1;", f, "f", bits(__float2bfloat16_rn(f)))              \
  X(uint16_t, "h", "cvt.rz.bf16.f32 %0, %1;", f, "f", bits(__float2bfloat16_rz(f)))              \
  X(uint16_t, "h", "cvt.rn.relu.f16.f32 %0, %1;", f, "f", bits(__float2half_rn(relu(f))))        \
  X(uint32_t, "r", "cvt.rn.f16x2.f32 %0, %1, 0f3F800000;", f, "f",                               \
    pair(bits(__float2half_rn(f)), 0x3c00))                                                      \
  X(uint32_t, "r", "cvt.rz.f16x2.f32 %0, 0f3F800000, %1;", f, "f",                               \
    pair(0x3c00, bits(__float2half_rz(f))))                                                      \
  X(uint32_t, "r", "cvt.rn.bf16x2.f32 %0, %1, 0f3F800000;", f, "f",                              \
    pair(bits(__float2bfloat16_rn(f)), 0x3f80))                                                  \
  X(uint32_t, "r", "cvt.rn.relu.bf16x2.f32 %0, %1, 0fBF800000;", f, "f",                         \
    pair(bits(__float2bfloat16_rn(relu(f))), 0))                                                 \
  X(float, "f", "cvt.f32.f16 %0, %1;", h, "h", __half2float(__half(__half_raw{h})))              \
  X(int, "r", "cvt.rzi.s32.f16 %0, %1;", h, "h",                                                 \
    saturated<int>(std::trunc(__half2float(__half(__half_raw{h})))))                             \
  X(int, "r", "cvt.sat.s8.s32 %0, %1;", i, "r", i > 127 ? 127 : i < -128 ? -128 : i)             \
  X(unsigned, "r", "cvt.sat.u16.s32 %0, %1;", i, "r", i > 65535 ? 65535 : i < 0 ? 0 : i)         \
  X(int, "r", "cvt.s32.s16 %0, %1;", i, "r", int16_t(i))                                         \
  X(int, "r", "cvt.sat.s32.s64 %0, %1;", l, "l", saturated<int>(double(l)))                      \
  X(int64_t, "l", "cvt.s64.s32 %0, %1;", i, "r", int64_t{i})                                     \
  X(uint64_t, "l", "cvt.u64.u32 %0, %1;", i, "r", uint64_t{unsigned(i)})                         \
  X(unsigned, "r", "cvt.pack.sat.u8.s32.b32 %0, %1, 300, 0x1234;", i, "r",                       \
    0x12340000u |                                                                                \
        (i > 255 ? 255u                                                                          \
         : i < 0 ? 0u                                                                            \
                 : unsigned(i))                                                                  \
            << 8 |                                                                               \
        255u)                                                                                    \
  X(unsigned, "r", "{ .reg .pred p; setp.ltu.f32 p, %1, 0f3F800000; selp.u32 %0, 1, 0, p; }", f, \
    "f", !(f >= 1.0f))                                                                           \
  X(unsigned, "r", "{ .reg .pred p; setp.nan.f32 p, %1, %1; selp.u32 %0, 1, 0, p; }", f, "f",    \
    std::isnan(f))                                                                               \
  X(unsigned, "r",                                                                               \
    "{ .reg .pred p, q; setp.ge.s64 q, %1, 0; setp.ne.and.s64 p, %1, 5, q;"                      \
    " selp.u32 %0, 1, 0, p; }",                                                                  \
    l, "l", l >= 0 && l != 5)                                                                    \
  X(unsigned, "r", "set.gt.u32.f32 %0, %1, 0f00000000;", f, "f", f > 0 ? ~0u : 0u)               \
  X(int, "r", "slct.s32.f32 %0, 7, 8, %1;", f, "f", f >= 0 ? 7 : 8)

struct Sources {
  float f[kN];
  double d[kN];
  int i[kN];
  int64_t l[kN];
  uint16_t h[kN];
};

__global__ void run(const Sources* s, uint64_t* out) {
  const int t = threadIdx.x;
  const float f = s->f[t];
  const double d = s->d[t];
  const int i = s->i[t];
  const int64_t l = s->l[t];
  const uint16_t h = s->h[t];
  int k = 0;
#define X(type, constraint, text, source, source_constraint, expected)  \
  {                                                                     \
    type r;                                                             \
    asm volatile(text : "=" constraint(r) : source_constraint(source)); \
    uint64_t bits = 0;                                                  \
    memcpy(&bits, &r, sizeof r);                                        \
    out[k++ * kN + t] = bits;                                           \
  }
  CASES(X)
#undef X
}

template <class T>
bool same(T a, T b) {
  return std::memcmp(&a, &b, sizeof a) == 0 || (a != a && b != b);
}

int main() {
  Sources* s = allocate<Sources>(1);
  uint64_t* out = allocate<uint64_t>(64 * kN);
  const float special[] = {0.0f,      -0.0f, 0.5f,    -0.5f,    1.5f,     2.5f,   -2.5f, INFINITY,
                           -INFINITY, NAN,   65504.f, 65520.0f, -70000.f, 1e-40f, 3e-6f, 1e20f};
  for (int t = 0; t < kN; ++t) {
    const int shift = int(random_bits() % 32);
    s->f[t] = t < 16 ? special[t] : std::ldexp(random_unit(), int(random_bits() % 48) - 16);
    s->d[t] = t < 16 ? special[t] : std::ldexp(random_unit() + 1e-9 * random_unit(), shift);
    s->i[t] = int(random_bits()) >> shift;
    s->l[t] = t == 9 ? 5 : int64_t(uint64_t{random_bits()} << 32 | random_bits()) >> 2 * shift;
    s->h[t] = uint16_t(t * 257);
  }
  RUN(run<<<1, kN>>>(s, out));
  for (int t = 0; t < kN; ++t) {
    const float f = s->f[t];
    const double d = s->d[t];
    const int i = s->i[t];
    const int64_t l = s->l[t];
    const uint16_t h = s->h[t];
    int k = 0;
#define X(type, constraint, text, source, source_constraint, expected)                    \
  {                                                                                       \
    type got;                                                                             \
    std::memcpy(&got, &out[k++ * kN + t], sizeof got);                                    \
    const type want = type(expected);                                                     \
    CHECK(same(got, want), "%s of %g: got %g want %g", text, double(source), double(got), \
          double(want));                                                                  \
  }
    CASES(X)
#undef X
  }
  return finish("convert");
}
