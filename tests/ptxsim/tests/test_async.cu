// cp.async of every size and mbarriers: phases, counts, transactions, states.
#include "check.h"
#include "device.h"

constexpr int kThreads = 32;

#define COPY(cache, bytes, source_bytes)                              \
  asm volatile("cp.async." cache ".shared.global [%0], [%1], " #bytes \
               ", %2;" ::"r"(shared_address(to)),                     \
               "l"(from), "r"(source_bytes)                           \
               : "memory")

// Four groups of copies, the last of which is waited for separately; bytes beyond the source size
// are zero.
template <int Words>
__global__ void copies(const int* in, int* out) {
  constexpr int row = kThreads * Words;
  __shared__ __align__(16) int tile[4 * row];
  for (int s = 0; s < 4; ++s) {
    int* to = &tile[s * row + threadIdx.x * Words];
    const int* from = in + s * row + threadIdx.x * Words;
    const int source_bytes = s == 3 ? 4 * (threadIdx.x % (Words + 1)) : 4 * Words;
    if (Words == 1) COPY("ca", 4, source_bytes);
    if (Words == 2) COPY("ca", 8, source_bytes);
    if (Words == 4) COPY("cg", 16, source_bytes);
    asm volatile("cp.async.commit_group;" ::: "memory");
  }
  asm volatile("cp.async.wait_group 1;" ::: "memory");
  __syncwarp();
  for (int i = threadIdx.x; i < 3 * row; i += kThreads) out[i] = tile[i];
  asm volatile("cp.async.wait_all;" ::: "memory");
  __syncwarp();
  for (int i = threadIdx.x; i < row; i += kThreads) out[3 * row + i] = tile[3 * row + i];
}

template <int Words>
void test_copies() {
  constexpr int row = kThreads * Words;
  int *in = allocate<int>(4 * row), *out = allocate<int>(4 * row);
  for (int i = 0; i < 4 * row; ++i) in[i] = int(random_bits());
  RUN(copies<Words><<<1, kThreads>>>(in, out));
  for (int i = 0; i < 4 * row; ++i) {
    const int thread = i % row / Words;
    const bool zero = i >= 3 * row && i % Words >= thread % (Words + 1);
    CHECK(out[i] == (zero ? 0 : in[i]), "cp.async of %d words, %d: %d", Words, i, out[i]);
  }
}

// One warp copies, the other waits for the copies' own arrival at an mbarrier.
__global__ void copies_arrive(const int* in, int* out) {
  __shared__ __align__(16) int tile[4 * kThreads];
  __shared__ uint64_t full;
  if (threadIdx.x == 0) init_barrier(&full, kThreads);
  __syncthreads();
  if (threadIdx.x < kThreads) {
    copy_async(&tile[4 * threadIdx.x], in + 4 * threadIdx.x);
    asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(shared_address(&full))
                 : "memory");
  } else {
    wait_barrier(&full, 0);
    for (int i = threadIdx.x - kThreads; i < 4 * kThreads; i += kThreads) out[i] = tile[i];
  }
}

// A ring of two stages between a producing and a consuming warp.
__global__ void ring(int* out) {
  __shared__ int stage[2][kThreads];
  __shared__ uint64_t full[2], empty[2];
  if (threadIdx.x == 0)
    for (int s = 0; s < 2; ++s) init_barrier(&full[s], kThreads), init_barrier(&empty[s], kThreads);
  __syncthreads();
  const int lane = threadIdx.x % kThreads;
  for (int i = 0; i < 9; ++i) {
    const int s = i % 2, turn = i / 2;
    if (threadIdx.x < kThreads) {
      if (turn > 0) wait_barrier(&empty[s], (turn - 1) & 1);
      stage[s][lane] = i * 100 + lane;
      arrive(&full[s]);
    } else {
      wait_barrier(&full[s], turn & 1);
      out[i * kThreads + lane] = stage[s][kThreads - 1 - lane];
      arrive(&empty[s]);
    }
  }
}

// What a single thread sees of a barrier's states.
__global__ void states(unsigned* out) {
  __shared__ uint64_t b;
  const uint32_t p = shared_address(&b);
  uint64_t state;
  unsigned done, pending;
  auto test = [&](uint64_t s) {
    asm volatile(
        "{ .reg .pred q;\n"
        "mbarrier.test_wait.shared::cta.b64 q, [%1], %2;\n"
        "selp.u32 %0, 1, 0, q; }"
        : "=r"(done)
        : "r"(p), "l"(s)
        : "memory");
    return done;
  };
  init_barrier(&b, 3);
  asm volatile("mbarrier.arrive.shared::cta.b64 %0, [%1];" : "=l"(state) : "r"(p) : "memory");
  asm volatile("mbarrier.pending_count.b64 %0, %1;" : "=r"(pending) : "l"(state));
  out[0] = pending;
  out[1] = test(state);
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0], 2;" ::"r"(p) : "memory");
  out[2] = test(state);
  // The next phase: 16 bytes are awaited, and one participant leaves for good.
  asm volatile("mbarrier.arrive_drop.shared::cta.b64 %0, [%1];" : "=l"(state) : "r"(p) : "memory");
  asm volatile("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], 16;" ::"r"(p) : "memory");
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0], 2;" ::"r"(p) : "memory");
  out[3] = test(state);
  asm volatile("mbarrier.complete_tx.relaxed.cta.shared::cta.b64 [%0], 16;" ::"r"(p) : "memory");
  out[4] = test(state);
  // Now two arrivals make a phase.
  asm volatile("mbarrier.arrive.shared::cta.b64 %0, [%1], 2;" : "=l"(state) : "r"(p) : "memory");
  out[5] = test(state);
  asm volatile("mbarrier.inval.shared::cta.b64 [%0];" ::"r"(p) : "memory");
}

int main() {
  test_copies<1>();
  test_copies<2>();
  test_copies<4>();
  int *in = allocate<int>(4 * kThreads), *out = allocate<int>(9 * kThreads);
  for (int i = 0; i < 4 * kThreads; ++i) in[i] = int(random_bits());
  RUN(copies_arrive<<<1, 2 * kThreads>>>(in, out));
  for (int i = 0; i < 4 * kThreads; ++i) CHECK(out[i] == in[i], "arriving copy %d", i);
  RUN(ring<<<1, 2 * kThreads>>>(out));
  for (int i = 0; i < 9 * kThreads; ++i) {
    const int want = i / kThreads * 100 + kThreads - 1 - i % kThreads;
    CHECK(out[i] == want, "ring %d got %d want %d", i, out[i], want);
  }
  unsigned* seen = allocate<unsigned>(6);
  RUN(states<<<1, 1>>>(seen));
  const unsigned want[] = {3, 0, 1, 0, 1, 1};
  for (int i = 0; i < 6; ++i) CHECK(seen[i] == want[i], "state %d: %u", i, seen[i]);
  return finish("async");
}
