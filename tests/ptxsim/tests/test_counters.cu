// Counters with known values.
#include <string>

#include "../include/ptxsim.h"
#include "check.h"

// Global: 4 sectors read, 32 written (a stride of 32 bytes). Shared: all lanes on one bank (31
// extra wavefronts), no conflict, rows of 16 bytes of which every second starts on the same bank.
__global__ void counted(const float* in, float* out) {
  __shared__ __align__(16) volatile float s[32 * 32];
  s[threadIdx.x * 32] = in[threadIdx.x];
  s[threadIdx.x + 1] = 1;
  __syncwarp();
  const uint32_t row = uint32_t(__cvta_generic_to_shared((float*)s + threadIdx.x * 16));
  asm volatile("st.shared.v4.u32 [%0], {1, 1, 1, 1};" ::"r"(row) : "memory");
  out[threadIdx.x * 8] = 2;
}

// Four matrices whose rows all start on one bank: 7 extra wavefronts each.
__global__ void loaded(uint32_t* out) {
  __shared__ __align__(128) uint32_t s[32 * 32];
  uint32_t r[4];
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(uint32_t(__cvta_generic_to_shared(s + threadIdx.x * 32))));
  out[threadIdx.x] = r[0] + r[1] + r[2] + r[3];
}

__global__ void multiplied() {
  float d[4] = {};
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {1,1,1,1}, {1,1}, "
      "{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]));
}

int main() {
  setenv("PTXSIM_STATS", "collect", 1);
  ptxsim_reload_options();

  float *in = allocate<float>(32), *out = allocate<float>(256);
  RUN(multiplied<<<1, 32>>>());
  ptxsim_reset_stats();
  for (int i = 0; i < 2; ++i) RUN(counted<<<1, 32>>>(in, out));
  RUN(multiplied<<<3, 64>>>());
  const std::string text = ptxsim_stats_json();
  auto expect = [&](const std::string& part) {
    CHECK(text.find(part) != std::string::npos, "no %s in %s", part.c_str(), text.c_str());
  };
  expect("{\"kernel\":\"counted(float const*, float*)\",\"launches\":2,");
  expect("\"global_read_bytes\":256,\"global_write_bytes\":256,");
  expect("\"global_read_sectors\":8,\"global_write_sectors\":64,");
  expect("\"shared_accesses\":6,\"bank_conflict_wavefronts\":86,");  // 2 * (31 + 0 + 4 * 3)
  expect("{\"kernel\":\"multiplied()\",\"launches\":1,");
  expect("\"mma\":6}");
  expect("\"mma_flops\":24576,");  // 6 warps * 2 * 16 * 8 * 16
  ptxsim_reset_stats();
  setenv("PTXSIM_UNINIT", "0", 1);
  ptxsim_reload_options();
  RUN(loaded<<<1, 32>>>(reinterpret_cast<uint32_t*>(out)));
  const std::string matrices = ptxsim_stats_json();
  CHECK(matrices.find("\"bank_conflicts_at\":{\"ldmatrix") != std::string::npos &&
            matrices.find("[test_counters.cu:25]\":28}") != std::string::npos,
        "%s", matrices.c_str());
  ptxsim_reset_stats();
  CHECK(std::string(ptxsim_stats_json()) == "[]", "%s", ptxsim_stats_json());
  return finish("counters");
}
