// Work that runs later than the instruction that starts it.
#pragma once
#include <functional>

#include "warp.h"

namespace ptxsim {

// The work, with the place of issue added to its errors.
template <class F>
std::function<void()> issued_here(Warp& w, int lane, F work) {
  return [&w, lane, line = w.inst().line, work = std::move(work)]() mutable {
    try {
      work();
    } catch (const SimError& error) {
      throw SimError(error.what() + ("\n  in the asynchronous operation issued by " +
                                     w.place_of_line(lane < 0 ? error.lane : lane, line)));
    }
  };
}

}  // namespace ptxsim
