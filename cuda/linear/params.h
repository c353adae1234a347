// What the kernels of linear attention are told. The host fills it (attention.cpp).
#pragma once

#include <cstdint>

#include "tileattn/linear_attention.h"
#include "tileattn/pattern/pattern.h"

namespace tileattn::cuda {

constexpr int kChunk = 64;  // tokens that meet one another as scores; earlier ones are in the state
constexpr int kValues = 64;         // value channels of a block
constexpr int kTaylor2Values = 32;  // likewise, with taylor2

/// A tensor [batch, token, head, dim] in one of the roles of chunk_scan.cuh.
struct Operand {
  ConstTensorRef tensor;
  int dim = 0;
  int group = 1;  // query heads that share a head of it
};

/// States [sequences, heads, slots, dim, dim_v] and z [sequences, heads, slots, dim], fp32.
struct StateSlots {
  float* s = nullptr;
  float* z = nullptr;
  int slots = 1;
};

/// What every kernel of a call shares.
struct LinearShape {
  int batch = 0;           // sequences
  int heads = 0;           // query heads
  int dim = 0, dim_v = 0;  // of the states
  int len = 0;
  const std::int32_t* cu_seqlens = nullptr;
  int segments = 1;  // of each sequence; they may be empty
  DecayRef decay;

  TILEATTN_HOST_DEVICE int entries() const { return cu_seqlens ? 1 : batch; }
  /// (token, query head) pairs: of denominators and whatever else has one number for each.
  TILEATTN_HOST_DEVICE std::int64_t rows() const { return std::int64_t{entries()} * len * heads; }
};

/// Where z, which belongs to one channel more, stands.
enum class Extra : int {
  kNone,
  kValues,  // of the values: z is a column of the state
  kKeys,    // of queries and keys: z is a row of the state
};

/// Factors of the tokens, scale over divisor, and their channel more. They belong to the queries,
/// or else to the keys; those of the other side are 1.
struct TokenNumbers {
  const float* divisors = nullptr;  // [entries, len, heads]; 0 divides to 0; null: 1
  const float* extra = nullptr;     // likewise; null: 1
  float scale = 1.0f;
  bool of_queries = false;
};

/// A scan over the chunks of all segments; chunk_scan.cuh says what it computes.
struct ScanParams {
  LinearShape shape;
  int slices = 1;       // blocks of value channels
  int first_slice = 0;  // among all that the launch has for a segment
  int all_slices = 1;
  Operand queries, keys, values;
  Extra extra = Extra::kNone;
  TokenNumbers numbers;
  bool transposed = false;  // states have the values' channels first
  bool causal = true;       // else every query reads the last slot of `start`
  ConstStateRef first;      // without slots: the state to start from, or null
  StateSlots start;         // with slots: those to start from
  StateRef last;            // the state at the end, for one segment; or null

  TensorRef out;             // [entries, len, heads, values.dim], or, summed later,
  float* partial = nullptr;  // the same in fp32, contiguous; taylor2, transposed: [slices] of it
  float* denominator = nullptr;  // Extra::kValues: what out was divided by, times the scale

  // For the gradient of log_decay: states and weighted keys as two numbers of the element type
  // each,
  bool exact = false;
  // what each query reads from the state, times this row (of which taylor2 needs the features),
  Operand dot_with;
  float* dots = nullptr;  // [slices, entries, len, heads]; or null
  // and the product of the last state of each segment with these,
  ConstStateRef product_first;
  StateSlots product_start;
  float* products = nullptr;  // [slices, sequences, heads, segments]; or null
};

/// The scans backwards in time, whose blocks stand side by side in one launch.
struct SweepParams {
  ScanParams dk, dv;
};

/// state of each segment <- sum of decayed k v^T, of a scan in either direction.
struct SegmentStateParams {
  LinearShape shape;
  Operand keys, values;
  Extra extra = Extra::kNone;
  TokenNumbers numbers;
  StateSlots own;           // slot n: segment n's own state
  float* decays = nullptr;  // [sequences, heads, segments]: of the whole segment
  bool exact = false;       // as in ScanParams
};

/// Own states become the states before each segment; the last slot the one after all.
struct PassParams {
  LinearShape shape;
  bool backwards = false;
  ConstStateRef first;  // or null
  StateSlots slots;     // as SegmentStateParams::own
  const float* decays = nullptr;
  StateRef last;  // or null
};

/// What the gradient of the denominator is, times the denominator: -(dout . out) of every row.
struct DenominatorGradientParams {
  LinearShape shape;
  ConstTensorRef out, dout;
  float* extra;
};

/// Gradients of a key head: the sum over the parts of its query heads and of value slices.
struct SumPartsParams {
  LinearShape shape;
  const float* parts;  // [slices, entries, len, heads, dims]
  TensorRef to;        // [entries, len, heads / group, dims]
  int dims, group, slices;
};

/// Of the two kernels of decay_gradient.cuh.
struct DecayGradientParams {
  LinearShape shape;
  FeatureMap feature_map;
  Operand q, k, v, dout;
  TokenNumbers numbers;   // of the queries
  float* pairs;           // [entries, len, heads]
  const float* read;      // [slices, entries, len, heads]: what each reads from before
  const float* given;     // likewise: what it gives to after the chunk
  const float* products;  // [slices, sequences, heads, segments]: <S, dS> after each
  int slices;
  float* dlog_decay;  // [entries, len, heads]
};

}  // namespace tileattn::cuda
