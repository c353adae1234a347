// Every query sees every key.
#pragma once

#include "tileattn/pattern/pattern.h"

namespace tileattn {

struct Dense {
  using Walk = TwoRuns;
  int len_q;
  int len_k;

  TILEATTN_HOST_DEVICE static Dense make(PatternSpec, int len_q, int len_k) {
    return {len_q, len_k};
  }

  TILEATTN_HOST_DEVICE bool visible(int, int key) const { return key >= 0 && key < len_k; }

  TILEATTN_HOST_DEVICE Walk keys_of(int, Tiling tiling) const {
    return {tiles_of(0, len_k, tiling.keys), {0, 0}};
  }

  TILEATTN_HOST_DEVICE Walk queries_of(int, Tiling tiling) const {
    return {tiles_of(0, len_q, tiling.queries), {0, 0}};
  }

  TILEATTN_HOST_DEVICE Cover cover(int, int key_tile, Tiling tiling) const {
    return (key_tile + 1) * tiling.keys <= len_k ? Cover::kFull : Cover::kPartial;
  }
};

}  // namespace tileattn
