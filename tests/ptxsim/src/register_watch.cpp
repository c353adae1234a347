#include "register_watch.h"

namespace ptxsim {

void RegisterWatch::touch(Operand o, uint64_t waited, bool moves) {
  if (!o.exists() || (o.code & Operand::kConstant)) return;
  Slot& s = slot(o);
  if (s.ticket > waited)
    throw SimError("accumulator register of a pending wgmma used before its wgmma.wait_group");
  if (!moves) s.touched = epoch_ + 1;
}

void RegisterWatch::touch(const Inst& in, uint64_t waited) {
  const bool moves = in.op_class == OpClass::kMove;
  for (Operand o : in.op) touch(o, waited, moves);
  for (Operand o : in.list) touch(o, waited, moves);
}

void RegisterWatch::check_fenced(Operand o) {
  if (o.code & Operand::kConstant) return;
  if (epoch_ == 0 || slot(o).touched > epoch_)
    throw SimError("missing wgmma.fence: a register of wgmma was used since the last one");
}

void RegisterWatch::issue(const std::vector<Operand>& accumulators,
                          const std::vector<Operand>& inputs, uint64_t ticket) {
  for (Operand o : inputs) check_fenced(o);
  for (Operand o : accumulators) {
    check_fenced(o);
    slot(o).ticket = ticket;
  }
}

}  // namespace ptxsim
