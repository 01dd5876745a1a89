#pragma once

#include <atomic>
#include <cstdint>
#include <exception>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

namespace molae {

// The threads that CPU work is spread over: one pool a process, whoever computes. It grows to the largest number of
// threads asked for, and lives until the process ends.
class ComputePool {
 public:
  static ComputePool& instance();

  // Calls body(index, participant) for every index below `count`, from up to `threads` threads, the caller being
  // participant 0. Indices are handed out in order. Rethrows the first exception of a body. Callers take turns.
  template <class Body>
  void parallel_for(int threads, int64_t count, Body&& body) {
    using Plain = std::remove_reference_t<Body>;
    run(
        threads, count,
        [](void* context, int64_t index, int participant) { (*static_cast<Plain*>(context))(index, participant); },
        const_cast<void*>(static_cast<const void*>(&body)));
  }

 private:
  using Call = void (*)(void*, int64_t, int);

  ComputePool() = default;
  void run(int threads, int64_t count, Call call, void* context);
  void grow(int workers);
  void work(int participant, uint64_t seen);
  void take_part(int participant);

  std::mutex turn_;
  std::vector<std::thread> workers_;

  // The current job. Written by the caller before `epoch_` moves on, read by the workers after it has.
  Call call_ = nullptr;
  void* context_ = nullptr;
  int64_t count_ = 0;
  int participants_ = 0;
  std::atomic<int64_t> next_{0};
  std::atomic<int> running_{0};
  std::atomic<uint64_t> epoch_{0};
  std::mutex error_mutex_;
  std::exception_ptr error_;
};

}  // namespace molae
