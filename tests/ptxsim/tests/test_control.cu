// Control flow: divergence, indexed branches, calls, local memory, CTA barriers.
#include "check.h"

// Lanes leave a loop at different times and meet again.
__global__ void diverge(int* out) {
  int lane = threadIdx.x, steps = 0;
  for (unsigned n = lane + 1; n != 1; n = n % 2 ? 3 * n + 1 : n / 2) ++steps;
  __syncwarp();
  out[lane] = steps + 1000 * __shfl_sync(~0u, steps, 26);
  switch (lane % 5) {  // an indexed branch
    case 0: out[lane] += 1; break;
    case 1: out[lane] += 20000000; break;
    case 2: out[lane] -= 3; break;
    case 3: out[lane] *= 2; break;
    default: out[lane] ^= 5;
  }
}

// Half of the lanes leave; the others still exchange values and meet at barriers.
__global__ void early_exit(int* out) {
  __shared__ int count;
  if (threadIdx.x == 0) count = 0;
  __syncthreads();
  if (threadIdx.x % 2) return;
  atomicAdd(&count, 1);
  __syncthreads();
  out[threadIdx.x] = count + __shfl_xor_sync(0x55555555u, int(threadIdx.x), 2);
}

__noinline__ __device__ int gcd(int a, int b) { return b == 0 ? a : gcd(b, a % b); }

__global__ void calls(int* out) {
  int table[16];
  for (int i = 0; i < 16; ++i) table[i] = gcd(12 * (i + 1), 18 + int(threadIdx.x));
  out[threadIdx.x] = table[(threadIdx.x * 7) % 16];  // dynamic index: local memory
}

// Producer and consumer warps joined by named barriers; order depends on the seed.
__global__ void named(int* out) {
  __shared__ int slot;
  for (int i = 0; i < 20; ++i) {
    if (threadIdx.x < 32) {
      if (threadIdx.x == 0) slot = i * i;
      asm volatile("bar.arrive 1, 64;" ::: "memory");
      asm volatile("bar.sync 2, 64;" ::: "memory");
    } else {
      asm volatile("bar.sync 1, 64;" ::: "memory");
      if (threadIdx.x == 32) out[i] = slot;
      asm volatile("bar.arrive 2, 64;" ::: "memory");
    }
  }
}

__global__ void reducing(int* out) {
  out[threadIdx.x] = __syncthreads_count(threadIdx.x % 3 == 0) +
                     1000 * __syncthreads_and(threadIdx.x < 64) +
                     2000 * __syncthreads_or(threadIdx.x == 63);
}

// Blocks and threads in three dimensions.
__global__ void indices(int* out) {
  int block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  int thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  out[block * blockDim.x * blockDim.y * blockDim.z + thread] =
      blockIdx.x + 10 * blockIdx.y + 100 * blockIdx.z + 1000 * threadIdx.x + 10000 * threadIdx.y +
      100000 * threadIdx.z;
}

int collatz(unsigned n) {
  int steps = 0;
  for (; n != 1; n = n % 2 ? 3 * n + 1 : n / 2) ++steps;
  return steps;
}
int host_gcd(int a, int b) { return b == 0 ? a : host_gcd(b, a % b); }

int main() {
  int* out = allocate<int>(2 * 3 * 2 * 5 * 3 * 2);
  RUN(diverge<<<1, 32>>>(out));
  for (int i = 0; i < 32; ++i) {
    const int w = collatz(i + 1) + 1000 * collatz(27);
    const int want[] = {w + 1, w + 20000000, w - 3, w * 2, w ^ 5};
    CHECK(out[i] == want[i % 5], "diverge lane %d got %d want %d", i, out[i], want[i % 5]);
  }
  RUN(early_exit<<<1, 64>>>(out));
  for (int i = 0; i < 64; i += 2) CHECK(out[i] == 32 + (i ^ 2), "early exit %d: %d", i, out[i]);
  RUN(calls<<<1, 64>>>(out));
  for (int i = 0; i < 64; ++i) {
    const int want = host_gcd(12 * (i * 7 % 16 + 1), 18 + i);
    CHECK(out[i] == want, "gcd %d got %d want %d", i, out[i], want);
  }
  RUN(named<<<1, 64>>>(out));
  for (int i = 0; i < 20; ++i) CHECK(out[i] == i * i, "named barrier %d: %d", i, out[i]);
  RUN(reducing<<<1, 64>>>(out));
  for (int i = 0; i < 64; ++i) CHECK(out[i] == 22 + 1000 + 2000, "reducing %d: %d", i, out[i]);
  RUN(indices<<<dim3(2, 3, 2), dim3(5, 3, 2)>>>(out));
  for (int i = 0; i < 360; ++i) {
    const int b = i / 30, t = i % 30;
    const int want = b % 2 + 10 * (b / 2 % 3) + 100 * (b / 6) + 1000 * (t % 5) +
                     10000 * (t / 5 % 3) + 100000 * (t / 15);
    CHECK(out[i] == want, "index %d got %d want %d", i, out[i], want);
  }
  return finish("control");
}
