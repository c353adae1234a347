// atom and red on global and shared memory; the order of threads must not matter.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "check.h"

struct Sums {
  unsigned add, max, min, inc, dec, bits_and, bits_or, bits_xor, exchanged;
  int low, high;
  unsigned long long wide, swapped;
  float single;
  double twice;
  __half2 half_pair;
  __nv_bfloat162 bf16_pair;
  unsigned shared_add, old_sum;
};

__global__ void atomics(Sums* s) {
  __shared__ unsigned local;
  if (threadIdx.x == 0) local = 0;
  __syncthreads();
  const int t = threadIdx.x;
  atomicAdd(&s->old_sum, atomicAdd(&s->add, 1));  // every old value comes once
  atomicMax(&s->max, t);
  atomicMin(&s->min, t + 3);
  atomicInc(&s->inc, 9);
  atomicDec(&s->dec, 9);
  atomicAnd(&s->bits_and, ~(1u << t % 16));
  atomicOr(&s->bits_or, 1u << t % 32);
  atomicXor(&s->bits_xor, 1u << t % 32);
  atomicExch(&s->exchanged, 77);
  atomicMin(&s->low, -t);
  atomicMax(&s->high, t - 200);
  atomicAdd(&s->wide, 1ull << 33);
  atomicAdd(&s->single, 0.5f);
  atomicAdd(&s->twice, 0.25);
  atomicAdd(&s->half_pair, __floats2half2_rn(1, 2));
  if (t % 4 == 0) atomicAdd(&s->bf16_pair, __floats2bfloat162_rn(1, 2));  // few: sums stay exact
  unsigned long long old = s->swapped, seen;
  do {
    seen = old;
    old = atomicCAS(&s->swapped, seen, seen + 3);
  } while (old != seen);
  atomicAdd(&local, t);
  __syncthreads();
  if (t == 0) atomicAdd(&s->shared_add, local);
}

int main() {
  Sums* s = allocate<Sums>(1);
  *s = {};
  s->min = 1000, s->bits_and = ~0u, s->high = -1000;
  RUN(atomics<<<4, 128>>>(s));
  const unsigned n = 512;
  CHECK(s->add == n && s->old_sum == n * (n - 1) / 2, "add %u %u", s->add, s->old_sum);
  CHECK(s->max == 127 && s->min == 3, "max %u min %u", s->max, s->min);
  CHECK(s->inc == n % 10 && s->dec == (10 - n % 10) % 10, "inc %u dec %u", s->inc, s->dec);
  CHECK(s->bits_and == 0xffff0000u && s->bits_or == ~0u && s->bits_xor == 0, "bits %08x %08x %08x",
        s->bits_and, s->bits_or, s->bits_xor);
  CHECK(s->exchanged == 77 && s->low == -127 && s->high == -73, "exchange %u low %d high %d",
        s->exchanged, s->low, s->high);
  CHECK(s->wide == uint64_t{n} << 33 && s->swapped == 3 * n, "wide %llu cas %llu", s->wide,
        s->swapped);
  CHECK(s->single == n / 2 && s->twice == n / 4, "float %g double %g", s->single, s->twice);
  CHECK(__low2float(s->half_pair) == n && __high2float(s->half_pair) == 2 * n, "half");
  CHECK(__low2float(s->bf16_pair) == n / 4 && __high2float(s->bf16_pair) == n / 2, "bf16");
  CHECK(s->shared_add == 4 * 127 * 64, "shared %u", s->shared_add);
  return finish("atomics");
}
