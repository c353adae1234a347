// All CPU kernels of linear attention of one instruction set; compiled once for each, under the
// rules of cpu/kernels.cpp.
#include "cpu/linear/backward.h"
#include "cpu/linear/forward.h"
#include "cpu/linear/step.h"

namespace tileattn::cpu::TILEATTN_ISA {

extern const LinearKernels kLinearKernels;
const LinearKernels kLinearKernels = {
    TILEATTN_STRING(TILEATTN_ISA),
    accumulate,
    accumulate_gradient,
    forward,
    backward_queries,
    backward_keys,
    step,
};

}  // namespace tileattn::cpu::TILEATTN_ISA
