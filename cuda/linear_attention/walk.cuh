// The walk over a segment that the forward and the backward are made of:
//
//   out_i = h_i ( r_i q_i^T S + sum over j reached by i of D_ij f_j (q_i . k_j) v_j )
//   S     <- total * S + sum over j of c_j f_j k_j v_j^T
//
// with D, r, c of weights.cuh, h and f: scales over divisors. The roles of q, k, v, and S:
//
//   out  forwards   q, k, v       state            dq  forwards   dout, v, k   state^T
//   dv   backwards  k, q, dout    its gradient     dk  backwards  v, dout, q   its gradient^T
//
// Normalised: values have one channel more (1), whose out is the denominator. In dq and dk the
// same channel is one of queries and keys: 1, or -(dout . out).
//
// Grid: segments x value slices x heads x sequences, as one index, the segment running fastest.
// Block: kValues channels of out for the chunks of a segment, the state in registers.
// Shared memory: kStages of queries, keys and values, streamed by cp.async; the state, rounded;
// the weights. out leaves by way of the warp's own queries.
//
// Roofline at D = 128, a token and head: 1024 bytes of memory (q, k, v, out; the slices of a head
// share queries and keys in the L2 cache, 1280 bytes are read in all), 3072 of the backward's three
// walks, of which fused sweeps would need 2560. Counted in the PTX simulator, forward with a decay,
// a warp and chunk: 188 mma, 92 ldmatrix, 3300 instructions, of which 1500 are integer ones
// (addresses): it is the issue of instructions that bounds it, before tensor cores and memory.
#pragma once

#include "chunk.cuh"

namespace tileattn::cuda {

template <class Config>
struct alignas(128) WalkShared {
  using Element = typename Config::Element;
  struct Stage {
    Element queries[kChunk * Config::kDim];
    Element keys[kChunk * Config::kDim];
    Element values[kChunk * kValues];
    SharedNumbers numbers;
    float peaks[Config::kThreads / 32];  // of each warp's part of the state before the chunk
  } stages[Config::kStages];
  Element state[Config::kDim * kValues];
  // Extra::kValues: [kDim]. Extra::kKeys: [2][kValues], of this chunk and of the next.
  float z[2 * kValues];
  SharedWeights weights;
  static_assert(Config::kDim <= 2 * kValues);
};

/// Extra::kKeys: z <- total * z + sum over j of c_j f_j b_j v_j. A warp owns 16 columns, its
/// lanes 2 columns of 16 tokens each.
template <class Config>
CUTE_DEVICE void add_extra_row(const typename Config::Element* values, const SharedNumbers& tokens,
                               bool of_queries, const SharedWeights& weights, const float* z,
                               float* to) {
  using Element = typename Config::Element;
  typename Config::ValueSmem::Plain layout;
  // Rows that lanes read together lie in different banks.
  int column = threadIdx.x / 32 * 16 + threadIdx.x % 8 * 2, first = threadIdx.x % 32 / 8 * 2;
  float sum[2] = {0.0f, 0.0f};
  CUTE_UNROLL
  for (int n = 0; n < 16; ++n) {
    int token = first + n % 2 + n / 2 * 8;
    auto pair =
        *reinterpret_cast<const cutlass::AlignedArray<Element, 2>*>(values + layout(token, column));
    float weight = weights.write[token] * (of_queries ? 1.0f : tokens.extra[token]);
    sum[0] += weight * float(pair[0]);
    sum[1] += weight * float(pair[1]);
  }
  CUTE_UNROLL
  for (int n = 0; n < 2; ++n) {
    sum[n] += __shfl_xor_sync(0xffffffff, sum[n], 8);
    sum[n] += __shfl_xor_sync(0xffffffff, sum[n], 16);
    if (threadIdx.x % 32 < 8) to[column + n] = weights.total * z[column + n] + sum[n];
  }
}

template <class Config, Walk kWalk>
class WalkBlock {
 public:
  using Element = typename Config::Element;
  using Mma = typename Config::Mma;
  using Shared = WalkShared<Config>;
  using KeySmem = typename Config::KeySmem;
  using ValueSmem = typename Config::ValueSmem;

  CUTE_DEVICE WalkBlock(const WalkParams& params, Shared& shared)
      : params_(params), shape_(params.shape), shared_(shared), place_(find_place()) {}

  CUTE_DEVICE void run() {
    fetch(0);
    start();
    CUTE_NO_UNROLL
    for (int n = 0; n < place_.chunks(); ++n) visit(n);
    finish();
  }

 private:
  /// Found again at the end, its less used parts need no registers in the loop.
  CUTE_DEVICE Place find_place() const {
    int block = blockIdx.x;
    asm volatile("" : "+r"(block));
    return {shape_, tileattn::ceil_div(params_.values.dim, kValues), block};
  }

  CUTE_DEVICE bool z_is_column() const { return params_.extra == Extra::kValues; }
  CUTE_DEVICE bool z_is_row() const { return params_.extra == Extra::kKeys; }
  /// z of Extra::kKeys before the n-th chunk.
  CUTE_DEVICE float* z_row(int n) const {
    return shared_.z + (params_.causal ? n % 2 * kValues : 0);
  }

  CUTE_DEVICE void fetch(int n) const {
    if (n < place_.chunks()) {
      auto& stage = shared_.stages[n % Config::kStages];
      Range tokens = chunk_tokens<kWalk>(place_, n);
      fetch_tile<Config>(stage.queries, typename KeySmem::Plain{}, params_.queries, place_, tokens,
                         0);
      if (params_.causal) {
        fetch_tile<Config>(stage.keys, typename KeySmem::Plain{}, params_.keys, place_, tokens, 0);
        fetch_tile<Config>(stage.values, typename ValueSmem::Plain{}, params_.values, place_,
                           tokens, place_.slice * kValues);
      }
      stage.numbers.fetch(shape_, params_.numbers, place_, tokens);
    }
    cp_async_fence();
  }

  /// The block's part of the states of its segment, or of the only ones.
  CUTE_DEVICE StatePart part(const StateSlots& slots, ConstStateRef only) const {
    std::int64_t index = place_.pair(shape_);
    float* s = slots.s ? slots.s : const_cast<float*>(only.s);
    float* z = slots.s ? slots.z : const_cast<float*>(only.z);
    if (slots.s) index = index * slots.slots + (params_.causal ? place_.segment : shape_.segments);
    return state_part(shape_, s, z, index, params_.transposed, place_.slice);
  }

  CUTE_DEVICE void start() {
    StatePart from = part(params_.start, params_.first);
    state_.load(from, z_is_column());
    if (z_is_row() && threadIdx.x < kValues)
      shared_.z[threadIdx.x] = from.z && threadIdx.x < from.columns ? from.z[threadIdx.x] : 0.0f;
  }

  /// Of the state before the n-th chunk. To be read after a barrier.
  CUTE_DEVICE void note_peak(int n) {
    if constexpr (kNarrow<Element>) {
      float peak = state_.peak();
      if (threadIdx.x % 32 == 0) shared_.stages[n % Config::kStages].peaks[threadIdx.x / 32] = peak;
    }
  }

  /// The state's copy is the state times this.
  CUTE_DEVICE float state_factor(int n) const {
    if constexpr (!kNarrow<Element>) return 1.0f;
    float peak = 0.0f;
    for (float of_warp : shared_.stages[n % Config::kStages].peaks) peak = fmaxf(peak, of_warp);
    return range_factor(peak);
  }

  CUTE_DEVICE void visit(int n) {
    auto& stage = shared_.stages[n % Config::kStages];
    const SharedWeights& weights = shared_.weights;
    const bool of_queries = params_.numbers.of_queries;
    Range tokens = chunk_tokens<kWalk>(place_, n);
    note_peak(n);
    cp_async_wait<0>();
    __syncthreads();  // this chunk is here; the other stage, state and weights are used up
    fetch(n + 1);
    if (params_.causal || n == 0) {
      share(n, Term::kFirst);
      if (z_is_column()) state_.share_z(shared_.z);
    }
    if (threadIdx.x < 32)
      weigh_tokens<kWalk>(stage.numbers, shared_.weights, shape_, params_.numbers, tokens.size());
    Tensor scores = row_sums<Config>();
    if (params_.causal) multiply_keys<Config, kWalk>(stage.queries, stage.keys, scores);
    __syncthreads();  // state and weights are complete

    Tensor out = row_sums<Config>();
    float denominators[2] = {0.0f, 0.0f};
    multiply_state<Config>(stage.queries, shared_.state, shared_.z, z_is_column(), out,
                           denominators);
    if (params_.exact) {
      __syncthreads();  // the first terms are used up
      share(n, Term::kSecond);
      __syncthreads();  // the second are complete
      multiply_state<Config>(stage.queries, shared_.state, shared_.z, false, out, denominators);
    }
    finish_read(by_rows(out), inverse_power(state_factor(n)), denominators, stage.numbers,
                z_row(n));
    if (params_.dots) dot(by_rows(out), stage.numbers, tokens);
    if (params_.causal) {
      weigh_scores<Config, kWalk>(by_rows(scores), stage.numbers, of_queries, z_is_row());
      if (z_is_column()) add_scores(by_rows(scores), denominators);
      if (shape_.decay.data) state_.decay(weights.total);
      const bool weighted = weighs_keys(shape_, params_.numbers);
      const float* extra_values = z_is_column() ? stage.numbers.extra : nullptr;
      multiply_values<Config, kWalk, true>(stage.keys, stage.values, weights.write, weighted,
                                           Term::kFirst, extra_values,
                                           as_operand_a<Element>(scores), out, state_);
      if (params_.exact)
        multiply_values<Config, kWalk, false>(stage.keys, stage.values, weights.write, weighted,
                                              Term::kSecond, extra_values, 0, out, state_);
      if (z_is_row())
        add_extra_row<Config>(stage.values, stage.numbers, of_queries, weights, z_row(n),
                              z_row(n + 1));
    }
    if (z_is_column()) divide(by_rows(out), denominators, tokens);
    else if (of_queries) scale(by_rows(out), stage.numbers);
    store(out, stage.queries, tokens);
  }

  /// The state's copy, for the queries of the n-th chunk.
  CUTE_DEVICE void share(int n, Term term) {
    float factor = state_factor(n);
    if (factor != 1.0f) state_.scale(factor);
    state_.share(shared_.state, term);
    if (factor != 1.0f) state_.scale(inverse_power(factor));
  }

  /// out_i <- r_i (out_i / factor of the state + a_i z), and the denominators likewise.
  template <class Out>
  CUTE_DEVICE void finish_read(Out&& out, float inverse_factor, float (&denominators)[2],
                               const SharedNumbers& numbers, const float* z) const {
    CUTE_UNROLL
    for (int r = 0; r < 2; ++r) {
      float read = shape_.decay.data ? shared_.weights.read[row_of(r)] : 1.0f;
      float extra = params_.numbers.of_queries ? numbers.extra[row_of(r)] : 1.0f;
      denominators[r] *= read;
      CUTE_UNROLL
      for (int c = 0; c < size<1>(out); ++c) {
        out(r, c) *= read * inverse_factor;
        if (z_is_row()) out(r, c) += read * extra * z[column_of(c)];
      }
    }
  }

  template <class Scores>
  CUTE_DEVICE void add_scores(Scores&& scores, float (&denominators)[2]) const {
    CUTE_UNROLL
    for (int r = 0; r < 2; ++r) {
      CUTE_UNROLL
      for (int c = 0; c < size<1>(scores); ++c) denominators[r] += scores(r, c);
    }
  }

  template <class Out>
  CUTE_DEVICE void divide(Out&& out, float (&denominators)[2], Range tokens) const {
    CUTE_UNROLL
    for (int r = 0; r < 2; ++r) {
      float denominator = sum_row(denominators[r]), inverse = reciprocal(denominator);
      CUTE_UNROLL
      for (int c = 0; c < size<1>(out); ++c) out(r, c) *= inverse;
      if (params_.denominator && place_.slice == 0 && threadIdx.x % 4 == 0 &&
          row_of(r) < tokens.size())
        params_.denominator[place_.row(shape_, tokens.begin + row_of(r))] =
            denominator * params_.numbers.scale;
    }
  }

  template <class Out>
  CUTE_DEVICE void scale(Out&& out, const SharedNumbers& numbers) const {
    CUTE_UNROLL
    for (int r = 0; r < 2; ++r) {
      float factor = numbers.factor[row_of(r)];
      CUTE_UNROLL
      for (int c = 0; c < size<1>(out); ++c) out(r, c) *= factor;
    }
  }

  /// The product of what each row has read from the state with the row of dot_with.
  template <class Out>
  CUTE_DEVICE void dot(Out&& out, const SharedNumbers& numbers, Range tokens) const {
    const ConstTensorRef& with = params_.dot_with.tensor;
    int first = place_.slice * kValues, columns = params_.dot_with.dim - first;
    CUTE_UNROLL
    for (int r = 0; r < 2; ++r) {
      bool exists = row_of(r) < tokens.size();
      const Element* row = row_pointer<const Element>(with, place_.entry, tokens.begin + row_of(r),
                                                      place_.head / params_.dot_with.group) +
                           first;
      float sum = 0.0f;
      CUTE_UNROLL
      for (int c = 0; c < size<1>(out); c += 2) {
        if (!exists || column_of(c) >= columns) continue;
        auto pair = *reinterpret_cast<const cutlass::AlignedArray<Element, 2>*>(row + column_of(c));
        sum += out(r, c) * float(pair[0]) + out(r, c + 1) * float(pair[1]);
      }
      sum = sum_row(sum) * (params_.numbers.of_queries ? numbers.factor[row_of(r)] : 1.0f);
      if (exists && threadIdx.x % 4 == 0)
        params_.dots[place_.slice * shape_.rows() + place_.row(shape_, tokens.begin + row_of(r))] =
            sum;
    }
  }

  template <class Out>
  CUTE_DEVICE void store(const Out& out, Element* queries, Range tokens) const {
    int dims = params_.values.dim, column = place_.slice * kValues;
    if (params_.partial) {
      auto rows = by_rows(out);
      CUTE_UNROLL
      for (int r = 0; r < 2; ++r) {
        if (row_of(r) >= tokens.size()) continue;
        float* to = params_.partial + place_.row(shape_, tokens.begin + row_of(r)) * dims + column;
        CUTE_UNROLL
        for (int c = 0; c < size<1>(rows); c += 2)
          if (column + column_of(c) < dims)
            *reinterpret_cast<float2*>(to + column_of(c)) = {rows(r, c), rows(r, c + 1)};
      }
      return;
    }
    typename ValueSmem::Plain layout;
    __syncwarp();
    round_to_shared<Element>(Mma{}, out, queries, layout);
    __syncwarp();
    Element* to =
        row_pointer<Element>(params_.out, place_.entry, tokens.begin, place_.head) + column;
    CUTE_UNROLL
    for (int n = 0; n < 4; ++n) {  // the warp's own 16 rows, 4 at a time
      int row = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 8 + n * 4, at = threadIdx.x % 8 * 8;
      if (row < tokens.size() && column + at < dims)
        *reinterpret_cast<uint128_t*>(to + row * params_.out.token_stride + at) =
            *reinterpret_cast<const uint128_t*>(queries + layout(row, at));
    }
  }

  /// What is wanted of the last state.
  CUTE_DEVICE void finish() {
    cp_async_wait<0>();
    __syncthreads();  // z is complete, the weights are used up
    place_ = find_place();
    const float* z = z_row(place_.chunks());
    if (params_.products) {
      StatePart other = part(params_.product_start, params_.product_first);
      float sum = other.s ? state_.product(other) : 0.0f;
      if (z_is_row() && other.z && threadIdx.x < kValues && threadIdx.x < other.columns)
        sum += z[threadIdx.x] * other.z[threadIdx.x];
      CUTE_UNROLL
      for (int distance = 1; distance < 32; distance *= 2)
        sum += __shfl_xor_sync(0xffffffff, sum, distance);
      float* sums = shared_.weights.read;
      if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = sum;
      __syncthreads();
      std::int64_t pairs = std::int64_t{shape_.batch} * shape_.heads;
      if (threadIdx.x == 0)
        params_.products[(place_.slice * pairs + place_.pair(shape_)) * shape_.segments +
                         place_.segment] = sums[0] + sums[1] + sums[2] + sums[3];
    }
    if (!params_.last.s) return;
    StatePart to = state_part(shape_, params_.last.s, params_.last.z, place_.pair(shape_),
                              params_.transposed, place_.slice);
    state_.store(to, z_is_column() && place_.slice == 0);
    if (z_is_row() && threadIdx.x < kValues && threadIdx.x < to.columns)
      to.z[threadIdx.x] = z[threadIdx.x];
  }

  const WalkParams& params_;
  const LinearShape& shape_;
  Shared& shared_;
  Place place_;
  State<Config> state_;
};

template <class Config, Walk kWalk>
__global__ void __launch_bounds__(Config::kThreads, Config::kBlocks)
    walk_kernel(const __grid_constant__ WalkParams params) {
  extern __shared__ uint128_t shared_memory[];
  WalkBlock<Config, kWalk>(params, *reinterpret_cast<WalkShared<Config>*>(shared_memory)).run();
}

}  // namespace tileattn::cuda
