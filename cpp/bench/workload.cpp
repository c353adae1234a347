#include "workload.h"

#include <cmath>
#include <cstring>
#include <random>

#include "tileattn/pattern/catalogue.h"

namespace tileattn::bench {
namespace {

/// A few standard normal numbers in `dtype`, cut off rather than rounded: any input will do.
void fill_normal(std::vector<std::byte>& data, DType dtype, unsigned seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal;
  for (std::size_t at = 0; at < data.size(); at += size_of(dtype)) {
    float value = normal(generator);
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    if (dtype == DType::kFloat32) {
      std::memcpy(&data[at], &bits, 4);
    } else {  // kBFloat16 is the upper half
      std::uint16_t upper = bits >> 16;
      std::memcpy(&data[at], &upper, 2);
    }
  }
}

template <class Ref, class Data>
Ref contiguous(Data& data, int tokens, int heads, int dim) {
  std::int64_t row = std::int64_t{heads} * dim;
  return {data.data(), tokens * row, row, dim};
}

double count_visible(const Shape& shape) {
  return dispatch_pattern(shape.pattern, [&](auto tag) {
    auto pattern = decltype(tag)::type::make(shape.pattern, {0, 0, shape.len_q, shape.len_k});
    std::int64_t pairs = 0;
    for (int i = 0; i < shape.len_q; ++i)
      for (int j = 0; j < shape.len_k; j += 64) pairs += __builtin_popcountll(pattern.seen(i, j));
    return static_cast<double>(pairs);
  });
}

}  // namespace

std::vector<Shape> shapes() {
  PatternSpec dense, causal, window;
  causal.causal = true;
  window.left = 256;
  window.right = 0;
  constexpr DType f32 = DType::kFloat32, bf16 = DType::kBFloat16;
  return {
      {1, 8, 8, 1024, 1024, 64, dense, f32},  {1, 8, 8, 4096, 4096, 64, dense, f32},
      {1, 8, 8, 4096, 4096, 64, causal, f32}, {1, 8, 8, 8192, 8192, 64, window, f32},
      {1, 8, 2, 2048, 2048, 128, dense, f32}, {8, 8, 2, 1, 4096, 128, causal, f32},
      {1, 8, 8, 1024, 1024, 64, dense, bf16}, {1, 8, 8, 4096, 4096, 64, causal, bf16},
  };
}

std::string name_of(const Shape& shape) {
  auto number = [](const char* name, int value) { return "/" + (name + std::to_string(value)); };
  std::string name = shape.dtype == DType::kFloat32 ? "f32" : "bf16";
  name += number("b", shape.batch) + number("hq", shape.heads_q) + number("hkv", shape.heads_kv);
  name += number("q", shape.len_q) + number("k", shape.len_k) + number("d", shape.dim);
  if (shape.pattern.left >= 0) name += number("left", shape.pattern.left);
  if (shape.pattern.right >= 0) name += number("right", shape.pattern.right);
  return shape.pattern.causal ? name + "/causal" : name;
}

Workload::Workload(const Shape& s) : shape(s) {
  const std::size_t row = size_of(s.dtype) * s.dim;
  const std::size_t queries = std::size_t(s.batch) * s.len_q * s.heads_q;
  const std::size_t keys = std::size_t(s.batch) * s.len_k * s.heads_kv;
  for (auto* data : {&q, &dout, &out, &dq}) data->resize(queries * row);
  for (auto* data : {&k, &v, &dk, &dv}) data->resize(keys * row);
  unsigned seed = 0;
  for (auto* data : {&q, &k, &v, &dout}) fill_normal(*data, s.dtype, seed++);
  lse.resize(queries);
  delta_.resize(queries);
  visible_pairs_ = double(s.batch) * s.heads_q * count_visible(s);

  AttentionProblem problem;
  problem.dtype = s.dtype;
  problem.batch = s.batch;
  problem.heads_q = s.heads_q;
  problem.heads_kv = s.heads_kv;
  problem.dim = problem.dim_v = s.dim;
  problem.len_q = s.len_q;
  problem.len_k = s.len_k;
  problem.pattern = s.pattern;
  problem.scale = 1.0f / std::sqrt(static_cast<float>(s.dim));
  problem.q = contiguous<ConstTensorRef>(q, s.len_q, s.heads_q, s.dim);
  problem.k = contiguous<ConstTensorRef>(k, s.len_k, s.heads_kv, s.dim);
  problem.v = contiguous<ConstTensorRef>(v, s.len_k, s.heads_kv, s.dim);

  static_cast<AttentionProblem&>(forward_) = problem;
  forward_.out = contiguous<TensorRef>(out, s.len_q, s.heads_q, s.dim);
  forward_.lse = lse.data();

  static_cast<AttentionProblem&>(backward_) = problem;
  backward_.out = contiguous<ConstTensorRef>(out, s.len_q, s.heads_q, s.dim);
  backward_.dout = contiguous<ConstTensorRef>(dout, s.len_q, s.heads_q, s.dim);
  backward_.lse = lse.data();
  backward_.dq = contiguous<TensorRef>(dq, s.len_q, s.heads_q, s.dim);
  backward_.dk = contiguous<TensorRef>(dk, s.len_k, s.heads_kv, s.dim);
  backward_.dv = contiguous<TensorRef>(dv, s.len_k, s.heads_kv, s.dim);
  backward_.delta = delta_.data();
}

}  // namespace tileattn::bench
