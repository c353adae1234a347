// CUDA driver API: what compiled code asks the runtime for by name, the encoding of tensor maps.
#include <cuda.h>

#include <cstring>

#include "runtime.h"
#include "tensor_map.h"

using namespace ptxsim;

namespace {

CUresult encode_tiled(CUtensorMap* map, CUtensorMapDataType type, cuuint32_t rank, void* address,
                      const cuuint64_t* dims, const cuuint64_t* strides, const cuuint32_t* box,
                      const cuuint32_t* element_strides, CUtensorMapInterleave interleave,
                      CUtensorMapSwizzle swizzle, CUtensorMapL2promotion,
                      CUtensorMapFloatOOBfill fill) {
  static const uint8_t bytes[] = {1, 2, 4, 4, 8, 8, 2, 4, 8, 2, 4, 4, 4};
  if (rank < 1 || rank > 5 || static_cast<unsigned>(type) >= sizeof bytes ||
      interleave != CU_TENSOR_MAP_INTERLEAVE_NONE || swizzle > CU_TENSOR_MAP_SWIZZLE_128B ||
      reinterpret_cast<uint64_t>(address) % 16)
    return CUDA_ERROR_INVALID_VALUE;
  TensorMap t{};
  t.magic = TensorMap::kMagic;
  t.rank = static_cast<uint8_t>(rank);
  t.data_type = static_cast<uint8_t>(type);
  t.swizzle = static_cast<uint8_t>(swizzle);
  t.oob_fill = static_cast<uint8_t>(fill);
  t.address = reinterpret_cast<uint64_t>(address);
  t.element_bytes = bytes[type];
  for (unsigned i = 0; i < rank; ++i) {
    t.dims[i] = dims[i];
    t.box[i] = static_cast<uint16_t>(box[i]);
    t.element_strides[i] = static_cast<uint8_t>(element_strides[i]);
    if (dims[i] == 0 || dims[i] > (uint64_t{1} << 32) || box[i] == 0 || box[i] > 256 ||
        element_strides[i] == 0 || element_strides[i] > 8)
      return CUDA_ERROR_INVALID_VALUE;
    if (i + 1 < rank) {
      t.strides[i] = strides[i];
      if (strides[i] % 16 || strides[i] >= (uint64_t{1} << 40)) return CUDA_ERROR_INVALID_VALUE;
    }
  }
  const unsigned inner = box[0] * t.element_bytes;
  if (inner % 16 || (swizzle != CU_TENSOR_MAP_SWIZZLE_NONE && inner > 16u << swizzle))
    return CUDA_ERROR_INVALID_VALUE;
  std::memset(map, 0, sizeof *map);
  std::memcpy(map, &t, sizeof t);
  return CUDA_SUCCESS;
}

cudaError_t entry_point(const char* name, void** function,
                        cudaDriverEntryPointQueryResult* status) {
  bool known = std::strcmp(name, "cuTensorMapEncodeTiled") == 0;
  *function = known ? reinterpret_cast<void*>(encode_tiled) : nullptr;
  if (status) *status = known ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
  return known ? cudaSuccess : result(cudaErrorSymbolNotFound);
}

}  // namespace

extern "C" {

cudaError_t cudaGetDriverEntryPoint(const char* name, void** f, unsigned long long,
                                    cudaDriverEntryPointQueryResult* s) {
  return entry_point(name, f, s);
}
cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** f, unsigned,
                                             unsigned long long,
                                             cudaDriverEntryPointQueryResult* s) {
  return entry_point(name, f, s);
}
CUresult cuTensorMapEncodeTiled(CUtensorMap* map, CUtensorMapDataType type, cuuint32_t rank,
                                void* address, const cuuint64_t* dims, const cuuint64_t* strides,
                                const cuuint32_t* box, const cuuint32_t* element_strides,
                                CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle,
                                CUtensorMapL2promotion l2, CUtensorMapFloatOOBfill fill) {
  return encode_tiled(map, type, rank, address, dims, strides, box, element_strides, interleave,
                      swizzle, l2, fill);
}

}  // extern "C"
