#include "cpu/layer/tile_queue.h"

#include "cpu/system/spin.h"

namespace molae::cpu {

void Gate::one_is_done() {
  if (left_.fetch_sub(1, std::memory_order_acq_rel) == 1) left_.notify_all();
}

void Gate::open() {
  left_.store(0, std::memory_order_release);
  left_.notify_all();
}

// Below zero is open, too: tiles that are done after everything was given up.
void Gate::wait() const {
  spin_until([&] { return left_.load(std::memory_order_acquire) <= 0; });
  for (int32_t left; (left = left_.load(std::memory_order_acquire)) > 0;) left_.wait(left, std::memory_order_acquire);
}

void TileQueue::clear() {
  tiles_.clear();
  for (Gate& gate : gates_) gate.reset();
}

void TileQueue::add_mixed(std::span<const std::vector<QueuedTile>> lanes) {
  taken_.assign(lanes.size(), 0);
  const auto share_taken = [&](size_t lane) {
    return lanes[lane].empty() ? 1.0 : static_cast<double>(taken_[lane]) / static_cast<double>(lanes[lane].size());
  };
  while (true) {
    size_t next = 0;
    for (size_t lane = 1; lane < lanes.size(); ++lane) {
      if (share_taken(lane) < share_taken(next)) next = lane;
    }
    if (taken_[next] == lanes[next].size()) return;
    const QueuedTile& queued = lanes[next][taken_[next]++];
    gates_[queued.feeds].await_one_more();
    tiles_.push_back(queued);
  }
}

// Whoever waits for a gate may go on: there is nothing left to do.
void TileQueue::give_up() {
  failed_.store(true, std::memory_order_relaxed);
  for (Gate& gate : gates_) gate.open();
}

}  // namespace molae::cpu
