// Whole problems, forward and backward, against loops in double precision.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "gapped_tensor.h"
#include "tileattn/attention.h"

namespace tileattn {
namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();

struct Case {
  std::string name;
  std::vector<int> lens_q, lens_k;  // more than one: packed
  int heads_q = 2, heads_kv = 1, dim = 24, dim_v = 40;
  PatternSpec pattern = {};
  float softcap = 0;
  bool alibi = false, sinks = false, bias = false, bias_per_query = false, dlse = false;
};

std::vector<Case> cases() {
  constexpr int kAll = PatternSpec::kUnlimited;
  Case wide{"wide heads", {70}, {65}, 1, 1, 256, 256};
  Case causal{"causal", {150}, {430}};
  causal.pattern.causal = true;
  Case empty_rows = causal;
  empty_rows.name = "causal with rows that see nothing";
  empty_rows.lens_q = {201};
  empty_rows.lens_k = {99};
  empty_rows.dlse = true;
  Case window{"window with sink tokens", {500}, {510}, 2, 2, 64, 64, {30, 7, 5, false}};
  Case causal_window{"causal window", {131}, {131}, 4, 2, 8, 16, {20, kAll, 3, true}};
  Case modifiers{"every modifier", {113}, {420}, 4, 2};
  modifiers.softcap = 3.0f;
  modifiers.alibi = modifiers.sinks = modifiers.bias = modifiers.bias_per_query = true;
  modifiers.dlse = true;
  Case key_bias{"bias for each key", {50}, {140}, 3, 3};
  key_bias.bias = true;
  Case packed{"packed", {5, 0, 97, 3}, {7, 4, 200, 0}};
  packed.pattern.causal = true;
  packed.sinks = packed.dlse = true;
  Case no_keys{"no keys", {4}, {0}}, no_queries{"no queries", {0}, {4}};
  return {{"dense", {97}, {385}},
          wide,
          causal,
          empty_rows,
          window,
          causal_window,
          modifiers,
          key_bias,
          packed,
          no_keys,
          no_queries};
}

int total(const std::vector<int>& lens) {
  int sum = 0;
  for (int n : lens) sum += n;
  return sum;
}

std::vector<std::int32_t> offsets(const std::vector<int>& lens) {
  std::vector<std::int32_t> sums{0};
  for (int n : lens) sums.push_back(sums.back() + n);
  return sums;
}

/// The tensors of a case, what the kernels write and what they should have written.
struct Problem {
  Case c;
  std::mt19937 generator{7};
  int tokens_q = total(c.lens_q), tokens_k = total(c.lens_k);
  GappedTensor q{tokens_q, c.heads_q, c.dim, &generator},
      k{tokens_k, c.heads_kv, c.dim, &generator}, v{tokens_k, c.heads_kv, c.dim_v, &generator},
      dout{tokens_q, c.heads_q, c.dim_v, &generator};
  GappedTensor out{tokens_q, c.heads_q, c.dim_v}, dq{tokens_q, c.heads_q, c.dim},
      dk{tokens_k, c.heads_kv, c.dim}, dv{tokens_k, c.heads_kv, c.dim_v};
  int bias_rows = c.bias_per_query ? tokens_q : 1;
  GappedTensor bias{bias_rows, 1, tokens_k, &generator}, dbias{bias_rows, 1, tokens_k};
  std::vector<float> slopes, sinks, dlse, lse, lse_low, delta;
  std::vector<std::int32_t> cu_q = offsets(c.lens_q), cu_k = offsets(c.lens_k);
  float scale = 0.3f;
  DType dtype;

  explicit Problem(const Case& which, DType dtype = DType::kFloat32) : c(which), dtype(dtype) {
    if (dtype == DType::kBFloat16)
      for (GappedTensor* x : {&q, &k, &v, &dout}) x->round_to_bfloat16();
    std::size_t rows = std::size_t(tokens_q) * c.heads_q;
    lse.assign(rows, kNan);
    lse_low.assign(rows, kNan);
    delta.assign(rows, kNan);
    std::normal_distribution<float> normal;
    for (int h = 0; h < c.heads_q; ++h) slopes.push_back(0.01f * float(h));  // that of head 0 is 0
    for (int h = 0; h < c.heads_q; ++h) sinks.push_back(normal(generator));
    for (std::size_t i = 0; i < rows; ++i) dlse.push_back(normal(generator));
    for (int r = 0; r < bias_rows; ++r)
      for (int j = 0; j < tokens_k; ++j) dbias.at(r, 0, j) = 0;
  }

  void fill(AttentionProblem& p) {
    p.batch = static_cast<int>(c.lens_q.size());
    p.heads_q = c.heads_q;
    p.heads_kv = c.heads_kv;
    p.dim = c.dim;
    p.dim_v = c.dim_v;
    p.len_q = tokens_q;
    p.len_k = tokens_k;
    p.q = q.const_ref();
    p.k = k.const_ref();
    p.v = v.const_ref();
    p.pattern = c.pattern;
    p.dtype = dtype;
    p.scale = scale;
    p.softcap = c.softcap;
    if (p.batch > 1) p.cu_seqlens_q = cu_q.data(), p.cu_seqlens_k = cu_k.data();
    if (c.alibi) p.alibi_slopes = slopes.data();
    if (c.sinks) p.sinks = sinks.data();
    if (c.bias) p.bias = {bias.ref().data, 0, 0, bias_stride(), DType::kFloat32};
  }
  std::int64_t bias_stride() { return c.bias_per_query ? bias.ref().token_stride : 0; }

  /// In bfloat16, q to dv are copied there and back.
  void run(const Executor& executor) {
    if (dtype == DType::kFloat32) return run_here(executor);
    GappedTensor* tensors[] = {&q, &k, &v, &dout, &out, &dq, &dk, &dv};
    std::vector<std::uint16_t> copies[8];
    for (int i = 0; i < 8; ++i) copies[i] = tensors[i]->to_bfloat16();
    for (int i = 0; i < 8; ++i) tensors[i]->copy = copies[i].data();
    run_here(executor);
    for (int i = 0; i < 8; ++i) tensors[i]->from_bfloat16(copies[i]);
  }

  void run_here(const Executor& executor) {
    AttentionForward forward;
    fill(forward);
    forward.out = out.ref();
    forward.lse = lse.data();
    forward.lse_low = lse_low.data();
    cpu::attention_forward(forward, executor);
    AttentionBackward backward;
    fill(backward);
    backward.out = out.const_ref();
    backward.dout = dout.const_ref();
    backward.lse = lse.data();
    backward.lse_low = lse_low.data();
    backward.dlse = c.dlse ? dlse.data() : nullptr;
    backward.dq = dq.ref();
    backward.dk = dk.ref();
    backward.dv = dv.ref();
    if (c.bias) backward.dbias = {dbias.ref().data, 0, 0, bias_stride(), DType::kFloat32};
    backward.delta = delta.data();
    cpu::attention_backward(backward, executor);
  }
};

/// The largest |got - expected| seen, and the largest |expected| to compare it with.
struct Error {
  double worst = 0, magnitude = 1e-2;
  void add(double got, double expected) {
    double error = got == expected ? 0 : std::abs(got - expected);
    if (!(error <= worst)) worst = error;
    magnitude = std::max(magnitude, std::abs(expected));
  }
};

struct Expected {
  std::vector<double> dq, dk, dv, dbias;  // laid out as the tensors' values
  Error out, lse;
};

/// One query of one head: checks out and lse, and adds to the expected gradients.
void reference_row(Problem& p, Expected& e, int n, int i, int h) {
  const Case& c = p.c;
  const int q0 = p.cu_q[n], k0 = p.cu_k[n], len_k = c.lens_k[n], shift = len_k - c.lens_q[n];
  const int kv = h / (c.heads_q / c.heads_kv), t = q0 + i, row = t * c.heads_q + h;
  const bool has_window = c.pattern.left >= 0 || c.pattern.right >= 0;
  std::vector<double> s(len_k, -kInf), slope(len_k, 1.0);
  double sum = c.sinks ? std::exp(double{p.sinks[h]}) : 0;
  for (int j = 0; j < len_k; ++j) {
    int ahead = j - (i + shift);
    bool in_window = (c.pattern.left < 0 || ahead >= -c.pattern.left) &&
                     (c.pattern.right < 0 || ahead <= c.pattern.right);
    if (has_window && !in_window && j >= c.pattern.sink_tokens) continue;
    if (c.pattern.causal && ahead > 0) continue;
    double dot = 0;
    for (int d = 0; d < c.dim; ++d) dot += double{p.q.at(t, h, d)} * p.k.at(k0 + j, kv, d);
    s[j] = dot * p.scale;
    if (c.softcap > 0) {
      double tanh = std::tanh(s[j] / c.softcap);
      slope[j] = 1 - tanh * tanh;
      s[j] = c.softcap * tanh;
    }
    if (c.alibi) s[j] -= double{p.slopes[h]} * std::abs(ahead);
    if (c.bias) s[j] += p.bias.at(c.bias_per_query ? i : 0, 0, j);
    sum += std::exp(s[j]);
  }
  e.lse.add(p.lse[row], std::log(sum));
  std::vector<double> out(c.dim_v, 0.0);
  for (int j = 0; j < len_k; ++j)
    for (int d = 0; d < c.dim_v && s[j] > -kInf; ++d)
      out[d] += std::exp(s[j]) / sum * p.v.at(k0 + j, kv, d);
  double delta = c.dlse ? -double{p.dlse[row]} : 0.0;
  for (int d = 0; d < c.dim_v; ++d) {
    e.out.add(p.out.at(t, h, d), out[d]);
    delta += out[d] * p.dout.at(t, h, d);
  }
  for (int j = 0; j < len_k; ++j) {
    if (s[j] == -kInf) continue;
    double weight = std::exp(s[j]) / sum, dweight = 0;
    auto index = [](GappedTensor& x, int token, int head, int d) {
      return &x.at(token, head, d) - x.values.data();
    };
    for (int d = 0; d < c.dim_v; ++d) {
      dweight += double{p.dout.at(t, h, d)} * p.v.at(k0 + j, kv, d);
      e.dv[index(p.dv, k0 + j, kv, d)] += weight * p.dout.at(t, h, d);
    }
    double ds = weight * (dweight - delta);
    if (c.bias) e.dbias[index(p.dbias, c.bias_per_query ? i : 0, 0, j)] += ds;
    ds *= slope[j] * p.scale;
    for (int d = 0; d < c.dim; ++d) {
      e.dq[index(p.dq, t, h, d)] += ds * p.k.at(k0 + j, kv, d);
      e.dk[index(p.dk, k0 + j, kv, d)] += ds * p.q.at(t, h, d);
    }
  }
}

Expected reference(Problem& p) {
  auto zeros = [](const GappedTensor& x) { return std::vector<double>(x.values.size(), 0.0); };
  Expected e{zeros(p.dq), zeros(p.dk), zeros(p.dv), zeros(p.dbias), {}, {}};
  for (std::size_t n = 0; n < p.c.lens_q.size(); ++n)
    for (int i = 0; i < p.c.lens_q[n]; ++i)
      for (int h = 0; h < p.c.heads_q; ++h) reference_row(p, e, static_cast<int>(n), i, h);
  return e;
}

constexpr double kFloat32Error = 4e-6, kBFloat16Error = 8e-3;

void expect_close(const Error& error, const char* what, double allowed = kFloat32Error) {
  EXPECT_LE(error.worst, allowed * error.magnitude) << what;
}

void expect_close(GappedTensor& got, const std::vector<double>& expected, const char* what,
                  double allowed = kFloat32Error) {
  Error error;
  for (int t = 0; t < got.tokens; ++t)
    for (int h = 0; h < got.heads; ++h)
      for (int d = 0; d < got.dim; ++d)
        error.add(got.at(t, h, d), expected[&got.at(t, h, d) - got.values.data()]);
  expect_close(error, what, allowed);
  EXPECT_TRUE(got.gaps_untouched()) << what;
}

void expect_definition(const Case& c, DType dtype, double allowed) {
  for (const Executor& executor : {Executor::serial(), Executor::threads(3)}) {
    SCOPED_TRACE(c.name + ", " + std::to_string(executor.num_threads) + " threads");
    Problem p(c, dtype);
    p.run(executor);
    Expected e = reference(p);
    expect_close(e.out, "out", allowed);
    expect_close(e.lse, "lse");
    EXPECT_TRUE(p.out.gaps_untouched());
    expect_close(p.dq, e.dq, "dq", allowed);
    expect_close(p.dk, e.dk, "dk", allowed);
    expect_close(p.dv, e.dv, "dv", allowed);
    if (c.bias) expect_close(p.dbias, e.dbias, "dbias", allowed);
  }
}

TEST(Attention, MatchesItsDefinition) {
  for (const Case& c : cases()) expect_definition(c, DType::kFloat32, kFloat32Error);
}

TEST(Attention, MatchesItsDefinitionInBFloat16) {
  for (const Case& c : cases()) expect_definition(c, DType::kBFloat16, kBFloat16Error);
}

TEST(Attention, GradientsAreBitEqualFromRunToRun) {
  for (const Case& c : cases()) {
    Problem first(c), second(c);
    first.run(Executor::threads(3));
    second.run(Executor::threads(3));
    auto equal = [](GappedTensor& a, GappedTensor& b) {
      for (int t = 0; t < a.tokens; ++t)
        for (int h = 0; h < a.heads; ++h)
          for (int d = 0; d < a.dim; ++d)
            if (a.at(t, h, d) != b.at(t, h, d)) return false;
      return true;
    };
    EXPECT_TRUE(equal(first.dq, second.dq) && equal(first.dk, second.dk)) << c.name;
    EXPECT_TRUE(equal(first.dv, second.dv) && equal(first.dbias, second.dbias)) << c.name;
  }
}

TEST(Attention, HiddenKeysDoNotMatter) {
  Case c{"", {96}, {1000}};
  c.pattern = {10, 10, 0, false};
  Problem clean(c), poisoned(c);
  for (int j = 0; j < 500; ++j)  // far from what the last 96 positions see
    for (int d = 0; d < c.dim_v; ++d) poisoned.v.at(j, 0, d) = kNan;
  clean.run(Executor::serial());
  poisoned.run(Executor::serial());
  for (int t = 0; t < 96; ++t) {
    ASSERT_EQ(clean.out.at(t, 1, 5), poisoned.out.at(t, 1, 5));
    ASSERT_EQ(clean.dq.at(t, 1, 5), poisoned.dq.at(t, 1, 5));
  }
}

TEST(Attention, LowestFiniteBiasIsNoMask) {
  // Frameworks pad with the lowest float; a row of nothing else weighs its keys equally.
  Case c{"", {7}, {400}};
  c.bias = true;
  Problem p(c);
  const float lowest = std::numeric_limits<float>::lowest();
  for (int j = 0; j < 400; ++j) p.bias.at(0, 0, j) = lowest;
  p.run(Executor::serial());
  for (int d = 0; d < c.dim_v; ++d) {
    double mean = 0;
    for (int j = 0; j < 400; ++j) mean += p.v.at(j, 0, d) / 400.0;
    EXPECT_NEAR(p.out.at(3, 1, d), mean, 1e-6);
    double share = 0;
    for (int i = 0; i < 7; ++i)
      for (int h = 0; h < c.heads_q; ++h) share += p.dout.at(i, h, d) / 400.0;
    EXPECT_NEAR(p.dv.at(123, 0, d), share, 1e-7);
  }
  EXPECT_EQ(p.lse[0], lowest);
}

TEST(Attention, BadProblemsThrow) {
  AttentionForward p;
  p.batch = p.heads_q = p.heads_kv = 1;
  for (int dim : {0, 7, 264}) {
    p.dim = p.dim_v = dim;
    EXPECT_THROW(cpu::attention_forward(p, Executor::serial()), std::invalid_argument) << dim;
  }
  p.dim = p.dim_v = 64;
  p.heads_q = 3;
  p.heads_kv = 2;
  EXPECT_THROW(cpu::attention_forward(p, Executor::serial()), std::invalid_argument);
}

}  // namespace
}  // namespace tileattn
