// Which kernels run.
#include <gtest/gtest.h>

#include <cstdlib>
#include <string>

#include "cpu/common/instruction_set.h"
#include "tileattn/attention.h"

namespace tileattn::cpu {
namespace {

constexpr InstructionSet kAll[] = {InstructionSet::kPortable, InstructionSet::kAvx2,
                                   InstructionSet::kAvx512, InstructionSet::kAvx512Bf16};

TEST(InstructionSet, IsTheNewestOrTheOneAskedFor) {
  const char* asked = std::getenv("TILEATTN_INSTRUCTION_SET");
  InstructionSet newest = InstructionSet::kPortable;
  for (InstructionSet set : kAll)
    if (machine_has(set)) newest = set;
  const std::string used = instruction_set();
  if (!asked) {
    EXPECT_EQ(used, name_of(newest));
    return;
  }
  for (InstructionSet set : kAll)
    if (!machine_has(set) && std::string(asked) == name_of(set)) {
      EXPECT_EQ(used, name_of(newest));
      GTEST_SKIP() << "this machine lacks " << asked;
    }
  EXPECT_EQ(used, asked);
}

TEST(InstructionSet, MachinesHaveThoseBefore) {
  for (InstructionSet set : kAll)
    for (InstructionSet older : kAll)
      if (older < set && machine_has(set)) EXPECT_TRUE(machine_has(older)) << name_of(set);
}

}  // namespace
}  // namespace tileattn::cpu
