// From a PatternSpec to the cheapest pattern that means the same.
#pragma once

#include "tileattn/pattern/causal.h"
#include "tileattn/pattern/dense.h"
#include "tileattn/pattern/sliding_window.h"

namespace tileattn {

enum class PatternKind : std::uint8_t { kDense, kCausal, kSlidingWindow };

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

/// Calls visit(PatternTag<P>{}) with the pattern type that `spec` needs.
template <class Visit>
auto dispatch_pattern(PatternSpec spec, Visit&& visit) {
  switch (kind_of(spec)) {
    case PatternKind::kDense: return visit(PatternTag<Dense>{});
    case PatternKind::kCausal: return visit(PatternTag<Causal>{});
    default: return visit(PatternTag<SlidingWindow>{});
  }
}

}  // namespace tileattn
