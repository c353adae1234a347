// The picture of a pattern: what the kernels do with each tile of scores.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <vector>

#include "tileattn/pattern/catalogue.h"

namespace tileattn {

/// A row-major [rows, columns] grid of Cover values.
struct CoverGrid {
  std::size_t rows;
  std::size_t columns;
  std::vector<std::uint8_t> values;
};

inline void require_drawable(PatternSpec spec, int len_q, int len_k, Tiling tiling) {
  constexpr int kMaxTokens = 1 << 29;  // room for arithmetic on positions, as in the kernels
  constexpr std::int64_t kMaxTiles = 1 << 26;
  auto is_length = [](int n) { return n >= 0 && n < kMaxTokens; };
  auto is_tile = [](int n) { return n >= 1 && n <= kMaxTokens; };
  if (!is_length(len_q) || !is_length(len_k))
    throw std::invalid_argument("len_q and len_k must be at least 0 and below 2**29");
  if (!is_tile(tiling.queries) || !is_tile(tiling.keys))
    throw std::invalid_argument("tile_q and tile_k must be at least 1 and at most 2**29");
  if (spec.left < -1 || spec.right < -1 || spec.sink_tokens < 0)
    throw std::invalid_argument("left and right must be at least -1, sink_tokens at least 0");
  std::int64_t tiles = std::int64_t{ceil_div(len_q, tiling.queries)} * ceil_div(len_k, tiling.keys);
  if (tiles > kMaxTiles) throw std::invalid_argument("more than 2**26 tiles; choose larger tiles");
}

/// Walks the tiles as a kernel does: only what keys_of() visits can be non-empty.
inline CoverGrid tile_covers(PatternSpec spec, int len_q, int len_k, Tiling tiling) {
  require_drawable(spec, len_q, len_k, tiling);
  CoverGrid grid{static_cast<std::size_t>(ceil_div(len_q, tiling.queries)),
                 static_cast<std::size_t>(ceil_div(len_k, tiling.keys)),
                 {}};
  grid.values.assign(grid.rows * grid.columns, static_cast<std::uint8_t>(Cover::kEmpty));
  dispatch_pattern(spec, [&](auto tag) {
    using Pattern = typename decltype(tag)::type;
    Pattern pattern = Pattern::make(spec, {0, 0, len_q, len_k});
    for (std::size_t row = 0; row < grid.rows; ++row) {
      int query_tile = static_cast<int>(row);
      auto cursor = pattern.keys_of(query_tile, tiling);
      for (Visit<int> visit; cursor.next(visit);)
        grid.values[row * grid.columns + visit.tile] = static_cast<std::uint8_t>(visit.cover);
    }
  });
  return grid;
}

}  // namespace tileattn
