// Patterns that are a range or two of keys for each query: one function is the definition, and
// which tiles are visited, the transpose, covers and words follow from it.
#pragma once

#include "tileattn/pattern/pattern.h"

namespace tileattn {

/// Base of a pattern P, of which it asks
///
///   Range P::keys(int query, int range) const;   range 0 or, where there are two, 1
///
/// in any numbers: keys outside of [0, len_k) do not exist. From a query to the next neither end of
/// a range moves back, and where both have keys in it, these overlap or touch.
template <class P, int kRanges>
struct FromRanges {
  static_assert(kRanges == 1 || kRanges == 2);
  int len_q;
  int len_k;

  /// The key at the position of a query, aligned bottom-right: the last query stands at the last
  /// key (as in FlashAttention >= 2.1).
  TILEATTN_HOST_DEVICE int position(int query) const { return query + len_k - len_q; }

  TILEATTN_HOST_DEVICE bool visible(int query, int key) const {
    bool seen = false;
    for (int r = 0; r < kRanges; ++r) {
      Range range = existing(query, r);
      seen = seen || (range.begin <= key && key < range.end);
    }
    return seen;
  }

  TILEATTN_HOST_DEVICE std::uint64_t seen(int query, int first_key) const {
    std::uint64_t word = 0;
    for (int r = 0; r < kRanges; ++r) {
      Range range = existing(query, r);
      word |= word_of({range.begin - first_key, range.end - first_key});
    }
    return word;
  }

  TILEATTN_HOST_DEVICE Cursor<P, true> keys_of(int query_tile, Tiling tiling) const {
    Range queries = tokens_of(query_tile, tiling.queries, len_q);
    auto tiles = [&](int range) {
      Range any = keys_of_any(queries, range);
      return tiles_of(any.begin, any.end, tiling.keys);
    };
    return {self(), query_tile, tiling, joined(tiles)};
  }

  TILEATTN_HOST_DEVICE Cursor<P, false> queries_of(int key_tile, Tiling tiling) const {
    Range wanted = tokens_of(key_tile, tiling.keys, len_k);
    auto tiles = [&](int range) {
      int begin = first_query([&](int query) { return existing(query, range).end > wanted.begin; });
      int end = first_query([&](int query) { return existing(query, range).begin >= wanted.end; });
      return tiles_of(begin, end, tiling.queries);
    };
    return {self(), key_tile, tiling, joined(tiles)};
  }

  TILEATTN_HOST_DEVICE Cover cover(int query_tile, int key_tile, Tiling tiling) const {
    Range queries = tokens_of(query_tile, tiling.queries, len_q);
    Range wanted = {key_tile * tiling.keys, (key_tile + 1) * tiling.keys};
    bool meets = false, full = false;
    for (int r = 0; r < kRanges; ++r) {
      Range any = keys_of_any(queries, r);
      meets = meets || imax(any.begin, wanted.begin) < imin(any.end, wanted.end);
      full = full || (existing(queries.end - 1, r).begin <= wanted.begin &&
                      wanted.end <= existing(queries.begin, r).end);
    }
    return full ? Cover::kFull : meets ? Cover::kPartial : Cover::kEmpty;
  }

 private:
  TILEATTN_HOST_DEVICE const P& self() const { return static_cast<const P&>(*this); }

  /// Those of the range that exist.
  TILEATTN_HOST_DEVICE Range existing(int query, int range) const {
    Range any = self().keys(query, range);
    return {imax(any.begin, 0), imin(any.end, len_k)};
  }

  TILEATTN_HOST_DEVICE Range keys_of_any(Range queries, int range) const {
    return {existing(queries.begin, range).begin, existing(queries.end - 1, range).end};
  }

  /// The first query of which `reached` holds, as of all after it; len_q if there is none.
  template <class Reached>
  TILEATTN_HOST_DEVICE int first_query(Reached reached) const {
    int low = 0, high = len_q;
    while (low < high) {
      int middle = low + (high - low) / 2;
      if (reached(middle)) high = middle;
      else low = middle + 1;
    }
    return low;
  }

  /// The tiles of all ranges.
  template <class Tiles>
  TILEATTN_HOST_DEVICE static TwoRuns joined(Tiles tiles) {
    Range first = tiles(0);
    if constexpr (kRanges == 1) return {first, {0, 0}};
    Range second = tiles(kRanges - 1);
    if (first.size() == 0 || (second.size() > 0 && second.begin < first.begin)) {
      Range other = first;
      first = second;
      second = other;
    }
    return {first, {imax(second.begin, first.end), second.end}};
  }
};

}  // namespace tileattn
