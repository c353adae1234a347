// Forward of few queries, as in decoding: keys and values are read once and where they lie.
//
// A task has several key heads of a sequence, whose rows of one token often follow each other in
// memory. Where each head has one query, rows are read in the order of their addresses, which the
// hardware foresees. Where rows serve several queries, it is these that take the time: it works on
// a few tokens of all its heads at a time, and asks for the next ones in the order of their
// addresses.
#pragma once

#include "cpu/common/hidden.h"
#include "cpu/softmax/results.h"
#include "cpu/softmax/scores.h"
#include "cpu/softmax/visibility.h"

namespace tileattn::cpu::TILEATTN_ISA {

/// Row r as floats in whole vectors: where it lies, or else, converted or padded, in `strip`.
template <class Rows>
const float* row_of_floats(const Rows& from, int r, int dim, float* strip) {
  if (from.dtype == DType::kFloat32 && dim % kWidth == 0)
    return reinterpret_cast<const float*>(from.row(r));
  load_rows(from, r, 1, 1, dim, 1.0f, {strip, round_up(dim, kColumnGranule)});
  return strip;
}

/// The lanes' sums are x . row.
inline Vec partial_dot(const float* x, const float* row, int dim) {
  Vec sum{};
  for (int d = 0; d < dim; d += kWidth) sum += load(x + d) * load(row + d);
  return sum;
}

/// sum += factor * row
inline void add_row(float* sum, float factor, const float* row, int dim) {
  for (int d = 0; d < dim; d += kWidth) store(sum + d, load(sum + d) + factor * load(row + d));
}

/// Goes from row to row: all heads of a token, then those of the next.
template <class Rows>
class TokenByToken {
 public:
  /// rows: those of the first of `heads` heads. head_stride: in bytes.
  TokenByToken(const Rows& rows, std::int64_t head_stride, int heads, int first_token)
      : rows_(rows), head_stride_(head_stride), heads_(heads), token_(first_token) {}

  int token() const { return token_; }
  int head() const { return head_; }
  const float* row(int dim, float* strip) const {
    Rows of_head = rows_;
    of_head.data += head_ * head_stride_;
    return row_of_floats(of_head, token_, dim, strip);
  }
  void advance() {
    if (++head_ < heads_) return;
    head_ = 0;
    ++token_;
  }

 private:
  const Rows rows_;
  const std::int64_t head_stride_;
  const int heads_;
  int token_, head_ = 0;
};

/// Rows of kFewTokens tokens of one head as floats, padded to whole vectors.
struct FewRows {
  const float* row[kFewTokens];

  /// Rows [first, end) of `from`, and zeros for the rest. Those that must be converted or padded
  /// go to `strip`, which holds kFewTokens + 1 rows of round_up(dim, kColumnGranule).
  template <class Rows>
  FewRows(const Rows& from, int first, int end, int dim, float* strip) {
    const int count = imin(kFewTokens, end - first), stride = round_up(dim, kColumnGranule);
    const bool in_place = from.dtype == DType::kFloat32 && dim % kWidth == 0;
    if (!in_place) load_rows(from, first, count, count, dim, 1.0f, {strip, stride});
    float* zeros = strip + kFewTokens * stride;
    if (count < kFewTokens) fill(zeros, stride, 0.0f);
    for (int j = 0; j < kFewTokens; ++j)
      row[j] = j >= count ? zeros
               : in_place ? reinterpret_cast<const float*>(from.row(first + j))
                          : strip + j * stride;
  }

  /// products[j] = x . row j
  void dot(const float* x, int dim, float* products) const {
    constexpr int kTogether = 4;  // as many independent sums
    constexpr int kProducts = kWidth < kFewTokens ? kWidth : kFewTokens;
    for (int j = 0; j < kFewTokens; j += kProducts) {
      Vec partial[kWidth] = {};
#pragma GCC unroll 4
      for (int first = 0; first < kProducts; first += kTogether) {
        Vec sum[kTogether] = {};
        for (int d = 0; d < dim; d += kWidth) {
          const Vec element = load(x + d);
#pragma GCC unroll 4
          for (int i = 0; i < kTogether; ++i) sum[i] += element * load(row[j + first + i] + d);
        }
#pragma GCC unroll 4
        for (int i = 0; i < kTogether; ++i) partial[first + i] = sum[i];
      }
      const Vec sums = sum_each(partial);
      __builtin_memcpy(products + j, &sums, kProducts * sizeof(float));
    }
  }

  /// sum += factors[j] * row j. `finite`: whether all rows are; of others, those with a factor of 0
  /// are left out, which changes no finite sum.
  void add_to(float* sum, int dim, const float* factors, bool finite) const {
    if (finite) return add_all_to(sum, dim, factors);
    for (int j = 0; j < kFewTokens; ++j)
      if (factors[j] != 0.0f) add_row(sum, factors[j], row[j], dim);
  }

 private:
  void add_all_to(float* sum, int dim, const float* factors) const {
    for (int d = 0; d < dim; d += kWidth) {
      Vec total = load(sum + d);
#pragma GCC unroll 8
      for (int j = 0; j < kFewTokens; ++j) total += factors[j] * load(row[j] + d);
      store(sum + d, total);
    }
  }
};

/// The queries of some key heads of a sequence. Row (query head, query) is one of each matrix.
template <class Tiles>
class FewQueries {
 public:
  /// head: the first of `heads` key heads.
  FewQueries(const AttentionForward& p, Task task, int heads, float* scratch)
      : p_(p),
        seq_(*task.sequence),
        tiles_(p, seq_, task.head * (p.heads_q / p.heads_kv)),
        queries_(tiles_.queries(0)),
        view_(tiles_, queries_),
        first_(task.head),
        heads_(heads),
        group_(p.heads_q / p.heads_kv) {
    auto take = [&](std::int64_t rows, int columns) {
      RowMajor taken{scratch, columns};
      scratch += rows * columns;
      return taken;
    };
    q_ = take(kTile.queries, round_up(p.dim, kColumnGranule));
    s_ = take(kTile.queries, kTile.keys);
    out_ = take(kTile.queries, round_up(p.dim_v, kColumnGranule));
    strip_ = scratch;
    for (int h = 0; h < heads_ * group_; ++h) {
      const int head = first_ * group_ + h;
      load_rows(tiles_.rows(queries_, p.q, head), 0, queries_.size(), queries_.size(), p.dim,
                p.scale, part(q_, row_of(h)));
    }
  }

  /// Computes all rows. `finite`: whether all values are taken to be; false is returned if then
  /// the result is not, perhaps by a hidden value.
  bool compute(bool finite) {
    fill(out_.data, rows() * out_.stride, 0.0f);
    for (int row = 0; row < rows(); ++row)
      softmax_.begin(row, p_.sinks ? p_.sinks[head_of(row)] : -kInfinity);
    view_.for_each_keys([&](const typename Tiles::Keys& keys, Cover whole) {
      if (has_one_query_each()) absorb<true>(keys, whole, finite);
      else absorb<false>(keys, whole, finite);
    });
    return all_finite<float>(out_, rows(), static_cast<int>(out_.stride));
  }

  void store_results() const {
    const ResultWriter results(p_);
    for (int row = 0; row < rows(); ++row) {
      const int head = head_of(row), r = row % queries_.size();
      results.write(softmax_, row, part(out_, row).data, tiles_.rows(queries_, p_.out, head).row(r),
                    (seq_.row + tiles_.token(queries_, r)) * p_.heads_q + head);
    }
  }

 private:
  int row_of(int head) const { return head * queries_.size(); }
  int rows() const { return row_of(heads_ * group_); }
  /// Whether each key head has one query, so that rows are counted as these are.
  bool has_one_query_each() const { return rows() == heads_; }
  /// The query head of a row.
  int head_of(int row) const { return first_ * group_ + row / queries_.size(); }

  /// kOneEach: has_one_query_each(). Apart, since together the compiler runs out of registers.
  template <bool kOneEach>
  void absorb(const typename Tiles::Keys& keys, Cover whole, bool finite) {
    const Visibility<Tiles> visibility(view_, queries_, keys, whole);
    const Range columns = visibility.columns_of(0);
    if (columns.size() == 0) return;
    if constexpr (kOneEach) multiply_token_by_token(visibility, keys);
    else
      for_each_rows(visibility, keys, p_.k, p_.extra_k, p_.dim,
                    [&](const FewRows& rows, int row, int column) {
                      rows.dot(part(q_, row).data, p_.dim, part(s_, row, column).data);
                    });
    for (int h = 0; h < heads_ * group_; ++h) {
      const Scores scores = Scores::make(p_, seq_, first_ * group_ + h, 1.0f);
      const RowScores<Tiles> row_scores{scores, queries_, keys};
      for (int r = 0; r < queries_.size(); ++r) {
        float* s = part(s_, row_of(h) + r).data;
        row_scores.modify(s, r, columns, nullptr);
        visibility.hide(r, s, -kInfinity);
      }
    }
    for (int row = 0; row < rows(); row += kGroup) {
      const Range some{row, imin(row + kGroup, rows())};
      const RowFactors rescale =
          softmax_.absorb(some, part(s_, row, columns.begin), columns.size());
      for (int r = some.begin; r < some.end; ++r) scale(part(out_, r), rescale.row[r - row]);
    }
    if constexpr (kOneEach) add_token_by_token(visibility, keys, finite);
    else
      for_each_rows(visibility, keys, p_.v, p_.extra_v, p_.dim_v,
                    [&](const FewRows& rows, int row, int column) {
                      rows.add_to(part(out_, row).data, p_.dim_v, part(s_, row, column).data,
                                  finite);
                    });
  }

  /// Calls visit(rows of x, their number) for the runs of visible keys.
  template <class Visit>
  void for_each_run(const Visibility<Tiles>& visibility, const typename Tiles::Keys& keys,
                    const ConstTensorRef& x, const ConstTensorRef& extra, Visit visit) const {
    const auto first = tiles_.rows(keys, 0, x, extra, first_);
    visibility.for_each_run_of_keys(0, [&](Range run) {
      visit(TokenByToken(first, x.head_stride * bytes_of(p_.dtype), heads_, run.begin),
            run.size() * heads_);
    });
  }

  /// s = q k^T of visible keys, one query for each head.
  void multiply_token_by_token(const Visibility<Tiles>& visibility,
                               const typename Tiles::Keys& keys) const {
    for_each_run(visibility, keys, p_.k, p_.extra_k, [&](auto at, int rows) {
      for (; rows > 0; rows -= kWidth) {
        Vec partial[kWidth] = {};
        float* to[kWidth];
#pragma GCC unroll 16
        for (int i = 0; i < kWidth; ++i) {
          if (i >= rows) continue;
          to[i] = part(s_, at.head(), at.token()).data;
          partial[i] = partial_dot(part(q_, at.head()).data, at.row(p_.dim, strip_), p_.dim);
          at.advance();
        }
        const Vec sums = sum_each(partial);
#pragma GCC unroll 16
        for (int i = 0; i < kWidth; ++i)
          if (i < rows) *to[i] = sums[i];
      }
    });
  }

  /// out += s v of visible keys, one query for each head. `finite`: as for FewRows::add_to.
  void add_token_by_token(const Visibility<Tiles>& visibility, const typename Tiles::Keys& keys,
                          bool finite) const {
    for_each_run(visibility, keys, p_.v, p_.extra_v, [&](auto at, int rows) {
      for (; rows > 0; --rows, at.advance()) {
        const float factor = *part(s_, at.head(), at.token()).data;
        if (finite || factor != 0.0f)
          add_row(part(out_, at.head()).data, factor, at.row(p_.dim_v, strip_), p_.dim_v);
      }
    });
  }

  void scale(RowMajor row, float factor) const {
    if (factor == 1.0f) return;
    for (int d = 0; d < row.stride; d += kWidth) store(row.data + d, load(row.data + d) * factor);
  }

  /// Calls visit(rows of x, row, column) for the visible keys and all rows that see them.
  template <class Visit>
  void for_each_rows(const Visibility<Tiles>& visibility, const typename Tiles::Keys& keys,
                     const ConstTensorRef& x, const ConstTensorRef& extra, int dim, Visit visit) {
    Prefetches ahead;
    const std::int64_t size = bytes_of(p_.dtype);
    const auto first = tiles_.rows(keys, 0, x, extra, first_);
    auto ask_for = [&](int begin, int end) {
      for (int j = begin; j < imin(begin + kFewTokens, end); ++j)
        ahead.ask(RowsInARow<const char>{first.row(j), x.head_stride * size, p_.dtype}, heads_,
                  dim);
    };
    visibility.for_each_run_of_keys(0, [&](Range run) {
      for (int column = run.begin; column < run.end; column += kFewTokens) {
        ask_for(column + 2 * kFewTokens, run.end);
        for (int h = 0; h < heads_; ++h) {
          // Half before and half after: at once they would wait for one another. Not into the first
          // level, where rows at work are.
          ahead.spend<2>(kFewTokens * dim * size / 2);
          const FewRows rows(tiles_.rows(keys, 0, x, extra, first_ + h), column, run.end, dim,
                             strip_);
          for (int row = row_of(h * group_); row < row_of((h + 1) * group_); ++row)
            visit(rows, row, column);
          ahead.spend<2>(kFewTokens * dim * size / 2);
        }
      }
    });
  }

  const AttentionForward& p_;
  const Sequence& seq_;
  const Tiles tiles_;
  const typename Tiles::Queries queries_;
  const typename Tiles::View view_;
  const int first_, heads_, group_;
  RowMajor q_, s_, out_;
  float* strip_;
  OnlineSoftmax softmax_;
};

template <class Tiles>
void forward_few(const AttentionForward& p, Task task, int heads, float* scratch) {
  if (task.sequence->len_q == 0) return;
  FewQueries<Tiles> queries(p, task, heads, scratch);
  if (!queries.compute(true)) queries.compute(false);
  queries.store_results();
}

}  // namespace tileattn::cpu::TILEATTN_ISA
