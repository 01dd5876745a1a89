#include "core/device/device_queue.h"

#include <chrono>
#include <memory>

namespace molae {
namespace {

// Who awaits one call after the other comes back within this time. To wake a thread on another processor takes as long,
// and every call already wakes the thread of JavaScript.
constexpr std::chrono::microseconds kSpinTime{50};

}  // namespace

DeviceQueue::DeviceQueue() : worker_([this] { work(); }) {}

DeviceQueue::~DeviceQueue() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  worker_.join();
}

void DeviceQueue::push(std::function<void()> job) {
  {
    std::lock_guard lock(mutex_);
    jobs_.push_back(std::move(job));
    pushed_.fetch_add(1, std::memory_order_relaxed);
  }
  changed_.notify_all();
}

void DeviceQueue::run_inline(const std::function<void()>& job) {
  std::unique_lock lock(mutex_);
  // Nothing to wait for: the worker is left asleep.
  if (jobs_.empty() && !busy_ && !closed_) {
    busy_ = true;
    lock.unlock();
    run_and_reset(busy_, false, job);
    return;
  }
  // Its place among the jobs is one in which the worker waits for this thread, which is gone before the worker wakes.
  struct Turn {
    bool begun = false, ended = false;
  };
  const auto turn = std::make_shared<Turn>();
  pushed_.fetch_add(1, std::memory_order_relaxed);
  jobs_.push_back([this, turn] {
    std::unique_lock waiting(mutex_);
    turn->begun = true;
    changed_.notify_all();
    changed_.wait(waiting, [&] { return turn->ended; });
  });
  changed_.notify_all();
  changed_.wait(lock, [&] { return turn->begun; });
  lock.unlock();
  run_and_reset(turn->ended, true, job);
}

void DeviceQueue::run_and_reset(bool& flag, bool value, const std::function<void()>& job) {
  struct Reset {
    DeviceQueue& queue;
    bool& flag;
    bool value;
    ~Reset() {
      bool awaited;
      {
        std::lock_guard lock(queue.mutex_);
        flag = value;
        awaited = queue.busy_ || queue.closed_ || !queue.jobs_.empty();
      }
      // Waking a worker that has nothing to do would take longer than a small job.
      if (awaited) queue.changed_.notify_all();
    }
  } reset{*this, flag, value};
  job();
}

void DeviceQueue::close() {
  std::unique_lock lock(mutex_);
  closed_ = true;
  changed_.wait(lock, [&] { return !busy_; });
}

void DeviceQueue::work() {
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [&] { return stopping_ || (!jobs_.empty() && !busy_ && !closed_); });
    if (stopping_ && jobs_.empty()) return;
    if (busy_) continue;
    std::function<void()> job = std::move(jobs_.front());
    jobs_.pop_front();
    busy_ = true;
    lock.unlock();
    job();
    job = nullptr;  // what the job kept alive goes before anybody may count it
    lock.lock();
    busy_ = false;
    changed_.notify_all();
    if (!jobs_.empty()) continue;
    const uint64_t seen = pushed_.load(std::memory_order_relaxed);
    lock.unlock();
    spin(seen);
    lock.lock();
  }
}

void DeviceQueue::spin(uint64_t seen) const {
  const auto end = std::chrono::steady_clock::now() + kSpinTime;
  while (pushed_.load(std::memory_order_relaxed) == seen && std::chrono::steady_clock::now() < end)
    std::this_thread::yield();
}

}  // namespace molae
