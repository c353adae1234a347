// Rows of tensors, asked for ahead of their use.
//
// Rows of one head lie so far apart that the hardware does not foresee them, and asked for all at
// once they would only wait for one another. So they stand in a queue, of which products, which
// leave the memory idle, ask for a few lines each.
#pragma once

#include "cpu/common/blocks.h"
#include "tileattn/tensor_ref.h"

namespace tileattn::cpu::TILEATTN_ISA {

inline std::int64_t bytes_of(DType dtype) { return dtype == DType::kFloat32 ? 4 : 2; }

/// kLocality: 3 for all caches, 2 for those from the second level on.
template <int kLocality = 3>
void prefetch(const char* data, std::int64_t bytes) {
  constexpr int kLine = 64;
  for (std::int64_t at = 0; at < bytes; at += kLine) __builtin_prefetch(data + at, 0, kLocality);
}

class Prefetches {
 public:
  /// `dim` elements of the first `count` rows. What does not fit into the queue is left out.
  template <class Rows>
  void ask(const Rows& rows, int count, int dim) {
    if (next_ == end_) next_ = end_ = 0;
    const std::int64_t bytes = dim * bytes_of(rows.dtype);
    for (int r = 0; r < count && end_ < kMost; ++r) queue_[end_++] = {rows.row(r), bytes};
  }

  /// A product of `depth` leaves time for so much.
  void step(int depth) { spend(16 * depth); }

  /// Asks for the next `most` bytes, in whole rows.
  template <int kLocality = 3>
  void spend(std::int64_t most) {
    for (std::int64_t bytes = 0; bytes < most && next_ < end_; bytes += queue_[next_++].bytes)
      prefetch<kLocality>(queue_[next_].data, queue_[next_].bytes);
  }

 private:
  static constexpr int kMost = 4 * kTile.queries;
  struct Row {
    const char* data;
    std::int64_t bytes;
  };
  Row queue_[kMost];
  int next_ = 0, end_ = 0;
};

}  // namespace tileattn::cpu::TILEATTN_ISA
