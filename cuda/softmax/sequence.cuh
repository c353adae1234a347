// The sequences of a problem, batched or packed, and where their tokens lie.
#pragma once

#include "common/rows.cuh"
#include "common/tile_slots.h"
#include "tileattn/attention.h"

namespace tileattn::cuda {

TILEATTN_HOST_DEVICE TileSlots query_slots(const AttentionProblem& problem, int tile) {
  return {problem.cu_seqlens_q, problem.batch, problem.len_q, tile};
}
TILEATTN_HOST_DEVICE TileSlots key_slots(const AttentionProblem& problem, int tile) {
  return {problem.cu_seqlens_k, problem.batch, problem.len_k, tile};
}

/// One sequence of a batch or of packed tokens.
struct Sequence {
  int index;  // in the batch
  int entry;  // of the tensors' batch dimension
  int first_q, len_q, first_k, len_k;

  __device__ Sequence(const AttentionProblem& problem, int index) : index(index) {
    bool packed = problem.cu_seqlens_q != nullptr, tail = index == problem.batch;
    Range q = query_slots(problem, 1).tokens(index), k = key_slots(problem, 1).tokens(index);
    entry = packed ? 0 : index;
    first_q = q.begin, len_q = q.size();
    first_k = k.begin, len_k = k.size();
    if (tail) len_q = len_k = 0;
  }
};

/// The element at `token` of the entry, on a grid or not.
template <class Element, class Ref>
CUTE_DEVICE Element* token_pointer(const AttentionProblem& problem, const Ref& tensor, int entry,
                                   std::int64_t token, int head) {
  if (problem.neighborhood.rank == 0) return row_pointer<Element>(tensor, entry, token, head);
  const auto& axis = problem.neighborhood.axis;
  int line = int(token) / axis[2].length, z = int(token) - line * axis[2].length;
  int x = line / axis[1].length, y = line - x * axis[1].length;
  return row_pointer<Element>(tensor, entry, z, head) + x * tensor.outer_stride[0] +
         y * tensor.outer_stride[1];
}

}  // namespace tileattn::cuda
