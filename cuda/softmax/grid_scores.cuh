// Scores on a grid, and their gradient: no modifiers, visibility by words of bits.
#pragma once

#include "score_gradient.cuh"
#include "visible_bits.cuh"
#include "visible_scores.cuh"

namespace tileattn::cuda {

/// Products are hidden; there are no modifiers on a grid.
template <class Config>
class VisibleScores<Config, Neighborhood<3>, Modifiers::kAny> {
 public:
  using GridTiles = Tiles<Config, Neighborhood<3>>;
  using Bits = VisibleBits<Config, Neighborhood<3>>;

  CUTE_DEVICE VisibleScores(const AttentionProblem& problem, const GridTiles& tiles, int /*head*/,
                            Bits* bits)
      : problem_(problem),
        tiles_(tiles),
        bits_(*bits),
        window_(tiles.window(tiles.own(), Bits::row())) {}

  CUTE_DEVICE void prepare(const Visit<GridTile>& visit) const {
    bits_.write(tiles_, visit.tile, window_);
  }

  CUTE_DEVICE constexpr bool natural() const { return false; }

  template <class Matrix>
  CUTE_DEVICE float modify(Matrix&& products, const Visit<GridTile>&) const {
    // Only the sign of a scale that is not positive, and its size at once with the units: the
    // backward rounds once, too.
    if (!(problem_.scale > 0.0f)) {
      const float sign = problem_.scale < 0.0f ? -1.0f : 0.0f;
      CUTE_UNROLL
      for (int n = 0; n < size(products); ++n) products(n) *= sign;
    }
    SeenElements<Config> seen(bits_);
    if (!seen.all()) {
      CUTE_UNROLL
      for (int r = 0; r < size<0>(products); ++r) {
        auto in_row = seen.in_row(r);
        CUTE_UNROLL
        for (int c = 0; c < size<1>(products); ++c)
          products(r, c) = in_row(c) ? products(r, c) : -INFINITY;
      }
    }
    return problem_.scale == 0.0f ? kLog2E : fabsf(problem_.scale) * kLog2E;
  }

 private:
  const AttentionProblem& problem_;
  const GridTiles& tiles_;
  Bits& bits_;
  Box<3> window_;  // of the row whose bits this thread writes
};

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
                              const GridTile& /*query_tile*/, const GridTile& /*key_tile*/,
                              Cover) const {
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
