#include <algorithm>
#include <cstring>

#include "decode.h"
#include "layout.h"

namespace ptxsim {

Decoder::Decoder(Function& function, const Body& body, const Layout& layout,
                 const Statement& statement, Inst& inst)
    : in(inst), st(statement), function_(function), body_(body), layout_(layout) {
  std::string_view rest = statement.opcode;
  for (;;) {
    size_t dot = rest.find('.');
    words_.push_back(rest.substr(0, dot));
    if (dot == std::string_view::npos) break;
    rest = rest.substr(dot + 1);
  }
  used_.resize(words_.size());
  used_[0] = true;
}

void Decoder::fail(const std::string& what) const { throw SimError(what); }

bool Decoder::has(std::string_view modifier) {
  for (size_t i = 1; i < words_.size(); ++i) {
    if (used_[i] || words_[i] != modifier) continue;
    used_[i] = true;
    return true;
  }
  return false;
}

void Decoder::ignore(std::initializer_list<std::string_view> modifiers) {
  for (auto m : modifiers) has(m);
}

void Decoder::ignore_memory_modifiers() {
  ignore({"volatile", "relaxed", "acquire", "release", "acq_rel", "weak", "sc",
          "mmio",     "cta",     "cluster", "gpu",     "sys",     "nc",   "ca",
          "cg",       "cs",      "lu",      "cv",      "wb",      "wt",   "noftz"});
  for (size_t i = 1; i < words_.size(); ++i)
    if (words_[i].starts_with("L1::") || words_[i].starts_with("L2::")) used_[i] = true;
}

Type Decoder::take_type() {
  for (size_t i = 1; i < words_.size(); ++i) {
    if (used_[i]) continue;
    Type t = parse_type(words_[i]);
    if (t == Type::kNone) continue;
    used_[i] = true;
    return t;
  }
  return Type::kNone;
}

std::string_view Decoder::take_rest() {
  for (size_t i = 1; i < words_.size(); ++i) {
    if (used_[i]) continue;
    used_[i] = true;
    return words_[i];
  }
  return {};
}

bool Decoder::all_consumed() const {
  return std::all_of(used_.begin(), used_.end(), [](bool b) { return b; });
}

const Expr& Decoder::arg(unsigned i) const {
  if (i >= st.operands.size()) fail("too few operands");
  return st.operands[i];
}

unsigned Decoder::register_size(const Expr& e) const {
  if (e.kind != Expr::kName) return 0;
  const Symbol* s = body_.find(st.scope, e.name);
  if (!s || s->kind != Symbol::kRegister) return 0;
  Type t = body_.registers[s->index].type;
  return t == Type::kPred ? 0 : std::max(2u, size_of(t));
}

bool Decoder::is_predicate(const Expr& e) const {
  if (e.kind != Expr::kName) return false;
  const Symbol* s = body_.find(st.scope, e.name);
  return s && s->kind == Symbol::kRegister && body_.registers[s->index].type == Type::kPred;
}

Operand Decoder::constant(uint64_t value, unsigned bytes) {
  auto& pool = function_.constants;
  if (bytes < 8) value &= (uint64_t{1} << (8 * bytes)) - 1;
  const unsigned lanes = kWarpSize * bytes;
  auto& map = function_.constant_index[bytes];
  auto [it, is_new] = map.try_emplace(value, static_cast<uint32_t>(pool.size()));
  if (is_new) {
    pool.resize(pool.size() + std::max(lanes, 64u));
    for (unsigned i = 0; i < kWarpSize; ++i)
      std::memcpy(&pool[it->second + i * bytes], &value, bytes);
  }
  return {it->second | Operand::kConstant};
}

Operand Decoder::predicate_constant(bool value) { return constant(value ? kFullMask : 0, 4); }

bool Decoder::symbol_value(std::string_view name, uint64_t& value, Space& space) const {
  if (const Symbol* s = body_.find(st.scope, name); s && s->kind == Symbol::kVariable) {
    const Variable& v = body_.variables[s->index];
    if (v.space == Space::kShared) {
      value = v.unsized ? layout_.dynamic_shared : layout_.shared_offset[s->index];
      space = Space::kShared;
    } else {
      value = layout_.local_offset[s->index];
      space = Space::kLocal;
    }
    return true;
  }
  auto formal = [&](const std::vector<Variable>& list, const std::vector<uint32_t>& offsets) {
    for (size_t i = 0; i < list.size(); ++i) {
      if (list[i].name != name) continue;
      space = function_.decl->is_entry ? Space::kParam : Space::kLocal;
      value = offsets[i];
      if (function_.decl->is_entry) value += reinterpret_cast<uint64_t>(function_.param_buffer());
      return true;
    }
    return false;
  };
  if (formal(function_.decl->params, function_.param_offset)) return true;
  if (!function_.decl->is_entry && formal(function_.decl->results, function_.result_offset))
    return true;
  if (const Variable* v = function_.module->shared_variable(name)) {
    auto it = layout_.module_shared.find(std::string(v->name));
    value = it == layout_.module_shared.end() ? layout_.dynamic_shared : it->second;
    space = Space::kShared;
    return true;
  }
  if (uint8_t* p = function_.module->variable(std::string(name))) {
    value = reinterpret_cast<uint64_t>(p);
    space = Space::kGlobal;
    return true;
  }
  return false;
}

Operand Decoder::source(const Expr& e, unsigned bytes) {
  switch (e.kind) {
    case Expr::kInteger:
    case Expr::kFloat32:
    case Expr::kFloat64: {
      uint64_t bits = static_cast<uint64_t>(e.value);
      if (e.kind == Expr::kFloat32 && bytes == 8) {
        float f;
        uint32_t low = static_cast<uint32_t>(bits);
        std::memcpy(&f, &low, 4);
        double d = f;
        std::memcpy(&bits, &d, 8);
      } else if (e.kind == Expr::kFloat64 && bytes == 4) {
        double d;
        std::memcpy(&d, &bits, 8);
        float f = static_cast<float>(d);
        uint32_t low;
        std::memcpy(&low, &f, 4);
        bits = low;
      }
      return constant(bits, bytes);
    }
    case Expr::kName: {
      if (e.name == "WARP_SZ") return constant(kWarpSize, bytes);
      const Symbol* s = body_.find(st.scope, e.name);
      if (s && s->kind == Symbol::kRegister) {
        if (body_.registers[s->index].type == Type::kPred)
          fail("predicate where a value is expected");
        if (register_size(e) != bytes)
          fail("operand '" + std::string(e.name) + "' is not of " + std::to_string(bytes) +
               " bytes");
        return {layout_.register_offset[s->index]};
      }
      uint64_t value;
      Space space;
      if (symbol_value(e.name, value, space)) {
        if (space == Space::kLocal) fail("the address of a local variable can only be moved");
        return constant(value + static_cast<uint64_t>(e.value), bytes);
      }
      fail("unknown operand '" + std::string(e.name) + "'");
    }
    default: fail("unexpected kind of operand");
  }
}

Operand Decoder::destination(const Expr& e, unsigned bytes) {
  if (e.kind == Expr::kSink) return {};
  if (e.kind != Expr::kName || register_size(e) == 0) fail("destination is no register");
  return source(e, bytes);
}

Operand Decoder::predicate_source(const Expr& e) {
  if (e.kind == Expr::kInteger) return predicate_constant(e.value != 0);
  if (!is_predicate(e)) fail("expected a predicate");
  return {layout_.register_offset[body_.find(st.scope, e.name)->index]};
}

Operand Decoder::predicate_destination(const Expr& e) {
  if (e.kind == Expr::kSink) return {};
  return predicate_source(e);
}

Operand Decoder::address(const Expr& e) {
  if (e.kind != Expr::kAddress) fail("expected an address");
  const Expr& base = e.items[0];
  if (unsigned size = register_size(base)) {
    in.imm = e.value;
    in.address_size = static_cast<uint8_t>(size);
    return source(base, size);
  }
  in.address_size = 8;
  if (base.kind == Expr::kInteger) return constant(static_cast<uint64_t>(base.value), 8);
  uint64_t value;
  Space space;
  if (base.kind != Expr::kName || !symbol_value(base.name, value, space))
    fail("unknown address '" + std::string(base.name) + "'");
  in.space = space;
  if (space == Space::kLocal) {  // relative to the frame
    in.address_size = 0;
    in.imm = static_cast<int64_t>(value) + e.value;
    return {};
  }
  return constant(value + static_cast<uint64_t>(e.value), 8);
}

std::optional<uint32_t> Decoder::local_variable(const Expr& e) const {
  uint64_t value;
  Space space;
  if (e.kind != Expr::kName || !symbol_value(e.name, value, space) || space != Space::kLocal)
    return {};
  return static_cast<uint32_t>(value + static_cast<uint64_t>(e.value));
}

Space Decoder::take_space() {
  const std::pair<std::string_view, Space> names[] = {
      {"global", Space::kGlobal},      {"shared", Space::kShared},
      {"shared::cta", Space::kShared}, {"shared::cluster", Space::kShared},
      {"local", Space::kLocal},        {"const", Space::kConst},
      {"param", Space::kParam},        {"param::entry", Space::kParam},
      {"param::func", Space::kLocal}};
  for (auto& [name, space] : names) {
    if (!has(name)) continue;
    // The parameters of a device function live in its local frame.
    return space == Space::kParam && !function_.decl->is_entry ? Space::kLocal : space;
  }
  return Space::kGeneric;
}

int64_t Decoder::immediate(const Expr& e) const {
  if (e.kind != Expr::kInteger) fail("expected an immediate");
  return e.value;
}

uint32_t Decoder::label(const Expr& e) const {
  const Symbol* s = e.kind == Expr::kName ? body_.find(st.scope, e.name) : nullptr;
  if (!s || s->kind != Symbol::kLabel) fail("unknown label");
  return s->index;
}

std::vector<uint32_t> Decoder::branch_targets(const Expr& e) const {
  const Statement& list = body_.statements.at(label(e));
  if (list.opcode != ".branchtargets") fail("expected a .branchtargets list");
  std::vector<uint32_t> targets;
  for (const Expr& item : list.operands) targets.push_back(label(item));
  return targets;
}

std::vector<Operand> Decoder::sources(const Expr& e, unsigned bytes) {
  std::vector<Operand> list;
  if (e.kind != Expr::kVector) return {source(e, bytes)};
  for (const Expr& item : e.items) list.push_back(source(item, bytes));
  return list;
}

std::vector<Operand> Decoder::destinations(const Expr& e, unsigned bytes) {
  std::vector<Operand> list;
  if (e.kind != Expr::kVector) return {destination(e, bytes)};
  for (const Expr& item : e.items) list.push_back(destination(item, bytes));
  return list;
}

void Decoder::same_size_operands(unsigned count, unsigned bytes) {
  in.op[0] = destination(0, bytes);
  for (unsigned i = 1; i < count; ++i) in.op[i] = source(i, bytes);
}

}  // namespace ptxsim
