// From the products S = Q K^T and dP = dO V^T of one tile to P, the gradient of
// the scores and the gradient of the bias.
//
//   P  = exp(s - lse)            s: the modified score, -inf where hidden
//   dB = P * (dP - delta)        gradient of s, hence of the bias
//   dS = dB * d(s) / d(scale * q.k), that is dB * (1 - tanh^2) under a softcap
#pragma once

#include "backward_config.cuh"
#include "scores.cuh"

namespace tileattn::cuda {

/// This thread's part of a tile's score products.
template <class Config>
CUTE_DEVICE auto score_product() {
  Tensor product = partition_fragment_C(typename Config::ScoreMma{},
                                        Shape<Int<Config::kQueries>, Int<Config::kKeys>>{});
  clear(product);
  return product;
}

/// The tile coordinates of those values.
template <class Config>
CUTE_DEVICE auto score_coordinates() {
  return by_rows(
      typename Config::ScoreMma{}
          .get_slice(fresh_thread_index())
          .partition_C(make_identity_tensor(Shape<Int<Config::kQueries>, Int<Config::kKeys>>{})));
}

/// What the rows of a query tile need besides the products, in shared memory.
template <class Config>
struct SharedRowStats {
  float lse[Config::kQueries];
  float delta[Config::kQueries];

  /// Starts copying; entries of rows outside of the sequence are left unset.
  CUTE_DEVICE void fetch(const AttentionBackward& problem, const Sequence& sequence, int head,
                         int query_tile) {
    int row = threadIdx.x, query = query_tile * Config::kQueries + row;
    if (row >= Config::kQueries || query >= sequence.len_q) return;
    std::int64_t first = std::int64_t{sequence.entry} * problem.len_q + sequence.first_q;
    std::int64_t at = (first + query) * problem.heads_q + head;
    SM80_CP_ASYNC_CACHEALWAYS<float>::copy(problem.lse[at], lse[row]);
    SM80_CP_ASYNC_CACHEALWAYS<float>::copy(problem.delta[at], delta[row]);
  }
};

/// Those of this thread's rows.
template <class Config>
struct RowStats {
  static constexpr int kRows = decltype(size<0>(score_coordinates<Config>()))::value;
  float lse_log2[kRows];  // +inf, which makes P zero, for rows that see nothing
  float delta[kRows];

  CUTE_DEVICE RowStats(const SharedRowStats<Config>& shared, int rows) {
    auto coordinates = score_coordinates<Config>();
    CUTE_UNROLL
    for (int r = 0; r < kRows; ++r) {
      int row = get<0>(coordinates(r, 0));
      bool sees = row < rows && shared.lse[row] != -INFINITY;
      lse_log2[r] = sees ? shared.lse[row] * kLog2E : INFINITY;
      delta[r] = sees ? shared.delta[row] : 0.0f;
    }
  }
};

template <class Config, class Pattern>
class ScoreGradient {
 public:
  /// `column_sums` [kScoreWarpsM][kKeys] in shared memory, zero, serves a bias
  /// that is broadcast over queries; null: no bias gradient is wanted.
  CUTE_DEVICE ScoreGradient(const AttentionBackward& problem, const Sequence& sequence,
                            float* column_sums)
      : problem_(problem),
        sequence_(sequence),
        pattern_(Pattern::make(problem.pattern, sequence.len_q, sequence.len_k)),
        column_sums_(problem.dbias.data ? column_sums : nullptr),
        scores_(problem, sequence.index, sequence.len_q, sequence.len_k) {}

  CUTE_DEVICE const Pattern& pattern() const { return pattern_; }

  CUTE_DEVICE void set_head(int head) {
    head_ = head;
    scores_.set_head(head);
  }

  /// In place: scores becomes P, dp becomes dS.
  template <class Product>
  CUTE_DEVICE void operator()(Product& scores, Product& dp, const SharedRowStats<Config>& rows,
                              int query_tile, int key_tile) {
    RowStats<Config> stats(rows, sequence_.len_q - query_tile * Config::kQueries);
    bool full = pattern_.cover(query_tile, key_tile, Config::kTiling) == Cover::kFull;
    if (full && !scores_.modified()) plain(by_rows(scores), by_rows(dp), stats);
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
  /// All of the tile is visible and the score is just scale * q.k.
  template <class Matrix>
  CUTE_DEVICE void plain(Matrix&& scores, Matrix&& dp, const RowStats<Config>& stats) {
    float scale_log2 = problem_.scale * kLog2E;
    CUTE_UNROLL
    for (int r = 0; r < size<0>(scores); ++r) {
      CUTE_UNROLL
      for (int c = 0; c < size<1>(scores); ++c) {
        float p = exp2_approx(fmaf(scores(r, c), scale_log2, -stats.lse_log2[r]));
        scores(r, c) = p;
        dp(r, c) = p * (dp(r, c) - stats.delta[r]);
      }
    }
  }

  template <class Matrix>
  CUTE_DEVICE void general(Matrix&& scores, Matrix&& dp, const RowStats<Config>& stats,
                           int query_tile, int key_tile) {
    CUTE_UNROLL
    for (int c = 0; c < size<1>(scores); ++c) {
      auto coordinates = score_coordinates<Config>();  // afresh: registers are short
      int key = key_tile * Config::kKeys + get<1>(coordinates(0, c));
      float column_sum = 0.0f;
      CUTE_UNROLL
      for (int r = 0; r < size<0>(scores); ++r) {
        int query = query_tile * Config::kQueries + get<0>(coordinates(r, 0));
        float p = 0.0f, gradient = 0.0f, slope = 1.0f;
        if (query < sequence_.len_q && pattern_.visible(query, key)) {
          float score = scores_(scores(r, c), query, key, slope);
          p = exp2_approx(fmaf(score, kLog2E, -stats.lse_log2[r]));
          gradient = p * (dp(r, c) - stats.delta[r]);
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
  float* column_sums_;
  Scores<typename Config::Element> scores_;
  int head_ = 0;
};

}  // namespace tileattn::cuda
