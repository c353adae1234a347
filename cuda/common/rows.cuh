// Rows of tensors in memory.
#pragma once

#include <cute/config.hpp>

#include <cstdint>

namespace tileattn::cuda {

/// The element at `token` of the sequence, head `head`.
template <class Element, class Ref>
CUTE_DEVICE Element* row_pointer(const Ref& tensor, int entry, std::int64_t token, int head) {
  return static_cast<Element*>(tensor.data) + entry * tensor.batch_stride +
         token * tensor.token_stride + head * tensor.head_stride;
}

template <class T>
struct StridedRows {
  T* first;
  std::int64_t stride;
  int count;

  CUTE_DEVICE bool has(int row) const { return row < count; }
  CUTE_DEVICE T* operator[](int row) const { return first + row * stride; }
};

}  // namespace tileattn::cuda
