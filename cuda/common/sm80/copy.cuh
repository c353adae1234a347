// Tiles on the way from memory to shared memory (cp.async) and back.
#pragma once

#include "common/tile.cuh"

namespace tileattn::cuda {

/// Calls visit(row, column) for the 16-byte chunks of a tile that are this thread's.
template <class Config, class Layout, class Visit>
CUTE_DEVICE void for_each_chunk(Layout layout, Visit&& visit) {
  constexpr int kChunks = size<1>(layout) / 8;  // in a row
  static_assert(size<0>(layout) * kChunks % Config::kThreads == 0);
  int thread = fresh_thread_index();
  CUTE_UNROLL
  for (int n = 0; n < size<0>(layout) * kChunks; n += Config::kThreads)
    visit((thread + n) / kChunks, (thread + n) % kChunks * 8);
}

/// Starts copying the rows of a tile; what lies outside of it is set to zero.
template <class Config, class Layout, class Rows>
CUTE_DEVICE void load_rows(typename Config::Element* to, Layout layout, const Rows& rows,
                           int dims) {
  for_each_chunk<Config>(layout, [&](int row, int column) {
    bool inside = rows.has(row) && column < dims;
    auto* source = inside ? rows[row] + column : rows.first;
    SM80_CP_ASYNC_CACHEGLOBAL_ZFILL<uint128_t>::copy(
        *reinterpret_cast<const uint128_t*>(source),
        *reinterpret_cast<uint128_t*>(to + layout(row, column)), inside);
  });
}

template <class Config, class Layout, class Rows>
CUTE_DEVICE void store_rows(const typename Config::Element* from, Layout layout, const Rows& rows,
                            int dims) {
  for_each_chunk<Config>(layout, [&](int row, int column) {
    if (rows.has(row) && column < dims)
      *reinterpret_cast<uint128_t*>(rows[row] + column) =
          *reinterpret_cast<const uint128_t*>(from + layout(row, column));
  });
}

}  // namespace tileattn::cuda
