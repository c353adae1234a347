// All CPU kernels of one instruction set. This file is compiled once for each, with
// TILEATTN_ISA as the namespace and the flags that go with it. So that no code of a
// newer instruction set reaches an older machine, nothing here or in the headers it
// is made of may instantiate inline code shared with other files (the linker would
// keep any one copy): everything lives in the namespace TILEATTN_ISA or is forced inline.
#include "cpu/backward.h"
#include "cpu/forward.h"
#include "cpu/tiles_in_a_row.h"
#include "cpu/tiles_of_grid.h"
#include "tileattn/pattern/dispatch.h"

namespace tileattn::cpu::TILEATTN_ISA {

template <class Tiles>
constexpr PatternKernels kKernels = {
    pack_panel<Tiles>, forward<Tiles>, forward_head<Tiles>, prepare_queries<Tiles>,
    backward<Tiles>,   nullptr,        store_dq<Tiles>,     backward_head<Tiles>};

template <>
constexpr PatternKernels kKernels<TilesOfGrid> = {
    pack_panel<TilesOfGrid>,      forward<TilesOfGrid>,      forward_head<TilesOfGrid>,
    prepare_queries<TilesOfGrid>, backward<TilesOfGrid>,     backward_extra<TilesOfGrid>,
    store_dq<TilesOfGrid>,        backward_head<TilesOfGrid>};

extern const Variant kVariant;
const Variant kVariant = {
    TILEATTN_STRING(TILEATTN_ISA),
    {kKernels<TilesInARow<Dense>>, kKernels<TilesInARow<Causal>>,
     kKernels<TilesInARow<SlidingWindow>>},
    kKernels<TilesOfGrid>,
};

}  // namespace tileattn::cpu::TILEATTN_ISA
