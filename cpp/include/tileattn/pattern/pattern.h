// The vocabulary of patterns: which key tiles a query tile visits, and which
// elements of a tile are visible.
//
// A pattern is a small trivially copyable struct, used by the CPU kernels, by
// the CUDA kernels of every architecture and by the pictures alike. It has
//
//   static P make(PatternSpec spec, int len_q, int len_k);
//   bool  visible(int query, int key) const;              the definition
//   Walk  keys_of(int query_tile, Tiling tiling) const;   key tiles to visit, in order
//   Walk  queries_of(int key_tile, Tiling tiling) const;  the transpose, for dK and dV
//   Cover cover(int query_tile, int key_tile, Tiling tiling) const;
//
// and promises (cpp/tests/test_patterns.cpp checks all small shapes):
//   visible(i, j)                => the tile of j is in keys_of(tile of i), and
//                                   the tile of i is in queries_of(tile of j);
//   cover == kFull               => every in-range query of the tile sees every
//                                   key of a whole (not cut off) key tile;
//   cover == kEmpty              <=> no element is visible.
// visible() is false for every key outside [0, len_k).
#pragma once

#include <cstdint>

#include "tileattn/macros.h"

namespace tileattn {

enum class Cover : std::uint8_t { kEmpty, kPartial, kFull };

/// Tokens in a query tile and in a key tile.
struct Tiling {
  int queries;
  int keys;
};

/// A half-open range of tokens or of tiles; empty when end <= begin.
struct Range {
  int begin;
  int end;
  TILEATTN_HOST_DEVICE int size() const { return end > begin ? end - begin : 0; }
};

/// The tiles to visit, as two ascending runs. The second starts at or after
/// the end of the first.
struct TwoRuns {
  Range first;
  Range second;
  TILEATTN_HOST_DEVICE int size() const { return first.size() + second.size(); }
  TILEATTN_HOST_DEVICE int operator[](int n) const {
    return n < first.size() ? first.begin + n : second.begin + (n - first.size());
  }
};

/// What a caller asks for; each pattern takes from it what it needs.
struct PatternSpec {
  static constexpr int kUnlimited = -1;
  int left = kUnlimited;   // keys visible before a query's own position
  int right = kUnlimited;  // keys visible after it
  int sink_tokens = 0;     // leading keys that the window never hides
  bool causal = false;     // no key after the query's own position, sinks included
};

TILEATTN_HOST_DEVICE int imin(int a, int b) { return a < b ? a : b; }
TILEATTN_HOST_DEVICE int imax(int a, int b) { return a > b ? a : b; }
TILEATTN_HOST_DEVICE int ceil_div(int a, int b) { return (a + b - 1) / b; }

/// The tiles of `tile` tokens that the token range [begin, end) touches.
TILEATTN_HOST_DEVICE Range tiles_of(int begin, int end, int tile) {
  return end > begin ? Range{begin / tile, ceil_div(end, tile)} : Range{0, 0};
}

/// The tokens of tile `index`, cut off at `length`.
TILEATTN_HOST_DEVICE Range tokens_of(int index, int tile, int length) {
  return {index * tile, imin((index + 1) * tile, length)};
}

}  // namespace tileattn
