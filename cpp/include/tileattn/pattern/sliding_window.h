// A query sees `left` keys before and `right` keys after its own position, and the first
// `sink_tokens` keys wherever it stands. Under `causal` no key after its position is visible,
// sinks included.
#pragma once

#include "tileattn/pattern/ranges.h"

namespace tileattn {

struct SlidingWindow : FromRanges<SlidingWindow, 2> {
  int left;
  int right;
  int sink_tokens;
  int sink_reach;  // sink keys lie at most this far after the query

  TILEATTN_HOST_DEVICE static SlidingWindow make(const PatternSpec& spec, const HeadPlace& place) {
    // No two positions are further apart than this.
    int unlimited = place.len_q + place.len_k;
    auto bounded = [&](int n) { return n < 0 ? unlimited : imin(n, unlimited); };
    int right = spec.causal ? 0 : bounded(spec.right);
    int sink_reach = spec.causal ? 0 : unlimited;
    return {{place.len_q, place.len_k}, bounded(spec.left), right, spec.sink_tokens, sink_reach};
  }

  TILEATTN_HOST_DEVICE Range keys(int query, int range) const {
    int own = position(query);
    if (range == 0) return {0, imin(sink_tokens, own + sink_reach + 1)};
    return {own - left, own + right + 1};
  }
};

}  // namespace tileattn
