#include "core/device.h"

#include <map>
#include <tuple>

#include "core/error.h"
#include "cpu/cpu_backend.h"

namespace molae {

void Device::retain() {
  std::lock_guard lock(mutex_);
  ++users_;
}

void Device::release() {
  std::lock_guard lock(mutex_);
  if (--users_ == 0) queue_.push([this] { backend_->trim(); });
}

Device& open_device(const std::string& kind, int index, int threads) {
  if (kind != "cpu") fail(ErrorCode::DeviceUnavailable, "This build of molae has no ", kind, " backend");
  if (index != 0) fail(ErrorCode::DeviceUnavailable, "There is one CPU device, but received index ", index);
  threads = resolve_threads(threads);

  // Never destroyed: at process exit other threads may still be inside.
  static auto& mutex = *new std::mutex;
  static auto& devices = *new std::map<std::tuple<std::string, int, int>, std::unique_ptr<Device>>;
  std::lock_guard lock(mutex);
  auto& device = devices[{kind, index, threads}];
  if (!device) device = std::make_unique<Device>(make_cpu_backend(threads));
  return *device;
}

}  // namespace molae
