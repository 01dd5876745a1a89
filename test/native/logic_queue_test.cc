#include <atomic>
#include <chrono>
#include <future>
#include <thread>

#include "core/device/device.h"
#include "core/error.h"
#include "cpu/cpu_backend.h"
#include "cpu/system/compute_pool.h"
#include "native/tensors.h"

// Threads that push, wait, close and compute at once: what ThreadSanitizer is to watch (scripts/sanitize.sh thread).
namespace molae::test {
namespace {

constexpr int kThreads = 4;

void on_threads(const std::function<void(int)>& body) {
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) threads.emplace_back(body, t);
  for (std::thread& thread : threads) thread.join();
}

MOLAE_TEST("queue: jobs of every thread run in its order, one at a time", Logic) {
  constexpr int kJobs = 500;
  std::vector<int> next(kThreads, 0);  // unguarded: the queue must keep jobs apart
  int inside = 0, disorder = 0;
  {
    DeviceQueue queue;
    const auto job = [&](int thread, int index) {
      if (++inside != 1 || next[thread] != index) ++disorder;
      next[thread] = index + 1;
      --inside;
    };
    on_threads([&](int thread) {
      for (int i = 0; i < kJobs; ++i) {
        if (i % 50 == 49) {
          queue.run_inline([&, i] { job(thread, i); });
        } else {
          queue.push([&, thread, i] { job(thread, i); });
        }
      }
    });
  }  // the queue runs what it was given before it goes
  expect_equal(disorder, 0, "jobs out of order or at once");
  for (const int count : next) expect_equal(count, kJobs, "jobs of a thread");
}

MOLAE_TEST("queue: what an inline job throws comes back, and the queue works on", Logic) {
  DeviceQueue queue;
  expect_error(ErrorCode::Aborted, "run_inline", [&] { queue.run_inline([] { fail(ErrorCode::Aborted, "stop"); }); });
  bool ran = false;
  queue.run_inline([&] { ran = true; });
  expect(ran, "the next job did not run");
}

MOLAE_TEST("queue: an inline job waits for what was pushed before it, and not for what others go on pushing", Logic) {
  constexpr int kLinks = 3000;
  int links = 0;
  bool ran = false;
  DeviceQueue queue;
  const std::function<void()> link = [&] {
    std::this_thread::sleep_for(std::chrono::microseconds(200));
    if (++links < kLinks && !ran) queue.push(link);
  };
  for (int chain = 0; chain < 2; ++chain) queue.push(link);
  int before = 0;
  queue.run_inline([&] {
    ran = true;
    before = links;
  });
  expect(before >= 2, "it ran before jobs that were pushed before it");
  expect(before < kLinks, "it waited for jobs that were pushed after it");
}

MOLAE_TEST("queue: what a job throws that nobody waits for, the next operation of its device does, once", Logic) {
  Device device(make_cpu_backend(1));
  device.run_unawaited([] { fail(ErrorCode::OutOfMemory, "no room"); });
  bool ran = false;
  const auto operation = [&] { device.run_inline([&] { ran = true; }); };
  expect_error(ErrorCode::OutOfMemory, "the next operation", operation);
  expect(!ran, "the operation ran all the same");
  operation();
  expect(ran, "the one after it did not run");
}

MOLAE_TEST("queue: close waits for the running job and starts no other", Logic) {
  static std::atomic<bool> finished, started;  // static: the closed queue is left behind, as at process exit
  static std::atomic<int> late;
  finished = started = false;
  late = 0;
  auto* queue = new DeviceQueue;
  queue->push([] {
    started = true;
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    finished = true;
  });
  queue->push([] { ++late; });
  while (!started) std::this_thread::yield();
  queue->close();
  expect(finished, "close() did not wait");
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  expect_equal(late.load(), 0, "jobs started after close()");
  static std::vector<DeviceQueue*> left_behind;  // reachable: no leak
  left_behind.push_back(queue);
}

MOLAE_TEST("queue: close waits for a running inline job, and no longer", Logic) {
  struct Shared {
    DeviceQueue queue;
    std::promise<void> begun, open, closed;
  };
  static std::vector<Shared*> left_behind;  // as above
  auto* shared = left_behind.emplace_back(new Shared);
  std::thread([shared] {
    shared->queue.run_inline([shared] {
      shared->begun.set_value();
      shared->open.get_future().wait();
    });
  }).detach();
  shared->begun.get_future().wait();
  std::thread([shared] {
    shared->queue.close();
    shared->closed.set_value();
  }).detach();
  std::future<void> closed = shared->closed.get_future();
  const bool early = closed.wait_for(std::chrono::milliseconds(50)) == std::future_status::ready;
  shared->open.set_value();
  expect(!early, "close() did not wait");
  expect(closed.wait_for(std::chrono::seconds(20)) == std::future_status::ready, "close() waits for nothing");
}

MOLAE_TEST("queue: parallel loops of several callers run every index once", Logic) {
  on_threads([](int thread) {
    for (int round = 0; round < 100; ++round) {
      std::vector<int> seen(50 + thread, 0);
      ComputePool::instance().parallel_for(3, static_cast<int64_t>(seen.size()), [&](int64_t i, int) { ++seen[i]; });
      for (const int count : seen) expect_equal(count, 1, "runs of an index");
    }
  });
}

MOLAE_TEST("queue: a parallel loop rethrows what a body throws, and the pool works on", Logic) {
  for (int round = 0; round < 100; ++round) {
    expect_error(ErrorCode::NonFinite, "parallel_for", [&] {
      ComputePool::instance().parallel_for(3, 40, [&](int64_t i, int) {
        if (i == round % 40) fail(ErrorCode::NonFinite, "index ", i);
      });
    });
  }
}

MOLAE_TEST("queue: threads that open, use and leave devices at once", Logic) {
  on_threads([](int thread) {
    for (int round = 0; round < 30; ++round) {
      Device& device = open_device("cpu", 0, 5 + (thread + round) % 2);  // devices of our own
      device.retain();
      const Tensor a = empty(device.backend(), DType::F32, {64, 64});
      const Tensor b = empty(device.backend(), DType::F64, {64, 64});
      device.queue().push([&backend = device.backend(), a] { backend.zero(a); });
      device.queue().push([&backend = device.backend(), a, b] { backend.copy(a, b); });
      double norm = -1;
      device.queue().run_inline([&] { norm = device.backend().squared_norm(b); });
      device.release();
      expect_equal(norm, 0.0, "squared norm of zeros");
    }
  });
}

}  // namespace
}  // namespace molae::test
