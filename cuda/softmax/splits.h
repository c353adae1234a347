// Whether to split the keys of a forward.
#pragma once

#include <algorithm>
#include <cstdint>

namespace tileattn::cuda {

/// Into how many parts to split the keys so that `blocks` tiles fill the device.
inline int choose_splits(std::int64_t blocks, int key_tiles, int multiprocessors) {
  constexpr int kTilesPerSplit = 2;  // at least, or merging costs more than it saves
  if (blocks == 0 || blocks * 2 > multiprocessors) return 1;
  std::int64_t wanted = multiprocessors / blocks;
  return int(
      std::max<std::int64_t>(1, std::min<std::int64_t>({wanted, key_tiles / kTilesPerSplit, 64})));
}

}  // namespace tileattn::cuda
