// Epilogue of the forward: rows of out and lse leave for the tensors.
#pragma once

#include "cpu/common/pack.h"
#include "cpu/softmax/plan.h"
#include "cpu/softmax/softmax.h"

namespace tileattn::cpu::TILEATTN_ISA {

/// Writes out and lse, with their low parts where they are asked for.
class ResultWriter {
 public:
  explicit ResultWriter(const AttentionForward& p) : p_(p), writer_(p.dtype, result_size(p)) {}

  /// Row `row` of the softmax, with the sum of its weighted values; `out` is its place, and
  /// `position` the number of its token and head in [batch, len_q, heads_q].
  void write(const OnlineSoftmax& softmax, int row, const float* sum, char* out,
             std::int64_t position) const {
    const float factor = softmax.inverse_sum(row);
    const TwoFloats lse = softmax.lse(row);
    writer_.write(sum, out, p_.dim_v, factor);
    p_.lse[position] = lse.high;
    if (p_.lse_low) p_.lse_low[position] = lse.low;
    if (p_.out_low)
      store_low_parts(sum, out, p_.dtype, p_.out_low + position * p_.dim_v, p_.dim_v, factor);
  }

 private:
  const AttentionForward& p_;
  const RowWriter writer_;
};

}  // namespace tileattn::cpu::TILEATTN_ISA
