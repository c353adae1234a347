// Tiles of the tokens of one sequence, of a batch or packed.
//
// What the loops ask of tiles is the class Tiles below; grid_tiles.cuh is its
// other implementation. A tile is named by a `Tile` (here its number in the
// sequence), and the rows that a tile has in a tensor are a struct with
//   T*   first;                    of row 0
//   bool has(int row) const;       whether the row is a token
//   T*   operator[](int row) const;
#pragma once

#include "common/tile.cuh"
#include "grid_plan.h"
#include "sequence.cuh"
#include "tileattn/pattern/dense.h"

namespace tileattn::cuda {

/// The tile that a block owns, and those that it visits.
template <class Config, class Pattern>
class Tiles {
 public:
  using Slots = TileSlots;
  using Tile = int;
  using AnyPattern = Dense;  // for kernels that the pattern does not matter to

  static GridPlan plan(const AttentionProblem&) { return {}; }
  TILEATTN_HOST_DEVICE static Slots query_slots(const AttentionProblem& problem, const GridPlan&) {
    return cuda::query_slots(problem, Config::kQueries);
  }
  TILEATTN_HOST_DEVICE static Slots key_slots(const AttentionProblem& problem, const GridPlan&) {
    return cuda::key_slots(problem, Config::kKeys);
  }
  /// At most so many key tiles does a query tile visit.
  static int most_visits(const AttentionProblem& problem, const GridPlan&) {
    return tileattn::ceil_div(problem.len_k, Config::kKeys);
  }

  /// `head`: whose pattern it is, of the query heads.
  CUTE_DEVICE Tiles(const AttentionProblem& problem, const Sequence& sequence, int head, Tile tile,
                    int rows)
      : problem_(problem),
        sequence_(sequence),
        pattern_(
            Pattern::make(problem.pattern, {sequence.index, head, sequence.len_q, sequence.len_k})),
        tile_(tile),
        rows_(rows) {}

  /// The block owns the tile of `slot`.
  CUTE_DEVICE static Tiles of_slot(const AttentionProblem& problem, const GridPlan&,
                                   const Slots& slots, int slot, int head) {
    Sequence sequence(problem, slots.owner(slot));
    int tile = slot - slots.first(sequence.index);
    return {problem, sequence, head, tile, slots.tokens(sequence.index).size() - tile * slots.tile};
  }

  CUTE_DEVICE const Sequence& sequence() const { return sequence_; }
  CUTE_DEVICE const Pattern& pattern() const { return pattern_; }
  CUTE_DEVICE Tile own() const { return tile_; }
  /// Whether there is anything to write for it,
  CUTE_DEVICE bool exists() const { return tile_ >= 0 && rows_ > 0; }
  /// and whether it is a tile of queries that see keys.
  CUTE_DEVICE bool attends() const { return tile_ * Config::kQueries < sequence_.len_q; }

  /// The tiles of keys, or of queries, that the own one meets.
  CUTE_DEVICE auto keys() const { return pattern_.keys_of(tile_, Config::kTiling); }
  CUTE_DEVICE auto queries() const { return pattern_.queries_of(tile_, Config::kTiling); }

  template <class T, class Ref>
  CUTE_DEVICE StridedRows<T> query_rows(const Ref& tensor, Tile tile, int head) const {
    // Held in registers across a loop, what follows from these makes kernels spill on Hopper; found
    // anew, the backward of 128 channels does on sm_80.
    constexpr bool kAnew = Config::kDim != 128;
    int first = tile * Config::kQueries;
    int entry = kAnew ? fresh(sequence_.entry) : sequence_.entry;
    std::int64_t start = kAnew ? fresh(sequence_.first_q) : sequence_.first_q;
    return {row_pointer<T>(tensor, entry, start + first, head), tensor.token_stride,
            sequence_.len_q - first};
  }
  /// Grids have extra keys besides.
  template <class T, class Ref>
  CUTE_DEVICE StridedRows<T> key_rows(const Ref& tensor, const Ref& /*extra*/, Tile tile,
                                      int head) const {
    int first = tile * Config::kKeys;
    return {row_pointer<T>(tensor, sequence_.entry, std::int64_t{sequence_.first_k} + first, head),
            tensor.token_stride, sequence_.len_k - first};
  }
  /// Those of the own tile; tokens behind the last sequence are rows, too.
  template <class T, class Ref>
  CUTE_DEVICE StridedRows<T> own_query_rows(const Ref& tensor, int head) const {
    auto rows = query_rows<T>(tensor, tile_, head);
    return {rows.first, rows.stride, rows_};
  }
  template <class T, class Ref>
  CUTE_DEVICE StridedRows<T> own_key_rows(const Ref& tensor, const Ref& extra, int head) const {
    auto rows = key_rows<T>(tensor, extra, tile_, head);
    return {rows.first, rows.stride, rows_};
  }
  /// Of an array [entry, token, query head, width], contiguous.
  template <class T>
  CUTE_DEVICE StridedRows<T> result_rows(T* array, int width, Tile tile, int head) const {
    int first = tile * Config::kQueries;
    std::int64_t token = std::int64_t{sequence_.entry} * problem_.len_q + sequence_.first_q + first;
    return {array + (token * problem_.heads_q + head) * width,
            std::int64_t{problem_.heads_q} * width, sequence_.len_q - first};
  }

  /// The slot of a query tile.
  CUTE_DEVICE int query_slot(Tile tile) const {
    return cuda::query_slots(problem_, Config::kQueries).first(sequence_.index) + tile;
  }

 private:
  const AttentionProblem& problem_;
  Sequence sequence_;
  Pattern pattern_;
  Tile tile_;
  int rows_;
};

/// Where score parts keep, in shared memory, what they know of the elements of a tile; patterns
/// of sequences are asked element by element instead.
template <class Config, class Pattern>
struct VisibleBits {};

}  // namespace tileattn::cuda
