// attention_bench [--threads=N] [--verify] [Google Benchmark's own options]
// Times cpu::attention_forward and cpu::attention_backward, and counts useful FLOP/s.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>

#include "workload.h"
#if defined(TILEATTN_BENCH_VERIFY)
#include "verify.h"
#endif

namespace tileattn::bench {
namespace {

struct Options {
  int threads = std::max(1u, std::thread::hardware_concurrency());
  bool verify = false;
};

/// Takes our own options out of argv.
Options parse(int& argc, char** argv) {
  Options options;
  auto is_ours = [&](char* argument) {
    constexpr char kThreads[] = "--threads=";
    if (std::strncmp(argument, kThreads, sizeof kThreads - 1) == 0)
      return (options.threads = std::atoi(argument + sizeof kThreads - 1)) > 0;
    return std::strcmp(argument, "--verify") == 0 && (options.verify = true);
  };
  argc = static_cast<int>(std::remove_if(argv + 1, argv + argc, is_ours) - argv);
  return options;
}

template <class Step>
void measure(benchmark::State& state, double flops, Step step) {
  for (auto _ : state) step();
  state.counters["FLOP/s"] =
      benchmark::Counter(flops, benchmark::Counter::kIsIterationInvariantRate);
}

void add_benchmarks(const Executor& executor) {
  for (const Shape& shape : shapes()) {
    auto forward = [=](benchmark::State& state) {
      Workload work(shape);
      measure(state, work.forward_flops(), [&] { work.forward(executor); });
    };
    auto backward = [=](benchmark::State& state) {
      Workload work(shape);
      work.forward(executor);
      measure(state, work.backward_flops(), [&] { work.backward(executor); });
    };
    for (auto* added :
         {benchmark::RegisterBenchmark(("forward/" + name_of(shape)).c_str(), forward),
          benchmark::RegisterBenchmark(("backward/" + name_of(shape)).c_str(), backward)})
      added->Unit(benchmark::kMillisecond)->MeasureProcessCPUTime()->UseRealTime();
  }
}

/// Shapes small enough for the reference, which holds all scores at once.
bool verify_small(const Executor& executor) {
#if defined(TILEATTN_BENCH_VERIFY)
  std::vector<Shape> small = shapes();
  for (Shape& shape : small) {
    shape.len_q = std::min(shape.len_q, 512);
    shape.len_k = std::min(shape.len_k, 700);
  }
  auto same = [](const Shape& a, const Shape& b) { return name_of(a) == name_of(b); };
  small.erase(std::unique(small.begin(), small.end(), same), small.end());
  return verify(small, executor);
#else
  (void)executor;
  std::fputs("built without --verify; the configure log says why\n", stderr);
  return false;
#endif
}

}  // namespace
}  // namespace tileattn::bench

int main(int argc, char** argv) {
  using namespace tileattn;
  const bench::Options options = bench::parse(argc, argv);
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
  const Executor executor = Executor::threads(options.threads);
  if (options.verify && !bench::verify_small(executor)) return 1;
  benchmark::AddCustomContext("kernels", cpu::instruction_set());
  benchmark::AddCustomContext("threads", std::to_string(options.threads));
  bench::add_benchmarks(executor);
  benchmark::RunSpecifiedBenchmarks();
}
