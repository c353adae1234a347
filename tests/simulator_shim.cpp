// The kernel entry points for ctypes: C names, exceptions as text, and the sizes of
// the structs that simulator.py mirrors.
#include <cstring>
#include <exception>

#include "tileattn/attention.h"

namespace {

constexpr std::size_t kMessageSize = 512;  // simulator.py passes a buffer of this size

template <class Call>
int report(char* message, Call&& call) {
  try {
    call();
    return 0;
  } catch (const std::exception& error) {
    std::strncpy(message, error.what(), kMessageSize - 1);
    return 1;
  }
}

}  // namespace

extern "C" {

TILEATTN_API std::size_t tileattn_sim_forward_size() { return sizeof(tileattn::AttentionForward); }
TILEATTN_API std::size_t tileattn_sim_backward_size() {
  return sizeof(tileattn::AttentionBackward);
}

TILEATTN_API int tileattn_sim_forward_workspace(const tileattn::AttentionForward* problem,
                                                std::size_t* bytes, char* message) {
  return report(message, [&] { *bytes = tileattn::cuda::attention_forward_workspace(*problem); });
}

TILEATTN_API int tileattn_sim_backward_workspace(const tileattn::AttentionBackward* problem,
                                                 std::size_t* bytes, char* message) {
  return report(message, [&] { *bytes = tileattn::cuda::attention_backward_workspace(*problem); });
}

TILEATTN_API int tileattn_sim_forward(const tileattn::AttentionForward* problem, void* workspace,
                                      char* message) {
  return report(message, [&] { tileattn::cuda::attention_forward(*problem, workspace, nullptr); });
}

TILEATTN_API int tileattn_sim_backward(const tileattn::AttentionBackward* problem, void* workspace,
                                       char* message) {
  return report(message, [&] { tileattn::cuda::attention_backward(*problem, workspace, nullptr); });
}

}  // extern "C"
