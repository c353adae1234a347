// The instantiated kernels of linear attention, as the entry points (attention.cpp) find them. The
// table itself is generated from kernels.cmake.
#pragma once

#include "common/architecture.h"
#include "params.h"

namespace tileattn::cuda {

/// Kernels of one element type and feature map, whose queries and keys, in the roles of
/// chunk_scan.cuh, have up to `dim` channels. Each enqueues on a cudaStream_t.
struct LinearKernels {
  using SegmentStates = void (*)(const SegmentStateParams&, bool backwards, void* stream);

  DType dtype;
  FeatureMap feature_map;
  int dim;
  SharedBudget budget;
  int shared_bytes;                                 // of a block, at most
  void (*scan)(const ScanParams&, void* stream);    // forwards in time
  void (*sweep)(const SweepParams&, void* stream);  // backwards
  SegmentStates segment_state;
  // These take any head dim.
  void (*pass_states)(const PassParams&, void* stream);
  void (*denominator_gradient)(const DenominatorGradientParams&, void* stream);
  void (*sum_parts)(const SumPartsParams&, void* stream);
  void (*decay_gradient)(const DecayGradientParams&, void* stream);
  void (*decode_step)(const LinearAttentionStep&, void* stream);
};

struct LinearRows {
  const LinearKernels* begin;
  const LinearKernels* end;
};
LinearRows linear_rows();

}  // namespace tileattn::cuda
