// CUDA runtime API: memory. Device pointers are host pointers, so that copies are host copies.
#include <cstring>

#include "memory.h"
#include "ptxsim.h"
#include "runtime.h"

using namespace ptxsim;

extern "C" {

cudaError_t cudaMalloc(void** p, size_t bytes) {
  *p = bytes ? global_memory().allocate(bytes) : nullptr;
  return *p || !bytes ? cudaSuccess : result(cudaErrorMemoryAllocation);
}
cudaError_t cudaMallocAsync(void** p, size_t bytes, cudaStream_t) { return cudaMalloc(p, bytes); }
cudaError_t cudaMallocManaged(void** p, size_t bytes, unsigned) { return cudaMalloc(p, bytes); }
cudaError_t cudaMallocHost(void** p, size_t bytes) { return cudaMalloc(p, bytes); }
cudaError_t cudaHostAlloc(void** p, size_t bytes, unsigned) { return cudaMalloc(p, bytes); }
cudaError_t cudaFree(void* p) {
  return !p || global_memory().release(p) ? cudaSuccess : result(cudaErrorInvalidValue);
}
cudaError_t cudaFreeAsync(void* p, cudaStream_t) { return cudaFree(p); }
cudaError_t cudaFreeHost(void* p) { return cudaFree(p); }
cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) {
  std::memmove(to, from, bytes);
  return runtime().sticky;
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t) {
  return cudaMemcpy(to, from, bytes, kind);
}
cudaError_t cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch,
                              size_t width, size_t height, cudaMemcpyKind, cudaStream_t) {
  for (size_t i = 0; i < height; ++i)
    std::memmove(static_cast<char*>(to) + i * to_pitch,
                 static_cast<const char*>(from) + i * from_pitch, width);
  return runtime().sticky;
}
cudaError_t cudaMemset(void* p, int value, size_t bytes) {
  std::memset(p, value, bytes);
  return runtime().sticky;
}
cudaError_t cudaMemsetAsync(void* p, int value, size_t bytes, cudaStream_t) {
  return cudaMemset(p, value, bytes);
}
cudaError_t cudaMemcpyToSymbol(const void* symbol, const void* from, size_t bytes, size_t offset,
                               cudaMemcpyKind) {
  uint8_t* p = variable_address(symbol);
  if (!p) return result(cudaErrorInvalidSymbol);
  std::memcpy(p + offset, from, bytes);
  return cudaSuccess;
}
cudaError_t cudaMemcpyToSymbolAsync(const void* symbol, const void* from, size_t bytes,
                                    size_t offset, cudaMemcpyKind kind, cudaStream_t) {
  return cudaMemcpyToSymbol(symbol, from, bytes, offset, kind);
}
cudaError_t cudaMemcpyFromSymbol(void* to, const void* symbol, size_t bytes, size_t offset,
                                 cudaMemcpyKind) {
  uint8_t* p = variable_address(symbol);
  if (!p) return result(cudaErrorInvalidSymbol);
  std::memcpy(to, p + offset, bytes);
  return cudaSuccess;
}
cudaError_t cudaGetSymbolAddress(void** p, const void* symbol) {
  *p = variable_address(symbol);
  return *p ? cudaSuccess : result(cudaErrorInvalidSymbol);
}
cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  *total = size_t{80} << 30;
  *free = *total - global_memory().live_bytes();
  return cudaSuccess;
}
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* a, const void* p) {
  std::memset(a, 0, sizeof *a);
  a->type = cudaMemoryTypeDevice;
  a->devicePointer = a->hostPointer = const_cast<void*>(p);
  return cudaSuccess;
}

// --- the simulator's own interface

void ptxsim_register_range(void* p, size_t bytes) { global_memory().register_range(p, bytes); }
void ptxsim_unregister_range(void* p) { global_memory().unregister_range(p); }

}  // extern "C"
