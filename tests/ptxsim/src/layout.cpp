#include "layout.h"

#include <algorithm>

namespace ptxsim {

namespace {

uint32_t align_up(uint32_t n, uint32_t align) { return (n + align - 1) / align * align; }

// Reserves space for variables of one space, in declaration order.
uint32_t place(const std::vector<Variable>& variables, Space space, uint32_t begin,
               std::vector<uint32_t>& offsets) {
  for (const Variable& v : variables) {
    if (v.space == space) {
      begin = align_up(begin, std::max(1u, v.align));
      offsets.push_back(begin);
      begin += static_cast<uint32_t>(v.bytes);
    } else {
      offsets.push_back(0);
    }
  }
  return begin;
}

void lay_out_frame(Function& f, const Body& body, Layout& layout) {
  // Predicates first, then the lanes of every register side by side.
  uint32_t next = 0;
  layout.register_offset.resize(body.registers.size());
  for (size_t i = 0; i < body.registers.size(); ++i)
    if (body.registers[i].type == Type::kPred) layout.register_offset[i] = next, next += 4;
  next = align_up(next, 64);
  for (size_t i = 0; i < body.registers.size(); ++i) {
    if (body.registers[i].type == Type::kPred) continue;
    layout.register_offset[i] = next;
    next += std::max(2u, size_of(body.registers[i].type)) * kWarpSize;
  }
  f.register_bytes = next;

  uint32_t local = 0;
  if (f.decl->is_entry) {
    f.param_blocks.resize(
        place(f.decl->params, Space::kParam, 0, f.param_offset) / sizeof(Function::ParamBlock) + 1);
  } else {
    local = place(f.decl->params, Space::kParam, local, f.param_offset);
    local = place(f.decl->results, Space::kParam, local, f.result_offset);
  }
  for (const Variable& v : body.variables) {
    bool is_local = v.space == Space::kLocal || v.space == Space::kParam;
    if (is_local) local = align_up(local, std::max(1u, v.align));
    layout.local_offset.push_back(is_local ? local : 0);
    if (is_local) local += static_cast<uint32_t>(v.bytes);
  }
  f.local_bytes = align_up(local, 16);
}

// Module-scope shared variables come first (they may be used by any function),
// then those of the function; the dynamic ones follow.
void lay_out_shared(Function& f, const ModuleSyntax& syntax, const Body& body, Layout& layout) {
  uint32_t next = 0;
  for (const Variable& v : syntax.variables) {
    if (v.space != Space::kShared || v.unsized || v.is_extern) continue;
    next = align_up(next, std::max(1u, v.align));
    layout.module_shared[std::string(v.name)] = next;
    next += static_cast<uint32_t>(v.bytes);
  }
  next = place(body.variables, Space::kShared, next, layout.shared_offset);
  f.static_shared = next;
  layout.dynamic_shared = align_up(next, 16);
}

}  // namespace

Layout lay_out(Function& function, const Body& body) {
  Layout layout;
  lay_out_frame(function, body, layout);
  lay_out_shared(function, function.module->syntax(), body, layout);
  return layout;
}

}  // namespace ptxsim
