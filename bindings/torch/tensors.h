// From torch's stable tensors to the plain structs that kernels take.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <vector>

#include "tileattn/memory.h"
#include "tileattn/tensor_ref.h"

namespace tileattn::torch_binding {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;
using Sizes = std::vector<std::int64_t>;

inline Sizes sizes_of(const Tensor& tensor) {
  return {tensor.sizes().begin(), tensor.sizes().end()};
}

inline DType dtype_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float: return DType::kFloat32;
    case ScalarType::Half: return DType::kFloat16;
    case ScalarType::BFloat16: return DType::kBFloat16;
    default: STD_TORCH_CHECK(false, "tileattn: only float32, float16 and bfloat16 are supported");
  }
}

/// The stride of a dimension; 0 where it is never stepped along, so that odd
/// strides of dimensions of size 1 count neither for alignment nor for offsets.
inline std::int64_t step(const Tensor& tensor, std::int64_t dim) {
  return tensor.size(dim) <= 1 ? 0 : tensor.stride(dim);
}

/// True if rows can be read as 16-byte vectors: unit last stride, the rest aligned.
inline bool has_vector_rows(const Tensor& tensor) {
  std::int64_t last = tensor.dim() - 1;
  if (tensor.size(last) > 1 && tensor.stride(last) != 1) return false;
  std::int64_t vector = 16 / static_cast<std::int64_t>(size_of(dtype_of(tensor)));
  for (std::int64_t i = 0; i < last; ++i)
    if (step(tensor, i) % vector != 0) return false;
  return reinterpret_cast<std::uintptr_t>(tensor.data_ptr()) % 16 == 0;
}

/// The tensor itself where kernels can read it in place, else a contiguous copy.
inline Tensor with_vector_rows(const Tensor& tensor) {
  if (has_vector_rows(tensor)) return tensor;
  Tensor copy = torch::stable::contiguous(tensor);
  return has_vector_rows(copy) ? copy : torch::stable::clone(copy);  // contiguous, but misaligned
}

inline OptionalTensor contiguous(const OptionalTensor& tensor) {
  if (!tensor) return std::nullopt;
  return torch::stable::contiguous(*tensor);
}

/// Contiguous, of like's device. A dispatcher's call by name costs several times as much.
inline Tensor new_empty(const Tensor& like, const Sizes& sizes, ScalarType dtype) {
  using torch::stable::detail::from, torch::stable::detail::to;
  Sizes strides(sizes.size());
  std::int64_t stride = 1;
  for (std::size_t n = sizes.size(); n-- > 0; stride *= std::max<std::int64_t>(sizes[n], 1))
    strides[n] = stride;
  std::int32_t device = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device));
  AtenTensorHandle made = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      static_cast<std::int64_t>(sizes.size()), sizes.data(), strides.data(),
      to<std::int32_t>(from(dtype)), device, like.get_device_index(), &made));
  return Tensor(made);
}

/// Memory for a result. `zeroed`: of packed sequences, where tokens past the last one are no
/// kernel's.
inline Tensor new_result(const Tensor& like, const Sizes& sizes, ScalarType dtype,
                         bool zeroed = false) {
  Tensor result = new_empty(like, sizes, dtype);
  if (result.is_cpu())
    prefer_large_pages(result.data_ptr(), result.numel() * result.element_size());
  if (zeroed) torch::stable::fill_(result, 0.0);
  return result;
}

/// [batch, token, head, dim], or [token, head, dim] for packed sequences.
inline TensorRef ref(const Tensor& tensor) {
  std::int64_t token = tensor.dim() - 3;
  return {tensor.data_ptr(), token == 1 ? step(tensor, 0) : 0, step(tensor, token),
          step(tensor, token + 1)};
}

inline ConstTensorRef const_ref(const Tensor& tensor) {
  TensorRef r = ref(tensor);
  return {r.data, r.batch_stride, r.token_stride, r.head_stride};
}

/// [batch or 1, heads or 1, queries or 1, keys]
inline BiasRef bias_ref(const Tensor& bias) {
  return {bias.data_ptr(), step(bias, 0), step(bias, 1), step(bias, 2), dtype_of(bias)};
}

template <class T>
const T* data_or_null(const OptionalTensor& tensor) {
  return tensor ? static_cast<const T*>(tensor->data_ptr()) : nullptr;
}

}  // namespace tileattn::torch_binding
