// Query i sees keys up to its own position, aligned bottom-right: the last
// query sees the last key (as FlashAttention >= 2.1 does).
#pragma once

#include "tileattn/pattern/pattern.h"

namespace tileattn {

struct Causal {
  using Walk = TwoRuns;
  int len_q;
  int len_k;

  TILEATTN_HOST_DEVICE static Causal make(PatternSpec, int len_q, int len_k) {
    return {len_q, len_k};
  }

  /// The key at the position of query i.
  TILEATTN_HOST_DEVICE int diagonal(int query) const { return query + len_k - len_q; }

  TILEATTN_HOST_DEVICE bool visible(int query, int key) const {
    return key >= 0 && key < len_k && key <= diagonal(query);
  }

  TILEATTN_HOST_DEVICE Walk keys_of(int query_tile, Tiling tiling) const {
    Range queries = tokens_of(query_tile, tiling.queries, len_q);
    return {tiles_of(0, diagonal(queries.end - 1) + 1, tiling.keys), {0, 0}};
  }

  TILEATTN_HOST_DEVICE Walk queries_of(int key_tile, Tiling tiling) const {
    int first_query = imax(0, key_tile * tiling.keys - (len_k - len_q));
    return {tiles_of(first_query, len_q, tiling.queries), {0, 0}};
  }

  TILEATTN_HOST_DEVICE Cover cover(int query_tile, int key_tile, Tiling tiling) const {
    Range queries = tokens_of(query_tile, tiling.queries, len_q);
    int keys_begin = key_tile * tiling.keys, keys_end = keys_begin + tiling.keys;
    if (keys_begin > diagonal(queries.end - 1)) return Cover::kEmpty;
    bool full = keys_end <= len_k && keys_end - 1 <= diagonal(queries.begin);
    return full ? Cover::kFull : Cover::kPartial;
  }
};

}  // namespace tileattn
