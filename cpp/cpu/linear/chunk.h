// The one chunk step that the forward and both sweeps of the backward are made of:
//
//   out_i = r_i q_i^T S + sum over j reached by i of D_ij (q_i . k_j) v_j
//   S     <- total * S + sum over j of c_j k_j v_j^T
//
// with G_i = sum of log_decay over the chunk's tokens 0..i, of n:
//
//   walk forwards:   i reaches j <= i, D_ij = exp(G_i - G_j),
//                    r_i = exp(G_i), c_j = exp(G_n-1 - G_j)
//   walk backwards:  i reaches j >= i, D_ij = exp(G_j - G_i),
//                    r_i = exp(G_n-1 - G_i), c_j = exp(G_j)
//
// Every exponent is <= 0. The roles that q, k, v play, and which state S is:
//
//   out  forwards   q, k, v       state            dq  forwards   dout, v, k   state^T
//   dv   backwards  k, q, dout    its gradient     dk  backwards  v, dout, q   its gradient^T
#pragma once

#include "cpu/common/hidden.h"
#include "cpu/linear/plan.h"

namespace tileattn::cpu::TILEATTN_ISA {

enum class Walk { kForwards, kBackwards };

/// D, r, c and total of a chunk.
class ChunkDecay {
 public:
  explicit ChunkDecay(Walk walk) : walk_(walk) {}

  /// Those of tokens [begin, begin + rows).
  void compute(const DecayRef& decay, int batch, int head, int begin, int rows) {
    sum(decay, batch, head, begin, rows);
    if (decay.token_stride != 0 || head != head_) weigh_pairs();
    head_ = head;
    for (int i = 0; i < kChunk; i += kWidth) {
      Vec before = weight(load(high_ + i) + load(low_ + i));
      Vec after = weight(difference(rows - 1, i));
      store(row_ + i, walk_ == Walk::kForwards ? before : after);
      store(column_ + i, walk_ == Walk::kForwards ? after : before);
    }
    total_ = weight(broadcast(high_[rows - 1] + low_[rows - 1]))[0];
  }

  Walk walk() const { return walk_; }
  float row(int i) const { return row_[i]; }
  const float* rows() const { return row_; }
  const float* columns() const { return column_; }
  const float* pairs(int i) const { return pair_[i]; }  // D_ij, 0 where i does not reach j
  float total() const { return total_; }

 private:
  /// G in two floats: a difference of nearby sums is exact even after a strong decay.
  void sum(const DecayRef& decay, int batch, int head, int begin, int rows) {
    constexpr float kStrongest = -1e4f;  // exp is 0 long before; log_decay may be -inf
    double g = 0;
    for (int i = 0; i < kChunk; ++i) {
      if (decay.data && i < (decay.token_stride ? rows : kChunk)) {
        float step = decay.data[batch * decay.batch_stride + head * decay.head_stride +
                                (std::int64_t{begin} + i) * decay.token_stride];
        g += step < kStrongest ? kStrongest : step;
      }
      high_[i] = static_cast<float>(g);
      low_[i] = static_cast<float>(g - high_[i]);
    }
  }

  /// Exponents are positive only where nothing is reached, and may then be beyond exp.
  static Vec weight(Vec exponent) { return exp(exponent > 0.0f ? Vec{} : exponent); }

  /// G_later - G_i for a vector of i.
  Vec difference(int later, int i) const {
    return (high_[later] - load(high_ + i)) + (low_[later] - load(low_ + i));
  }

  void weigh_pairs() {
    for (int i = 0; i < kChunk; ++i)
      for (int j = 0; j < kChunk; j += kWidth) {
        Vec apart = difference(i, j);
        if (walk_ == Walk::kBackwards) apart = -apart;
        alignas(kVecBytes) float weights[kWidth];
        store(weights, weight(apart));
        for (int l = 0; l < kWidth; ++l) {
          bool reached = walk_ == Walk::kForwards ? j + l <= i : j + l >= i;
          pair_[i][j + l] = reached ? weights[l] : 0.0f;
        }
      }
  }

  Walk walk_;
  int head_ = -1;  // whose pairs are weighed
  float total_ = 1.0f;
  alignas(kVecBytes) float high_[kChunk], low_[kChunk], row_[kChunk], column_[kChunk];
  alignas(kVecBytes) float pair_[kChunk][kPanel];
};

/// One chunk in the roles above; the operands belong to it and are scaled in place.
struct Chunk {
  int rows;          // tokens
  int dim;           // channels of queries and keys
  RowMajor queries;  // [rows][padded dim]
  float* keys;       // [dim][kPanel], transposed
  RowMajor values;   // [rows][padded channels]
  RowMajor scores;   // [rows][kPanel]
  RowMajor out;      // [rows][padded channels]
  RowMajor state;    // [dim][padded channels]
  Prefetches* ahead;
};

/// The tokens that rows [group * kGroup, + kGroup) reach.
inline Range reached_by(int group, int rows, Walk walk) {
  int first = group * kGroup;
  return walk == Walk::kForwards ? Range{0, imin(first + kGroup, rows)} : Range{first, rows};
}

/// scores_ij = q_i . k_j where i reaches j; around it, up to whole vectors, anything.
inline void compute_scores(const Chunk& c, Walk walk) {
  for (int g = 0; g < ceil_div(c.rows, kGroup); ++g) {
    Range reached = reached_by(g, c.rows, walk);
    int first = reached.begin / kColumnGranule * kColumnGranule;
    product(imin(kGroup, c.rows - g * kGroup), round_up(reached.end - first, kColumnGranule), c.dim,
            {c.queries.data + g * kGroup * c.queries.stride, c.queries.stride, 1},
            {c.keys + first, kPanel},
            {c.scores.data + g * kGroup * c.scores.stride + first, c.scores.stride}, 0.0f, c.ahead);
  }
}

/// scores_ij *= D_ij, and 0 out of reach, even if the product is not a number.
inline void decay_scores(const Chunk& c, const ChunkDecay& decay) {
  for (int i = 0; i < c.rows; ++i) {
    Range reached = reached_by(i / kGroup, c.rows, decay.walk());
    float* scores = c.scores.data + i * c.scores.stride;
    for (int j = reached.begin / kWidth * kWidth; j < reached.end; j += kWidth) {
      Vec weight = load(decay.pairs(i) + j);
      store(scores + j, weight == 0.0f ? Vec{} : weight * load(scores + j));
    }
  }
}

/// out_i = r_i q_i^T S
inline void read_state(const Chunk& c, const ChunkDecay& decay) {
  for (int i = 0; i < c.rows; ++i)
    if (decay.row(i) != 1.0f)
      for (float *q = c.queries.data + i * c.queries.stride, *end = q + c.dim; q < end; ++q)
        *q *= decay.row(i);
  product(c.rows, static_cast<int>(c.out.stride), c.dim, {c.queries.data, c.queries.stride, 1},
          c.state, c.out, 0.0f, c.ahead);
}

/// out_i += sum over reached j of scores_ij v_j
inline void add_values(const Chunk& c, Walk walk) {
  const bool finite = all_finite<float>(c.values, c.rows, static_cast<int>(c.out.stride));
  for (int g = 0; g < ceil_div(c.rows, kGroup); ++g) {
    Range reached = reached_by(g, c.rows, walk);
    visible_product(
        finite, imin(kGroup, c.rows - g * kGroup), static_cast<int>(c.out.stride), reached.size(),
        {c.scores.data + g * kGroup * c.scores.stride + reached.begin, c.scores.stride, 1},
        {c.values.data + reached.begin * c.values.stride, c.values.stride},
        {c.out.data + g * kGroup * c.out.stride, c.out.stride}, 1.0f, c.ahead);
  }
}

/// panel[dim][kPanel]: column j of a token times factors[j]
inline void scale_columns(float* panel, int dim, int rows, const float* factors) {
  for (float *row = panel, *end = row + dim * kPanel; row < end; row += kPanel)
    for (int j = 0; j < rows; j += kWidth) store(row + j, load(row + j) * load(factors + j));
}

/// S <- total * S + sum over j of c_j k_j v_j^T
inline void update_state(const Chunk& c, const ChunkDecay& decay) {
  if (decay.total() != 1.0f) scale_columns(c.keys, c.dim, c.rows, decay.columns());
  product(c.dim, static_cast<int>(c.state.stride), c.rows, {c.keys, kPanel, 1}, c.values, c.state,
          decay.total(), c.ahead);
}

}  // namespace tileattn::cpu::TILEATTN_ISA
