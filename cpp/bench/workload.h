// One attention problem with the memory it works on.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "tileattn/attention.h"

namespace tileattn::bench {

struct Shape {
  int batch, heads_q, heads_kv, len_q, len_k, dim;
  PatternSpec pattern;
  DType dtype;
};

/// Shapes worth watching: the sizes of the project's targets, GQA, decoding, a window.
std::vector<Shape> shapes();

/// "f32/b1/hq8/hkv8/q1024/k1024/d64/causal"
std::string name_of(const Shape& shape);

class Workload {
 public:
  explicit Workload(const Shape& shape);

  void forward(const Executor& executor) const { cpu::attention_forward(forward_, executor); }
  void backward(const Executor& executor) const { cpu::attention_backward(backward_, executor); }

  /// Floating-point operations on visible (query, key) pairs: two products forward, five backward.
  double forward_flops() const { return 4.0 * visible_pairs_ * shape.dim; }
  double backward_flops() const { return 10.0 * visible_pairs_ * shape.dim; }

  const Shape shape;
  /// Contiguous [batch, token, head, dim], as raw elements of the shape's dtype.
  std::vector<std::byte> q, k, v, dout, out, dq, dk, dv;
  std::vector<float> lse;  // [batch, len_q, heads_q]

 private:
  std::vector<float> delta_;
  double visible_pairs_;  // over batch and heads
  AttentionForward forward_;
  AttentionBackward backward_;
};

}  // namespace tileattn::bench
