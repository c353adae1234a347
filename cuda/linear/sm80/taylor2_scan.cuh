// The scan of chunk_scan.cuh with the features of taylor2 in the place of queries and keys, which
// the state meets as moments (taylor2_state.cuh). Inside of the chunk the weight of a score is 1 +
// a + a^2 / 2, and that of its gradient 1 + a.
//
//   reads kValues:  out, dv   out_i = h_i (r_i phi(x_i)^T S + sum over j of D_ij f_j w_ij y_j)
//   reads kTokens:  dq, dk    the gradient of out_i . y_i by x_i
//
// with x: tokens, y: values; in the roles of chunk_scan.cuh, x are queries and keys of the first
// and dot_with and values of the second.
//
// Grid: segments x slices of y x heads x sequences, as one index, the segment running fastest.
// Block: kTaylor2Values channels of y for the chunks of a segment, the state in registers. Shared
// memory: kStages of x and y, streamed by cp.async; the state, rounded; the weights. The gradients
// of slices and of heads are summed later.
//
// Roofline at 16 and 64 channels, forward, a token and head: 320 bytes of memory in all, two slices
// read q and k again from the L2 cache. Counted in the PTX simulator, normalized, with a decay, a
// warp and chunk: 177 mma, 72 of them to read the state and 90 to add to it, and 5400 instructions,
// which bound it.
#pragma once

#include "scan_base.cuh"
#include "taylor2_state.cuh"

namespace tileattn::cuda {

enum class Reads { kValues, kTokens };

template <class Config, Reads kReads>
struct alignas(128) Taylor2Shared {
  using Element = typename Config::Element;
  struct Stage {
    Element x_read[kChunk * kTokenPitch];
    Element x_added[kChunk * kTokenPitch];
    Element y_added[kChunk * kValuePitch];
    Element y_read[kReads == Reads::kTokens ? kChunk * kValuePitch : 8];
    SharedNumbers numbers;
    float peaks[Config::kWarps];
  } stages[Config::kStages];
  Element state[kGroups * kGroupPitch];
  float z[kGroups * kZPitch];
  SharedWeights weights;
};

template <class Config, Time kTime, Reads kReads>
class Taylor2Block : ScanBase<Config, Taylor2Shared<Config, kReads>> {
  using Base = ScanBase<Config, Taylor2Shared<Config, kReads>>;
  using Base::params_, Base::place_, Base::shape_, Base::shared_;

 public:
  using Element = typename Config::Element;
  using Shared = Taylor2Shared<Config, kReads>;
  using Stage = typename Shared::Stage;

  CUTE_DEVICE Taylor2Block(const ScanParams& params, Shared& shared) : Base(params, shared) {}

  CUTE_DEVICE void run() {
    fetch(0);
    state_.load(part(params_.start, params_.first), dim(), with_z());
    CUTE_NO_UNROLL
    for (int n = 0; n < place_.chunks(); ++n) visit(n);
    finish();
  }

 private:
  static constexpr bool kOfTokens = kReads == Reads::kTokens;

  CUTE_DEVICE const Operand& x_read() const {
    return kOfTokens ? params_.dot_with : params_.queries;
  }
  CUTE_DEVICE const Operand& x_added() const { return kOfTokens ? params_.values : params_.keys; }
  CUTE_DEVICE const Operand& y_added() const { return kOfTokens ? params_.keys : params_.values; }
  CUTE_DEVICE int dim() const { return x_read().dim; }
  /// q . k times this is the score.
  CUTE_DEVICE float root() const { return rsqrtf(float(dim())); }
  CUTE_DEVICE bool with_z() const { return params_.extra != Extra::kNone; }

  CUTE_DEVICE void fetch(int n) const {
    if (n < place_.chunks()) {
      Stage& stage = shared_.stages[n % Config::kStages];
      Range tokens = chunk_tokens<kTime>(place_, n);
      typename Config::TokenSmem of_tokens;
      typename Config::ValueSmem of_values;
      int column = place_.slice * kTaylor2Values;
      fetch_tile<Config>(stage.x_read, of_tokens, x_read(), place_, tokens, 0);
      if constexpr (kOfTokens)
        fetch_tile<Config>(stage.y_read, of_values, params_.queries, place_, tokens, column);
      if (params_.causal) {
        fetch_tile<Config>(stage.x_added, of_tokens, x_added(), place_, tokens, 0);
        fetch_tile<Config>(stage.y_added, of_values, y_added(), place_, tokens, column);
      }
      stage.numbers.fetch(shape_, params_.numbers, place_, tokens);
    }
    cp_async_fence();
  }

  CUTE_DEVICE StatePart part(const StateSlots& slots, ConstStateRef only) const {
    return Base::part(slots, only, false, place_.slice * kTaylor2Values);
  }

  CUTE_DEVICE void visit(int n) {
    Stage& stage = shared_.stages[n % Config::kStages];
    Range tokens = chunk_tokens<kTime>(place_, n);
    if constexpr (kNarrow<Element>) Base::note_peak(n, state_.peak());
    cp_async_wait<0>();
    __syncthreads();  // this chunk is here; the other stage, state and weights are used up
    fetch(n + 1);
    if (params_.causal || n == 0) {
      state_.share(shared_.state, Base::state_factor(n), Term::kFirst);
      if (with_z()) state_.share_z(shared_.z);
    }
    if (threadIdx.x < 32)
      weigh_tokens<kTime, Element>(
          stage.numbers, shared_.weights, shape_, params_.numbers, tokens.size(),
          [&](int token) { return params_.causal ? feature_size(stage.x_added, token) : 1.0f; });
    __syncthreads();  // state and weights are complete
    if constexpr (kOfTokens) read_tokens(n, stage, tokens);
    else read_values(n, stage, tokens);
    if (params_.causal) add(stage, tokens);
  }

  CUTE_DEVICE const Element* own_rows(const Element* tile, int pitch) const {
    return tile + threadIdx.x / 32 * kTile * pitch;
  }
  /// The r-th row's channel of x.
  CUTE_DEVICE float x_of_row(const Stage& stage, int r, int channel) const {
    return float(stage.x_read[row_of(r) * kTokenPitch + channel]);
  }

  CUTE_DEVICE auto x_of_rows(const Stage& stage) const {
    return load_operand<Role::kRows, false>(own_rows(stage.x_read, kTokenPitch), kTokenPitch);
  }

  /// sums_ij += a_i . b_j where tile j is reached, for 16 channels.
  template <class Sums, class A>
  CUTE_DEVICE void multiply_tiles(Sums& sums, const A& a, const Element* b, int pitch) const {
    CUTE_UNROLL
    for (int tile = 0; tile < kTiles; ++tile)
      if (reaches<kTime>(tile))
        multiply<Config>(
            sums, a, load_operand<Role::kColumns, false>(b + tile * kTile * pitch, pitch), 0, tile);
  }

  /// out += scores b where tile j is reached, for kColumns of b.
  template <int kColumns, class Out, class Scores>
  CUTE_DEVICE void multiply_scores(Out& out, const Scores& scores, const Element* b,
                                   int pitch) const {
    auto weights = as_operand_a<Element>(scores);
    CUTE_UNROLL
    for (int k = 0; k < kTiles; ++k) {
      if (!reaches<kTime>(k)) continue;
      CUTE_UNROLL
      for (int tile = 0; tile < kColumns / kTile; ++tile)
        multiply<Config>(
            out, weights(_, 0, k),
            load_operand<Role::kColumns, true>(b + k * kTile * pitch + tile * kTile, pitch), 0,
            tile);
    }
  }

  /// out, or dv.
  CUTE_DEVICE void read_values(int n, const Stage& stage, Range tokens) {
    Tensor out = tile_sums<Config, kTaylor2Values>();
    float denominators[2] = {0.0f, 0.0f}, ranges[2];
    read_state(stage, out, denominators, ranges);
    float inverse_factor = inverse_power(Base::state_factor(n));
    auto rows = by_rows(out);
    CUTE_UNROLL
    for (int r = 0; r < 2; ++r) {
      float read = inverse_power(ranges[r]);
      if (shape_.decay.data) read *= shared_.weights.read[row_of(r)];
      denominators[r] *= read;
      CUTE_UNROLL
      for (int c = 0; c < size<1>(rows); ++c) rows(r, c) *= read * inverse_factor;
    }
    const bool of_queries = params_.numbers.of_queries;
    if (params_.causal) {
      Tensor scores = row_sums<Config>();
      multiply_tiles(scores, x_of_rows(stage), stage.x_added, kTokenPitch);
      weigh_taylor2(scores, dim());
      weigh_scores<Config, kTime>(by_rows(scores), stage.numbers, of_queries, false);
      if (with_z()) Base::add_scores(by_rows(scores), denominators);
      const RowRange<Element> range(by_rows(scores), rows);
      multiply_scores<kTaylor2Values>(out, scores, stage.y_added, kValuePitch);
      range.leave(rows);
    }
    if (with_z()) Base::divide(rows, denominators, tokens);
    else if (of_queries) Base::scale(rows, stage.numbers);
    store(rows, tokens);
  }

  /// out += phi(x)^T S, and denominators += phi(x) . z, both times a power of two for each row.
  template <class Out>
  CUTE_DEVICE void read_state(const Stage& stage, Out& out, float (&denominators)[2],
                              float (&ranges)[2]) const {
    auto x = x_of_rows(stage);
    CUTE_UNROLL
    for (int r = 0; r < 2; ++r)
      ranges[r] = kNarrow<Element> ? range_factor(feature_size(stage.x_read, row_of(r))) : 1.0f;
    CUTE_NO_UNROLL
    for (int g = 0; g < kGroups; ++g) {
      float factor[2];
      CUTE_UNROLL
      for (int r = 0; r < 2; ++r) {
        factor[r] = ranges[r];
        if (g < kTokenDim) factor[r] *= 0.5f * root() * root() * x_of_row(stage, r, g);
        else if (g == kLinearGroup) factor[r] *= root();
      }
      Tensor features = make_tensor<Element>(Shape<_8>{});
      const float* z = shared_.z + g * kZPitch;
      CUTE_UNROLL
      for (int i = 0; i < 8; ++i) {  // ((pair of channels, row), 8 channels)
        int channel = threadIdx.x % 4 * 2 + i % 2 + i / 4 * 8;
        float feature = g == kConstantGroup ? float(channel == 0) : float(x(i));
        features(i) = Element(feature * factor[i / 2 % 2]);
        if (with_z()) denominators[i / 2 % 2] += float(features(i)) * z[channel];
      }
      const Element* state = shared_.state + g * kGroupPitch;
      CUTE_UNROLL
      for (int tile = 0; tile < kTaylor2Values / kTile; ++tile)
        multiply<Config>(out, features,
                         load_operand<Role::kColumns, true>(state + tile * kTile, kValuePitch), 0,
                         tile);
    }
  }

  /// dq, or dk.
  CUTE_DEVICE void read_tokens(int n, const Stage& stage, Range tokens) {
    const float factor = Base::state_factor(n);
    Tensor quadratic = tile_sums<Config, kTokenDim>();  // by x of y^T S, the features' products
    Tensor linear = tile_sums<Config, kTokenDim>();
    Tensor constant = tile_sums<Config, kTokenDim>();
    float extra[2];
    CUTE_UNROLL
    for (int r = 0; r < 2; ++r) {
      bool given = with_z() && place_.slice == 0;
      float own = params_.numbers.of_queries ? stage.numbers.extra[row_of(r)] : 1.0f;
      extra[r] = given ? own * factor : 0.0f;
    }
    multiply_transposed(stage, extra, quadratic, linear, constant);
    if (params_.exact) {
      __syncthreads();  // the first terms are used up
      state_.share(shared_.state, factor, Term::kSecond);
      __syncthreads();  // the second are complete
      float nothing[2] = {0.0f, 0.0f};
      multiply_transposed(stage, nothing, quadratic, linear, constant);
    }
    auto of_products = by_rows(quadratic), out = by_rows(linear), of_one = by_rows(constant);
    CUTE_UNROLL
    for (int r = 0; r < 2; ++r) {
      float read = inverse_power(factor), dot = of_one(r, 0);
      if (threadIdx.x % 4 != 0) dot = 0.0f;
      if (shape_.decay.data) read *= shared_.weights.read[row_of(r)];
      CUTE_UNROLL
      for (int c = 0; c < size<1>(out); ++c) {
        float x = x_of_row(stage, r, column_of(c));
        float product = 0.5f * root() * root() * of_products(r, c), alone = root() * out(r, c);
        dot += x * (0.5f * product + alone);
        out(r, c) = read * (product + alone);
      }
      if (params_.dots) Base::store_dot(r, sum_row(dot) * read, stage.numbers, tokens);
    }
    if (params_.causal) {
      Tensor gradients = row_sums<Config>();  // of the scores' weights
      CUTE_UNROLL
      for (int k = 0; k < kTaylor2Values / kTile; ++k)
        multiply_tiles(gradients, y_of_rows(stage, k), stage.y_added + k * kTile, kValuePitch);
      weigh_scores<Config, kTime>(by_rows(gradients), stage.numbers, params_.numbers.of_queries,
                                  with_z() && place_.slice == 0);
      Tensor scores = row_sums<Config>();
      multiply_tiles(scores, x_of_rows(stage), stage.x_added, kTokenPitch);
      CUTE_UNROLL
      for (int i = 0; i < size(gradients); ++i) {
        float slope = root() * (1.0f + root() * scores(i));
        gradients(i) = gradients(i) == 0.0f ? 0.0f : gradients(i) * slope;
      }
      const RowRange<Element> range(by_rows(gradients), out);
      multiply_scores<kTokenDim>(linear, gradients, stage.x_added, kTokenPitch);
      range.leave(out);
    }
    if (params_.numbers.of_queries) Base::scale(out, stage.numbers);
    Base::store_part(params_.partial + place_.slice * shape_.rows() * dim(), dim(), 0, out, tokens);
  }

  CUTE_DEVICE auto y_of_rows(const Stage& stage, int k) const {
    return load_operand<Role::kRows, false>(own_rows(stage.y_read, kValuePitch) + k * kTile,
                                            kValuePitch);
  }

  /// y_i^T S: quadratic_ib += sum over a of x_a (M_a[b] + M_b[a]) . y_i, linear_ib += M[b] . y_i,
  /// constant_i0 += M[0] . y_i; z takes part with the extra value of y.
  template <class Sums>
  CUTE_DEVICE void multiply_transposed(const Stage& stage, const float (&extra)[2], Sums& quadratic,
                                       Sums& linear, Sums& constant) const {
    auto multiply_rows = [&](Sums& sums, const Element* rows, int pitch) {
      CUTE_UNROLL
      for (int k = 0; k < kTaylor2Values / kTile; ++k)
        multiply<Config>(sums, y_of_rows(stage, k),
                         load_operand<Role::kColumns, false>(rows + k * kTile, pitch), 0, 0);
    };
    auto add_z = [&](Sums& sums, const float* z, int stride) {
      auto rows = by_rows(sums);
      CUTE_UNROLL
      for (int i = 0; i < size(rows); ++i)
        rows(i % 2, i / 2) += extra[i % 2] * z[column_of(i / 2) * stride];
    };
    const Element* state = shared_.state;
    CUTE_NO_UNROLL
    for (int a = 0; a < kTokenDim; ++a) {
      Tensor sums = tile_sums<Config, kTokenDim>();
      multiply_rows(sums, state + a * kGroupPitch, kValuePitch);
      multiply_rows(sums, state + a * kValuePitch, kGroupPitch);
      if (with_z()) {
        add_z(sums, shared_.z + a * kZPitch, 1);
        add_z(sums, shared_.z + a, kZPitch);
      }
      auto from = by_rows(sums), to = by_rows(quadratic);
      CUTE_UNROLL
      for (int i = 0; i < size(from); ++i)
        to(i % 2, i / 2) += x_of_row(stage, i % 2, a) * from(i % 2, i / 2);
    }
    multiply_rows(linear, state + kLinearGroup * kGroupPitch, kValuePitch);
    multiply_rows(constant, state + kConstantGroup * kGroupPitch, kValuePitch);
    if (!with_z()) return;
    add_z(linear, shared_.z + kLinearGroup * kZPitch, 1);
    add_z(constant, shared_.z + kConstantGroup * kZPitch, 1);
  }

  CUTE_DEVICE void add(const Stage& stage, Range tokens) {
    const float* extra = kOfTokens && params_.numbers.of_queries ? nullptr : stage.numbers.extra;
    const float extra_range = extra ? shared_.weights.extra_range : 1.0f;
    auto add_term = [&](Term term) {
      state_.add(stage.x_added, stage.y_added, shared_.weights.write, tokens.size(), term, with_z(),
                 extra, extra_range);
    };
    update_state<Element>(state_, shared_.weights, shape_, extra_range, [&] {
      add_term(Term::kFirst);
      if (params_.exact) add_term(Term::kSecond);
    });
  }

  template <class Rows>
  CUTE_DEVICE void store(const Rows& rows, Range tokens) const {
    int dims = params_.values.dim, column = place_.slice * kTaylor2Values;
    if (params_.partial) return Base::store_part(params_.partial, dims, column, rows, tokens);
    CUTE_UNROLL
    for (int r = 0; r < 2; ++r) {
      if (row_of(r) >= tokens.size()) continue;
      Element* to =
          row_pointer<Element>(params_.out, place_.entry, tokens.begin + row_of(r), place_.head) +
          column;
      CUTE_UNROLL
      for (int c = 0; c < size<1>(rows); c += 2) {
        if (column + column_of(c) >= dims) continue;
        auto* pair = reinterpret_cast<cutlass::AlignedArray<Element, 2>*>(to + column_of(c));
        (*pair)[0] = Element(rows(r, c));
        (*pair)[1] = Element(rows(r, c + 1));
      }
    }
  }

  CUTE_DEVICE void finish() {
    cp_async_wait<0>();
    __syncthreads();  // the weights are used up
    place_ = Base::find_place();
    if (params_.products) {
      StatePart other = part(params_.product_start, params_.product_first);
      Base::store_product(other.s ? state_.product(other, dim(), with_z() && place_.slice == 0)
                                  : 0.0f);
    }
    if (params_.last.s)
      state_.store(part({}, {params_.last.s, params_.last.z}), dim(),
                   with_z() && place_.slice == 0);
  }

  Taylor2State<Config> state_;
};

template <class Config, Time kTime, Reads kReads>
CUTE_DEVICE void taylor2_scan(const ScanParams& params) {
  extern __shared__ uint128_t shared_memory[];
  auto& shared = *reinterpret_cast<Taylor2Shared<Config, kReads>*>(shared_memory);
  Taylor2Block<Config, kTime, kReads>(params, shared).run();
}

template <class Config, Reads kReads>
__global__ void __launch_bounds__(Config::kThreads, Config::kBlocks)
    taylor2_scan_kernel(const __grid_constant__ ScanParams params) {
  taylor2_scan<Config, Time::kForwards, kReads>(params);
}

template <class Config>
__global__ void __launch_bounds__(Config::kThreads, Config::kBlocks)
    taylor2_sweep_kernel(const __grid_constant__ SweepParams sweep) {
  if (is_of_dk(sweep)) taylor2_scan<Config, Time::kBackwards, Reads::kTokens>(sweep.dk);
  else taylor2_scan<Config, Time::kBackwards, Reads::kValues>(sweep.dv);
}

}  // namespace tileattn::cuda
