// Whole problems of linear attention, forward and backward, against the recurrence in double.
#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "gapped_tensor.h"
#include "tileattn/linear_attention.h"

namespace tileattn {
namespace {

struct Case {
  std::string name;
  int len = 113, heads_q = 2, heads_kv = 1, dim = 24, dim_v = 40;
  float decay = 0.1f;  // of each token, times |normal|
  bool causal = true;
  int threads = 1;
  FeatureMap feature_map = FeatureMap::kNone;

  int features() const { return feature_dim(feature_map, dim); }
};

std::vector<Case> cases() {
  Case few{"few heads, many threads", 700, 1, 1, 16, 8};
  few.threads = 5;
  Case few_full = few;
  few_full.name = "likewise, not causal";
  few_full.causal = false;
  few_full.decay = 0;
  Case strong{"strong decay"};
  strong.decay = 8;
  Case none{"no decay", 96};
  none.decay = 0;
  Case full{"not causal"};
  full.causal = false;
  full.decay = 0;
  return {{"plain"},
          {"one token", 1},
          {"no tokens", 0},
          {"groups of heads", 60, 6, 2},
          {"wide", 60, 1, 1, 300, 17},
          few,
          few_full,
          strong,
          none,
          full};
}

/// Inputs and kernel results of a case.
struct Problem {
  Case c;
  std::mt19937 generator{1};
  GappedTensor q{c.len, c.heads_q, c.dim, &generator}, k{c.len, c.heads_kv, c.dim, &generator},
      v{c.len, c.heads_kv, c.dim_v, &generator}, dout{c.len, c.heads_q, c.dim_v, &generator};
  GappedTensor out{c.len, c.heads_q, c.dim_v}, dq{c.len, c.heads_q, c.dim},
      dk{c.len, c.heads_kv, c.dim}, dv{c.len, c.heads_kv, c.dim_v};
  std::vector<float> log_decay, dlog_decay, first, last, dlast, dfirst;
  const float scale = 0.3f;

  explicit Problem(const Case& c) : c(c) {
    std::normal_distribution<float> normal;
    log_decay.resize(c.len * c.heads_q);
    for (float& x : log_decay) x = -c.decay * std::fabs(normal(generator));
    dlog_decay.assign(log_decay.size(), kNan);
    for (std::vector<float>* state : {&first, &dlast}) {
      state->resize(c.heads_q * c.features() * c.dim_v);
      for (float& x : *state) x = normal(generator);
    }
    last.assign(first.size(), kNan);
    dfirst.assign(first.size(), kNan);
    run();
  }

  void describe(LinearAttentionProblem& p) {
    p.batch = 1;
    p.heads_q = c.heads_q;
    p.heads_kv = c.heads_kv;
    p.dim = c.dim;
    p.dim_v = c.dim_v;
    p.len = c.len;
    p.q = q.const_ref();
    p.k = k.const_ref();
    p.v = v.const_ref();
    if (c.decay > 0) p.log_decay = {log_decay.data(), 0, c.heads_q, 1};
    p.causal = c.causal;
    p.scale = scale;
    p.feature_map = c.feature_map;
    p.initial_state = {first.data(), nullptr};
  }

  void run() {
    const Executor executor = Executor::threads(c.threads);
    LinearAttentionForward forward;
    describe(forward);
    forward.out = out.ref();
    forward.final_state = {last.data(), nullptr};
    cpu::linear_attention_forward(forward, executor);
    LinearAttentionBackward backward;
    describe(backward);
    backward.dout = dout.const_ref();
    backward.dfinal_state = {dlast.data(), nullptr};
    backward.dq = dq.ref();
    backward.dk = dk.ref();
    backward.dv = dv.ref();
    if (c.decay > 0) backward.dlog_decay = dlog_decay.data();
    backward.dinitial_state = {dfirst.data(), nullptr};
    cpu::linear_attention_backward(backward, executor);
  }
};

/// Largest distance, relative to the root mean square of what is expected.
class Distance {
 public:
  void add(double expected, double actual) {
    squares_ += expected * expected;
    ++count_;
    double apart = std::fabs(expected - actual);
    largest_ = std::fmax(largest_, std::isnan(apart) ? HUGE_VAL : apart);
  }
  void expect_small(const char* what) const {
    if (count_ > 0) EXPECT_LE(largest_, 2e-5 * std::sqrt(squares_ / count_)) << what;
  }

 private:
  double squares_ = 0, largest_ = 0;
  int count_ = 0;
};

using State = std::vector<double>;  // [dim][dim_v]

/// One head's recurrence, there and back.
struct Head {
  Problem& p;
  int head, kv;
  Distance &out, &dq, &dlog_decay, &last, &dfirst;
  std::vector<double>&dk, &dv;  // sums over heads, [token][kv head][dim]

  int at(int d, int e) const { return d * p.c.dim_v + e; }
  int state_at(int i) const { return head * p.c.dim * p.c.dim_v + i; }
  double decay(int t) const { return std::exp(p.log_decay[t * p.c.heads_q + head]); }
  template <class Visit>
  void each(Visit visit) const {
    for (int d = 0; d < p.c.dim; ++d)
      for (int e = 0; e < p.c.dim_v; ++e) visit(d, e);
  }

  void compare() {
    const int size = p.c.dim * p.c.dim_v;
    std::vector<State> states{
        State(p.first.begin() + state_at(0), p.first.begin() + state_at(size))};
    for (int t = 0; t < p.c.len; ++t) {
      State s = states.back();
      each([&](int d, int e) {
        s[at(d, e)] = decay(t) * s[at(d, e)] + double(p.k.at(t, kv, d)) * p.v.at(t, kv, e);
      });
      states.push_back(s);
    }
    for (int i = 0; i < size; ++i) last.add(states.back()[i], p.last[state_at(i)]);
    State ds(p.dlast.begin() + state_at(0), p.dlast.begin() + state_at(size));
    auto receive = [&](int t) {
      each([&](int d, int e) {
        ds[at(d, e)] += p.scale * double(p.q.at(t, head, d)) * p.dout.at(t, head, e);
      });
    };
    for (int t = p.c.len - 1; t >= 0 && !p.c.causal; --t) receive(t);
    for (int t = p.c.len - 1; t >= 0; --t) {
      const State& s = states[p.c.causal ? t + 1 : p.c.len];
      std::vector<double> o(p.c.dim_v), gradient(p.c.dim);
      each([&](int d, int e) {
        o[e] += p.scale * double(p.q.at(t, head, d)) * s[at(d, e)];
        gradient[d] += p.scale * double(p.dout.at(t, head, e)) * s[at(d, e)];
      });
      for (int e = 0; e < p.c.dim_v; ++e) out.add(o[e], p.out.at(t, head, e));
      for (int d = 0; d < p.c.dim; ++d) dq.add(gradient[d], p.dq.at(t, head, d));
      if (p.c.causal) receive(t);
      double to_decay = 0;
      each([&](int d, int e) {
        dk[(t * p.c.heads_kv + kv) * p.c.dim + d] += ds[at(d, e)] * p.v.at(t, kv, e);
        dv[(t * p.c.heads_kv + kv) * p.c.dim_v + e] += ds[at(d, e)] * p.k.at(t, kv, d);
        to_decay += decay(t) * states[t][at(d, e)] * ds[at(d, e)];
        ds[at(d, e)] *= decay(t);
      });
      if (p.c.decay > 0) dlog_decay.add(to_decay, p.dlog_decay[t * p.c.heads_q + head]);
    }
    for (int i = 0; i < size; ++i) dfirst.add(ds[i], p.dfirst[state_at(i)]);
  }
};

TEST(LinearAttention, ForwardAndBackward) {
  for (const Case& c : cases()) {
    SCOPED_TRACE(c.name);
    Problem p(c);
    Distance out, dq, dk, dv, dlog_decay, last, dfirst;
    std::vector<double> sum_dk(c.len * c.heads_kv * c.dim), sum_dv(c.len * c.heads_kv * c.dim_v);
    for (int head = 0; head < c.heads_q; ++head) {
      int kv = head / (c.heads_q / c.heads_kv);
      Head{p, head, kv, out, dq, dlog_decay, last, dfirst, sum_dk, sum_dv}.compare();
    }
    for (int t = 0; t < c.len; ++t)
      for (int h = 0; h < c.heads_kv; ++h) {
        for (int d = 0; d < c.dim; ++d)
          dk.add(sum_dk[(t * c.heads_kv + h) * c.dim + d], p.dk.at(t, h, d));
        for (int e = 0; e < c.dim_v; ++e)
          dv.add(sum_dv[(t * c.heads_kv + h) * c.dim_v + e], p.dv.at(t, h, e));
      }
    out.expect_small("out");
    dq.expect_small("dq");
    dk.expect_small("dk");
    dv.expect_small("dv");
    dlog_decay.expect_small("dlog_decay");
    last.expect_small("final state");
    dfirst.expect_small("gradient of the initial state");
    for (const GappedTensor* written : {&p.out, &p.dq, &p.dk, &p.dv})
      EXPECT_TRUE(written->gaps_untouched());
  }
}

/// taylor2 of x, [token, head, 1 + dim + dim^2].
GappedTensor features_of(GappedTensor& x, int tokens) {
  const int dim = x.dim;
  const float root = std::pow(dim, -0.25f), pair = 1 / std::sqrt(2.0f * dim);
  GappedTensor features(tokens, x.heads, feature_dim(FeatureMap::kTaylor2, dim));
  for (int t = 0; t < tokens; ++t)
    for (int h = 0; h < x.heads; ++h) {
      features.at(t, h, 0) = 1;
      for (int i = 0; i < dim; ++i) {
        features.at(t, h, 1 + i) = root * x.at(t, h, i);
        for (int j = 0; j < dim; ++j)
          features.at(t, h, 1 + dim + i * dim + j) = pair * x.at(t, h, i) * x.at(t, h, j);
      }
    }
  return features;
}

/// The distance of dx from the gradient that the one of x's features stands for.
Distance distance_through_features(GappedTensor& x, GappedTensor& dfeatures, GappedTensor& dx,
                                   int tokens) {
  const int dim = x.dim;
  const float root = std::pow(dim, -0.25f), pair = 1 / std::sqrt(2.0f * dim);
  Distance distance;
  for (int t = 0; t < tokens; ++t)
    for (int h = 0; h < x.heads; ++h)
      for (int i = 0; i < dim; ++i) {
        double expected = root * dfeatures.at(t, h, 1 + i);
        for (int j = 0; j < dim; ++j)
          expected += pair * x.at(t, h, j) *
                      (double(dfeatures.at(t, h, 1 + dim + i * dim + j)) +
                       dfeatures.at(t, h, 1 + dim + j * dim + i));
        distance.add(expected, dx.at(t, h, i));
      }
  return distance;
}

Distance distance_of(const std::vector<float>& expected, const std::vector<float>& actual) {
  Distance distance;
  for (std::size_t i = 0; i < expected.size(); ++i) distance.add(expected[i], actual[i]);
  return distance;
}

Distance distance_of(GappedTensor& expected, GappedTensor& actual, int tokens) {
  Distance distance;
  for (int t = 0; t < tokens; ++t)
    for (int h = 0; h < expected.heads; ++h)
      for (int d = 0; d < expected.dim; ++d) distance.add(expected.at(t, h, d), actual.at(t, h, d));
  return distance;
}

TEST(LinearAttention, Taylor2IsTheCallOnItsFeatures) {
  for (Case c : cases()) {
    if (c.dim > 24) continue;  // more features than there may be
    SCOPED_TRACE(c.name);
    c.dim = c.dim / 3 + 1;
    Case unfused = c;
    c.feature_map = FeatureMap::kTaylor2;
    unfused.dim = c.features();
    Problem fused(c), built(unfused);
    built.q = features_of(fused.q, c.len);
    built.k = features_of(fused.k, c.len);
    built.v = fused.v;
    built.dout = fused.dout;
    built.log_decay = fused.log_decay;
    built.first = fused.first;
    built.dlast = fused.dlast;
    built.run();
    distance_of(built.out, fused.out, c.len).expect_small("out");
    distance_of(built.last, fused.last).expect_small("final state");
    distance_through_features(fused.q, built.dq, fused.dq, c.len).expect_small("dq");
    distance_through_features(fused.k, built.dk, fused.dk, c.len).expect_small("dk");
    distance_of(built.dv, fused.dv, c.len).expect_small("dv");
    if (c.decay > 0) distance_of(built.dlog_decay, fused.dlog_decay).expect_small("dlog_decay");
    distance_of(built.dfirst, fused.dfirst).expect_small("gradient of the initial state");
    for (const GappedTensor* written : {&fused.out, &fused.dq, &fused.dk, &fused.dv})
      EXPECT_TRUE(written->gaps_untouched());
  }
}

TEST(LinearAttention, SegmentStateIsTheFinalState) {
  for (int threads : {1, 5}) {
    Case c{"", 700, 1, 1, 16, 8};
    c.threads = threads;
    Problem p(c);
    std::vector<float> state(p.last.size(), kNan);
    LinearAttentionState problem;
    p.describe(problem);
    problem.q = {};
    problem.final_state = {state.data(), nullptr};
    cpu::segment_state(problem, Executor::threads(threads));
    distance_of(p.last, state).expect_small("state");
  }
}

}  // namespace
}  // namespace tileattn
