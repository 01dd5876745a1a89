#pragma once

#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <string>

#include "core/backend.h"
#include "core/device/device_queue.h"

namespace molae {

// A backend and the queue that its operations run on: one a process for each device, shared by every environment
// that opens it, alive until the process ends. The last user to leave gives the workspaces back.
class Device {
 public:
  explicit Device(std::unique_ptr<Backend> backend) : backend_(std::move(backend)) {}

  Backend& backend() { return *backend_; }
  DeviceQueue& queue() { return queue_; }

  // Runs on the calling thread, after everything that was queued before. Throws what `job` throws.
  void run_inline(const std::function<void()>& job);
  // Runs later on the queue, and nobody waits for it: what it throws, the next operation does.
  void run_unawaited(std::function<void()> job);
  // On the queue, before an operation.
  void rethrow_failure();

  void retain();
  void release();

 private:
  std::unique_ptr<Backend> backend_;
  std::mutex mutex_;
  int users_ = 0;
  std::exception_ptr failure_;  // of a job that nobody waited for; the queue's own
  DeviceQueue queue_;           // last: its worker stops before the backend goes
};

// threads: how many the CPU may use, 0 for all that this process may run on; it does not matter elsewhere.
// Throws DeviceUnavailable with the reason.
Device& open_device(const std::string& kind, int index, int threads);

}  // namespace molae
