// tileattn._native: what Python asks of the C++ side outside torch.
//
// Kernels on DLPack arrays (NumPy, CuPy, JAX) will be bound here too.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>

#include <memory>
#include <stdexcept>
#include <string>

#include "planner.h"
#include "tile_covers.h"
#include "tileattn/attention.h"
#include "tileattn/pattern/catalogue.h"

namespace nb = nanobind;

namespace tileattn {
namespace {

using CoverArray = nb::ndarray<nb::numpy, std::uint8_t, nb::ndim<2>>;

CoverArray tile_covers_array(int len_q, int len_k, int tile_q, int tile_k, int left, int right,
                             int sink_tokens, bool causal) {
  auto covers = std::make_unique<CoverGrid>(
      tile_covers({left, right, sink_tokens, causal}, len_q, len_k, {tile_q, tile_k}));
  const std::size_t shape[2] = {covers->rows, covers->columns};
  std::uint8_t* data = covers->values.data();
  nb::capsule owner(covers.get(),
                    [](void* grid) noexcept { delete static_cast<CoverGrid*>(grid); });
  covers.release();
  return CoverArray(data, 2, shape, owner);
}

std::string pattern_name(int left, int right, int sink_tokens, bool causal) {
  return kPatternNames[static_cast<int>(kind_of({left, right, sink_tokens, causal}))];
}

/// One dict per row of the kernel table; none without CUDA kernels.
nb::list cuda_kernels() {
  nb::list rows;
#ifdef TILEATTN_HAS_CUDA
  for (const cuda::BuiltKernels& built : cuda::built_kernels()) {
    nb::dict row;
    row["op"] = built.op;
    row["dtype"] = name_of(built.dtype);
    row["dim"] = built.dim;
    row["capability"] = built.capability;
    row["shared_limit"] = built.shared_limit;
    row["shared_bytes"] = built.shared_bytes;
    rows.append(row);
  }
#endif
  return rows;
}

}  // namespace

NB_MODULE(_native, module) {
  module.doc() = "The torch-free part of tileattn's C++ side.";
  module.attr("EMPTY") = static_cast<int>(Cover::kEmpty);
  module.attr("PARTIAL") = static_cast<int>(Cover::kPartial);
  module.attr("FULL") = static_cast<int>(Cover::kFull);

  module.def("instruction_set", &cpu::instruction_set,
             "The CPU kernels that run on this machine: 'avx512', 'avx2' or 'portable'.");
  module.def(
      "cuda_kernels", &cuda_kernels,
      "The CUDA kernels in this installation, as dicts: op, dtype, dim (the largest head dim),\n"
      "capability (of the device: 80 or more, or 90 exactly), shared_limit (bytes of shared\n"
      "memory a block of the device must be able to have) and shared_bytes (what a block takes).\n"
      "Empty without CUDA kernels.");
  module.def("tile_covers", &tile_covers_array, nb::arg("len_q"), nb::arg("len_k"),
             nb::arg("tile_q"), nb::arg("tile_k"), nb::kw_only(), nb::arg("left") = -1,
             nb::arg("right") = -1, nb::arg("sink_tokens") = 0, nb::arg("causal") = false,
             "uint8 [query tiles, key tiles]: EMPTY, PARTIAL or FULL, as the kernels' own pattern\n"
             "says; a tile that is never visited is EMPTY. left and right: -1 for unlimited.\n"
             "Raises ValueError for lengths below 0, tiles below 1 or more than 2**26 tiles.");
  module.def("pattern_name", &pattern_name, nb::kw_only(), nb::arg("left") = -1,
             nb::arg("right") = -1, nb::arg("sink_tokens") = 0, nb::arg("causal") = false,
             "The C++ pattern that the kernels choose for these options.");
  bind_planner(module);
}

}  // namespace tileattn
