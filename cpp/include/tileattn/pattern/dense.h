// Every query sees every key.
#pragma once

#include "tileattn/pattern/ranges.h"

namespace tileattn {

struct Dense : FromRanges<Dense, 1> {
  TILEATTN_HOST_DEVICE static Dense make(const PatternSpec&, const HeadPlace& place) {
    return {{place.len_q, place.len_k}};
  }

  TILEATTN_HOST_DEVICE Range keys(int, int) const { return {0, len_k}; }
};

}  // namespace tileattn
