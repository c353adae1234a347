// Which keys of a tile a query row sees, on a grid: a bit for each, in words that
// are made once for a tile, a thread a word, and left in shared memory.
#pragma once

#include "grid_tiles.cuh"
#include "score_tile.cuh"

namespace tileattn::cuda {

template <class Config>
struct alignas(128) VisibleBits<Config, Neighborhood<3>> {
  static constexpr int kWordKeys = Config::kKeys < 64 ? Config::kKeys : 64;
  static constexpr int kWords = Config::kKeys / kWordKeys;  // of a row
  static_assert(kWords * Config::kQueries <= Config::kThreads);

  std::uint64_t words[kWords][Config::kQueries];

  /// The row whose word this thread writes.
  CUTE_DEVICE static int row() { return threadIdx.x % Config::kQueries; }

  /// `window` is that of row().
  CUTE_DEVICE void write(const Tiles<Config, Neighborhood<3>>& tiles, const GridTile& key_tile,
                         const Box<3>& window) {
    int word = threadIdx.x / Config::kQueries;
    if (word < kWords) words[word][row()] = tiles.visible_keys(key_tile, word * kWordKeys, window);
  }
};

/// The bits of this thread's elements of a tile of scores.
template <class Config>
class SeenElements {
 public:
  using Bits = VisibleBits<Config, Neighborhood<3>>;

  CUTE_DEVICE explicit SeenElements(const Bits& bits)
      : bits_(bits), thread_(fresh_thread_index()) {}

  /// Whether the rows of this warp see all of the tile.
  CUTE_DEVICE bool all() const {
    constexpr std::uint64_t kAll = ~std::uint64_t{0} >> (64 - Bits::kWordKeys);
    bool all = true;
    CUTE_UNROLL
    for (int r = 0; r < kRows; ++r) {
      CUTE_UNROLL
      for (int w = 0; w < Bits::kWords; ++w) all = all && bits_.words[w][row(r)] == kAll;
    }
    return __all_sync(0xffffffff, all);
  }

  /// Of one row: in_row(r)(c) for element (r, c) of by_rows(scores).
  CUTE_DEVICE auto in_row(int r) const {
    // The first column is the thread's, how far the others are from it is known beforehand.
    int first = get<1>(score_coordinates<Config>(thread_)(0, 0));
    cute::array<std::uint64_t, Bits::kWords> words;
    CUTE_UNROLL
    for (int w = 0; w < Bits::kWords; ++w) words[w] = bits_.words[w][row(r)] >> first;
    return [words](int c) {
      int column = get<1>(score_coordinates<Config>(0)(0, c));
      return (words[column / Bits::kWordKeys] >> (column % Bits::kWordKeys) & 1) != 0;
    };
  }

 private:
  static constexpr int kRows = decltype(size<0>(score_coordinates<Config>(0)))::value;

  CUTE_DEVICE int row(int r) const { return get<0>(score_coordinates<Config>(thread_)(r, 0)); }

  const Bits& bits_;
  int thread_;
};

}  // namespace tileattn::cuda
