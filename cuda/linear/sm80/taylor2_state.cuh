// The state of taylor2 on chip. With a = q . k / sqrt(dim), 1 + a + a^2 / 2 is a product of
// features; what queries read is, of all keys x and their values y,
//
//   group g < 16    M_g[b, v] = sum of c x_g x_b y_v
//   group 16        M_g[b, v] = sum of c x_b y_v
//   group 17        M_g[0, v] = sum of c y_v
//
// A group is what linear attention would add, its keys weighted with one of their own channels: so
// features exist as operands in registers only. Warp w owns the groups w, w + 4, ... of 32 columns.
#pragma once

#include "chunk.cuh"

namespace tileattn::cuda {

constexpr int kTokenDim = kMaxCudaTaylor2Dim;  // channels of a token, zero-padded
constexpr int kLinearGroup = kTokenDim;
constexpr int kConstantGroup = kTokenDim + 1;
constexpr int kGroups = kTokenDim + 2;

// Rows in shared memory are apart by what spreads eight of them over all banks; so are groups. Of
// what cp.async writes at once, four rows of x or two of y, a little meets in the same banks.
constexpr int kTokenPitch = kTokenDim + 8;
constexpr int kValuePitch = kTaylor2Values + 8;
constexpr int kGroupPitch = kTokenDim * kValuePitch + 8;
constexpr int kZPitch = kTokenDim + 1;  // read along both of its dimensions

template <class Element_>
struct Taylor2Config {
  using Element = Element_;
  static constexpr int kStages = 2;
  static constexpr int kWarps = kChunk / 16;
  static constexpr int kThreads = kWarps * 32;
  static constexpr int kBlocks = 2;                               // of a multiprocessor
  static constexpr int kSlots = (kGroups + kWarps - 1) / kWarps;  // groups of a warp

  using Mma = typename LinearConfig<Element, kChunk>::Mma;
  using TokenSmem = Layout<Shape<Int<kChunk>, Int<kTokenDim>>, Stride<Int<kTokenPitch>, _1>>;
  using ValueSmem = Layout<Shape<Int<kChunk>, Int<kTaylor2Values>>, Stride<Int<kValuePitch>, _1>>;
};

/// 16 x 16 elements of a tile in shared memory, as an operand of mma.sync. A: rows x sums, or if
/// kTransposed stored as sums x rows. B: columns x sums, or if kTransposed sums x columns.
template <Role kRole, bool kTransposed, class Element>
CUTE_DEVICE auto load_operand(const Element* tile, int pitch) {
  using Part = std::conditional_t<kRole == Role::kRows, Layout<_8>, Layout<Shape<_4, _2>>>;
  using Load = std::conditional_t<kTransposed, AcrossK, AlongK>;
  // Of the four 8 x 8 matrices the second is the one below the first, or the one beside.
  constexpr bool kDownFirst = (kRole == Role::kRows) != kTransposed;
  int lane = threadIdx.x % 32, second = lane / 8 % 2 * 8, third = lane / 16 * 8;
  int row = lane % 8 + (kDownFirst ? second : third), column = kDownFirst ? third : second;
  Tensor part = make_tensor<Element>(Part{});
  auto* to = reinterpret_cast<std::uint32_t*>(part.data());
  Load::copy(*reinterpret_cast<const uint128_t*>(tile + row * pitch + column), to[0], to[1], to[2],
             to[3]);
  return part;
}

/// Products of a warp's 16 rows with some columns.
template <class Config, int kColumns>
CUTE_DEVICE auto tile_sums() {
  Tensor sums = partition_fragment_C(typename Config::Mma{}, Shape<Int<kChunk>, Int<kColumns>>{});
  clear(sums);
  return sums;
}

/// How large the features of a token are.
template <class Element>
CUTE_DEVICE float feature_size(const Element* x, int token) {
  float peak = 1.0f;
  CUTE_UNROLL
  for (int first = 0; first < kTokenDim; first += 8) {
    auto eight = *reinterpret_cast<const cutlass::AlignedArray<Element, 8>*>(
        x + token * kTokenPitch + first);
    CUTE_UNROLL
    for (int n = 0; n < 8; ++n) peak = fmaxf(peak, fabsf(float(eight[n])));
  }
  return peak * peak;
}

/// Where a moment stands among the caller's features [1, x, vec(x x^T)], and the number that
/// stands there for a moment of 1.
struct Feature {
  int row;  // or -1
  float unit;

  CUTE_DEVICE Feature(int group, int b, int dim) : row(-1), unit(1.0f) {
    float root = rsqrtf(float(dim));  // q . k times this is the score
    if (group < dim && b < dim) {
      row = 1 + dim + group * dim + b;
      unit = root * 0.70710678f;
    } else if (group == kLinearGroup && b < dim) {
      row = 1 + b;
      unit = sqrtf(root);
    } else if (group == kConstantGroup && b == 0) {
      row = 0;
    }
  }
};

template <class Config>
class Taylor2State {
 public:
  using Element = typename Config::Element;
  using Sum = decltype(partition_fragment_C(typename Config::Mma{},
                                            Shape<Int<kChunk>, Int<kTaylor2Values>>{}));
  static constexpr int kSlots = Config::kSlots;

  CUTE_DEVICE static int group(int slot, int thread = threadIdx.x) {
    return thread / 32 + slot * Config::kWarps;
  }

  CUTE_DEVICE void load(const StatePart& from, int dim, bool with_z) {
    for_each(dim, [&](float& value, const Feature& feature, int column) {
      bool given = from.s && feature.row >= 0 && from.has(feature.row, column);
      value = given ? *from.at(feature.row, column) / feature.unit : 0.0f;
    });
    for_each_z(dim, [&](float& value, const Feature& feature) {
      value = with_z && from.z && feature.row >= 0 ? from.z[feature.row] / feature.unit : 0.0f;
    });
  }

  CUTE_DEVICE void store(const StatePart& to, int dim, bool with_z) {
    for_each(dim, [&](float value, const Feature& feature, int column) {
      if (feature.row >= 0 && to.has(feature.row, column))
        *to.at(feature.row, column) = value * feature.unit;
    });
    for_each_z(dim, [&](float value, const Feature& feature) {
      if (with_z && feature.row >= 0 && threadIdx.x % 4 == 0)
        to.z[feature.row] = value * feature.unit;
    });
  }

  /// The thread's share of the product with another state.
  CUTE_DEVICE float product(const StatePart& other, int dim, bool with_z) {
    float sum = 0.0f;
    for_each(dim, [&](float value, const Feature& feature, int column) {
      if (feature.row >= 0 && other.has(feature.row, column))
        sum += value * feature.unit * *other.at(feature.row, column);
    });
    for_each_z(dim, [&](float value, const Feature& feature) {
      if (with_z && feature.row >= 0 && threadIdx.x % 4 == 0)
        sum += value * feature.unit * other.z[feature.row];
    });
    return sum;
  }

  CUTE_DEVICE void clear() {
    CUTE_UNROLL
    for (int slot = 0; slot < kSlots; ++slot) {
      cute::clear(s_[slot]);
      cute::clear(z_[slot]);
    }
  }

  CUTE_DEVICE void scale(float factor, float factor_of_z) {
    CUTE_UNROLL
    for (int slot = 0; slot < kSlots; ++slot) {
      CUTE_UNROLL
      for (int n = 0; n < size(s_[slot]); ++n) s_[slot](n) *= factor;
      CUTE_UNROLL
      for (int n = 0; n < size(z_[slot]); ++n) z_[slot](n) *= factor_of_z;
    }
  }

  /// The largest of the warp's values in size.
  CUTE_DEVICE float peak() const {
    float found = 0.0f;
    CUTE_UNROLL
    for (int slot = 0; slot < kSlots; ++slot) {
      CUTE_UNROLL
      for (int n = 0; n < size(s_[slot]); ++n) found = fmaxf(found, fabsf(s_[slot](n)));
    }
    return peak_of_warp(found);
  }

  /// The moments times a factor to shared memory, rounded.
  CUTE_DEVICE void share(Element* to, float factor, Term term) const {
    CUTE_UNROLL
    for (int slot = 0; slot < kSlots; ++slot) {
      if (group(slot) >= kGroups) continue;
      Element* rows = to + group(slot) * kGroupPitch;
      CUTE_UNROLL
      for (int n = 0; n < size(s_[slot]); n += 2) {  // ((pair, row), tile, 8 columns)
        auto* pair = reinterpret_cast<cutlass::AlignedArray<Element, 2>*>(
            rows + row_in_group(n / 2 % 2) * kValuePitch + column_of(n / 4 * 2));
        (*pair)[0] = Element(term_of<Element>(s_[slot](n) * factor, term));
        (*pair)[1] = Element(term_of<Element>(s_[slot](n + 1) * factor, term));
      }
    }
  }

  /// z to [kGroups][kZPitch] in shared memory.
  CUTE_DEVICE void share_z(float* to) const {
    CUTE_UNROLL
    for (int slot = 0; slot < kSlots; ++slot) {
      CUTE_UNROLL
      for (int r = 0; r < 2; ++r)
        if (group(slot) < kGroups && threadIdx.x % 4 == 0)
          to[group(slot) * kZPitch + row_in_group(r)] = z_[slot](2 * r);
    }
  }

  /// Adds tokens x with values y of a chunk; with_z: and with extra values, or 1 for null.
  CUTE_DEVICE void add(const Element* x, const Element* y, const float* weights, int tokens,
                       Term term, bool with_z, const float* extra_values, float extra_range) {
    CUTE_NO_UNROLL
    for (int k = 0; k < kTiles; ++k) {
      auto channels = load_operand<Role::kRows, true>(x + k * kTile * kTokenPitch, kTokenPitch);
      const Element* rows = y + k * kTile * kValuePitch;
      auto left = load_operand<Role::kColumns, true>(rows, kValuePitch);
      auto right = load_operand<Role::kColumns, true>(rows + kTile, kValuePitch);
      Tensor extra = make_tensor<Element>(Shape<_4>{});
      int token[4];
      float weight[4];
      CUTE_UNROLL
      for (int n = 0; n < 4; ++n) {
        token[n] = k * kTile + threadIdx.x % 4 * 2 + n % 2 + n / 2 * 8;
        weight[n] = token[n] < tokens ? weights[token[n]] : 0.0f;
        extra(n) = Element(extra_range * (extra_values ? extra_values[token[n]] : 1.0f));
      }
      CUTE_UNROLL
      for (int slot = 0; slot < kSlots; ++slot) {
        const int g = group(slot);
        if (g >= kGroups) continue;
        float of_token[4];
        CUTE_UNROLL
        for (int n = 0; n < 4; ++n)
          of_token[n] =
              g < kTokenDim ? weight[n] * float(x[token[n] * kTokenPitch + g]) : weight[n];
        Tensor part = make_tensor<Element>(Shape<_8>{});
        CUTE_UNROLL
        for (int n = 0; n < 8; ++n) {  // ((pair of tokens, row), 8 tokens)
          float of_row =
              g == kConstantGroup ? float(row_in_group(n / 2 % 2) == 0) : float(channels(n));
          part(n) = Element(term_of<Element>(of_row * of_token[n % 2 + n / 4 * 2], term));
        }
        multiply<Config>(s_[slot], part, left, 0, 0);
        multiply<Config>(s_[slot], part, right, 0, 1);
        if (with_z) gemm(typename Config::Mma{}, part, extra, z_[slot](_, 0, 0));
      }
    }
  }

 private:
  using Column = decltype(make_tensor<float>(Shape<Shape<_2, _2>, _1, _1>{}));  // 8 equal columns

  /// The r-th row of a thread's values.
  CUTE_DEVICE static int row_in_group(int r, int thread = threadIdx.x) {
    return thread % 32 / 4 + r * 8;
  }

  /// visit(value, feature, column) for this thread's moments, a row after the other: the addresses
  /// of all at once would spill.
  template <class Visit>
  CUTE_DEVICE void for_each(int dim, Visit&& visit) {
    CUTE_UNROLL
    for (int slot = 0; slot < kSlots; ++slot) {
      auto rows = by_rows(s_[slot]);
      CUTE_UNROLL
      for (int r = 0; r < 2; ++r) {
        int thread = fresh_thread_index();
        Feature feature(group(slot, thread), row_in_group(r, thread), dim);
        CUTE_UNROLL
        for (int c = 0; c < size<1>(rows); ++c) visit(rows(r, c), feature, column_of(c, thread));
      }
    }
  }

  template <class Visit>
  CUTE_DEVICE void for_each_z(int dim, Visit&& visit) {
    CUTE_UNROLL
    for (int slot = 0; slot < kSlots; ++slot) {
      CUTE_UNROLL
      for (int r = 0; r < 2; ++r) {
        float value = z_[slot](2 * r);
        int thread = fresh_thread_index();
        visit(value, Feature(group(slot, thread), row_in_group(r, thread), dim));
        z_[slot](2 * r) = z_[slot](2 * r + 1) = value;
      }
    }
  }

  Sum s_[kSlots];
  Column z_[kSlots];
};

/// What segment_state_kernel adds up with taylor2.
template <class Config_>
struct Taylor2Sum {
  using Config = Config_;
  using Element = typename Config::Element;
  using KeySmem = typename Config::TokenSmem;
  using ValueSmem = typename Config::ValueSmem;
  static constexpr int kKeyElements = kChunk * kTokenPitch;
  static constexpr int kValueElements = kChunk * kValuePitch;
  static constexpr int kColumns = kTaylor2Values;
  Taylor2State<Config> state;

  CUTE_DEVICE Taylor2Sum() { state.clear(); }

  CUTE_DEVICE static float feature_size(const Element* x, int token) {
    return tileattn::cuda::feature_size(x, token);
  }

  CUTE_DEVICE void add(const Element* x, const Element* y, const float* weights, bool, int tokens,
                       Term term, const float* extra_values, float extra_range) {
    state.add(x, y, weights, tokens, term, extra_values, extra_values, extra_range);
  }

  CUTE_DEVICE void store(const StatePart& to, const Operand& x, bool with_z) {
    state.store(to, x.dim, with_z);
  }
};

}  // namespace tileattn::cuda
