// The instantiated kernels of linear attention, as the entry points (attention.cpp) find them.
#pragma once

#include "common/kernel_table.h"
#include "params.h"

namespace tileattn::cuda {

/// Kernels for queries and keys, in the roles of chunk_scan.cuh, of up to the row's dim. Each
/// enqueues on a cudaStream_t.
struct LinearKernels {
  using SegmentStates = void (*)(const SegmentStateParams&, bool backwards, void* stream);

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

KernelRows<LinearKernels> linear_rows();
KernelRows<LinearKernels> linear_taylor2_rows();

}  // namespace tileattn::cuda
