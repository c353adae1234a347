// All CPU kernels of one instruction set. This file is compiled once for each, with
// TILEATTN_ISA as the namespace and the flags that go with it. So that no code of a
// newer instruction set reaches an older machine, nothing here or in the headers it
// is made of may instantiate inline code shared with other files (the linker would
// keep any one copy): everything lives in the namespace TILEATTN_ISA or is forced inline.
#include "cpu/backward.h"
#include "cpu/forward.h"
#include "tileattn/pattern/dispatch.h"

namespace tileattn::cpu::TILEATTN_ISA {

extern const Variant kVariant;
const Variant kVariant = {
    TILEATTN_STRING(TILEATTN_ISA),
    pack_panel,
    {forward<Dense>, forward<Causal>, forward<SlidingWindow>},
    prepare_queries,
    {backward<Dense>, backward<Causal>, backward<SlidingWindow>},
    store_dq,
};

}  // namespace tileattn::cpu::TILEATTN_ISA
