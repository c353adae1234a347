// Neighborhood attention of whole grids, forward and backward, against loops in double
// precision; run with the kernels of every instruction set, as test_attention.cpp is.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "tileattn/attention.h"

namespace tileattn {
namespace {

constexpr int kDim = 24, kDimV = 8, kHeads = 4, kHeadsKv = 2, kBatch = 2;
using Axis = NeighborhoodSpec::Axis;

bool sees(const Axis& axis, int i, int j) {
  if (i % axis.dilation != j % axis.dilation) return false;
  int length = (axis.length - i % axis.dilation + axis.dilation - 1) / axis.dilation;
  int p = i / axis.dilation, key = j / axis.dilation, run = p / axis.stride * axis.stride;
  if (axis.causal) {
    int leader = std::min(run + axis.stride - 1, length - 1);
    return key <= p && key > leader - axis.window;
  }
  int start = std::min(run + axis.stride / 2, length - 1) - axis.window / 2;
  start = std::max(0, std::min(start, length - axis.window));
  return key >= start && key < start + axis.window;
}

/// [batch, token, head, dim], contiguous.
struct Tokens {
  int tokens, heads, dim;
  std::vector<float> values;

  Tokens(int tokens, int heads, int dim, std::mt19937* generator = nullptr)
      : tokens(tokens), heads(heads), dim(dim), values(kBatch * tokens * heads * dim, NAN) {
    std::normal_distribution<float> normal;
    if (generator)
      for (float& value : values) value = normal(*generator);
  }
  float* at(int b, int token, int head) {
    return values.data() + ((b * tokens + token) * heads + head) * dim;
  }
  /// On the grid of the spec, or (without) in a row.
  template <class Ref>
  Ref ref(const NeighborhoodSpec* spec = nullptr) {
    Ref made;
    made.data = values.data();
    made.head_stride = dim;
    made.token_stride = std::int64_t{heads} * dim;
    made.batch_stride = made.token_stride * tokens;
    if (spec) {
      made.outer_stride[1] = made.token_stride * spec->axis[2].length;
      made.outer_stride[0] = made.outer_stride[1] * spec->axis[1].length;
    }
    return made;
  }
};

double dot(const float* a, const float* b, int count) {
  double sum = 0;
  for (int i = 0; i < count; ++i) sum += double(a[i]) * b[i];
  return sum;
}

/// One problem: inputs, results of the kernels, and the truth by loops.
struct Problem {
  NeighborhoodSpec spec;
  int extra, tokens;
  std::mt19937 generator{7};
  Tokens q, k, v, dout, extra_k, extra_v;
  Tokens out, dq, dk, dv, dextra_k, dextra_v;
  std::vector<float> lse, dlse, delta;

  Problem(const NeighborhoodSpec& spec, int extra)
      : spec(spec),
        extra(extra),
        tokens(spec.axis[0].length * spec.axis[1].length * spec.axis[2].length),
        q(tokens, kHeads, kDim, &generator),
        k(tokens, kHeadsKv, kDim, &generator),
        v(tokens, kHeadsKv, kDimV, &generator),
        dout(tokens, kHeads, kDimV, &generator),
        extra_k(extra, kHeadsKv, kDim, &generator),
        extra_v(extra, kHeadsKv, kDimV, &generator),
        out(tokens, kHeads, kDimV),
        dq(tokens, kHeads, kDim),
        dk(tokens, kHeadsKv, kDim),
        dv(tokens, kHeadsKv, kDimV),
        dextra_k(extra, kHeadsKv, kDim),
        dextra_v(extra, kHeadsKv, kDimV),
        lse(kBatch * tokens * kHeads, NAN),
        dlse(lse.size()),
        delta(lse.size()) {
    std::normal_distribution<float> normal;
    for (float& value : dlse) value = normal(generator);
  }

  void describe(AttentionProblem& p) {
    p.batch = kBatch;
    p.heads_q = kHeads;
    p.heads_kv = kHeadsKv;
    p.dim = kDim;
    p.dim_v = kDimV;
    p.len_q = p.len_k = tokens;
    p.q = q.ref<ConstTensorRef>(&spec);
    p.k = k.ref<ConstTensorRef>(&spec);
    p.v = v.ref<ConstTensorRef>(&spec);
    p.neighborhood = spec;
    p.extra_keys = extra;
    p.extra_k = extra_k.ref<ConstTensorRef>();
    p.extra_v = extra_v.ref<ConstTensorRef>();
    p.scale = 0.3f;
  }

  void run(const Executor& executor) {
    AttentionForward forward;
    describe(forward);
    forward.out = out.ref<TensorRef>(&spec);
    forward.lse = lse.data();
    cpu::attention_forward(forward, executor);
    AttentionBackward backward;
    describe(backward);
    backward.out = out.ref<ConstTensorRef>(&spec);
    backward.dout = dout.ref<ConstTensorRef>(&spec);
    backward.lse = lse.data();
    backward.dlse = dlse.data();
    backward.delta = delta.data();
    backward.dq = dq.ref<TensorRef>(&spec);
    backward.dk = dk.ref<TensorRef>(&spec);
    backward.dv = dv.ref<TensorRef>(&spec);
    backward.dextra_k = dextra_k.ref<TensorRef>();
    backward.dextra_v = dextra_v.ref<TensorRef>();
    cpu::attention_backward(backward, executor);
  }

  bool visible(int i, int j) const {
    const int y = spec.axis[1].length, z = spec.axis[2].length;
    return sees(spec.axis[0], i / (y * z), j / (y * z)) &&
           sees(spec.axis[1], i / z % y, j / z % y) && sees(spec.axis[2], i % z, j % z);
  }

  /// The largest distance of any result from the truth.
  double largest_error() {
    double largest = 0;
    auto compare = [&](double truth, float found) {
      double error = std::abs(truth - found);
      largest = std::isnan(found) ? INFINITY : std::max(largest, error);
    };
    auto compare_all = [&](const std::vector<double>& truth, const Tokens& found) {
      for (std::size_t n = 0; n < truth.size(); ++n) compare(truth[n], found.values[n]);
    };
    std::vector<double> true_dk(dk.values.size()), true_dv(dv.values.size());
    std::vector<double> true_dek(dextra_k.values.size()), true_dev(dextra_v.values.size());
    for (int b = 0; b < kBatch; ++b)
      for (int h = 0; h < kHeads; ++h)
        for (int i = 0; i < tokens; ++i) {
          const int kv = h * kHeadsKv / kHeads;
          const float *query = q.at(b, i, h), *upstream = dout.at(b, i, h);
          std::vector<int> keys;  // those from `tokens` on are extra
          for (int j = 0; j < tokens + extra; ++j)
            if (j >= tokens || visible(i, j)) keys.push_back(j);
          auto key = [&](int j) {
            return j < tokens ? k.at(b, j, kv) : extra_k.at(b, j - tokens, kv);
          };
          auto value = [&](int j) {
            return j < tokens ? v.at(b, j, kv) : extra_v.at(b, j - tokens, kv);
          };
          double total = 0, mean[kDimV] = {}, dquery[kDim] = {};
          for (int j : keys) total += std::exp(0.3 * dot(query, key(j), kDim));
          auto weight = [&](int j) { return std::exp(0.3 * dot(query, key(j), kDim)) / total; };
          for (int j : keys)
            for (int d = 0; d < kDimV; ++d) mean[d] += weight(j) * value(j)[d];
          double shared = -double(dlse[(b * tokens + i) * kHeads + h]);
          for (int d = 0; d < kDimV; ++d) shared += mean[d] * upstream[d];
          for (int j : keys) {
            const double w = weight(j), ds = w * (dot(upstream, value(j), kDimV) - shared) * 0.3;
            const int at = j < tokens ? (b * tokens + j) * kHeadsKv + kv
                                      : (b * extra + j - tokens) * kHeadsKv + kv;
            auto& to_k = j < tokens ? true_dk : true_dek;
            auto& to_v = j < tokens ? true_dv : true_dev;
            for (int d = 0; d < kDim; ++d) {
              dquery[d] += ds * key(j)[d];
              to_k[at * kDim + d] += ds * query[d];
            }
            for (int d = 0; d < kDimV; ++d) to_v[at * kDimV + d] += w * upstream[d];
          }
          for (int d = 0; d < kDimV; ++d) compare(mean[d], out.at(b, i, h)[d]);
          for (int d = 0; d < kDim; ++d) compare(dquery[d], dq.at(b, i, h)[d]);
          compare(std::log(total), lse[(b * tokens + i) * kHeads + h]);
        }
    compare_all(true_dk, dk);
    compare_all(true_dv, dv);
    compare_all(true_dek, dextra_k);
    compare_all(true_dev, dextra_v);
    return largest;
  }
};

TEST(Attention, OnGridsEqualsLoops) {
  const NeighborhoodSpec specs[] = {
      {1, {{}, {}, {150, 31, 1, 1}}},
      {1, {{}, {}, {77, 9, 4, 3, 0, true}}},
      {2, {{}, {13, 5, 1, 1}, {19, 7, 3, 1}}},
      {2, {{}, {16, 8, 8, 1}, {16, 8, 8, 1}}},
      {2, {{}, {11, 3, 2, 2}, {14, 4, 1, 3, 0, true}}},
      {3, {{4, 3, 1, 1, 0, true}, {6, 2, 2, 2}, {9, 5, 2, 1}}},
      // Several parts, the last one smaller.
      {1, {{}, {}, {700, 130, 130, 1}}},
      {2, {{}, {48, 8, 8, 2}, {18, 6, 6, 1, 0, true}}},
  };
  for (const NeighborhoodSpec& spec : specs)
    for (int extra : {0, 3, 70})
      for (int threads : {1, 3}) {
        Problem problem(spec, extra);
        problem.run(Executor::threads(threads));
        EXPECT_LT(problem.largest_error(), 2e-5)
            << "rank " << spec.rank << ", last axis of " << spec.axis[2].length << ", " << extra
            << " extra keys, " << threads << " threads";
      }
}

TEST(Attention, OnGridsRefusesWhatItCannotDo) {
  auto refused = [](auto change) {
    Problem problem({1, {{}, {}, {12, 5, 1, 1}}}, 0);
    AttentionForward p;
    problem.describe(p);
    p.out = problem.out.ref<TensorRef>(&problem.spec);
    p.lse = problem.lse.data();
    change(p);
    try {
      cpu::attention_forward(p, Executor::serial());
    } catch (const std::invalid_argument&) {
      return true;
    }
    return false;
  };
  EXPECT_FALSE(refused([](AttentionForward&) {}));
  EXPECT_TRUE(refused([](AttentionForward& p) { p.neighborhood.axis[2].window = 13; }));
  EXPECT_TRUE(refused([](AttentionForward& p) { p.neighborhood.axis[2].stride = 6; }));
  EXPECT_TRUE(refused([](AttentionForward& p) { p.neighborhood.axis[1].length = 2; }));
  EXPECT_TRUE(refused([](AttentionForward& p) { p.len_k = 11; }));
  EXPECT_TRUE(refused([](AttentionForward& p) { p.softcap = 1; }));
}

}  // namespace
}  // namespace tileattn
