// Which boxes the CPU kernels cut a grid into.
#pragma once

#include "cpu/plan.h"

namespace tileattn::cpu {

/// The cut that is expected to cost least; the same for equal specs.
GridCut choose_cut(const NeighborhoodSpec& spec);

}  // namespace tileattn::cpu
