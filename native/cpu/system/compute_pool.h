#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

#include "core/checked.h"

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

  // Calls body(begin, end, participant) for every range of `step` indices below `count`, the last one maybe shorter.
  template <class Body>
  void for_ranges(int threads, int64_t count, int64_t step, Body&& body) {
    parallel_for(threads, ceil_divide(count, step), [&](int64_t range, int participant) {
      body(range * step, std::min(count, (range + 1) * step), participant);
    });
  }

 private:
  using Call = void (*)(void*, int64_t, int);

  ComputePool() = default;
  void run(int threads, int64_t count, Call call, void* context);
  void grow(int workers);
  void keep_off_callers_processor();
  void work(int participant, uint32_t seen);
  void take_part(int participant);
  void call_one(int64_t index, int participant);

  std::mutex turn_;
  std::vector<std::thread> workers_;
  int avoided_ = -1;  // the processor that workers keep off

  // The current job. `claims_` has how many indices nobody took yet, and above them the number of the job. A thread
  // that took one may read the rest of the job: nobody changes it before that index is done. Nobody waits for threads
  // that took none: on a busy machine they may not even have woken.
  Call call_ = nullptr;
  void* context_ = nullptr;
  int64_t count_ = 0;
  std::atomic<uint64_t> claims_{0};
  std::atomic<int> participants_{0};
  std::atomic<int64_t> left_{0};  // indices that are not done
  std::atomic<bool> failed_{false};
  std::atomic<uint32_t> epoch_{0};  // of jobs, for workers to wait for
  std::mutex error_mutex_;
  std::exception_ptr error_;
};

}  // namespace molae
