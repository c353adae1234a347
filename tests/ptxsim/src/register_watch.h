// Rules for the registers of wgmma, whose products read and write them on their own time.
#pragma once
#include <cstdint>
#include <vector>

#include "inst.h"

namespace ptxsim {

class RegisterWatch {
 public:
  explicit RegisterWatch(uint32_t register_bytes) : slots_(register_bytes / kSlotBytes + 1) {}

  // Another instruction uses its operands; products up to `waited` have been waited for. Moves need
  // no fence: the compiler places those of constants where it likes.
  void touch(const Inst& in, uint64_t waited);
  void fence() { ++epoch_; }
  // A product is issued. Its registers must not have been touched since the last fence.
  void issue(const std::vector<Operand>& accumulators, const std::vector<Operand>& inputs,
             uint64_t ticket);

 private:
  static constexpr uint32_t kSlotBytes = 64;  // every register takes a multiple of it
  struct Slot {
    uint32_t touched = 0;  // epoch of the last use by another instruction
    uint64_t ticket = 0;   // of the last product that writes it
  };
  Slot& slot(Operand o) { return slots_[o.code / kSlotBytes]; }
  void touch(Operand o, uint64_t waited, bool moves);
  void check_fenced(Operand o);

  std::vector<Slot> slots_;
  uint32_t epoch_ = 0;  // fences so far
};

}  // namespace ptxsim
