// The gradient of log_decay: what all tokens before t give to tokens from t on,
//
//   sum over j < t <= i of w_ij, inside of the chunk
//   + what all i >= t read from the state before the chunk + what all j < t give to that after it
//   + what passes through the chunk = <S, dS> after the chunk - what all j give to after it.
//
// w_ij = scale D_ij (q_i . k_j)(dout_i . v_j), i > j; with taylor2 the weight of the score stands
// in its place. Only the last is a difference; <S, dS> before the chunk, which the chunk before
// needs, follows from it: its terms must be exact, or their roundings would stay in all earlier
// gradients. Hence ScanParams::exact.
//
// pairs_kernel: of each token, the sum of its w as j less that as i; the first term is the sum of
// these over tokens before t. Grid: chunks x heads x sequences, the chunk running fastest. Block:
// one chunk; shared memory: 64 channels of two operands at a time.
// chain_kernel: the rest. Grid: segments x heads x sequences, the segment running fastest. Block:
// one warp, from the last chunk of the segment to the first.
#pragma once

#include "chunk.cuh"

namespace tileattn::cuda {

template <class Config>
struct alignas(128) PairsShared {
  typename Config::Element rows[kBlockElements];
  typename Config::Element columns[kBlockElements];
  SharedNumbers numbers;
  SharedWeights weights;
  float column_sums[Config::kWarps][kChunk];
};

/// sums += a b^T over all channels.
template <class Config, class Sums>
CUTE_DEVICE void multiply_rows(PairsShared<Config>& shared, const Operand& a, const Operand& b,
                               const SegmentPart& place, Range tokens, Sums& sums) {
  CUTE_NO_UNROLL
  for (int column = 0; column < a.dim; column += kBlock) {
    __syncthreads();  // the last channels are used up
    fetch_tile<Config>(shared.rows, typename Config::ValueSmem::Plain{}, a, place, tokens, column);
    fetch_tile<Config>(shared.columns, typename Config::ValueSmem::Plain{}, b, place, tokens,
                       column);
    cp_async_fence();
    cp_async_wait<0>();
    __syncthreads();
    multiply_keys<LinearConfig<typename Config::Element, kBlock>, Time::kForwards>(
        shared.rows, shared.columns, sums);
  }
}

template <class Config>
__global__ void __launch_bounds__(Config::kThreads)
    pairs_kernel(const __grid_constant__ DecayGradientParams params) {
  __shared__ PairsShared<Config> shared;
  LinearShape shape = params.shape;
  // The slot of a chunk, as if every chunk were a segment.
  TileSlots slots{shape.cu_seqlens, shape.batch, shape.len, kChunk};
  int slot = blockIdx.x % slots.count();
  shape.segments = 1;
  int sequence = slots.owner(slot);
  if (sequence >= shape.batch) return;
  SegmentPart place(shape, 1, sequence * shape.heads + blockIdx.x / slots.count());
  int first = place.begin + (slot - slots.first(sequence)) * kChunk;
  Range tokens{first, imin(first + kChunk, place.end)};
  if (tokens.size() <= 0 || first < place.begin) return;

  shared.numbers.fetch(shape, params.numbers, place, tokens);
  Tensor scores = row_sums<Config>();
  Tensor gradients = row_sums<Config>();
  multiply_rows(shared, params.q, params.k, place, tokens, scores);
  multiply_rows(shared, params.dout, params.v, place, tokens, gradients);
  if (threadIdx.x < 32)
    weigh_tokens<Time::kForwards, typename Config::Element>(
        shared.numbers, shared.weights, shape, params.numbers, tokens.size(), size_one);
  __syncthreads();  // the weights are complete

  if (params.feature_map == FeatureMap::kTaylor2) weigh_taylor2(scores, params.q.dim);
  weigh_scores<Config, Time::kForwards>(by_rows(scores), shared.numbers, true, false);
  auto left = by_rows(scores), right = by_rows(gradients);
  const int rows = tokens.size();  // behind them, scores need not be 0
  float row_sum[2] = {0.0f, 0.0f};
  CUTE_UNROLL
  for (int c = 0; c < size<1>(left); ++c) {
    float column_sum = 0.0f;
    CUTE_UNROLL
    for (int r = 0; r < 2; ++r) {
      int row = row_of(r), column = column_of(c);
      float gradient = right(r, c) + (params.numbers.extra ? shared.numbers.extra[row] : 0.0f);
      float weight =
          column < row && row < rows ? left(r, c) * gradient * shared.numbers.factor[row] : 0.0f;
      row_sum[r] += weight;
      column_sum += weight;
    }
    CUTE_UNROLL
    for (int lane = 4; lane < 32; lane *= 2)
      column_sum += __shfl_xor_sync(0xffffffff, column_sum, lane);
    if (threadIdx.x % 32 < 4) shared.column_sums[threadIdx.x / 32][column_of(c)] = column_sum;
  }
  CUTE_UNROLL
  for (int r = 0; r < 2; ++r) {
    row_sum[r] = sum_row(row_sum[r]);
    if (threadIdx.x % 4 == 0) shared.weights.read[row_of(r)] = row_sum[r];
  }
  __syncthreads();  // the sums are complete
  int token = threadIdx.x;
  if (token >= tokens.size()) return;
  float sum = -shared.weights.read[token];
  CUTE_UNROLL
  for (int warp = 0; warp < Config::kWarps; ++warp) sum += shared.column_sums[warp][token];
  params.pairs[place.row(shape, tokens.begin + token)] = sum;
}

/// Sums over the parts that slices wrote.
CUTE_DEVICE float sum_slices(const float* parts, int slices, std::int64_t stride, std::int64_t at) {
  float sum = 0.0f;
  for (int slice = 0; slice < slices; ++slice) sum += parts[slice * stride + at];
  return sum;
}

template <int kThreads>
__global__ void __launch_bounds__(kThreads)
    chain_kernel(const __grid_constant__ DecayGradientParams params) {
  static_assert(kThreads == 32 && kChunk == 2 * kThreads);
  constexpr float kNothing = -24.0f;  // 2^-24 of S is below its rounding errors
  const LinearShape& shape = params.shape;
  const SegmentPart place(shape, 1, blockIdx.x);
  const std::int64_t rows = shape.rows();
  const std::int64_t pairs = std::int64_t{shape.batch} * shape.heads * shape.segments;
  float product = sum_slices(params.products, params.slices, pairs,
                             place.pair(shape) * shape.segments + place.segment);
  for (int n = 0; n < place.chunks(); ++n) {
    Range tokens = chunk_tokens<Time::kBackwards>(place, n);
    // Two tokens a lane, one after the other.
    float read[2] = {0.0f, 0.0f}, given[2] = {0.0f, 0.0f}, log2_decay = 0.0f;
    std::int64_t at[2];
    for (int i = 0; i < 2; ++i) {
      int token = tokens.begin + threadIdx.x * 2 + i;
      at[i] = place.row(shape, token);
      if (token >= tokens.end) continue;
      read[i] = sum_slices(params.read, params.slices, rows, at[i]);
      given[i] = sum_slices(params.given, params.slices, rows, at[i]);
      log2_decay += log2_step(shape.decay.data[place.entry * shape.decay.batch_stride +
                                               token * shape.decay.token_stride +
                                               place.head * shape.decay.head_stride]);
    }
    auto pair = [&](int i) {
      return tokens.begin + int(threadIdx.x) * 2 + i < tokens.end ? params.pairs[at[i]] : 0.0f;
    };
    float inside[2] = {given[0] + pair(0), given[1] + pair(1)};
    float inside_before = scan_lanes(inside[0] + inside[1]) - inside[0] - inside[1];
    float read_before = scan_lanes(read[0] + read[1]);
    float all_read = __shfl_sync(0xffffffff, read_before, 31);
    float read_from[2];
    read_from[1] = all_read - read_before + read[1];
    read_from[0] = read_from[1] + read[0];
    float all_given = given[0] + given[1];
    for (int distance = 1; distance < 32; distance *= 2) {
      all_given += __shfl_xor_sync(0xffffffff, all_given, distance);
      log2_decay += __shfl_xor_sync(0xffffffff, log2_decay, distance);
    }
    float through = log2_decay < kNothing ? 0.0f : product - all_given;
    for (int i = 0; i < 2; ++i)
      if (tokens.begin + int(threadIdx.x) * 2 + i < tokens.end)
        params.dlog_decay[at[i]] =
            through + read_from[i] + inside_before + (i == 1 ? inside[0] : 0.0f);
    product = through + all_read;
  }
}

}  // namespace tileattn::cuda
