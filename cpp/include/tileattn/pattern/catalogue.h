// The patterns of tokens in a row, and from a PatternSpec to the cheapest one that means it.
#pragma once

#include "tileattn/pattern/causal.h"
#include "tileattn/pattern/dense.h"
#include "tileattn/pattern/sliding_window.h"

namespace tileattn {

template <class... Patterns>
struct PatternList {
  static constexpr int kSize = sizeof...(Patterns);
};

/// The one list of them, in the order of PatternKind.
using SequencePatterns = PatternList<Dense, Causal, SlidingWindow>;
enum class PatternKind : std::uint8_t { kDense, kCausal, kSlidingWindow };
constexpr const char* kPatternNames[] = {"Dense", "Causal", "SlidingWindow"};
static_assert(sizeof(kPatternNames) / sizeof(*kPatternNames) == SequencePatterns::kSize);

inline PatternKind kind_of(PatternSpec spec) {
  bool left = spec.left != PatternSpec::kUnlimited, right = spec.right != PatternSpec::kUnlimited;
  if (left || (right && !(spec.causal || (spec.right == 0 && spec.sink_tokens == 0))))
    return PatternKind::kSlidingWindow;
  return spec.causal || right ? PatternKind::kCausal : PatternKind::kDense;
}

template <class Pattern>
struct PatternTag {
  using type = Pattern;
};

template <class Visitor, class Pattern, class... Others>
auto dispatch_kind(int kind, Visitor& visitor, PatternList<Pattern, Others...>) {
  if constexpr (sizeof...(Others) > 0)
    if (kind > 0) return dispatch_kind(kind - 1, visitor, PatternList<Others...>{});
  return visitor(PatternTag<Pattern>{});
}

/// Calls visitor(PatternTag<P>{}) with the pattern type that `spec` needs.
template <class Visitor>
auto dispatch_pattern(PatternSpec spec, Visitor&& visitor) {
  return dispatch_kind(static_cast<int>(kind_of(spec)), visitor, SequencePatterns{});
}

}  // namespace tileattn
