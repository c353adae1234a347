#include "tileattn/executor.h"

#include <atomic>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace tileattn {

Executor Executor::serial() {
  return {1, [](std::int64_t count, const Task& task) {
            for (std::int64_t i = 0; i < count; ++i) task(i);
          }};
}

Executor Executor::threads(int count) {
  int num_threads = count > 1 ? count : 1;
  return {num_threads, [num_threads](std::int64_t count, const Task& task) {
            std::atomic<std::int64_t> next{0};
            std::exception_ptr failure;
            std::mutex failure_mutex;
            auto work = [&] {
              try {
                for (std::int64_t i; (i = next++) < count;) task(i);
              } catch (...) {
                next = count;  // the others stop early
                std::lock_guard lock(failure_mutex);
                if (!failure) failure = std::current_exception();
              }
            };
            std::vector<std::thread> helpers;
            helpers.reserve(num_threads - 1);
            try {
              for (int n = 1; n < num_threads && n < count; ++n) helpers.emplace_back(work);
            } catch (const std::system_error&) {
              // No more threads to be had: those that started share the tasks.
            }
            work();
            for (std::thread& helper : helpers) helper.join();
            if (failure) std::rethrow_exception(failure);
          }};
}

}  // namespace tileattn
