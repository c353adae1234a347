// Planted faults. Each kernel exists with its fault, which must be reported with kernel,
// instruction and thread, and without it, which must pass. The README's table lists what is here.
#include <cstring>
#include <string>

#include "../include/ptxsim.h"
#include "check.h"
#include "device.h"

constexpr int kThreads = 128;

template <bool Faulty>
__global__ void read_without_barrier(int* out) {
  __shared__ int tile[kThreads];
  tile[threadIdx.x] = 0;  // else the read of unwritten memory could be found first
  __syncthreads();
  tile[threadIdx.x] = threadIdx.x;
  if (!Faulty) __syncthreads();
  out[threadIdx.x] = tile[kThreads - 1 - threadIdx.x];
}

template <bool Faulty>
__global__ void overwrite_without_barrier(int* out) {
  __shared__ int tile[kThreads];
  tile[threadIdx.x] = threadIdx.x;
  __syncthreads();
  out[threadIdx.x] = tile[kThreads - 1 - threadIdx.x];
  if (!Faulty) __syncthreads();
  tile[threadIdx.x] = 0;
}

template <bool Faulty>
__global__ void copy_without_wait(int* data) {
  __shared__ __align__(16) int tile[4 * kThreads];
  tile[4 * threadIdx.x] = 0;
  copy_async(&tile[4 * threadIdx.x], data + 4 * threadIdx.x);
  asm volatile("cp.async.commit_group;" ::: "memory");
  if (!Faulty) asm volatile("cp.async.wait_group 0;" ::: "memory");
  data[threadIdx.x] = tile[4 * threadIdx.x];
}

// Lane 0 of the first warp loads, everyone reads.
template <bool Faulty>
__global__ void load_without_wait(int* data) {
  __shared__ __align__(128) int tile[kThreads];
  __shared__ uint64_t full;
  tile[threadIdx.x] = 0;
  if (threadIdx.x == 0) init_barrier(&full, 1);
  __syncthreads();
  if (threadIdx.x == 0) load_bulk(tile, data, sizeof tile, &full);
  if (!Faulty) wait_barrier(&full, 0);
  data[threadIdx.x] = tile[kThreads - 1 - threadIdx.x];
}

// The second load into a stage must wait until everyone has read the first.
template <bool Faulty>
__global__ void stage_reused_too_early(int* data) {
  __shared__ __align__(128) int tile[kThreads];
  __shared__ uint64_t full[2], empty;
  if (threadIdx.x == 0) {
    init_barrier(&full[0], 1);
    init_barrier(&full[1], 1);
    init_barrier(&empty, kThreads);
  }
  __syncthreads();
  int sum = 0;
  for (int i = 0; i < 2; ++i) {
    if (threadIdx.x == 0) {
      if (i > 0 && !Faulty) wait_barrier(&empty, 0);
      load_bulk(tile, data, sizeof tile, &full[i]);
    }
    wait_barrier(&full[i], 0);
    sum += tile[kThreads - 1 - threadIdx.x];
    arrive(&empty);
  }
  data[threadIdx.x] = sum;
}

template <bool Faulty>
__global__ void store_without_proxy_fence(int* data) {
  __shared__ __align__(128) int tile[kThreads];
  tile[threadIdx.x] = threadIdx.x;
  if (!Faulty) asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  __syncthreads();
  if (threadIdx.x == 0) {
    store_bulk(data, tile, sizeof tile);
    asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
  }
}

template <bool Faulty>
__global__ void store_source_overwritten(int* data) {
  __shared__ __align__(128) int tile[kThreads];
  tile[threadIdx.x] = threadIdx.x;
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  __syncthreads();
  if (threadIdx.x == 0) {
    store_bulk(data, tile, sizeof tile);
    if (!Faulty) asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
  }
  __syncthreads();
  tile[threadIdx.x] = 0;
}

enum WgmmaFault { kNone, kNoFence, kNoSecondFence, kNoWait, kNoProxyFence, kOverwritten };

__device__ inline void multiply_async(float (&d)[4], uint64_t a, uint64_t b) {
  asm volatile(
      "{ .reg .pred p;\n"
      "setp.ne.b32 p, 1, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16 {%0,%1,%2,%3}, %4, %5, p, 1, 1, 0, 0; }"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "l"(a), "l"(b));
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

// Two products, with arithmetic on the accumulators between them.
template <WgmmaFault Fault>
__global__ void product(int* out) {
  __shared__ __align__(128) int a[512], b[64];  // 64 x 16 and 8 x 16 halves, K-major, no swizzle
  for (int i = threadIdx.x; i < 512; i += kThreads) a[i] = 0x38003800;
  if (threadIdx.x < 64) b[threadIdx.x] = 0x38003800;
  if (Fault != kNoProxyFence) asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  __syncthreads();
  const uint64_t layout = uint64_t{128 >> 4} << 16 | uint64_t{256 >> 4} << 32;
  const uint64_t da = layout | shared_address(a) >> 4, db = layout | shared_address(b) >> 4;
  float d[4] = {1, 2, 3, 4};
  if (Fault != kNoFence) asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
  multiply_async(d, da, db);
  if (Fault == kOverwritten) a[threadIdx.x] = 0;
  if (Fault != kNoWait) asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
  for (int i = 0; i < 4; ++i)
    asm volatile("add.f32 %0, %0, %1;" : "+f"(d[i]) : "f"(float(threadIdx.x)));
  if (Fault != kNoSecondFence) asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
  multiply_async(d, da, db);
  asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
  for (int i = 0; i < 4; ++i) out[4 * threadIdx.x + i] = __float_as_int(d[i]);
}

template <bool Faulty>
__global__ void out_of_bounds_read(int* data) {
  data[0] = data[threadIdx.x + (Faulty ? 4 * kThreads : 0)];
}
template <bool Faulty>
__global__ void write_before_begin(int* data) {
  data[int(threadIdx.x) - (Faulty ? 1 : 0)] = 1;
}
template <bool Faulty>
__global__ void read_after_free(int* data) {
  data[0] = data[threadIdx.x];
}
template <bool Faulty>
__global__ void misaligned_vector(int* data) {
  const int2 pair = *reinterpret_cast<const int2*>(data + 2 * threadIdx.x + (Faulty ? 1 : 0));
  data[2 * threadIdx.x] = pair.x + pair.y;
}
template <bool Faulty>
__global__ void unwritten_shared(int* out) {
  __shared__ int tile[kThreads];
  if (!Faulty || threadIdx.x != 77) tile[threadIdx.x] = 1;
  __syncthreads();
  out[threadIdx.x] = tile[threadIdx.x];
}
template <bool Faulty>
__global__ void shared_out_of_range(int* data) {
  __shared__ int tile[kThreads];
  tile[threadIdx.x] = 1;
  __syncthreads();
  data[threadIdx.x] = tile[threadIdx.x + (Faulty ? data[0] : 0)];
}

template <bool Faulty>
__global__ void barrier_deadlock(int* out) {
  if (Faulty && threadIdx.x >= 64) asm volatile("bar.sync 2, 128;" ::: "memory");
  else asm volatile("bar.sync 1, 128;" ::: "memory");
  out[threadIdx.x] = 1;
}
template <bool Faulty>
__global__ void mbarrier_deadlock(int* out) {
  __shared__ uint64_t barrier;
  if (threadIdx.x == 0) init_barrier(&barrier, kThreads);
  __syncthreads();
  if (!Faulty || threadIdx.x != 5) arrive(&barrier);
  wait_barrier(&barrier, 0);
  out[threadIdx.x] = 1;
}
template <bool Faulty>
__global__ void mbarrier_not_initialised(int* out) {
  __shared__ uint64_t barrier;
  if (threadIdx.x == 0) {
    if (Faulty) barrier = 0;
    else init_barrier(&barrier, kThreads);
  }
  __syncthreads();
  arrive(&barrier);
  out[threadIdx.x] = 1;
}
template <bool Faulty>
__global__ void too_many_arrivals(int* out) {
  __shared__ uint64_t barrier;
  if (threadIdx.x == 0) init_barrier(&barrier, Faulty ? kThreads - 1 : 2 * kThreads);
  __syncthreads();
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0], 2;" ::"r"(shared_address(&barrier)));
  out[threadIdx.x] = 1;
}
template <bool Faulty>
__global__ void unknown_instruction(int* out) {
  if (Faulty) asm volatile("{ .reg .u32 t; vadd.u32.u32.u32 t, %0, 1; }" ::"r"(threadIdx.x));
  out[threadIdx.x] = 1;
}
template <bool Faulty>
__global__ void trap(int* out) {
  if (Faulty && threadIdx.x == 3) __trap();
  out[threadIdx.x] = 1;
}

struct Fault {
  const char* kernel;
  const char* message;      // part of the report
  const char* instruction;  // part of its PTX
  void (*faulty)(int*);
  void (*sound)(int*);
};
#define FAULT(kernel, message, instruction) \
  {#kernel, message, instruction, kernel<true>, kernel<false>}
#define WGMMA_FAULT(kind, message, instruction) \
  {"product", message, instruction, product<kind>, product<kNone>}

const Fault kFaults[] = {
    FAULT(read_without_barrier, "nothing orders the two", "ld.shared"),
    FAULT(overwrite_without_barrier, "nothing orders the two", "st.shared"),
    FAULT(copy_without_wait, "cp.async of warp", "ld.shared"),
    FAULT(load_without_wait, "a bulk load", "ld.shared"),
    FAULT(stage_reused_too_early, "a bulk load", "cp.async.bulk"),
    FAULT(store_without_proxy_fence, "missing fence.proxy.async", "cp.async.bulk.global"),
    FAULT(store_source_overwritten, "bulk store of warp 0 read it", "st.shared"),
    WGMMA_FAULT(kNoFence, "missing wgmma.fence", "wgmma.mma_async"),
    WGMMA_FAULT(kNoSecondFence, "missing wgmma.fence", "wgmma.mma_async"),
    WGMMA_FAULT(kNoWait, "used before its wgmma.wait_group", "add.f32"),
    WGMMA_FAULT(kNoProxyFence, "missing fence.proxy.async", "wgmma.mma_async"),
    WGMMA_FAULT(kOverwritten, "wgmma of warp", "st.shared"),
    FAULT(out_of_bounds_read, "out of bounds", "ld.global"),
    FAULT(write_before_begin, "out of bounds", "st.global"),
    FAULT(misaligned_vector, "misaligned access", "ld.global.v2"),
    FAULT(unwritten_shared, "never-written shared memory", "ld.shared"),
    FAULT(shared_out_of_range, "shared memory access out of range", "ld.shared"),
    FAULT(barrier_deadlock, "deadlock", "bar"),
    FAULT(mbarrier_deadlock, "deadlock", "mbarrier.try_wait"),
    FAULT(mbarrier_not_initialised, "not initialised", "mbarrier.arrive"),
    FAULT(too_many_arrivals, "the phase expects only", "mbarrier.arrive"),
    FAULT(unknown_instruction, "unsupported instruction", "vadd"),
    FAULT(trap, "trap", "trap"),
};

void expect_report(const Fault& fault) {
  const std::string report = ptxsim_last_report();
  auto has = [&](const std::string& part) { return report.find(part) != std::string::npos; };
  CHECK(has(fault.message), "%s: no \"%s\" in: %s", fault.kernel, fault.message, report.c_str());
  CHECK(has(std::string("kernel void ") + fault.kernel), "kernel missing: %s", report.c_str());
  CHECK(has("line ") && has(fault.instruction), "%s: no \"%s\" in: %s", fault.kernel,
        fault.instruction, report.c_str());
  CHECK(has("cta (0,0,0) warp ") && (has(" lane ") || has(" lanes 0x")), "%s: place missing: %s",
        fault.kernel, report.c_str());
}

void fails(const Fault& fault, int* data) {
  fault.faulty<<<1, kThreads>>>(data);
  CHECK(cudaDeviceSynchronize() != cudaSuccess, "%s was not reported", fault.kernel);
  expect_report(fault);
  cudaDeviceReset();
  cudaGetLastError();
}

int main() {
  int* data = allocate<int>(4 * kThreads);
  std::memset(data, 0, 4 * kThreads * sizeof(int));
  data[0] = 3 * kThreads;
  for (const Fault& fault : kFaults) {
    fails(fault, data);
    data[0] = 3 * kThreads;
    RUN(fault.sound<<<1, kThreads>>>(data));
    data[0] = 3 * kThreads;
  }
  int* freed = allocate<int>(kThreads);
  cudaFree(freed);
  fails({"read_after_free", "out of bounds", "ld.global", read_after_free<true>, nullptr}, freed);
  return finish("faults");
}
