// How tensors reach a kernel: a pointer, an element type, strides.
#pragma once

#include <cstddef>
#include <cstdint>

namespace tileattn {

enum class DType : std::int8_t { kFloat32, kFloat16, kBFloat16 };

constexpr std::size_t size_of(DType dtype) { return dtype == DType::kFloat32 ? 4 : 2; }

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
