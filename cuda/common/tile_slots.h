// Numbers for the tiles of packed sequences, whose lengths the device alone knows.
#pragma once

#include <cstdint>

#include "tileattn/pattern/pattern.h"

namespace tileattn::cuda {

/// The tiles of all sequences on one side, numbered without reading their
/// lengths on the host. Packed sequence n owns the slots from
/// floor(cu[n] / tile) + n, which leaves room for its cut-off last tile; some
/// slots stay empty. The tokens after the last sequence count as one more
/// sequence, number `batch`, that meets nothing on the other side.
struct TileSlots {
  const std::int32_t* cu_seqlens;  // or null
  int batch;
  int length;
  int tile;

  TILEATTN_HOST_DEVICE int tiles() const { return tileattn::ceil_div(length, tile); }
  TILEATTN_HOST_DEVICE int count() const {
    return cu_seqlens ? length / tile + batch + 1 : batch * tiles();
  }
  /// The tokens of sequence n, clamped so that no offset leads outside.
  TILEATTN_HOST_DEVICE Range tokens(int n) const {
    if (!cu_seqlens) return {0, length};
    int begin = offset(n);
    return {begin, n < batch ? imax(begin, offset(n + 1)) : length};
  }
  TILEATTN_HOST_DEVICE int first(int n) const {
    return cu_seqlens ? offset(n) / tile + n : n * tiles();
  }
  /// The sequence that owns `slot`.
  TILEATTN_HOST_DEVICE int owner(int slot) const {
    if (!cu_seqlens) return slot / tiles();
    int low = 0, high = batch;
    while (low < high) {
      int middle = (low + high + 1) / 2;
      if (first(middle) <= slot) low = middle;
      else high = middle - 1;
    }
    return low;
  }

 private:
  TILEATTN_HOST_DEVICE int offset(int n) const { return imax(0, imin(length, cu_seqlens[n])); }
};

}  // namespace tileattn::cuda
