// The order of work of a persistent grid.
//
// Work is a query tile of a head. Heads that share keys follow each other, and as
// many key heads are worked on at a time as the L2 can hold; among these the last
// query tiles come first, since under a causal pattern they visit the most keys.
// Blocks take the work in turns, back and forth: who took the longest tile of one
// round takes the shortest of the next.
#pragma once

#include <algorithm>
#include <stdexcept>

#include "softmax/sequence.cuh"

namespace tileattn::cuda {

struct Work {
  int query_slot;
  int head;
};

struct Schedule {
  int tiles;     // query tiles of an entry; of packed tensors all slots
  int pairs;     // of an entry and a key head
  int together;  // pairs to work on at a time
  int group;     // query heads of a key head
  int heads_kv;

  TILEATTN_HOST_DEVICE int count() const { return tiles * pairs * group; }

  /// The n-th piece of work.
  TILEATTN_HOST_DEVICE Work work(int n) const {
    int section = n / (together * group * tiles), first_pair = section * together;
    int heads = imin(together, pairs - first_pair) * group;  // of this section
    int place = n - first_pair * group * tiles;
    int tile = tiles - 1 - place / heads, member = place % heads;
    int pair = first_pair + member / group;
    return {pair / heads_kv * tiles + tile, pair % heads_kv * group + member % group};
  }
};

inline Schedule make_schedule(const AttentionProblem& problem, int tile, std::int64_t l2_bytes) {
  TileSlots slots = query_slots(problem, tile);
  bool packed = problem.cu_seqlens_q != nullptr;
  int tiles = packed ? slots.count() : slots.tiles();
  std::int64_t pairs = std::int64_t{packed ? 1 : problem.batch} * problem.heads_kv;
  int group = problem.heads_q / problem.heads_kv;
  if (pairs * group * tiles > 1 << 30) throw std::runtime_error("tileattn: too many tiles");

  std::int64_t bytes = problem.len_k * std::int64_t{problem.dim + problem.dim_v} *
                       std::int64_t(size_of(problem.dtype));
  // Half of the L2, for queries and results pass through it as well.
  std::int64_t fitting = l2_bytes / 2 / std::max<std::int64_t>(1, bytes);
  std::int64_t together = std::max<std::int64_t>(1, std::min(fitting, pairs));
  return {tiles, int(pairs), int(together), group, problem.heads_kv};
}

/// Calls visit(sequence, head, query tile) for the work of this block.
template <class Config, class Visit>
CUTE_DEVICE void for_each_work(const Schedule& schedule, const AttentionProblem& problem,
                               Visit&& visit) {
  TileSlots slots = query_slots(problem, Config::kQueries);
  int count = schedule.count(), blocks = gridDim.x;
  CUTE_NO_UNROLL
  for (int round = 0; round * blocks < count; ++round) {
    int n = round * blocks + (round % 2 ? blocks - 1 - int(blockIdx.x) : int(blockIdx.x));
    if (n >= count) continue;
    Work work = schedule.work(n);
    Sequence sequence(problem, slots.owner(work.query_slot));
    int query_tile = work.query_slot - slots.first(sequence.index);
    if (query_tile * Config::kQueries < sequence.len_q) visit(sequence, work.head, query_tile);
  }
}

}  // namespace tileattn::cuda
