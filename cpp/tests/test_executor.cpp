#include <gtest/gtest.h>

#include <atomic>
#include <stdexcept>
#include <vector>

#include "tileattn/executor.h"

namespace tileattn {
namespace {

std::vector<Executor> executors() {
  return {Executor::serial(), Executor::threads(0), Executor::threads(1), Executor::threads(3)};
}

TEST(Executor, RunsEachTaskOnce) {
  for (const Executor& executor : executors())
    for (std::int64_t count : {0, 1, 2, 100}) {
      std::vector<std::atomic<int>> calls(count);
      executor.run(count, [&](std::int64_t i) { ++calls[i]; });
      for (auto& n : calls) EXPECT_EQ(n, 1) << count << " tasks, " << executor.num_threads;
    }
}

TEST(Executor, ThreadCountIsAtLeastOne) {
  for (const Executor& executor : executors()) EXPECT_GE(executor.num_threads, 1);
  EXPECT_EQ(Executor::threads(3).num_threads, 3);
}

TEST(Executor, HandsAnExceptionToTheCaller) {
  for (const Executor& executor : executors()) {
    auto fail = [](std::int64_t i) {
      if (i == 5) throw std::runtime_error("task 5");
    };
    EXPECT_THROW(executor.run(8, fail), std::runtime_error);
    std::atomic<int> calls{0};
    executor.run(4, [&](std::int64_t) { ++calls; });  // still usable
    EXPECT_EQ(calls, 4);
  }
}

}  // namespace
}  // namespace tileattn
