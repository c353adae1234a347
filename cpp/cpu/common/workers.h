// Aligned buffers, and tasks that share scratch memory among threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

#include "tileattn/executor.h"
#include "tileattn/memory.h"

namespace tileattn::cpu {

struct FreeAligned {
  void operator()(float* data) const { std::free(data); }
};
using Buffer = std::unique_ptr<float[], FreeAligned>;

inline Buffer allocate(std::int64_t floats) {
  constexpr std::size_t kLine = 64;
  const std::size_t bytes = static_cast<std::size_t>(floats) * sizeof(float);
  const std::size_t unit = bytes < 8 * kLargePage ? kLine : kLargePage;
  void* data = std::aligned_alloc(unit, (bytes + unit - 1) / unit * unit);
  if (!data) throw std::bad_alloc();
  if (unit == kLargePage) prefer_large_pages(data, bytes);
  return Buffer(static_cast<float*>(data));
}

/// Calls work(i, scratch) for each i in [0, count). Threads take tasks as they come free.
template <class Work>
void run_with_scratch(const Executor& executor, std::int64_t count, std::int64_t scratch_size,
                      Work work) {
  if (count == 0) return;
  std::int64_t workers = std::min<std::int64_t>(std::max(executor.num_threads, 1), count);
  std::int64_t stride = (scratch_size + 31) / 16 * 16;
  Buffer scratch = allocate(workers * stride);
  std::atomic<std::int64_t> next{0};
  executor.run(workers, [&](std::int64_t worker) {
    for (std::int64_t i; (i = next++) < count;) work(i, scratch.get() + worker * stride);
  });
}

}  // namespace tileattn::cpu
