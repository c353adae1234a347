// The backward on a grid: the kernels of backward.cuh with tiles and scores of grids.
#pragma once

#include "backward.cuh"
#include "visible_bits.cuh"

namespace tileattn::cuda {

template <class Config>
struct GradientShared<Config, Neighborhood<3>> : VisibleBits<Config, Neighborhood<3>> {
  CUTE_DEVICE void clear() {}
};

/// There are no modifiers and no bias on a grid.
template <class Config>
class ScoreGradient<Config, Neighborhood<3>> {
 public:
  using GridTiles = Tiles<Config, Neighborhood<3>>;
  using Bits = VisibleBits<Config, Neighborhood<3>>;

  CUTE_DEVICE ScoreGradient(const AttentionBackward& problem, const GridTiles& tiles, Bits* bits)
      : problem_(problem), tiles_(tiles), bits_(*bits) {}

  CUTE_DEVICE void set_head(int) const {}
  CUTE_DEVICE void flush_columns(const GridTile&) const {}

  CUTE_DEVICE void prepare(const GridTile& query_tile, const GridTile& key_tile) const {
    bits_.write(tiles_, key_tile, tiles_.window(query_tile, Bits::row()));
  }

  template <class Product>
  CUTE_DEVICE void operator()(Product& scores, Product& dp, const SharedRowStats<Config>& rows,
                              const GridTile& /*query_tile*/, const GridTile& /*key_tile*/) const {
    RowStats<Config> stats(rows, false);
    SeenElements<Config> seen(bits_);
    if (seen.all()) plain_gradient(by_rows(scores), by_rows(dp), stats, problem_.scale, AllSeen{});
    else
      plain_gradient(by_rows(scores), by_rows(dp), stats, problem_.scale,
                     [&](int r) { return seen.in_row(r); });
  }

 private:
  const AttentionBackward& problem_;
  const GridTiles& tiles_;
  Bits& bits_;
};

}  // namespace tileattn::cuda
