#include "core/device/device.h"

#include <cstdlib>
#include <map>
#include <new>
#include <tuple>
#include <utility>

#include "core/device/backend_library.h"
#include "core/error.h"
#include "cpu/cpu_backend.h"
#include "cpu/system/processor.h"

namespace molae {

void Device::run_inline(const std::function<void()>& job) {
  queue_.run_inline([&] {
    rethrow_failure();
    job();
  });
}

void Device::run_unawaited(std::function<void()> job) {
  queue_.push([this, job = std::move(job)] {
    try {
      job();
    } catch (...) {
      failure_ = std::current_exception();
    }
  });
}

void Device::rethrow_failure() {
  if (failure_) std::rethrow_exception(std::exchange(failure_, nullptr));
}

void Device::retain() {
  std::lock_guard lock(mutex_);
  ++users_;
}

void Device::release() {
  std::lock_guard lock(mutex_);
  if (--users_ > 0) return;
  try {
    run_unawaited([this] { backend_->trim(); });
  } catch (const std::bad_alloc&) {
    // The workspaces stay for the next user: whoever lets go of a device has no use for an error.
  }
}

namespace {

// Every device that was opened. Never destroyed: at process exit other threads may still be inside.
struct Registry {
  std::mutex mutex;
  std::map<std::tuple<std::string, int, int>, std::unique_ptr<Device>> devices;

  static Registry& instance() {
    static Registry& registry = *create();
    return registry;
  }

 private:
  static Registry* create() {
    // process.exit() does not run the cleanup hooks of the main environment. Handlers of atexit run before the
    // destructors of libraries: OpenBLAS would otherwise free its buffers in the middle of a product.
    std::atexit(stop_queues);
    return new Registry;
  }

 public:
  // May be called again.
  static void stop_queues() {
    Registry& registry = instance();
    std::lock_guard lock(registry.mutex);
    for (auto& [key, device] : registry.devices) {
      if (device) device->queue().close();
    }
  }
};

std::unique_ptr<Backend> make_backend(const std::string& kind, int index, int threads) {
  if (kind == "cpu") return make_cpu_backend(threads);
  return load_backend(kind, index, &Registry::stop_queues);
}

}  // namespace

Device& open_device(const std::string& kind, int index, int threads) {
  if (kind != "cpu" && kind != "cuda") fail(ErrorCode::DeviceUnavailable, "molae has no ", kind, " backend");
  if (kind == "cpu") {
    if (index != 0) fail(ErrorCode::DeviceUnavailable, "There is one CPU device, but received index ", index);
    threads = resolve_threads(threads);
  } else {
    threads = 0;  // one device, whatever was asked for
  }

  Registry& registry = Registry::instance();
  std::lock_guard lock(registry.mutex);
  auto& device = registry.devices[{kind, index, threads}];
  if (!device) device = std::make_unique<Device>(make_backend(kind, index, threads));
  return *device;
}

}  // namespace molae
