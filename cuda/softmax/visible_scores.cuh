// From a tile of products to a tile of scores: modifiers and visibility together,
// as every forward main loop needs them.
#pragma once

#include "score_tile.cuh"
#include "scores.cuh"
#include "sequence_tiles.cuh"

namespace tileattn::cuda {

/// What a kernel is compiled for: all modifiers, or only problems that are plain().
enum class Modifiers : bool { kNone, kAny };

/// The scores of one query tile of one head. `Config` tells the tiling and, by its
/// ScoreMma, which elements of a tile are this thread's.
template <class Config, class Pattern, Modifiers kModifiers = Modifiers::kAny>
class VisibleScores {
 public:
  CUTE_DEVICE VisibleScores(const AttentionProblem& problem, const Tiles<Config, Pattern>& tiles,
                            int head, VisibleBits<Config, Pattern>*)
      : problem_(problem),
        pattern_(tiles.pattern()),
        scores_(problem, tiles.sequence().index, tiles.sequence().len_q, tiles.sequence().len_k),
        query_tile_(tiles.own()),
        plain_(kModifiers == Modifiers::kNone || plain(problem)) {
    if (kModifiers == Modifiers::kAny) scores_.set_head(head);
  }

  /// Between barriers, before modify().
  CUTE_DEVICE void prepare(const Visit<int>&) const {}

  /// Whether scores become natural logits; else base-2 ones.
  CUTE_DEVICE bool natural() const { return !plain_; }

  /// Products become scores, -inf where hidden; returns what makes them logits.
  template <class Matrix>
  CUTE_DEVICE float modify(Matrix&& products, const Visit<int>& visit) const {
    const int key_tile = visit.tile;
    const bool full = visit.cover == Cover::kFull;
    if (full && plain_) return problem_.scale * kLog2E;
    float derivative = 1.0f;  // the backward's matter
    if (!plain_)
      for_each_element(products, key_tile, [&](float& x, int query, int key) {
        x = scores_(x, query, key, derivative);
      });
    if (!full)
      for_each_element(products, key_tile, [&](float& x, int query, int key) {
        x = pattern_.visible(query, key) ? x : -INFINITY;
      });
    return plain_ ? problem_.scale * kLog2E : 1.0f;
  }

 private:
  /// Calls change(element, query, key) for this thread's elements of a tile.
  template <class Matrix, class Change>
  CUTE_DEVICE void for_each_element(Matrix& products, int key_tile, Change&& change) const {
    CUTE_UNROLL
    for (int c = 0; c < size<1>(products); ++c) {
      // Where modifiers take registers, coordinates are computed afresh for each column.
      int thread = kModifiers == Modifiers::kNone ? int(threadIdx.x) : fresh_thread_index();
      Tensor coordinates = score_coordinates<Config>(thread);
      int key = key_tile * Config::kKeys + get<1>(coordinates(0, c));
      __builtin_assume(key >= 0);
      CUTE_UNROLL
      for (int r = 0; r < size<0>(products); ++r)
        change(products(r, c), query_tile_ * Config::kQueries + get<0>(coordinates(r, 0)), key);
    }
  }

  const AttentionProblem& problem_;
  Pattern pattern_;
  Scores<typename Config::Element, Config::kExactQuotient> scores_;
  int query_tile_;
  bool plain_;
};

}  // namespace tileattn::cuda
