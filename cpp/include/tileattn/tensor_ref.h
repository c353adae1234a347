// How tensors reach a kernel: a pointer, an element type, strides.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>

namespace tileattn {

enum class DType : std::int8_t { kFloat32, kFloat16, kBFloat16 };

constexpr int bits_of(DType dtype) {
  switch (dtype) {
    case DType::kFloat32: return 32;
    case DType::kFloat16:
    case DType::kBFloat16: return 16;
  }
  std::abort();  // none of them
}

/// Bytes of an element.
constexpr std::size_t size_of(DType dtype) { return bits_of(dtype) / 8; }

constexpr const char* name_of(DType dtype) {
  switch (dtype) {
    case DType::kFloat32: return "float32";
    case DType::kFloat16: return "float16";
    case DType::kBFloat16: return "bfloat16";
  }
  std::abort();
}

/// A [batch, token, head, dim] tensor. Strides count elements; that of dim is 1.
/// Packed sequences are one batch entry: [token, head, dim] with batch_stride 0.
/// Tokens of a grid, [batch, x, y, z, head, dim]: token_stride is that of the last axis, and
/// outer_stride those of the axes before it, the nearest last.
template <class Void>
struct BasicTensorRef {
  Void* data = nullptr;
  std::int64_t batch_stride = 0;
  std::int64_t token_stride = 0;
  std::int64_t head_stride = 0;
  std::int64_t outer_stride[2] = {0, 0};
};

using TensorRef = BasicTensorRef<void>;
using ConstTensorRef = BasicTensorRef<const void>;

/// An additive logit bias, [batch, head, query, key]; stride 0 where it is broadcast.
/// The stride of key is 1.
template <class Void>
struct BasicBiasRef {
  Void* data = nullptr;
  std::int64_t batch_stride = 0;
  std::int64_t head_stride = 0;
  std::int64_t query_stride = 0;
  DType dtype = DType::kFloat32;
};

using BiasRef = BasicBiasRef<void>;
using ConstBiasRef = BasicBiasRef<const void>;

}  // namespace tileattn
