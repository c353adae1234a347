// setp, set, selp, slct: comparisons and what is chosen by them.
#include <algorithm>
#include <utility>

#include "decode.h"
#include "formats.h"
#include "lanes.h"

namespace ptxsim {

namespace {

// The order of kCompareNames.
enum Compare : uint8_t {
  kEq,
  kNe,
  kLt,
  kLe,
  kGt,
  kGe,
  kEqu,
  kNeu,
  kLtu,
  kLeu,
  kGtu,
  kGeu,
  kNum,
  kNan
};
constexpr std::string_view kCompareNames[] = {"eq",  "ne",  "lt",  "le",  "gt",  "ge",  "equ",
                                              "neu", "ltu", "leu", "gtu", "geu", "num", "nan"};
// The unsigned forms of lt, le, gt, ge.
constexpr std::pair<std::string_view, Compare> kUnsignedNames[] = {
    {"lo", kLt}, {"ls", kLe}, {"hi", kGt}, {"hs", kGe}};

template <Compare C, class T>
bool compare(T a, T b) {
  if constexpr (std::is_floating_point_v<T>) {
    bool unordered = std::isnan(a) || std::isnan(b);
    if constexpr (C == kEqu) return unordered || a == b;
    if constexpr (C == kNeu) return unordered || a != b;
    if constexpr (C == kLtu) return unordered || a < b;
    if constexpr (C == kLeu) return unordered || a <= b;
    if constexpr (C == kGtu) return unordered || a > b;
    if constexpr (C == kGeu) return unordered || a >= b;
    if constexpr (C == kNum) return !unordered;
    if constexpr (C == kNan) return unordered;
    if constexpr (C == kNe) return !unordered && a != b;
  }
  if constexpr (C == kEq) return a == b;
  if constexpr (C == kNe) return a != b;
  if constexpr (C == kLt) return a < b;
  if constexpr (C == kLe) return a <= b;
  if constexpr (C == kGt) return a > b;
  if constexpr (C == kGe) return a >= b;
  return false;
}

using MaskCompare = uint32_t (*)(Warp&, const Inst&, uint32_t mask);

template <Compare C, class T>
uint32_t compare_lanes(Warp& w, const Inst& in, uint32_t mask) {
  const T *a = w.at<T>(in.op[2]), *b = w.at<T>(in.op[3]);
  uint32_t r = 0;
  if (mask == kFullMask) {  // a loop that the compiler vectorises
    for (unsigned i = 0; i < kWarpSize; ++i) r |= uint32_t{compare<C>(a[i], b[i])} << i;
  } else {
    for_lanes(mask, [&](unsigned i) { r |= uint32_t{compare<C>(a[i], b[i])} << i; });
  }
  return r;
}
// f16 / bf16; the upper element of a packed pair with Index 1.
template <Compare C, float (*Load)(uint16_t), unsigned Width, unsigned Index>
uint32_t compare_halves(Warp& w, const Inst& in, uint32_t mask) {
  const uint16_t *a = w.at<uint16_t>(in.op[2]), *b = w.at<uint16_t>(in.op[3]);
  uint32_t r = 0;
  for_lanes(mask, [&](unsigned i) {
    r |= uint32_t{compare<C>(Load(a[Width * i + Index]), Load(b[Width * i + Index]))} << i;
  });
  return r;
}

template <Compare C>
MaskCompare comparison(Type t, unsigned index) {
  switch (t) {
    case Type::kU16:
    case Type::kB16: return compare_lanes<C, uint16_t>;
    case Type::kS16: return compare_lanes<C, int16_t>;
    case Type::kU32:
    case Type::kB32: return compare_lanes<C, uint32_t>;
    case Type::kS32: return compare_lanes<C, int32_t>;
    case Type::kU64:
    case Type::kB64: return compare_lanes<C, uint64_t>;
    case Type::kS64: return compare_lanes<C, int64_t>;
    case Type::kF32: return compare_lanes<C, float>;
    case Type::kF64: return compare_lanes<C, double>;
    case Type::kF16: return compare_halves<C, half_to_float, 1, 0>;
    case Type::kBF16: return compare_halves<C, bf16_to_float, 1, 0>;
    case Type::kF16x2:
      return index ? compare_halves<C, half_to_float, 2, 1>
                   : compare_halves<C, half_to_float, 2, 0>;
    case Type::kBF16x2:
      return index ? compare_halves<C, bf16_to_float, 2, 1>
                   : compare_halves<C, bf16_to_float, 2, 0>;
    default: return nullptr;
  }
}
MaskCompare comparison(Compare c, Type t, unsigned index = 0) {
  return [&]<size_t... I>(std::index_sequence<I...>) {
    MaskCompare found = nullptr;
    ((c == I ? void(found = comparison<static_cast<Compare>(I)>(t, index)) : void()), ...);
    return found;
  }(std::make_index_sequence<std::size(kCompareNames)>{});
}

enum class Combine : uint8_t { kNone, kAnd, kOr, kXor };
struct Comparison {
  MaskCompare compare, compare_upper;  // the latter for packed types
  Combine combine = Combine::kNone;
  bool negate_third = false;
  uint32_t true_bits = 0;  // set: result for a true comparison
};
const Comparison& comparison_of(const Inst& in) {
  return *static_cast<const Comparison*>(in.extra.get());
}

uint32_t combined(Warp& w, const Inst& in, const Comparison& c, uint32_t result) {
  if (c.combine == Combine::kNone) return result;
  uint32_t third = w.predicate(in.op[4]);
  if (c.negate_third) third = ~third;
  return c.combine == Combine::kAnd  ? result & third
         : c.combine == Combine::kOr ? result | third
                                     : result ^ third;
}

void setp(Warp& w, const Inst& in, uint32_t mask) {
  const Comparison& c = comparison_of(in);
  uint32_t result = c.compare(w, in, mask);
  if (c.compare_upper) {  // packed: one predicate per element
    uint32_t upper = c.compare_upper(w, in, mask);
    uint32_t low = combined(w, in, c, result), high = combined(w, in, c, upper);
    w.set_predicate(in.op[0], mask, low);
    w.set_predicate(in.op[1], mask, high);
    return;
  }
  uint32_t first = combined(w, in, c, result), second = combined(w, in, c, ~result);
  w.set_predicate(in.op[0], mask, first);
  w.set_predicate(in.op[1], mask, second);
}
void set(Warp& w, const Inst& in, uint32_t mask) {
  const Comparison& c = comparison_of(in);
  uint32_t low = combined(w, in, c, c.compare(w, in, mask));
  uint32_t high = c.compare_upper ? combined(w, in, c, c.compare_upper(w, in, mask)) : 0;
  for_lanes(mask, [&](unsigned i) {
    uint64_t r = low >> i & 1 ? c.true_bits : 0;
    if (c.compare_upper) r |= high >> i & 1 ? uint64_t{c.true_bits} << 16 : 0;
    w.set(in.op[0], in.size[0], i, r);
  });
}

// What `set` writes per element for a true comparison.
uint32_t true_bits(Type result, bool packed) {
  switch (result) {
    case Type::kF32: return 0x3f800000u;
    case Type::kF16:
    case Type::kF16x2: return 0x3c00u;
    case Type::kBF16:
    case Type::kBF16x2: return 0x3f80u;
    case Type::kU16:
    case Type::kS16: return 0xffffu;
    default: return packed ? 0xffffu : 0xffffffffu;
  }
}

Compare take_compare(Decoder& d) {
  for (size_t i = 0; i < std::size(kCompareNames); ++i)
    if (d.has(kCompareNames[i])) return static_cast<Compare>(i);
  for (auto [name, compare] : kUnsignedNames)
    if (d.has(name)) return compare;
  d.fail("unknown comparison");
}

void decode_compare(Decoder& d) {
  const Compare which = take_compare(d);
  Comparison c{};
  if (d.has("and")) c.combine = Combine::kAnd;
  else if (d.has("or")) c.combine = Combine::kOr;
  else if (d.has("xor")) c.combine = Combine::kXor;
  d.has("ftz");
  bool is_set = d.opcode() == "set";
  Type result = is_set ? d.take_type() : Type::kPred;
  Type t = d.take_type();
  c.compare = comparison(which, t);
  if (t == Type::kF16x2 || t == Type::kBF16x2) c.compare_upper = comparison(which, t, 1);
  if (!c.compare) d.fail("unknown type");
  unsigned bytes = size_of(t);
  if (is_set) {
    d.in.size[0] = static_cast<uint8_t>(size_of(result));
    d.in.op[0] = d.destination(0, d.in.size[0]);
    c.true_bits = true_bits(result, c.compare_upper != nullptr);
  } else if (d.arg(0).kind == Expr::kPair) {
    d.in.op[0] = d.predicate_destination(d.arg(0).items[0]);
    d.in.op[1] = d.predicate_destination(d.arg(0).items[1]);
  } else {
    d.in.op[0] = d.predicate_destination(d.arg(0));
  }
  d.in.op[2] = d.source(1, bytes);
  d.in.op[3] = d.source(2, bytes);
  if (c.combine != Combine::kNone) {
    d.in.op[4] = d.predicate_source(d.arg(3));
    c.negate_third = d.arg(3).negated;
  }
  d.in.extra = std::make_shared<Comparison>(c);
  d.in.run = is_set ? set : setp;
}

template <class T>
void selp(Warp& w, const Inst& in, uint32_t mask) {
  T* d = w.at<T>(in.op[0]);
  const T *a = w.at<T>(in.op[1]), *b = w.at<T>(in.op[2]);
  uint32_t p = w.predicate(in.op[3]);
  for_lanes(mask, [=](unsigned i) { d[i] = p >> i & 1 ? a[i] : b[i]; });
}
void decode_selp(Decoder& d) {
  unsigned bytes = size_of(d.take_type());
  d.same_size_operands(3, bytes);
  d.in.op[3] = d.predicate_source(d.arg(3));
  d.in.run = bytes == 2   ? selp<uint16_t>
             : bytes == 4 ? selp<uint32_t>
             : bytes == 8 ? selp<uint64_t>
                          : Handler(nullptr);
}

void decode_slct(Decoder& d) {
  d.has("ftz");
  unsigned bytes = size_of(d.take_type());
  Type third = d.take_type();
  d.in.type = third;
  d.in.size[0] = static_cast<uint8_t>(bytes);
  d.same_size_operands(3, bytes);
  d.in.op[3] = d.source(3, 4);
  d.in.run = [](Warp& w, const Inst& in, uint32_t mask) {
    for_lanes(mask, [&](unsigned i) {
      bool first =
          in.type == Type::kF32 ? w.at<float>(in.op[3])[i] >= 0 : w.at<int32_t>(in.op[3])[i] >= 0;
      w.set(in.op[0], in.size[0], i, w.get(in.op[first ? 1 : 2], in.size[0], i));
    });
  };
}

}  // namespace

void add_compare_opcodes(OpcodeTable& t) {
  t["setp"] = t["set"] = {OpClass::kPredicate, decode_compare};
  t["selp"] = {OpClass::kMove, decode_selp};
  t["slct"] = {OpClass::kMove, decode_slct};
}

}  // namespace ptxsim
