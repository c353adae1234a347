// The instruction sets that kernels are compiled for.
#pragma once

namespace tileattn::cpu {

/// From old to new; each machine that has one has those before it.
enum class InstructionSet { kPortable, kAvx2, kAvx512, kAvx512Bf16 };

/// The name of the namespace of its kernels, and of TILEATTN_INSTRUCTION_SET.
const char* name_of(InstructionSet set);

/// Whether this machine has it.
bool machine_has(InstructionSet set);

/// The newest that this machine has and the environment's TILEATTN_INSTRUCTION_SET, which is for
/// tests and comparisons, allows.
InstructionSet instruction_set_in_use();

}  // namespace tileattn::cpu
