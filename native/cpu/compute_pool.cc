#include "cpu/compute_pool.h"

#include <algorithm>
#include <utility>

namespace molae {
namespace {

// A few microseconds: stages of one forward pass follow each other faster than a futex wakes anybody.
constexpr int kSpins = 2000;

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

}  // namespace

ComputePool& ComputePool::instance() {
  static auto& pool = *new ComputePool;  // never destroyed: its threads may be inside at process exit
  return pool;
}

void ComputePool::grow(int workers) {
  while (static_cast<int>(workers_.size()) < workers) {
    const int participant = static_cast<int>(workers_.size()) + 1;
    workers_.emplace_back([this, participant, seen = epoch_.load()] { work(participant, seen); });
  }
}

void ComputePool::run(int threads, int64_t count, Call call, void* context) {
  if (count <= 0) return;
  const int participants = static_cast<int>(std::min<int64_t>(threads, count));
  if (participants <= 1) {
    for (int64_t index = 0; index < count; ++index) call(context, index, 0);
    return;
  }
  std::lock_guard turn(turn_);
  grow(participants - 1);
  call_ = call;
  context_ = context;
  count_ = count;
  participants_ = participants;
  next_.store(0, std::memory_order_relaxed);
  running_.store(static_cast<int>(workers_.size()), std::memory_order_relaxed);
  epoch_.fetch_add(1, std::memory_order_release);
  epoch_.notify_all();
  take_part(0);
  for (int spins = 0; spins < kSpins && running_.load(std::memory_order_acquire) != 0; ++spins) pause();
  for (int left; (left = running_.load(std::memory_order_acquire)) != 0;) running_.wait(left);
  if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
}

void ComputePool::work(int participant, uint64_t seen) {
  while (true) {
    for (int spins = 0; spins < kSpins && epoch_.load(std::memory_order_acquire) == seen; ++spins) pause();
    epoch_.wait(seen, std::memory_order_acquire);
    ++seen;
    if (participant < participants_) take_part(participant);
    if (running_.fetch_sub(1, std::memory_order_acq_rel) == 1) running_.notify_all();
  }
}

void ComputePool::take_part(int participant) {
  try {
    for (int64_t index; (index = next_.fetch_add(1, std::memory_order_relaxed)) < count_;) {
      call_(context_, index, participant);
    }
  } catch (...) {
    next_.store(count_, std::memory_order_relaxed);
    std::lock_guard lock(error_mutex_);
    if (!error_) error_ = std::current_exception();
  }
}

}  // namespace molae
