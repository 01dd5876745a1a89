#pragma once

#include <cstddef>
#include <string>
#include <vector>

namespace molae::cuda {

struct GpuDescription {
  std::string name;
  int major = 0, minor = 0;  // compute capability
  int multiprocessors = 0;
  size_t memory_bytes = 0;

  // Machine code for wgmma and the copy engine (sm_90a) runs on this capability alone.
  bool has_hopper_tiles() const { return major == 9 && minor == 0; }
  // Kernels that begin before the one before them in a stream has ended.
  bool has_dependent_launch() const { return major >= 9; }
  std::string capability() const { return std::to_string(major) + "." + std::to_string(minor); }
};

// What there is to say about the driver and its GPUs, without throwing.
struct DriverStatus {
  std::string reason;   // why no GPU can be used; empty where one can
  std::string version;  // the newest CUDA that the driver knows, "13.0"; empty without a driver
  std::vector<GpuDescription> gpus;
};
DriverStatus driver_status();

// Throws DeviceUnavailable with the reason where this GPU cannot be used.
void require_gpu(int index);

GpuDescription describe_gpu(int index);

// A function of the driver by its name. Throws DeviceUnavailable where there is none.
void* driver_function(const char* name);

}  // namespace molae::cuda
