// The scan over a segment that the forward and the backward are made of:
//
//   out_i = h_i ( r_i q_i^T S + sum over j reached by i of D_ij f_j (q_i . k_j) v_j )
//   S     <- total * S + sum over j of c_j f_j k_j v_j^T
//
// with D, r, c of decay_weights.cuh, h and f: scales over divisors. The roles of q, k, v, and S:
//
//   out  forwards   q, k, v       state            dq  forwards   dout, v, k   state^T
//   dv   backwards  k, q, dout    its gradient     dk  backwards  v, dout, q   its gradient^T
//
// Normalised: values have one channel more (1), whose out is the denominator. In dq and dk the
// same channel is one of queries and keys: 1, or -(dout . out).
//
// Grid: segments x value slices x heads x sequences, as one index, the segment running fastest. dk
// and dv are one launch, each with slices of its own.
// Block: kValues channels of out for the chunks of a segment, the state in registers.
// Shared memory: kStages of queries, keys and values, streamed by cp.async; the state, rounded;
// the weights. out leaves by way of the warp's own queries.
//
// Roofline at D = 128, a token and head: 1024 bytes of memory (q, k, v, out; the slices of a head
// share queries and keys in the L2 cache, 1280 bytes are read in all); 2560 of the backward, whose
// blocks of dk and dv share what they read too. Counted in the PTX simulator, forward with a decay,
// a warp and chunk: 188 mma, 92 ldmatrix, 3200 instructions (float16: 3500), 1500 of them integer
// (addresses): it is the issue of instructions that bounds it, before tensor cores and memory.
#pragma once

#include "scan_base.cuh"

namespace tileattn::cuda {

template <class Config>
struct alignas(128) ScanShared {
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
    if (kNarrow<Element>) sum[n] *= inverse_power(weights.range);
    if (threadIdx.x % 32 < 8) to[column + n] = weights.total * z[column + n] + sum[n];
  }
}

/// What a scan computes.
enum class Result { kOut, kDq, kDk, kDv };

template <class Config, Result kResult>
class ScanBlock : ScanBase<Config, ScanShared<Config>> {
  using Base = ScanBase<Config, ScanShared<Config>>;
  using Base::params_, Base::place_, Base::shape_, Base::shared_;

 public:
  using Element = typename Config::Element;
  using Mma = typename Config::Mma;
  using Shared = ScanShared<Config>;
  using KeySmem = typename Config::KeySmem;
  using ValueSmem = typename Config::ValueSmem;

  CUTE_DEVICE ScanBlock(const ScanParams& params, Shared& shared) : Base(params, shared) {}

  CUTE_DEVICE void run() {
    fetch(0);
    start();
    CUTE_NO_UNROLL
    for (int n = 0; n < place_.chunks(); ++n) visit(n);
    finish();
  }

 private:
  static constexpr bool kTransposed = kResult == Result::kDq || kResult == Result::kDk;
  static constexpr bool kOfQueries = kResult == Result::kOut || kResult == Result::kDq;
  static constexpr Time kTime = kOfQueries ? Time::kForwards : Time::kBackwards;

  CUTE_DEVICE bool z_is_column() const {
    return kResult == Result::kOut && params_.extra == Extra::kValues;
  }
  CUTE_DEVICE bool z_is_row() const { return kTransposed && params_.extra == Extra::kKeys; }
  CUTE_DEVICE bool is_exact() const { return kTransposed && params_.exact; }
  /// z of Extra::kKeys before the n-th chunk.
  CUTE_DEVICE float* z_row(int n) const {
    return shared_.z + (params_.causal ? n % 2 * kValues : 0);
  }

  /// The first of the block's value channels.
  CUTE_DEVICE int first_value() const { return fresh(place_.slice) * kValues; }

  CUTE_DEVICE void fetch(int n) const {
    if (n < place_.chunks()) {
      auto& stage = shared_.stages[n % Config::kStages];
      Range tokens = chunk_tokens<kTime>(place_, n);
      fetch_tile<Config>(stage.queries, typename KeySmem::Plain{}, params_.queries, place_, tokens,
                         0);
      if (params_.causal) {
        fetch_tile<Config>(stage.keys, typename KeySmem::Plain{}, params_.keys, place_, tokens, 0);
        fetch_tile<Config>(stage.values, typename ValueSmem::Plain{}, params_.values, place_,
                           tokens, first_value());
      }
      stage.numbers.fetch(shape_, params_.numbers, place_, tokens);
    }
    cp_async_fence();
  }

  CUTE_DEVICE StatePart part(const StateSlots& slots, ConstStateRef only) const {
    return Base::part(slots, only, kTransposed, first_value());
  }

  CUTE_DEVICE void start() {
    StatePart from = part(params_.start, params_.first);
    state_.load(from, z_is_column());
    if (z_is_row() && threadIdx.x < kValues)
      shared_.z[threadIdx.x] = from.z && threadIdx.x < from.columns ? from.z[threadIdx.x] : 0.0f;
  }

  CUTE_DEVICE void visit(int n) {
    auto& stage = shared_.stages[n % Config::kStages];
    const SharedWeights& weights = shared_.weights;
    Range tokens = chunk_tokens<kTime>(place_, n);
    if constexpr (kNarrow<Element>) Base::note_peak(n, state_.peak());
    cp_async_wait<0>();
    __syncthreads();  // this chunk is here; the other stage, state and weights are used up
    fetch(n + 1);
    if (params_.causal || n == 0) {
      share(n, Term::kFirst);
      if (z_is_column()) state_.share_z(shared_.z);
    }
    if (threadIdx.x < 32)
      weigh_tokens<kTime, Element>(stage.numbers, shared_.weights, shape_, params_.numbers,
                                   tokens.size(), size_one);
    Tensor scores = row_sums<Config>();
    if (params_.causal) multiply_keys<Config, kTime>(stage.queries, stage.keys, scores);
    __syncthreads();  // state and weights are complete

    Tensor out = row_sums<Config>();
    float denominators[2] = {0.0f, 0.0f};
    CUTE_NO_UNROLL
    for (int term = 0; term <= is_exact(); ++term) {
      if (term > 0) {
        __syncthreads();  // the first terms are used up
        share(n, Term::kSecond);
        __syncthreads();  // the second are complete
      }
      multiply_state<Config>(stage.queries, shared_.state, shared_.z, z_is_column(), out,
                             denominators);
    }
    finish_read(by_rows(out), inverse_power(Base::state_factor(n)), denominators, stage.numbers,
                z_row(n));
    if (kTransposed && params_.dots) dot(by_rows(out), stage.numbers, tokens);
    if (params_.causal) {
      weigh_scores<Config, kTime>(by_rows(scores), stage.numbers, kOfQueries, z_is_row());
      if (z_is_column()) Base::add_scores(by_rows(scores), denominators);
      const bool weighted = weighs_keys(shape_, params_.numbers);
      const float* extra_values = z_is_column() ? stage.numbers.extra : nullptr;
      const RowRange<Element> range(by_rows(scores), by_rows(out));
      update_state<Element>(state_, weights, shape_, 1.0f, [&] {
        multiply_values<Config, kTime, true>(stage.keys, stage.values, weights.write, weighted,
                                             Term::kFirst, extra_values, 1.0f,
                                             as_operand_a<Element>(scores), out, state_);
        if (is_exact())
          multiply_values<Config, kTime, false>(stage.keys, stage.values, weights.write, weighted,
                                                Term::kSecond, extra_values, 1.0f, 0, out, state_);
      });
      range.leave(by_rows(out));
      if (z_is_row())
        add_extra_row<Config>(stage.values, stage.numbers, kOfQueries, weights, z_row(n),
                              z_row(n + 1));
    }
    if (z_is_column()) Base::divide(by_rows(out), denominators, tokens);
    else if (kOfQueries) Base::scale(by_rows(out), stage.numbers);
    store(out, stage.queries, tokens);
  }

  /// The state's copy, for the queries of the n-th chunk.
  CUTE_DEVICE void share(int n, Term term) {
    float factor = Base::state_factor(n);
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
      float extra = kOfQueries ? numbers.extra[row_of(r)] : 1.0f;
      denominators[r] *= read;
      CUTE_UNROLL
      for (int c = 0; c < size<1>(out); ++c) {
        out(r, c) *= read * inverse_factor;
        if (z_is_row()) out(r, c) += read * extra * z[column_of(c)];
      }
    }
  }

  /// The product of what each row has read from the state with the row of dot_with.
  template <class Out>
  CUTE_DEVICE void dot(Out&& out, const SharedNumbers& numbers, Range tokens) const {
    const ConstTensorRef& with = params_.dot_with.tensor;
    int first = first_value(), columns = params_.dot_with.dim - first;
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
      Base::store_dot(r, sum_row(sum), numbers, tokens);
    }
  }

  template <class Out>
  CUTE_DEVICE void store(const Out& out, Element* queries, Range tokens) const {
    int dims = params_.values.dim, column = first_value();
    if (params_.partial)
      return Base::store_part(params_.partial, dims, column, by_rows(out), tokens);
    typename ValueSmem::Plain layout;
    __syncwarp();
    round_to_shared<Element>(Mma{}, out, queries, layout);
    __syncwarp();
    Element* to =
        row_pointer<Element>(params_.out, fresh(place_.entry), tokens.begin, fresh(place_.head)) +
        column;
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
    place_ = Base::find_place();
    const float* z = z_row(place_.chunks());
    if (kResult == Result::kDq && params_.products) {
      StatePart other = part(params_.product_start, params_.product_first);
      float sum = other.s ? state_.product(other) : 0.0f;
      if (z_is_row() && other.z && threadIdx.x < kValues && threadIdx.x < other.columns)
        sum += z[threadIdx.x] * other.z[threadIdx.x];
      Base::store_product(sum);
    }
    if (kResult == Result::kDv || !params_.last.s) return;
    StatePart to = part({}, {params_.last.s, params_.last.z});
    state_.store(to, z_is_column() && place_.slice == 0);
    if (z_is_row() && threadIdx.x < kValues && threadIdx.x < to.columns)
      to.z[threadIdx.x] = z[threadIdx.x];
  }

  State<Config> state_;
};

template <class Config, Result kResult>
__global__ void __launch_bounds__(Config::kThreads, Config::kBlocks)
    chunk_scan_kernel(const __grid_constant__ ScanParams params) {
  extern __shared__ uint128_t shared_memory[];
  auto& shared = *reinterpret_cast<ScanShared<Config>*>(shared_memory);
  ScanBlock<Config, kResult>(params, shared).run();
}

template <class Config>
__global__ void __launch_bounds__(Config::kThreads, Config::kBlocks)
    sweep_kernel(const __grid_constant__ SweepParams sweep) {
  extern __shared__ uint128_t shared_memory[];
  auto& shared = *reinterpret_cast<ScanShared<Config>*>(shared_memory);
  if (is_of_dk(sweep)) ScanBlock<Config, Result::kDk>(sweep.dk, shared).run();
  else ScanBlock<Config, Result::kDv>(sweep.dv, shared).run();
}

}  // namespace tileattn::cuda
