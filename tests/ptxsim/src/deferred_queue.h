// Work that a warp or thread has started and that takes effect later, in order.
#pragma once
#include <cstdint>
#include <functional>
#include <vector>

namespace ptxsim {

class DeferredQueue {
 public:
  // Returns the operation's ticket: 1 for the first. Applied at once unless `late`.
  uint64_t add(std::function<void()> apply, bool late = true) {
    if (late) {
      work_.push_back(std::move(apply));
    } else {
      apply();
      ++applied_;
    }
    return issued();
  }
  void commit() { groups_.push_back(issued()); }

  uint64_t issued() const { return applied_ + work_.size(); }
  // The ticket up to which all must be done so that only the newest `pending` groups remain.
  uint64_t needed_for(unsigned pending) const {
    return groups_.size() > pending ? groups_[groups_.size() - 1 - pending] : 0;
  }
  void apply_until(uint64_t ticket) {
    size_t count = 0;
    for (; applied_ < ticket; ++applied_) work_[count++]();
    work_.erase(work_.begin(), work_.begin() + static_cast<long>(count));
  }
  // Applies what a wait for all but the newest `pending` groups guarantees; returns its ticket.
  uint64_t wait_pending(unsigned pending) {
    const uint64_t needed = needed_for(pending);
    apply_until(needed);
    return needed;
  }
  uint64_t wait_all() {
    apply_until(issued());
    return issued();
  }

 private:
  std::vector<std::function<void()>> work_;
  std::vector<uint64_t> groups_;  // tickets issued when each group was committed
  uint64_t applied_ = 0;
};

}  // namespace ptxsim
