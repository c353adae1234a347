// What the blocks of all scans do alike, whatever their state is made of. Shared: with kStages of
// `numbers` and `peaks`, and `weights`.
#pragma once

#include "chunk.cuh"

namespace tileattn::cuda {

template <class Config, class Shared>
class ScanBase {
 protected:
  using Element = typename Config::Element;

  CUTE_DEVICE ScanBase(const ScanParams& params, Shared& shared)
      : params_(params), shape_(params.shape), shared_(shared), place_(find_place()) {}

  /// Found again at the end, its less used parts need no registers in the loop.
  CUTE_DEVICE SegmentPart find_place() const {
    SegmentPart place(shape_, params_.all_slices, fresh(blockIdx.x));
    place.slice -= params_.first_slice;
    return place;
  }

  /// The block's part of the states of its segment, or of the only ones, from a column on.
  CUTE_DEVICE StatePart part(const StateSlots& slots, ConstStateRef only, bool transposed,
                             int column) const {
    std::int64_t index = place_.pair(shape_);
    float* s = slots.s ? slots.s : const_cast<float*>(only.s);
    float* z = slots.s ? slots.z : const_cast<float*>(only.z);
    if (slots.s) index = index * slots.slots + (params_.causal ? place_.segment : shape_.segments);
    return state_part(shape_, s, z, index, transposed, column);
  }

  /// The warp's peak in the state before the n-th chunk. To be read after a barrier.
  CUTE_DEVICE void note_peak(int n, float peak) {
    if (threadIdx.x % 32 == 0) shared_.stages[n % Config::kStages].peaks[threadIdx.x / 32] = peak;
  }

  /// The state's copy is the state times this.
  CUTE_DEVICE float state_factor(int n) const {
    if constexpr (!kNarrow<Element>) return 1.0f;
    float peak = 0.0f;
    for (float of_warp : shared_.stages[n % Config::kStages].peaks) peak = fmaxf(peak, of_warp);
    return range_factor(peak);
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

  /// Columns from `column` on of [.., len, heads, dims] in fp32.
  template <class Out>
  CUTE_DEVICE void store_part(float* part, int dims, int column, Out&& out, Range tokens) const {
    CUTE_UNROLL
    for (int r = 0; r < 2; ++r) {
      if (row_of(r) >= tokens.size()) continue;
      float* to = part + place_.row(shape_, tokens.begin + row_of(r)) * dims + column;
      CUTE_UNROLL
      for (int c = 0; c < size<1>(out); c += 2)
        if (column + column_of(c) < dims)
          *reinterpret_cast<float2*>(to + column_of(c)) = {out(r, c), out(r, c + 1)};
    }
  }

  /// What each row has read from the state, times what is wanted of it.
  CUTE_DEVICE void store_dot(int r, float dot, const SharedNumbers& numbers, Range tokens) const {
    if (threadIdx.x % 4 != 0 || row_of(r) >= tokens.size()) return;
    params_.dots[place_.slice * shape_.rows() + place_.row(shape_, tokens.begin + row_of(r))] =
        dot * (params_.numbers.of_queries ? numbers.factor[row_of(r)] : 1.0f);
  }

  /// The sum over threads of their shares of the product of two states. The weights are used up.
  CUTE_DEVICE void store_product(float sum) const {
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

  const ScanParams& params_;
  const LinearShape& shape_;
  Shared& shared_;
  SegmentPart place_;
};

/// Whether a block of a sweep belongs to dk.
CUTE_DEVICE bool is_of_dk(const SweepParams& sweep) {
  const ScanParams& dk = sweep.dk;
  return blockIdx.x / dk.shape.segments % dk.all_slices < dk.slices;
}

}  // namespace tileattn::cuda
