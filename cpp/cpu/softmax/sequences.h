// The independent parts of a problem: sequences of a batch, packed sequences, or the
// parts of grids.
#pragma once

#include <memory>
#include <vector>

#include "cpu/softmax/plan.h"
#include "tileattn/attention.h"

namespace tileattn::cpu {

struct Cut {
  std::vector<Sequence> sequences;
  std::int64_t dq_rows = 0;             // of all of them
  std::unique_ptr<const GridCut> grid;  // what the sequences' `cut` points to
};

Cut cut_into_sequences(const AttentionProblem& problem);

}  // namespace tileattn::cpu
