// How a call's workspace is divided.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

namespace tileattn::cuda {

/// Hands out pieces of a workspace, aligned to 16 bytes. With null it only counts.
class Workspace {
 public:
  explicit Workspace(void* memory) : memory_(static_cast<char*>(memory)) {}

  float* take(std::int64_t floats) {
    constexpr std::size_t kAlignment = 16;
    char* piece = memory_ ? memory_ + bytes_ : nullptr;
    bytes_ += (std::size_t(floats) * sizeof(float) + kAlignment - 1) / kAlignment * kAlignment;
    return reinterpret_cast<float*>(piece);
  }
  std::size_t bytes() const { return bytes_; }

 private:
  char* memory_;
  std::size_t bytes_ = 0;
};

/// Into how many segments to cut the tokens, so that `blocks` states keep the device busy.
inline int choose_segments(std::int64_t blocks, int chunks, int multiprocessors) {
  constexpr int kChunksPerSegment = 2;  // at least, or passing states costs more than it saves
  constexpr int kBlocksPerMultiprocessor = 2;
  if (blocks == 0 || blocks > multiprocessors) return 1;
  std::int64_t wanted = std::int64_t{kBlocksPerMultiprocessor} * multiprocessors / blocks;
  return int(
      std::clamp<std::int64_t>(std::min<std::int64_t>(wanted, chunks / kChunksPerSegment), 1, 256));
}

}  // namespace tileattn::cuda
