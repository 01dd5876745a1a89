#include "cuda/api/driver.h"

#include <cuda.h>
#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include "core/error.h"
#include "cuda/api/check.h"

namespace molae::cuda {
namespace {

// The CUDA runtime inside this library is 13.0.
constexpr int kNeededVersion = 13000;
constexpr int kNeededMajor = 8, kNeededMinor = 0;

// Stays open.
void* open_driver() { return dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL); }

std::string version_name(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

// The runtime says "driver too old" also where there is none: the driver itself is asked first.
std::string driver_problem(std::string& version_text) {
  void* library = open_driver();
  if (!library) {
    const char* reason = dlerror();
    return std::string("there is no NVIDIA driver: libcuda.so.1 cannot be opened (") + (reason ? reason : "") + ")";
  }
  const auto get_version = reinterpret_cast<decltype(&cuDriverGetVersion)>(dlsym(library, "cuDriverGetVersion"));
  int version = 0;
  if (!get_version || get_version(&version) != CUDA_SUCCESS) return "libcuda.so.1 does not tell its version";
  version_text = version_name(version);
  if (version < kNeededVersion) {
    return "the NVIDIA driver is too old: it knows CUDA " + version_text +
           ", but CUDA 13.0 is needed. Install driver 580 or newer";
  }
  return "";
}

bool supported(const GpuDescription& gpu) {
  return gpu.major > kNeededMajor || (gpu.major == kNeededMajor && gpu.minor >= kNeededMinor);
}

std::string unsupported_reason(const GpuDescription& gpu) {
  return gpu.name + " has compute capability " + gpu.capability() + ", but 8.0 (Ampere) or newer is needed";
}

}  // namespace

GpuDescription describe_gpu(int index) {
  cudaDeviceProp properties{};
  check(cudaGetDeviceProperties(&properties, index), "asking for a GPU's properties");
  return {properties.name, properties.major, properties.minor, properties.multiProcessorCount,
          properties.totalGlobalMem};
}

void* driver_function(const char* name) {
  void* library = open_driver();
  void* function = library ? dlsym(library, name) : nullptr;
  if (!function) fail(ErrorCode::DeviceUnavailable, "The NVIDIA driver has no ", name);
  return function;
}

DriverStatus driver_status() {
  DriverStatus status;
  status.reason = driver_problem(status.version);
  if (!status.reason.empty()) return status;
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  cudaGetLastError();
  if (error != cudaSuccess && error != cudaErrorNoDevice) {
    status.reason = std::string("the CUDA runtime cannot start: ") + cudaGetErrorString(error);
    return status;
  }
  if (error == cudaErrorNoDevice || count == 0) {
    status.reason =
        "there is a driver but no NVIDIA GPU that this process may use (see nvidia-smi, CUDA_VISIBLE_DEVICES)";
    return status;
  }
  bool usable = false;
  for (int i = 0; i < count; ++i) {
    try {
      status.gpus.push_back(describe_gpu(i));
    } catch (const Error& failed) {
      status.reason = failed.what();
      return status;
    }
    usable = usable || supported(status.gpus.back());
  }
  if (!usable) status.reason = unsupported_reason(status.gpus.front());
  return status;
}

void require_gpu(int index) {
  const DriverStatus status = driver_status();
  const auto count = static_cast<int>(status.gpus.size());
  if (count == 0) fail(ErrorCode::DeviceUnavailable, "No GPU can be used: ", status.reason);
  if (index < 0 || index >= count) {
    fail(ErrorCode::DeviceUnavailable, "Expected a GPU index of 0 to ", count - 1, " but received ", index);
  }
  if (!supported(status.gpus[index])) {
    fail(ErrorCode::DeviceUnavailable, "GPU ", index, " cannot be used: ", unsupported_reason(status.gpus[index]));
  }
}

}  // namespace molae::cuda
