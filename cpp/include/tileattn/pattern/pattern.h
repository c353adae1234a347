// The vocabulary of patterns: which key tiles a query tile visits, and which
// elements of a tile are visible.
//
// A pattern is a small trivially copyable struct, used by the CPU kernels, by
// the CUDA kernels of every architecture and by the pictures alike. It has
//
//   static P make(const PatternSpec& spec, const HeadPlace& place);
//   bool  visible(int query, int key) const;              the definition
//   std::uint64_t seen(int query, int first_key) const;   the same of 64 keys, one a bit
//   Cursor keys_of(int query_tile, Tiling tiling) const;   key tiles to visit, in order
//   Cursor queries_of(int key_tile, Tiling tiling) const;  the transpose, for dK and dV
//   Cover cover(int query_tile, int key_tile, Tiling tiling) const;
//
// and promises (cpp/tests/test_patterns.cpp checks all small shapes):
//   a key tile is in keys_of(a query tile), and that in queries_of(the key tile),
//                      <=> some key of the one is visible to some query of the other;
//   cover == kFull      => every in-range query of the tile sees every key of a
//                          whole (not cut off) key tile;
//   cover == kEmpty    <=> no element is visible.
// visible() is false for every key outside [0, len_k). What is a range or two of keys
// for each query says no more than these: see ranges.h.
#pragma once

#include <cstdint>

#include "tileattn/macros.h"

namespace tileattn {

TILEATTN_HOST_DEVICE int imin(int a, int b) { return a < b ? a : b; }
TILEATTN_HOST_DEVICE int imax(int a, int b) { return a > b ? a : b; }
TILEATTN_HOST_DEVICE int ceil_div(int a, int b) { return (a + b - 1) / b; }

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

/// A tile to visit, and how much of it is visible.
template <class Tile>
struct Visit {
  Tile tile;
  Cover cover;
};

/// Visits tiles in order. Pattern::cover is asked of pairs (own, visited), or (visited, own).
template <class Pattern, bool kOwnIsQueries>
class Cursor {
 public:
  TILEATTN_HOST_DEVICE Cursor(const Pattern& pattern, int own, Tiling tiling, TwoRuns tiles)
      : pattern_(pattern),
        own_(own),
        tiling_(tiling),
        tiles_(tiles),
        next_(0),
        end_(tiles.size()) {}

  using Tile = int;

  /// The next visit, if there is one.
  TILEATTN_HOST_DEVICE bool next(Visit<int>& visit) {
    if (next_ == end_) return false;
    visit.tile = tiles_[next_++];
    visit.cover = kOwnIsQueries ? pattern_.cover(own_, visit.tile, tiling_)
                                : pattern_.cover(visit.tile, own_, tiling_);
    return true;
  }

  /// How many are left.
  TILEATTN_HOST_DEVICE int size() const { return end_ - next_; }

  /// Part `n` of `parts` that are about equally long.
  TILEATTN_HOST_DEVICE Cursor part(int n, int parts) const {
    Cursor some = *this;
    const int share = ceil_div(size(), parts);
    some.next_ = imin(next_ + n * share, end_);
    some.end_ = imin(some.next_ + share, end_);
    return some;
  }

 private:
  Pattern pattern_;
  int own_;
  Tiling tiling_;
  TwoRuns tiles_;
  int next_, end_;
};

/// Whose map a pattern is.
struct HeadPlace {
  int entry;  // of the batch, or of the packed sequences
  int head;   // of the queries
  int len_q;
  int len_k;
};

/// What a caller asks for; each pattern takes from it what it needs.
struct PatternSpec {
  static constexpr int kUnlimited = -1;
  int left = kUnlimited;   // keys visible before a query's own position
  int right = kUnlimited;  // keys visible after it
  int sink_tokens = 0;     // leading keys that the window never hides
  bool causal = false;     // no key after the query's own position, sinks included
};

/// The tiles of `tile` tokens that the token range [begin, end) touches.
TILEATTN_HOST_DEVICE Range tiles_of(int begin, int end, int tile) {
  return end > begin ? Range{begin / tile, ceil_div(end, tile)} : Range{0, 0};
}

/// The tokens of tile `index`, cut off at `length`.
TILEATTN_HOST_DEVICE Range tokens_of(int index, int tile, int length) {
  return {index * tile, imin((index + 1) * tile, length)};
}

/// A word with the bits [begin, end) set, as far as it has them.
TILEATTN_HOST_DEVICE std::uint64_t word_of(Range bits) {
  int begin = imax(bits.begin, 0), size = imin(bits.end, 64) - begin;
  return size > 0 ? ~std::uint64_t{0} >> (64 - size) << begin : 0;
}

}  // namespace tileattn
