// A query sees the keys up to its own position.
#pragma once

#include "tileattn/pattern/ranges.h"

namespace tileattn {

struct Causal : FromRanges<Causal, 1> {
  TILEATTN_HOST_DEVICE static Causal make(const PatternSpec&, const HeadPlace& place) {
    return {{place.len_q, place.len_k}};
  }

  TILEATTN_HOST_DEVICE Range keys(int query, int) const { return {0, position(query) + 1}; }
};

}  // namespace tileattn
