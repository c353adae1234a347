// How a CPU kernel spreads its tasks over threads. The caller brings the
// threads (torch's pool, or Executor::threads for programs without torch), so
// that a process never runs two pools.
#pragma once

#include <cstdint>
#include <functional>

#include "tileattn/macros.h"

namespace tileattn {

struct Executor {
  using Task = std::function<void(std::int64_t)>;
  int num_threads = 1;
  /// Calls task(i) once for each i in [0, count), in any order, on any thread.
  std::function<void(std::int64_t count, const Task& task)> run;

  /// Tasks run one after the other on the calling thread.
  TILEATTN_API static Executor serial();
  /// Tasks run on `count` std::threads started for each call.
  TILEATTN_API static Executor threads(int count);
};

}  // namespace tileattn
