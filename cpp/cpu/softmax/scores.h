// Scores: what happens to s = q . k before the normaliser sees it, and the
// derivative of that with respect to the scaled s.
#pragma once

#include "cpu/common/pack.h"
#include "cpu/softmax/plan.h"

namespace tileattn::cpu::TILEATTN_ISA {

/// The modifiers of one head.
struct Scores {
  float scale;                     // 1: s carries it
  float softcap;                   // 0: none
  float alibi_slope;               // 0: none
  const char* bias;                // [query, key], or null
  std::int64_t bias_query_stride;  // bytes
  DType bias_dtype;
  int shift;  // a query's own position among the keys, less its index
  int len_k;

  static Scores make(const AttentionProblem& p, const Sequence& seq, int head, float scale) {
    Scores s{};
    s.scale = scale;
    s.softcap = p.softcap;
    if (p.alibi_slopes) s.alibi_slope = p.alibi_slopes[seq.index * p.alibi_batch_stride + head];
    if (p.bias.data) {
      std::int64_t size = bytes_of(p.bias.dtype);
      s.bias = static_cast<const char*>(p.bias.data) +
               (seq.batch * p.bias.batch_stride + head * p.bias.head_stride) * size;
      s.bias_query_stride = p.bias.query_stride * size;
      s.bias_dtype = p.bias.dtype;
    }
    s.shift = seq.len_k - seq.len_q;
    s.len_k = seq.len_k;
    return s;
  }

  /// s[0, count) are the scores of `query` and the keys from `key`, at most kTile.keys of them.
  /// Writes the derivative of the softcap, if there is one, to `cap_slope` unless null.
  void modify(float* s, int count, int query, int key, float* cap_slope) const {
    if (softcap == 0 && alibi_slope == 0 && !bias) return scale_all(s, count);
    float added[kTile.keys] = {};
    if (bias)
      load_row(bias + query * bias_query_stride + key * bytes_of(bias_dtype), bias_dtype, added,
               imin(count, len_k - key), 1.0f);
    float inverse_cap = softcap > 0 ? 1.0f / softcap : 0.0f;
    for (int j = 0; j < count; j += kWidth) {
      Vec x = load(s + j) * scale;
      if (softcap > 0) {
        Vec t = tanh(x * inverse_cap);
        if (cap_slope) store(cap_slope + j, 1.0f - t * t);
        x = t * softcap;
      }
      if (alibi_slope != 0) x -= alibi_slope * distance(key + j - (query + shift));
      // The bias last: a large one leaves no room for more.
      const Vec more = load(added + j);
      store(s + j, more == -kInfinity ? more : x + more);  // hidden, even if x is NaN
    }
  }

  void scale_all(float* s, int count) const {
    if (scale == 1.0f) return;
    for (int j = 0; j < count; j += kWidth) store(s + j, load(s + j) * scale);
  }

 private:
  /// How far kWidth keys are from a query; the first is `ahead` of it.
  static Vec distance(int ahead) {
    IntVec lanes;
    __builtin_memcpy(&lanes, kLanes.lane, kVecBytes);
    lanes += ahead;
    return __builtin_convertvector(lanes < 0 ? -lanes : lanes, Vec);
  }
  static constexpr LaneTable kLanes = rotation<0>();
};

/// The modifiers of one tile; a grid's scores are only scaled.
template <class Tiles>
struct RowScores {
  const Scores& scores;
  const typename Tiles::Queries& queries;
  const typename Tiles::Keys& keys;

  /// The same for columns of row `r` of the tile; s[0] and cap_slope[0] belong to column 0.
  void modify(float* s, int r, Range columns, float* cap_slope) const {
    if constexpr (Tiles::kOnAGrid) scores.scale_all(s + columns.begin, columns.size());
    else
      scores.modify(s + columns.begin, columns.size(), queries.tokens.begin + r,
                    keys.tokens.begin + columns.begin,
                    cap_slope ? cap_slope + columns.begin : nullptr);
  }
};

}  // namespace tileattn::cpu::TILEATTN_ISA
