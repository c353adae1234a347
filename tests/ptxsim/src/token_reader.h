// Reads tokens one after another, and the operands that they form.
#pragma once
#include <string>

#include "parser.h"

namespace ptxsim {

class TokenReader {
 public:
  TokenReader(const std::vector<Token>& tokens, size_t position) : tokens_(tokens), at_(position) {}

  const Token& peek() const { return tokens_[at_]; }
  const Token& next() { return tokens_[at_++]; }
  void step_back() { --at_; }
  bool is(std::string_view text) const {
    return peek().kind != Token::kString && peek().text == text;
  }
  bool next_is(std::string_view text) const { return tokens_[at_ + 1].text == text; }
  bool accept(std::string_view text) {
    if (!is(text)) return false;
    ++at_;
    return true;
  }
  void expect(std::string_view text) {
    if (!accept(text)) fail("expected '" + std::string(text) + "'");
  }
  [[noreturn]] void fail(const std::string& what) const;
  void skip_line();
  void skip_block();  // after '{'
  size_t position() const { return at_; }

  int64_t integer();
  Expr primary();
  Expr operand();

 private:
  Expr number(bool negative);
  Expr address();

  const std::vector<Token>& tokens_;
  size_t at_;
};

}  // namespace ptxsim
