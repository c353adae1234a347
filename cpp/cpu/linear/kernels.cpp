// All CPU kernels of linear attention of one instruction set; compiled once for each, under the
// rules of cpu/softmax/kernels.cpp.
#include "cpu/linear/forward.h"
#include "cpu/linear/step.h"
#include "cpu/linear/taylor2_backward.h"

namespace tileattn::cpu::TILEATTN_ISA {

extern const LinearVariant kLinearVariant;
const LinearVariant kLinearVariant = {
    {
        {accumulate, accumulate_gradient, forward, backward_queries, backward_keys<KeySweep>, step},
        {accumulate, accumulate_gradient, forward, taylor2_backward_queries,
         backward_keys<Taylor2KeySweep>, nullptr},
    },
};

}  // namespace tileattn::cpu::TILEATTN_ISA
