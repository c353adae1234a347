#include "verify.h"

#include <pybind11/embed.h>
#include <pybind11/stl.h>

#include <cstdio>

namespace py = pybind11;

namespace tileattn::bench {
namespace {

/// The interpreter that CMake found, so that its virtual environment's packages are seen.
struct Interpreter {
  PyConfig config;
  Interpreter() {
    PyConfig_InitPythonConfig(&config);
    PyConfig_SetBytesString(&config, &config.program_name, TILEATTN_PYTHON);
    py::initialize_interpreter(&config, 0, nullptr, false);
  }
  ~Interpreter() { py::finalize_interpreter(); }
};

py::memoryview bytes_of(const void* data, std::size_t size) {
  return py::memoryview::from_memory(data, static_cast<py::ssize_t>(size));
}

py::dict describe(const Workload& work) {
  const Shape& s = work.shape;
  py::dict made;
  made["dtype"] = s.dtype == DType::kFloat32 ? "float32" : "bfloat16";
  made["query_shape"] = py::make_tuple(s.batch, s.len_q, s.heads_q, s.dim);
  made["key_shape"] = py::make_tuple(s.batch, s.len_k, s.heads_kv, s.dim);
  made["causal"] = s.pattern.causal;
  made["window"] = py::make_tuple(s.pattern.left, s.pattern.right);
  auto add = [&](const char* name, const auto& data) {
    made[name] = bytes_of(data.data(), data.size() * sizeof(data[0]));
  };
  add("q", work.q), add("k", work.k), add("v", work.v), add("dout", work.dout);
  add("out", work.out), add("lse", work.lse);
  add("dq", work.dq), add("dk", work.dk), add("dv", work.dv);
  return made;
}

/// The function `check` of verify.py.
py::object python_check() {
  py::object path = py::module_::import("sys").attr("path");
  for (const char* folder : {TILEATTN_SOURCE_DIR "/tests/common", TILEATTN_SOURCE_DIR "/cpp/bench"})
    path.attr("insert")(0, folder);
  return py::module_::import("verify").attr("check");
}

bool verify_with(const py::object& check, const Shape& shape, const Executor& executor) {
  Workload work(shape);
  work.forward(executor);
  work.backward(executor);
  auto complaint = check(describe(work)).cast<std::string>();
  std::printf("%-60s %s\n", name_of(shape).c_str(), complaint.empty() ? "ok" : complaint.c_str());
  std::fflush(stdout);
  return complaint.empty();
}

}  // namespace

bool verify(const std::vector<Shape>& shapes, const Executor& executor) {
  Interpreter interpreter;
  try {
    const py::object check = python_check();
    bool all_right = true;
    for (const Shape& shape : shapes) all_right &= verify_with(check, shape, executor);
    return all_right;
  } catch (const py::error_already_set& error) {  // torch is missing, for one
    std::fprintf(stderr, "--verify: %s\n", error.what());
    return false;
  }
}

}  // namespace tileattn::bench
