#include "token_reader.h"

#include <charconv>
#include <cstring>

namespace ptxsim {

void TokenReader::fail(const std::string& what) const {
  throw SimError("PTX line " + std::to_string(peek().line) + ": " + what + " near '" +
                 std::string(peek().text) + "'");
}

void TokenReader::skip_line() {
  for (unsigned line = peek().line; peek().line == line && peek().kind != Token::kEnd;) ++at_;
}

void TokenReader::skip_block() {
  for (unsigned depth = 1; depth;) {
    if (peek().kind == Token::kEnd) fail("unterminated block");
    const Token& token = next();
    if (token.kind != Token::kPunct) continue;
    if (token.text == "{") ++depth;
    if (token.text == "}") --depth;
  }
}

Expr TokenReader::number(bool negative) {
  if (peek().kind != Token::kNumber) fail("expected a number");
  std::string_view text = next().text;
  Expr e;
  e.kind = Expr::kInteger;
  auto parse = [&](std::string_view digits, int base) {
    uint64_t value = 0;
    auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value, base);
    if (error != std::errc() || end == digits.data()) fail("bad number");
    return value;
  };
  if (text.size() > 1 && text[0] == '0' && std::strchr("fFdD", text[1])) {
    bool single = text[1] == 'f' || text[1] == 'F';
    e.kind = single ? Expr::kFloat32 : Expr::kFloat64;
    uint64_t sign = negative ? (single ? uint64_t{1} << 31 : uint64_t{1} << 63) : 0;
    e.value = static_cast<int64_t>(parse(text.substr(2), 16) ^ sign);
    return e;
  }
  if (text.find('.') != std::string_view::npos) {
    double value = std::stod(std::string(text)) * (negative ? -1 : 1);
    e.kind = Expr::kFloat64;
    std::memcpy(&e.value, &value, 8);
    return e;
  }
  bool hex = text.size() > 1 && (text[1] == 'x' || text[1] == 'X');
  uint64_t value = hex ? parse(text.substr(2), 16) : parse(text, 10);
  e.value = static_cast<int64_t>(negative ? 0 - value : value);
  return e;
}

int64_t TokenReader::integer() {
  bool negative = accept("-");
  Expr e = number(negative);
  if (e.kind != Expr::kInteger) fail("expected an integer");
  return e.value;
}

Expr TokenReader::address() {
  Expr e;
  e.kind = Expr::kAddress;
  e.items.push_back(primary());
  if (e.items[0].kind == Expr::kName) std::swap(e.value, e.items[0].value);
  if (accept(",")) e.items.push_back(operand());
  expect("]");
  return e;
}

Expr TokenReader::primary() {
  Expr e;
  if (accept("[")) return address();
  bool vector = is("{");
  if (vector || is("(")) {
    ++at_;
    e.kind = vector ? Expr::kVector : Expr::kList;
    std::string_view close = vector ? "}" : ")";
    while (!accept(close)) {
      e.items.push_back(operand());
      accept(",");
    }
    return e;
  }
  if (accept("-")) return number(true);
  if (peek().kind == Token::kNumber) return number(false);
  if (peek().kind != Token::kWord) fail("expected an operand");
  e.name = next().text;
  if (e.name == "_") return e;
  e.kind = Expr::kName;
  if (accept("+")) e.value = integer();
  else if (is("-") && tokens_[at_ + 1].kind == Token::kNumber) e.value = integer();
  return e;
}

Expr TokenReader::operand() {
  bool negated = accept("!");
  Expr first = primary();
  first.negated = negated;
  if (!accept("|")) return first;
  Expr pair;
  pair.kind = Expr::kPair;
  pair.items.push_back(std::move(first));
  pair.items.push_back(primary());
  return pair;
}

}  // namespace ptxsim
