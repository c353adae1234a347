// Large pages for memory that is new for each call: a page fault takes longer than filling a
// small page does.
#pragma once

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <cstddef>
#include <cstdint>

namespace tileattn {

constexpr std::size_t kLargePage = std::size_t{2} << 20;

/// Asks for large pages, as far as whole ones fit into [data, data + bytes).
inline void prefer_large_pages(void* data, std::size_t bytes) {
#if defined(MADV_HUGEPAGE)
  const std::uintptr_t address = reinterpret_cast<std::uintptr_t>(data);
  const std::uintptr_t begin = (address + kLargePage - 1) / kLargePage * kLargePage;
  const std::uintptr_t end = (address + bytes) / kLargePage * kLargePage;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)data, (void)bytes;
#endif
}

}  // namespace tileattn
