// Remembers what was worked out for a neighborhood: a search takes milliseconds, and models
// repeat a few specs.
#pragma once

#include <map>
#include <mutex>
#include <vector>

#include "tileattn/pattern/neighborhood.h"

namespace tileattn {

template <class Value>
class SpecCache {
 public:
  /// make() for the spec and `others`, or what it returned for equal ones before.
  template <class Make>
  Value get(const NeighborhoodSpec& spec, const std::vector<int>& others, Make&& make) {
    constexpr std::size_t kMost = 256;
    std::vector<int> key = others;
    key.push_back(spec.clip);
    for (const auto& axis : spec.axis)
      for (int n :
           {axis.length, axis.window, axis.stride, axis.dilation, axis.offset, int{axis.causal}})
        key.push_back(n);
    std::lock_guard lock(mutex_);
    auto found = known_.find(key);
    if (found != known_.end()) return found->second;
    if (known_.size() >= kMost) known_.clear();
    return known_[key] = make();
  }

 private:
  std::map<std::vector<int>, Value> known_;
  std::mutex mutex_;
};

}  // namespace tileattn
