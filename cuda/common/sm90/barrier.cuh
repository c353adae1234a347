// Synchronisation of the Hopper kernels: barriers in shared memory that count
// threads and bytes (mbarrier), and named barriers.
//
// Every instruction here is a barrier for the compiler, too ("memory").
#pragma once

#include <cute/arch/util.hpp>
#include <cute/config.hpp>

#include <cstdint>

namespace tileattn::cuda {

/// An mbarrier: its phase ends when all arrivals and all announced bytes are in.
class Barrier {
 public:
  CUTE_DEVICE void init(int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(address()), "r"(arrivals)
                 : "memory");
  }
  CUTE_DEVICE void arrive() {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(address()) : "memory");
  }
  /// Arrives, and announces bytes that the copy engine will bring.
  CUTE_DEVICE void arrive_expecting(int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(address()),
                 "r"(bytes)
                 : "memory");
  }
  /// Waits for the end of a phase, the first of which is 0, the next 1, then 0 again.
  /// Waiting for phase 1 of a fresh barrier returns at once.
  CUTE_DEVICE void wait(unsigned phase) {
    while (!passed(phase)) {
    }
  }

  CUTE_DEVICE std::uint64_t* word() { return &word_; }

 private:
  CUTE_DEVICE unsigned address() { return cute::cast_smem_ptr_to_uint(&word_); }
  CUTE_DEVICE bool passed(unsigned phase) {
    unsigned result;
    asm volatile(
        "{\n"
        ".reg .pred passed;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 passed, [%1], %2;\n"
        "selp.u32 %0, 1, 0, passed;\n"
        "}"
        : "=r"(result)
        : "r"(address()), "r"(phase)
        : "memory");
    return result != 0;
  }

  std::uint64_t word_;
};

/// Makes freshly initialised barriers known to the copy engine.
CUTE_DEVICE void fence_barrier_init() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

/// Orders this thread's accesses to shared memory before those of the copy engine and the
/// matrix units that it starts, or tells of, later.
CUTE_DEVICE void fence_async_shared() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

/// Named barriers 1..15; 0 is __syncthreads'.
CUTE_DEVICE void named_barrier_sync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
CUTE_DEVICE void named_barrier_arrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

}  // namespace tileattn::cuda
