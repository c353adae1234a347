// The products of a chunk. A warp owns 16 tokens of queries, scores and out, and of the state
// 16 rows in 64; everything else it reads from shared memory.
#pragma once

#include "linear/decay_weights.cuh"
#include "state.cuh"

namespace tileattn::cuda {

constexpr int kTile = 16;  // tokens, or channels, of one step of mma.sync
constexpr int kTiles = kChunk / kTile;

/// Whether the warp's tokens read from those of a tile.
template <Time kTime>
CUTE_DEVICE bool reaches(int tile) {
  int warp = threadIdx.x / 32;
  return kTime == Time::kForwards ? tile <= warp : tile >= warp;
}

/// Tiles in shared memory are made of blocks of 64 x 64, one after the other.
constexpr int kBlock = 64;
constexpr int kBlockElements = kBlock * kBlock;

enum class Role { kRows, kColumns };  // A and B of mma.sync

/// An operand in shared memory, `from` being this thread's part of it.
template <Role kRole, class Atom, class From>
struct SharedOperand {
  From from;

  /// 16 x 16 values. (8): the A operand of the warp's rows. (4, 2): the B operands of the two
  /// 8-column tiles 2 * tile and the next.
  CUTE_DEVICE auto load(int k, int tile = 0) const {
    using Part = std::conditional_t<kRole == Role::kRows, Layout<_8>, Layout<Shape<_4, _2>>>;
    Tensor part = make_tensor<typename Atom::ValType>(Part{});
    Tensor to = make_tensor(part.data(), Layout<Shape<Shape<_8, _1>>, Stride<Stride<_1, _0>>>{});
    copy(Atom{}, from(_, tile, k), to);
    return part;
  }
};

/// kBlocks of a tile, side by side. kTransposed: their rows run along the products' sums.
template <class Config, Role kRole, bool kTransposed, int kBlocks = 1>
CUTE_DEVICE auto shared_operand(const typename Config::Element* data) {
  using Blocks = SwizzledSmem<kBlock, kBlock * kBlocks>;
  using Smem = std::conditional_t<kTransposed, typename Blocks::Transposed, typename Blocks::Plain>;
  using Atom =
      Copy_Atom<std::conditional_t<kTransposed, AcrossK, AlongK>, typename Config::Element>;
  typename Config::Mma mma;
  auto copies = [&] {
    if constexpr (kRole == Role::kRows) return make_tiled_copy_A(Atom{}, mma);
    else return make_tiled_copy_B(Atom{}, mma);
  }();
  const int thread = fresh_thread_index();
  __builtin_assume(thread >= 0);  // to divide it takes fewer instructions then
  auto from = copies.get_slice(thread).partition_S(make_tensor(make_smem_ptr(data), Smem{}));
  return SharedOperand<kRole, Atom, decltype(from)>{from};
}

/// sum[row tile, columns] += a b for the two column tiles of b.
template <class Config, class Sum, class A, class B>
CUTE_DEVICE void multiply(Sum&& sum, const A& a, const B& b, int row_tile, int column_tile) {
  CUTE_UNROLL
  for (int n = 0; n < 2; ++n)
    gemm(typename Config::Mma{}, a, b(_, n), sum(_, row_tile, 2 * column_tile + n));
}

/// The products of a warp's 16 tokens with 64 columns.
template <class Config>
CUTE_DEVICE auto row_sums() {
  Tensor sums = partition_fragment_C(typename Config::Mma{}, Shape<Int<kChunk>, Int<kChunk>>{});
  clear(sums);
  return sums;
}

/// q_i . k_j where tile j is reached.
template <class Config, Time kTime, class Scores>
CUTE_DEVICE void multiply_keys(const typename Config::Element* queries,
                               const typename Config::Element* keys, Scores& scores) {
  CUTE_NO_UNROLL
  for (int block = 0; block < Config::kDim / kBlock; ++block) {
    auto query_block = shared_operand<Config, Role::kRows, false>(queries + block * kBlockElements);
    auto key_block = shared_operand<Config, Role::kColumns, false>(keys + block * kBlockElements);
    CUTE_UNROLL
    for (int k = 0; k < kTiles; ++k) {
      auto part = query_block.load(k);
      CUTE_UNROLL
      for (int tile = 0; tile < kTiles; ++tile)
        if (reaches<kTime>(tile)) multiply<Config>(scores, part, key_block.load(k, tile), 0, tile);
    }
  }
}

/// scores s <- 1 + a + a^2 / 2 with a = s / sqrt(dim)
template <class Scores>
CUTE_DEVICE void weigh_taylor2(Scores& scores, int dim) {
  const float root = rsqrtf(float(dim));
  CUTE_UNROLL
  for (int i = 0; i < size(scores); ++i) {
    float slope = 1.0f + root * scores(i);
    scores(i) = 0.5f + 0.5f * slope * slope;
  }
}

/// scores_ij <- D_ij f_j (scores_ij + extra), and 0 out of reach, even if that is not a number.
template <class Config, Time kTime, class Scores>
CUTE_DEVICE void weigh_scores(Scores&& scores, const SharedNumbers& tokens, bool of_queries,
                              bool with_extra) {
  CUTE_UNROLL
  for (int c = 0; c < size<1>(scores); ++c) {
    int column = column_of(c);
    float sum = tokens.sum[column], factor = of_queries ? 1.0f : tokens.factor[column];
    CUTE_UNROLL
    for (int r = 0; r < size<0>(scores); ++r) {
      int row = row_of(r);
      bool forwards = kTime == Time::kForwards, reached = forwards ? column <= row : column >= row;
      float score = scores(r, c);
      if (with_extra) score += tokens.extra[of_queries ? row : column];
      float apart = forwards ? tokens.sum[row] - sum : sum - tokens.sum[row];
      scores(r, c) = reached ? exp2_approx(apart) * factor * score : 0.0f;
    }
  }
}

/// out += q S. with_z: also adds q . z to the rows of `denominators`.
template <class Config, class Out>
CUTE_DEVICE void multiply_state(const typename Config::Element* queries,
                                const typename Config::Element* state, const float* z, bool with_z,
                                Out& out, float (&denominators)[2]) {
  CUTE_NO_UNROLL
  for (int block = 0; block < Config::kDim / kBlock; ++block) {
    auto query_block = shared_operand<Config, Role::kRows, false>(queries + block * kBlockElements);
    auto state_block = shared_operand<Config, Role::kColumns, true>(state + block * kBlockElements);
    CUTE_UNROLL
    for (int k = 0; k < kTiles; ++k) {
      auto part = query_block.load(k);
      CUTE_UNROLL
      for (int tile = 0; tile < kTiles; ++tile)
        multiply<Config>(out, part, state_block.load(k, tile), 0, tile);
      if (!with_z) continue;
      const float* factors = z + block * kBlock + k * kTile + threadIdx.x % 4 * 2;
      CUTE_UNROLL
      for (int n = 0; n < 8; ++n)
        denominators[n / 2 % 2] += float(part(n)) * factors[n % 2 + n / 4 * 8];
    }
  }
}

/// state += (weighted keys)^T values, z likewise with extra values times extra_range if there are
/// any, and, if it kReads, out += scores values.
template <class Config, Time kTime, bool kReads, class Scores, class Out>
CUTE_DEVICE void multiply_values(const typename Config::Element* keys,
                                 const typename Config::Element* values, const float* weights,
                                 bool weighted, Term term, const float* extra_values,
                                 float extra_range, const Scores& scores, Out& out,
                                 State<Config>& state) {
  using Element = typename Config::Element;
  constexpr int kRowTiles = Config::kDim / kChunk;
  auto key_block = shared_operand<Config, Role::kRows, true, kRowTiles>(keys);
  auto value_block = shared_operand<Config, Role::kColumns, true>(values);
  CUTE_UNROLL
  for (int k = 0; k < kTiles; ++k) {
    Tensor channels = make_tensor<Element>(Shape<_8, Int<kRowTiles>>{});
    CUTE_UNROLL
    for (int m = 0; m < kRowTiles; ++m) copy(key_block.load(k, m), channels(_, m));
    if (weighted) weigh_keys<Config>(channels, weights, k, term);
    CUTE_UNROLL
    for (int tile = 0; tile < kTiles; ++tile) {
      auto part = value_block.load(k, tile);
      if constexpr (kReads) {
        if (reaches<kTime>(k)) multiply<Config>(out, scores(_, 0, k), part, 0, tile);
      }
      CUTE_UNROLL
      for (int m = 0; m < kRowTiles; ++m) multiply<Config>(state.s, channels(_, m), part, m, tile);
    }
    if (!extra_values) continue;
    Tensor extra = make_tensor<Element>(Shape<_4>{});
    CUTE_UNROLL
    for (int n = 0; n < 4; ++n)
      extra(n) =
          Element(extra_range * extra_values[k * kTile + threadIdx.x % 4 * 2 + n % 2 + n / 2 * 8]);
    CUTE_UNROLL
    for (int m = 0; m < kRowTiles; ++m)
      gemm(typename Config::Mma{}, channels(_, m), extra, state.z(_, m, 0));
  }
}

/// Sums over the four lanes that share a row.
CUTE_DEVICE float sum_row(float value) {
  value += __shfl_xor_sync(0xffffffff, value, 1);
  return value + __shfl_xor_sync(0xffffffff, value, 2);
}

}  // namespace tileattn::cuda
