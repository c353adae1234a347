// tileattn._native's view of the planner.
#pragma once

#include <nanobind/nanobind.h>

namespace tileattn {

void bind_planner(nanobind::module_& module);

}  // namespace tileattn
