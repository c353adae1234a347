// Where the registers and variables of a function are.
#pragma once
#include <string>
#include <unordered_map>
#include <vector>

#include "module.h"

namespace ptxsim {

// Indexed as the declarations of the body.
struct Layout {
  std::vector<uint32_t> register_offset;
  std::vector<uint32_t> local_offset;   // .local variables and call parameters
  std::vector<uint32_t> shared_offset;  // .shared variables
  std::unordered_map<std::string, uint32_t> module_shared;
  uint32_t dynamic_shared = 0;
};

// Also sets the sizes in `function`.
Layout lay_out(Function& function, const Body& body);

}  // namespace ptxsim
