// From the products S = Q K^T and dP = dO V^T of one tile to P, the gradient of
// the scores and the gradient of the bias.
//
//   P  = exp(s - lse)            s: the modified score, -inf where hidden
//   dB = P * (dP - delta)        gradient of s, hence of the bias
//   dS = dB * d(s) / d(scale * q.k), that is dB * (1 - tanh^2) under a softcap
#pragma once

#include <cute/arch/copy_sm80.hpp>

#include "row_sum.cuh"
#include "score_tile.cuh"
#include "sequence_tiles.cuh"

namespace tileattn::cuda {

/// What the rows of a query tile need besides the products, in shared memory.
template <class Config>
struct SharedRowStats {
  float lse[Config::kQueries];
  float lse_low[Config::kQueries];
  float delta[Config::kQueries];

  /// Starts copying; a row that is no token sees nothing.
  template <class Tiles, class Tile>
  CUTE_DEVICE void fetch(const AttentionBackward& problem, const Tiles& tiles, const Tile& tile,
                         int head) {
    int row = threadIdx.x;
    if (row >= Config::kQueries) return;
    auto from = tiles.result_rows(problem.lse, 1, tile, head);
    if (from.has(row)) {
      auto* at = from[row];
      SM80_CP_ASYNC_CACHEALWAYS<float>::copy(*at, lse[row]);
      SM80_CP_ASYNC_CACHEALWAYS<float>::copy(problem.delta[at - problem.lse], delta[row]);
      if (problem.lse_low)
        SM80_CP_ASYNC_CACHEALWAYS<float>::copy(problem.lse_low[at - problem.lse], lse_low[row]);
      else lse_low[row] = 0.0f;
    } else {
      lse[row] = -INFINITY;
    }
  }
};

struct RowStat {
  TwoFloats lse;  // as logit_of(); +inf, which makes P zero, for a row that sees nothing
  float delta;
};

/// Those of this thread's rows, each read when it is asked for: registers are short.
template <class Config>
class RowStats {
 public:
  static constexpr int kRows = decltype(size<0>(score_coordinates<Config>(0)))::value;

  CUTE_DEVICE RowStats(const SharedRowStats<Config>& shared, bool natural)
      : shared_(shared), natural_(natural) {}

  CUTE_DEVICE RowStat operator[](int r) const {
    int row = get<0>(score_coordinates<Config>(fresh_thread_index())(r, 0));
    if (shared_.lse[row] == -INFINITY) return {{INFINITY, 0.0f}, 0.0f};
    return {logit_of({shared_.lse[row], shared_.lse_low[row]}, natural_), shared_.delta[row]};
  }

 private:
  const SharedRowStats<Config>& shared_;
  bool natural_;
};

/// In place: scores becomes P, dp becomes dS, where the score is just scale * q.k.
/// `seen_in_row(r)(c)` tells what is visible.
template <class Config, class Matrix, class SeenInRow>
CUTE_DEVICE void plain_gradient(Matrix&& scores, Matrix&& dp, const RowStats<Config>& stats,
                                float scale, SeenInRow&& seen_in_row) {
  float scale_log2 = scale * kLog2E;
  CUTE_UNROLL
  for (int r = 0; r < size<0>(scores); ++r) {
    auto seen = seen_in_row(r);
    const RowStat stat = stats[r];
    CUTE_UNROLL
    for (int c = 0; c < size<1>(scores); ++c) {
      float p = exp2_approx(fmaf(scores(r, c), scale_log2, -stat.lse.high) - stat.lse.low);
      p = seen(c) ? p : 0.0f;
      scores(r, c) = p;
      dp(r, c) = p * (dp(r, c) - stat.delta);
    }
  }
}

struct AllSeen {
  CUTE_DEVICE auto operator()(int /*row*/) const {
    return [](int /*column*/) { return true; };
  }
};

/// What the score gradients of a tile of keys add up in shared memory.
template <class Config, class Pattern>
struct GradientShared : VisibleBits<Config, Pattern> {
  float column_sums[Config::kScoreWarpsM * Config::kKeys];
  CUTE_DEVICE void clear() {
    for (int n = threadIdx.x; n < Config::kScoreWarpsM * Config::kKeys; n += Config::kThreads)
      column_sums[n] = 0.0f;
  }
};

template <class Config, class Pattern>
class ScoreGradient {
 public:
  using Shared = GradientShared<Config, Pattern>;

  /// Leaves the bias gradient, if one is wanted, to the other kernel.
  CUTE_DEVICE ScoreGradient(const AttentionBackward& problem, const Tiles<Config, Pattern>& tiles,
                            VisibleBits<Config, Pattern>*)
      : ScoreGradient(problem, tiles, static_cast<Shared*>(nullptr)) {}
  /// The column sums, zero, serve a bias that is broadcast over queries.
  CUTE_DEVICE ScoreGradient(const AttentionBackward& problem, const Tiles<Config, Pattern>& tiles,
                            Shared* shared)
      : problem_(problem),
        sequence_(tiles.sequence()),
        pattern_(tiles.pattern()),
        column_sums_(problem.dbias.data && shared ? shared->column_sums : nullptr),
        scores_(problem, sequence_.index, sequence_.len_q, sequence_.len_k) {}

  CUTE_DEVICE void set_head(int head) {
    head_ = head;
    scores_.set_head(head);
  }

  /// Between barriers, before the call with the same tiles.
  CUTE_DEVICE void prepare(int /*query_tile*/, int /*key_tile*/) const {}

  /// In place: scores becomes P, dp becomes dS.
  template <class Product>
  CUTE_DEVICE void operator()(Product& scores, Product& dp, const SharedRowStats<Config>& rows,
                              int query_tile, int key_tile, Cover cover) {
    RowStats<Config> stats(rows, scores_.modified());
    if (cover == Cover::kFull && !scores_.modified())
      plain_gradient(by_rows(scores), by_rows(dp), stats, problem_.scale, AllSeen{});
    else general(by_rows(scores), by_rows(dp), stats, query_tile, key_tile);
  }

  /// After a barrier behind the last query tile of a head: adds the column sums
  /// to a bias gradient that is broadcast over queries.
  CUTE_DEVICE void flush_columns(int key_tile) {
    if (!column_sums_ || problem_.dbias.query_stride != 0) return;
    int column = threadIdx.x, key = key_tile * Config::kKeys + column;
    if (column >= Config::kKeys) return;
    float sum = 0.0f;
    CUTE_UNROLL
    for (int warp = 0; warp < Config::kScoreWarpsM; ++warp) {
      sum += column_sums_[warp * Config::kKeys + column];
      column_sums_[warp * Config::kKeys + column] = 0.0f;
    }
    if (key < sequence_.len_k) atomicAdd(dbias_at(0, key), sum);
  }

 private:
  template <class Matrix>
  CUTE_DEVICE void general(Matrix&& scores, Matrix&& dp, const RowStats<Config>& stats,
                           int query_tile, int key_tile) {
    const float scale_log2 = problem_.scale * kLog2E;
    RowStat stat[RowStats<Config>::kRows];
    CUTE_UNROLL
    for (int r = 0; r < size<0>(scores); ++r) stat[r] = stats[r];
    CUTE_UNROLL
    for (int c = 0; c < size<1>(scores); ++c) {
      auto coordinates =
          score_coordinates<Config>(fresh_thread_index());  // afresh: registers are short
      int key = key_tile * Config::kKeys + get<1>(coordinates(0, c));
      float column_sum = 0.0f;
      CUTE_UNROLL
      for (int r = 0; r < size<0>(scores); ++r) {
        int query = query_tile * Config::kQueries + get<0>(coordinates(r, 0));
        float p = 0.0f, gradient = 0.0f, slope = 1.0f;
        if (query < sequence_.len_q && pattern_.visible(query, key)) {
          const TwoFloats lse = stat[r].lse;
          float logit;
          if (scores_.modified())
            logit = (scores_(scores(r, c), query, key, slope) - lse.high) * kLog2E;
          else logit = fmaf(scores(r, c), scale_log2, -lse.high);
          p = exp2_approx(logit - lse.low);
          gradient = p * (dp(r, c) - stat[r].delta);
          if (column_sums_ && problem_.dbias.query_stride != 0)
            atomicAdd(dbias_at(query, key), gradient);
        }
        column_sum += gradient;
        scores(r, c) = p;
        dp(r, c) = gradient * slope;
      }
      if (column_sums_ && problem_.dbias.query_stride == 0)
        add_column(get<0>(coordinates(0, 0)), get<1>(coordinates(0, c)), column_sum);
    }
  }

  CUTE_DEVICE float* dbias_at(int query, int key) const {
    const BiasRef& dbias = problem_.dbias;
    return static_cast<float*>(dbias.data) + sequence_.index * dbias.batch_stride +
           head_ * dbias.head_stride + query * dbias.query_stride + key;
  }

  /// Sums over the eight row groups of the warp, then onto the warp's own
  /// entry: the order of additions is fixed.
  CUTE_DEVICE void add_column(int first_row, int column, float sum) {
    CUTE_UNROLL
    for (int lane = 4; lane < 32; lane *= 2) sum += __shfl_xor_sync(0xffffffff, sum, lane);
    if (threadIdx.x % 32 < 4) column_sums_[first_row / 16 * Config::kKeys + column] += sum;
  }

  const AttentionBackward& problem_;
  const Sequence& sequence_;
  Pattern pattern_;
  float* column_sums_;  // or null
  Scores<typename Config::Element> scores_;
  int head_ = 0;
};

}  // namespace tileattn::cuda
