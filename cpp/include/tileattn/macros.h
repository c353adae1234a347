// Marks functions that both the host compilers and nvcc compile.
#pragma once

#if defined(__CUDACC__)
#define TILEATTN_HOST_DEVICE __host__ __device__ __forceinline__
#else
// Always inlined: the CPU kernels compile the same functions for several instruction sets,
// and no copy may be shared among them.
#define TILEATTN_HOST_DEVICE inline __attribute__((always_inline))
#endif

// Exported from the torch-free kernel libraries.
#define TILEATTN_API __attribute__((visibility("default")))
