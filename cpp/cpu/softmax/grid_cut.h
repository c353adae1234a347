// Which parts and boxes the CPU kernels cut a grid into.
#pragma once

#include <vector>

#include "cpu/softmax/plan.h"

namespace tileattn::cpu {

/// The dilation groups, cut where no window reaches across into parts that are grids of their
/// own: of a block-sparse pattern, its blocks. Small ones stay together.
std::vector<DilationGroup<3>> parts_of(const NeighborhoodSpec& spec);

/// The cut of each part that is expected to cost least; the same for equal specs.
GridCut choose_cut(const NeighborhoodSpec& spec);

}  // namespace tileattn::cpu
