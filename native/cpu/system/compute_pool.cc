#include "cpu/system/compute_pool.h"

#if defined(__linux__)
#include <pthread.h>
#include <sched.h>
#endif

#include <algorithm>
#include <utility>

#include "cpu/system/spin.h"

namespace molae {
namespace {

// Below these bits of the claims are the indices that are left, above them the number of the job.
constexpr int kJobShift = 40;
constexpr uint64_t kLeftMask = (uint64_t{1} << kJobShift) - 1;

}  // namespace

ComputePool& ComputePool::instance() {
  static auto& pool = *new ComputePool;  // never destroyed: its threads may be inside at process exit
  return pool;
}

void ComputePool::grow(int workers) {
  while (static_cast<int>(workers_.size()) < workers) {
    const int participant = static_cast<int>(workers_.size()) + 1;
    workers_.emplace_back([this, participant, seen = epoch_.load()] { work(participant, seen); });
    avoided_ = -1;
  }
}

// Linux likes to wake a thread on the processor of whoever wakes it, and where processors are few it may leave both
// there for seconds while another one is idle: two threads then compute no faster than one. So workers may run anywhere
// but where the caller does. It rarely moves, and then this is all that a job pays for it.
void ComputePool::keep_off_callers_processor() {
#if defined(__linux__)
  const int here = sched_getcpu();
  if (here == avoided_) return;
  avoided_ = here;
  cpu_set_t usable;
  if (here < 0 || here >= CPU_SETSIZE || sched_getaffinity(0, sizeof usable, &usable) != 0) return;
  if (CPU_COUNT(&usable) > 1) CPU_CLR(here, &usable);
  for (std::thread& worker : workers_) pthread_setaffinity_np(worker.native_handle(), sizeof usable, &usable);
#endif
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
  keep_off_callers_processor();
  call_ = call;
  context_ = context;
  count_ = count;
  failed_.store(false, std::memory_order_relaxed);
  left_.store(count, std::memory_order_relaxed);
  participants_.store(participants, std::memory_order_relaxed);
  const uint64_t job = (claims_.load(std::memory_order_relaxed) >> kJobShift) + 1;
  claims_.store(job << kJobShift | static_cast<uint64_t>(count), std::memory_order_release);
  epoch_.fetch_add(1, std::memory_order_release);
  epoch_.notify_all();
  take_part(0);
  spin_until([&] { return left_.load(std::memory_order_acquire) == 0; });
  for (int64_t left; (left = left_.load(std::memory_order_acquire)) != 0;) left_.wait(left, std::memory_order_acquire);
  if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
}

void ComputePool::work(int participant, uint32_t seen) {
  while (true) {
    spin_until([&] { return epoch_.load(std::memory_order_acquire) != seen; });
    epoch_.wait(seen, std::memory_order_acquire);
    seen = epoch_.load(std::memory_order_acquire);
    take_part(participant);
  }
}

void ComputePool::take_part(int participant) {
  uint64_t claims = claims_.load(std::memory_order_acquire);
  while ((claims & kLeftMask) != 0 && participant < participants_.load(std::memory_order_acquire)) {
    if (!claims_.compare_exchange_weak(claims, claims - 1, std::memory_order_acq_rel)) continue;
    call_one(count_ - static_cast<int64_t>(claims & kLeftMask), participant);
    // The caller may leave with the last index, and start another job.
    if (left_.fetch_sub(1, std::memory_order_acq_rel) == 1) left_.notify_all();
    claims = claims_.load(std::memory_order_acquire);
  }
}

// After a failure the rest is taken, but not done.
void ComputePool::call_one(int64_t index, int participant) {
  if (failed_.load(std::memory_order_relaxed)) return;
  try {
    call_(context_, index, participant);
  } catch (...) {
    std::lock_guard lock(error_mutex_);
    if (!error_) error_ = std::current_exception();
    failed_.store(true, std::memory_order_relaxed);
  }
}

}  // namespace molae
