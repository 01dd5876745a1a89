#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>

namespace molae {

// One worker thread that runs what it is given in order, one at a time.
class DeviceQueue {
 public:
  DeviceQueue();
  ~DeviceQueue();
  DeviceQueue(const DeviceQueue&) = delete;
  DeviceQueue& operator=(const DeviceQueue&) = delete;

  // Runs later on the worker thread. A job must not throw.
  void push(std::function<void()> job);

  // Runs on the calling thread, once everything that was pushed before is done. May throw what `job` throws.
  void run_inline(const std::function<void()>& job);

  // Starts nothing any more and waits for what is running: for the end of the process, when libraries are about to be
  // torn down under our feet.
  void close();

 private:
  void work();
  // Tells the others that it is done by giving `flag` the value, also where `job` throws.
  void run_and_reset(bool& flag, bool value, const std::function<void()>& job);
  // Waits a little for a job beyond the first `seen`, without going to sleep; others that want the processor have it.
  void spin(uint64_t seen) const;

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::function<void()>> jobs_;
  std::atomic<uint64_t> pushed_{0};  // jobs so far
  bool busy_ = false;
  bool stopping_ = false;
  bool closed_ = false;
  std::thread worker_;
};

}  // namespace molae
