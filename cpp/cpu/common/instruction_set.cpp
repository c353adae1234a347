#include "cpu/common/instruction_set.h"

#include <cstdlib>
#include <cstring>

namespace tileattn::cpu {

namespace {

constexpr InstructionSet kNewestFirst[] = {InstructionSet::kAvx512Bf16, InstructionSet::kAvx512,
                                           InstructionSet::kAvx2};

InstructionSet choose() {
  const char* newest = std::getenv("TILEATTN_INSTRUCTION_SET");
  bool allowed = newest == nullptr;
  for (InstructionSet set : kNewestFirst) {
    allowed = allowed || std::strcmp(newest, name_of(set)) == 0;
    if (allowed && machine_has(set)) return set;
  }
  return InstructionSet::kPortable;
}

}  // namespace

const char* name_of(InstructionSet set) {
  switch (set) {
    case InstructionSet::kAvx512Bf16: return "avx512_bf16";
    case InstructionSet::kAvx512: return "avx512";
    case InstructionSet::kAvx2: return "avx2";
    default: return "portable";
  }
}

bool machine_has(InstructionSet set) {
#if defined(TILEATTN_X86_VARIANTS)
  switch (set) {
    case InstructionSet::kAvx512Bf16:
      return machine_has(InstructionSet::kAvx512) && __builtin_cpu_supports("avx512bf16");
    case InstructionSet::kAvx512:
      return machine_has(InstructionSet::kAvx2) && __builtin_cpu_supports("avx512f") &&
             __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
             __builtin_cpu_supports("avx512vl");
    case InstructionSet::kAvx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    default: break;
  }
#endif
  return set == InstructionSet::kPortable;
}

InstructionSet instruction_set_in_use() {
  static const InstructionSet chosen = choose();
  return chosen;
}

}  // namespace tileattn::cpu
