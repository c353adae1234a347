// Query i sees `left` keys before and `right` keys after its own position
// (aligned bottom-right), and the first `sink_tokens` keys wherever it stands.
// Under `causal` no key after the query's own position is visible, sinks
// included.
#pragma once

#include "tileattn/pattern/pattern.h"

namespace tileattn {

struct SlidingWindow {
  using Walk = TwoRuns;
  int len_q;
  int len_k;
  int left;
  int right;
  int sink_tokens;
  int sink_reach;  // sink keys lie at most this far after the query

  TILEATTN_HOST_DEVICE static SlidingWindow make(PatternSpec spec, int len_q, int len_k) {
    // No two positions are further apart than this.
    int unlimited = len_q + len_k;
    auto bounded = [&](int n) { return n < 0 ? unlimited : imin(n, unlimited); };
    int right = spec.causal ? 0 : bounded(spec.right);
    int sink_reach = spec.causal ? 0 : unlimited;
    return {len_q, len_k, bounded(spec.left), right, imin(spec.sink_tokens, len_k), sink_reach};
  }

  TILEATTN_HOST_DEVICE int diagonal(int query) const { return query + len_k - len_q; }

  TILEATTN_HOST_DEVICE bool visible(int query, int key) const {
    int ahead = key - diagonal(query);
    bool in_window = ahead >= -left && ahead <= right;
    bool in_sink = key < sink_tokens && ahead <= sink_reach;
    return key >= 0 && key < len_k && (in_window || in_sink);
  }

  TILEATTN_HOST_DEVICE Walk keys_of(int query_tile, Tiling tiling) const {
    Range queries = tokens_of(query_tile, tiling.queries, len_q);
    Range sinks = tiles_of(0, sink_keys_end(queries), tiling.keys);
    Range window = window_keys(queries);
    Range tiles = tiles_of(window.begin, window.end, tiling.keys);
    return {sinks, {imax(tiles.begin, sinks.end), tiles.end}};
  }

  TILEATTN_HOST_DEVICE Walk queries_of(int key_tile, Tiling tiling) const {
    Range keys = tokens_of(key_tile, tiling.keys, len_k);
    int shift = len_k - len_q;
    if (keys.begin < sink_tokens)  // all queries from the first that a sink reaches
      return {
          tiles_of(imax(0, keys.begin - shift - imax(sink_reach, right)), len_q, tiling.queries),
          {0, 0}};
    int begin = imax(0, keys.begin - shift - right);
    int end = imin(len_q, keys.end - shift + left);
    return {tiles_of(begin, end, tiling.queries), {0, 0}};
  }

  TILEATTN_HOST_DEVICE Cover cover(int query_tile, int key_tile, Tiling tiling) const {
    Range queries = tokens_of(query_tile, tiling.queries, len_q);
    Range keys = {key_tile * tiling.keys, (key_tile + 1) * tiling.keys};
    Range window = window_keys(queries);
    bool window_meets = imax(keys.begin, window.begin) < imin(keys.end, window.end);
    if (!window_meets && keys.begin >= sink_keys_end(queries)) return Cover::kEmpty;
    if (keys.end > len_k) return Cover::kPartial;
    int ahead_max = keys.end - 1 - diagonal(queries.begin);
    int ahead_min = keys.begin - diagonal(queries.end - 1);
    bool in_window = ahead_min >= -left && ahead_max <= right;
    bool in_sink = keys.end <= sink_tokens && ahead_max <= sink_reach;
    return in_window || in_sink ? Cover::kFull : Cover::kPartial;
  }

 private:
  /// Keys that the window of some query in the range holds.
  TILEATTN_HOST_DEVICE Range window_keys(Range queries) const {
    return {imax(0, diagonal(queries.begin) - left),
            imin(len_k, diagonal(queries.end - 1) + right + 1)};
  }

  /// One past the last sink key that some query in the range sees.
  TILEATTN_HOST_DEVICE int sink_keys_end(Range queries) const {
    return imin(sink_tokens, diagonal(queries.end - 1) + sink_reach + 1);
  }
};

}  // namespace tileattn
