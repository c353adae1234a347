// Checks a workload's results against the Python reference, in an interpreter inside this program.
#pragma once

#include "workload.h"

namespace tileattn::bench {

/// Runs each shape forward and backward, prints a line for each, and returns whether all are right.
bool verify(const std::vector<Shape>& shapes, const Executor& executor);

}  // namespace tileattn::bench
