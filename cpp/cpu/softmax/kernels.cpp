// All CPU kernels of one instruction set. This file is compiled once for each, with
// TILEATTN_ISA as the namespace and the flags that go with it. So that no code of a
// newer instruction set reaches an older machine, nothing here or in the headers it
// is made of may instantiate inline code shared with other files (the linker would
// keep any one copy): everything lives in the namespace TILEATTN_ISA or is forced inline.
#include "cpu/softmax/backward.h"
#include "cpu/softmax/decode.h"
#include "cpu/softmax/forward.h"
#if defined(__AVX512BF16__)
#include "cpu/softmax/operands_bf16.h"
#endif
#include "cpu/softmax/grid_tiles.h"
#include "cpu/softmax/sequence_tiles.h"

namespace tileattn::cpu::TILEATTN_ISA {

#if defined(__AVX512BF16__)
using Operands = BFloat16Operands;  // for tensors in bfloat16 alone
#else
using Operands = Float32Operands;
#endif

/// Grids are never decoded.
template <class Tiles>
constexpr auto few_of() -> decltype(PatternKernels::forward_few) {
  if constexpr (Tiles::kOnAGrid) return nullptr;
  else return forward_few<Tiles>;
}

template <class Tiles>
constexpr PatternKernels kKernels = {pack_panel<Operands, typename Tiles::Tokens>,
                                     forward<Operands, Tiles>,
                                     forward_head<Operands, Tiles>,
                                     few_of<Tiles>(),
                                     prepare_queries<typename Tiles::Tokens>,
                                     backward<Operands, Tiles>,
                                     Tiles::kOnAGrid ? backward_extra<Operands, Tiles> : nullptr,
                                     store_dq<typename Tiles::Tokens>,
                                     backward_head<Operands, Tiles>};

template <class... Patterns>
constexpr Variant variant_of(PatternList<Patterns...>) {
  return {{kKernels<SequenceTiles<Patterns>>...}, kKernels<GridTiles>};
}

extern const Variant kVariant;
const Variant kVariant = variant_of(SequencePatterns{});

}  // namespace tileattn::cpu::TILEATTN_ISA
