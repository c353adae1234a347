// The row-wise kernels around the scans.
//
// denominator_gradient_kernel. Grid: rows / 8; a warp owns one (token, head) row.
// sum_parts_kernel. Grid: elements / 256, in pairs; a thread owns a pair.
#pragma once

#include "common/rows.cuh"
#include "params.h"

namespace tileattn::cuda {

constexpr int kRowWarps = 8;
constexpr int kRowThreads = kRowWarps * 32;

template <class Element>
__global__ void __launch_bounds__(kRowThreads)
    denominator_gradient_kernel(const __grid_constant__ DenominatorGradientParams params) {
  const LinearShape& shape = params.shape;
  std::int64_t row = std::int64_t{blockIdx.x} * kRowWarps + threadIdx.x / 32;
  if (row >= shape.rows()) return;
  int head = int(row % shape.heads), lane = threadIdx.x % 32;
  std::int64_t token = row / shape.heads;
  int entry = int(token / shape.len);
  token %= shape.len;
  const Element* out = row_pointer<const Element>(params.out, entry, token, head);
  const Element* dout = row_pointer<const Element>(params.dout, entry, token, head);
  float sum = 0.0f;
  for (int column = lane; column < shape.dim_v; column += 32)
    sum += float(out[column]) * float(dout[column]);
  CUTE_UNROLL
  for (int distance = 16; distance > 0; distance /= 2)
    sum += __shfl_xor_sync(0xffffffff, sum, distance);
  if (lane == 0) params.extra[row] = -sum;
}

template <class Element>
__global__ void __launch_bounds__(kRowThreads)
    sum_parts_kernel(const __grid_constant__ SumPartsParams params) {
  const LinearShape& shape = params.shape;
  const int pairs = params.dims / 2;
  std::int64_t n = std::int64_t{blockIdx.x} * kRowThreads + threadIdx.x;
  if (n >= shape.rows() / params.group * pairs) return;
  int column = int(n % pairs) * 2;
  std::int64_t row = n / pairs;  // of (token, key head)
  int head = int(row % (shape.heads / params.group));
  std::int64_t token = row / (shape.heads / params.group);
  // Parts of packed tokens that belong to no sequence were never written.
  if (shape.cu_seqlens && token >= shape.cu_seqlens[shape.batch]) return;
  float sum[2] = {0.0f, 0.0f};
  for (int slice = 0; slice < params.slices; ++slice) {
    const float* part =
        params.parts + (slice * shape.rows() + row * params.group) * params.dims + column;
    for (int member = 0; member < params.group; ++member, part += params.dims) {
      auto pair = *reinterpret_cast<const float2*>(part);
      sum[0] += pair.x;
      sum[1] += pair.y;
    }
  }
  Element* to = row_pointer<Element>(params.to, int(token / shape.len), token % shape.len, head);
  to[column] = Element(sum[0]);
  to[column + 1] = Element(sum[1]);
}

}  // namespace tileattn::cuda
