// Logic, shifts and bit manipulation of integers.
#include <algorithm>
#include <type_traits>

#include "decode.h"
#include "lanes.h"

namespace ptxsim {

namespace {

template <class T>
using Unsigned = std::make_unsigned_t<T>;
template <class T>
constexpr unsigned kBits = 8 * sizeof(T);

constexpr auto kAnd = [](auto a, auto b) { return a & b; };
constexpr auto kOr = [](auto a, auto b) { return a | b; };
constexpr auto kXor = [](auto a, auto b) { return a ^ b; };
constexpr auto kNot = [](auto a) { return ~a; };
constexpr auto kLogicalNot = [](auto a) { return a == 0; };
constexpr auto kPopc = []<class T>(T a) { return __builtin_popcountll(Unsigned<T>(a)); };
constexpr auto kClz = []<class T>(T a) {
  return a == 0 ? kBits<T> : unsigned(__builtin_clzll(Unsigned<T>(a))) - (64 - kBits<T>);
};
constexpr auto kBrev = []<class T>(T a) {
  T r = 0;
  for (unsigned i = 0; i < kBits<T>; ++i) r |= T((a >> i & 1) << (kBits<T> - 1 - i));
  return r;
};
// Position of the highest bit that differs from the sign; with ShiftAmount the
// shift that would bring it to the top.
template <bool ShiftAmount>
constexpr auto kBfind = []<class T>(T a) {
  const Unsigned<T> u = Unsigned<T>(std::is_signed_v<T> && a < 0 ? ~a : a);
  if (u == 0) return ~0u;
  const unsigned position = 63 - unsigned(__builtin_clzll(u));
  return ShiftAmount ? kBits<T> - 1 - position : position;
};
constexpr auto kShl = []<class T>(T a, uint32_t n) {
  return n >= kBits<T> ? T{0} : T(Unsigned<T>(a) << n);
};
constexpr auto kShr = []<class T>(T a, uint32_t n) {
  if (n >= kBits<T>) return std::is_signed_v<T> && a < 0 ? T(-1) : T{0};
  return T(a >> n);
};

template <auto F>
void decode_logic(Decoder& d) {
  Type t = d.take_type();
  if (t == Type::kPred) {
    d.in.op_class = OpClass::kPredicate;
    d.in.op[0] = d.predicate_destination(d.arg(0));
    d.in.op[1] = d.predicate_source(d.arg(1));
    d.in.op[2] = d.predicate_source(d.arg(2));
    d.in.run = [](Warp& w, const Inst& in, uint32_t mask) {
      w.set_predicate(in.op[0], mask, F(w.predicate(in.op[1]), w.predicate(in.op[2])));
    };
    return;
  }
  d.in.run = binary_integer<F>(t);
  d.same_size_operands(3, size_of(t));
}

void decode_not(Decoder& d) {
  Type t = d.take_type();
  if (t == Type::kPred) {
    d.in.op_class = OpClass::kPredicate;
    d.in.op[0] = d.predicate_destination(d.arg(0));
    d.in.op[1] = d.predicate_source(d.arg(1));
    d.in.run = [](Warp& w, const Inst& in, uint32_t mask) {
      w.set_predicate(in.op[0], mask, ~w.predicate(in.op[1]));
    };
    return;
  }
  d.in.run = unary_integer<kNot>(t);
  d.same_size_operands(2, size_of(t));
}

template <auto F>
void decode_unary(Decoder& d) {
  Type t = d.take_type();
  d.in.run = unary_integer<F>(t);
  d.same_size_operands(2, size_of(t));
}

// The result is 32 bits wide whatever the source.
template <auto F>
void decode_count(Decoder& d) {
  Type t = d.take_type();
  d.in.op[0] = d.destination(0, 4);
  d.in.op[1] = d.source(1, size_of(t));
  d.in.run = for_integer(t, []<class T>(T) -> Handler { return unary_op<F, uint32_t, T>; });
}
void decode_bfind(Decoder& d) {
  if (d.has("shiftamt")) decode_count<kBfind<true>>(d);
  else decode_count<kBfind<false>>(d);
}

template <auto F>
void decode_shift(Decoder& d) {
  Type t = d.take_type();
  d.in.op[0] = d.destination(0, size_of(t));
  d.in.op[1] = d.source(1, size_of(t));
  d.in.op[2] = d.source(2, 4);
  d.in.run = for_integer(t, []<class T>(T) -> Handler { return binary_op<F, T, T, uint32_t>; });
}

// Shifts the 64 bits b:a; the amount wraps at 32 or is clamped to it.
enum FunnelFlags : uint32_t { kLeft = 1, kClamp = 2 };
void shf(Warp& w, const Inst& in, uint32_t mask) {
  uint32_t* d = w.at<uint32_t>(in.op[0]);
  const uint32_t *a = w.at<uint32_t>(in.op[1]), *b = w.at<uint32_t>(in.op[2]);
  const uint32_t* c = w.at<uint32_t>(in.op[3]);
  for_lanes(mask, [&](unsigned i) {
    const uint32_t n = in.flags & kClamp ? std::min(c[i], 32u) : c[i] & 31;
    const uint64_t both = uint64_t{b[i]} << 32 | a[i];
    d[i] = static_cast<uint32_t>(in.flags & kLeft ? both << n >> 32 : both >> n);
  });
}
void decode_shf(Decoder& d) {
  if (d.has("l")) d.in.flags |= kLeft;
  else if (!d.has("r")) return;
  if (d.has("clamp")) d.in.flags |= kClamp;
  else d.has("wrap");
  d.take_type();
  d.same_size_operands(4, 4);
  d.in.run = shf;
}

void lop3(Warp& w, const Inst& in, uint32_t mask) {
  uint32_t* d = w.at<uint32_t>(in.op[0]);
  const uint32_t *a = w.at<uint32_t>(in.op[1]), *b = w.at<uint32_t>(in.op[2]);
  const uint32_t* c = w.at<uint32_t>(in.op[3]);
  const uint32_t table = static_cast<uint32_t>(in.imm);
  for_lanes(mask, [=](unsigned i) {
    uint32_t r = 0;
    for (unsigned k = 0; k < 8; ++k) {
      uint32_t term = (k & 4 ? a[i] : ~a[i]) & (k & 2 ? b[i] : ~b[i]) & (k & 1 ? c[i] : ~c[i]);
      r |= table >> k & 1 ? term : 0;
    }
    d[i] = r;
  });
}
void decode_lop3(Decoder& d) {
  d.take_type();
  d.same_size_operands(4, 4);
  d.in.imm = d.immediate(d.arg(4));
  d.in.run = lop3;
}

uint32_t permute(uint32_t a, uint32_t b, uint32_t selector) {
  const uint64_t both = uint64_t{b} << 32 | a;
  uint32_t r = 0;
  for (unsigned i = 0; i < 4; ++i) {
    const uint32_t s = selector >> (4 * i) & 0xf;
    uint8_t byte = static_cast<uint8_t>(both >> (8 * (s & 7)));
    if (s & 8) byte = byte & 0x80 ? 0xff : 0;  // the sign of the byte, replicated
    r |= uint32_t{byte} << (8 * i);
  }
  return r;
}
// The named modes are selectors chosen by the low two bits of c.
struct PermuteMode {
  std::string_view name;
  uint16_t selector[4];
};
constexpr PermuteMode kPermuteModes[] = {
    {"f4e", {0x3210, 0x4321, 0x5432, 0x6543}}, {"b4e", {0x5670, 0x6701, 0x7012, 0x0123}},
    {"rc8", {0x0000, 0x1111, 0x2222, 0x3333}}, {"ecl", {0x3210, 0x3211, 0x3222, 0x3333}},
    {"ecr", {0x0000, 0x1110, 0x2210, 0x3210}}, {"rc16", {0x1010, 0x3232, 0x1010, 0x3232}},
};
// flags: 0, or one more than the index of the mode
void prmt(Warp& w, const Inst& in, uint32_t mask) {
  uint32_t* d = w.at<uint32_t>(in.op[0]);
  const uint32_t *a = w.at<uint32_t>(in.op[1]), *b = w.at<uint32_t>(in.op[2]);
  const uint32_t* c = w.at<uint32_t>(in.op[3]);
  for_lanes(mask, [&](unsigned i) {
    d[i] = permute(a[i], b[i], in.flags ? kPermuteModes[in.flags - 1].selector[c[i] & 3] : c[i]);
  });
}
void decode_prmt(Decoder& d) {
  d.take_type();
  for (uint32_t m = 0; m < std::size(kPermuteModes); ++m)
    if (d.has(kPermuteModes[m].name)) d.in.flags = m + 1;
  d.same_size_operands(4, 4);
  d.in.run = prmt;
}

template <class T>
void bfe(Warp& w, const Inst& in, uint32_t mask) {
  T* d = w.at<T>(in.op[0]);
  const T* a = w.at<T>(in.op[1]);
  const uint32_t *position = w.at<uint32_t>(in.op[2]), *length = w.at<uint32_t>(in.op[3]);
  for_lanes(mask, [=](unsigned i) {
    const unsigned p = position[i] & 0xff, n = length[i] & 0xff;
    const Unsigned<T> u = Unsigned<T>(a[i]);
    // Bits above the field, or beyond the register, repeat the field's sign.
    const bool sign = std::is_signed_v<T> && n && (u >> std::min(p + n - 1, kBits<T> - 1) & 1);
    const Unsigned<T> fill = sign ? Unsigned<T>(~Unsigned<T>{0}) : Unsigned<T>{0};
    const unsigned valid = p < kBits<T> ? std::min(n, kBits<T> - p) : 0;
    const Unsigned<T> keep = kShl(Unsigned<T>{1}, valid) - 1;
    d[i] = T((kShr(u, p) & keep) | (fill & ~keep));
  });
}
void decode_bfe(Decoder& d) {
  Type t = d.take_type();
  d.in.op[0] = d.destination(0, size_of(t));
  d.in.op[1] = d.source(1, size_of(t));
  d.in.op[2] = d.source(2, 4);
  d.in.op[3] = d.source(3, 4);
  d.in.run = for_integer(t, []<class T>(T) -> Handler { return bfe<T>; });
}

template <class T>
void bfi(Warp& w, const Inst& in, uint32_t mask) {
  T* d = w.at<T>(in.op[0]);
  const T *a = w.at<T>(in.op[1]), *b = w.at<T>(in.op[2]);
  const uint32_t *position = w.at<uint32_t>(in.op[3]), *length = w.at<uint32_t>(in.op[4]);
  for_lanes(mask, [=](unsigned i) {
    const unsigned p = position[i] & 0xff, n = length[i] & 0xff;
    const T field = kShl(T(kShl(T{1}, n) - 1), p);
    d[i] = (b[i] & ~field) | (kShl(a[i], p) & field);
  });
}
void decode_bfi(Decoder& d) {
  const unsigned bytes = size_of(d.take_type());
  d.same_size_operands(3, bytes);
  d.in.op[3] = d.source(3, 4);
  d.in.op[4] = d.source(4, 4);
  d.in.run = bytes == 4 ? bfi<uint32_t> : bfi<uint64_t>;
}

void bmsk(Warp& w, const Inst& in, uint32_t mask) {
  uint32_t* d = w.at<uint32_t>(in.op[0]);
  const uint32_t *a = w.at<uint32_t>(in.op[1]), *b = w.at<uint32_t>(in.op[2]);
  auto limited = [&](uint32_t n) { return in.flags & kClamp ? std::min(n, 32u) : n & 31; };
  for_lanes(mask, [&](unsigned i) {
    const uint64_t field = (uint64_t{1} << limited(b[i])) - 1;
    d[i] = static_cast<uint32_t>(field << limited(a[i]));
  });
}
void decode_bmsk(Decoder& d) {
  if (d.has("clamp")) d.in.flags = kClamp;
  else d.has("wrap");
  d.take_type();
  d.same_size_operands(3, 4);
  d.in.run = bmsk;
}

}  // namespace

void add_bit_opcodes(OpcodeTable& t) {
  const OpClass c = OpClass::kInteger;
  t["and"] = {c, decode_logic<kAnd>};
  t["or"] = {c, decode_logic<kOr>};
  t["xor"] = {c, decode_logic<kXor>};
  t["not"] = {c, decode_not};
  t["cnot"] = {c, decode_unary<kLogicalNot>};
  t["brev"] = {c, decode_unary<kBrev>};
  t["popc"] = {c, decode_count<kPopc>};
  t["clz"] = {c, decode_count<kClz>};
  t["bfind"] = {c, decode_bfind};
  t["shl"] = {c, decode_shift<kShl>};
  t["shr"] = {c, decode_shift<kShr>};
  t["shf"] = {c, decode_shf};
  t["lop3"] = {c, decode_lop3};
  t["prmt"] = {c, decode_prmt};
  t["bfe"] = {c, decode_bfe};
  t["bfi"] = {c, decode_bfi};
  t["bmsk"] = {c, decode_bmsk};
}

}  // namespace ptxsim
