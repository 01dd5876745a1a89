#include <cstdio>
#include <cstring>
#include <new>

#include "core/device/backend_plugin.h"
#include "core/error.h"
#include "cuda/api/cuda_backend.h"
#include "cuda/api/driver.h"
#include "cuda/api/exit_order.h"
#include "cuda/api/library_search.h"

// The library's one exported function and the table behind it. Nothing throws across it.
namespace molae::cuda {
namespace {

void describe(PluginFailure* failure, ErrorCode code, const char* message) noexcept {
  failure->code = static_cast<int32_t>(code);
  std::snprintf(failure->message, sizeof failure->message, "%s", message);
}

// To be called in a handler.
void describe_current(PluginFailure* failure) noexcept {
  try {
    throw;
  } catch (const Error& error) {
    describe(failure, error.code(), error.what());
  } catch (const std::bad_alloc&) {
    describe(failure, ErrorCode::OutOfMemory, "Out of memory");
  } catch (const std::exception& error) {
    describe(failure, ErrorCode::Internal, error.what());
  } catch (...) {
    describe(failure, ErrorCode::Internal, "Unknown error in the CUDA library");
  }
}

Backend* create(int32_t index, const Backend* owner, void (*stop_queues)(), PluginFailure* failure) {
  try {
    set_stop_queues(stop_queues);
    return make_cuda_backend(index, owner).release();
  } catch (...) {
    describe_current(failure);
    return nullptr;
  }
}

void destroy(Backend* backend) { delete backend; }

bool invoke(void (*body)(void*), void* context, PluginFailure* failure) {
  try {
    body(context);
    return true;
  } catch (...) {
    describe_current(failure);
    return false;
  }
}

using Line = void (*)(void* sink, const char* key, const char* value);

void probe_libraries(void* sink, Line line, std::string& reason) {
  // Only cuBLAS is needed to open a device; the rest is needed to factorize.
  for (const char* soname :
       {"libcublasLt.so.13", "libcublas.so.13", "libnvJitLink.so.13", "libcusparse.so.12", "libcusolver.so.12"}) {
    const OpenLibrary library = open_library(soname);
    for (const std::string& place : library.tried) line(sink, "tried", place.c_str());
    const std::string found = std::string(soname) + (library.handle ? " in " + library.path : " is missing");
    line(sink, "library", found.c_str());
    if (!library.handle && std::strstr(soname, "cublas") && reason.empty()) {
      reason = std::string(soname) + " is missing";
    }
  }
}

void probe(void* sink, Line line) {
  try {
    const DriverStatus status = driver_status();
    if (!status.version.empty()) line(sink, "driver", ("CUDA " + status.version).c_str());
    for (size_t i = 0; i < status.gpus.size(); ++i) {
      const GpuDescription& gpu = status.gpus[i];
      line(sink, "device",
           (std::to_string(i) + ": " + gpu.name + ", compute capability " + gpu.capability() + ", " +
            std::to_string(gpu.memory_bytes >> 20) + " MiB")
               .c_str());
    }
    std::string reason = status.reason;
    probe_libraries(sink, line, reason);
    line(sink, "available", reason.empty() ? "true" : "false");
    if (!reason.empty()) line(sink, "reason", reason.c_str());
  } catch (const std::exception& error) {
    line(sink, "available", "false");
    line(sink, "reason", error.what());
  }
}

}  // namespace
}  // namespace molae::cuda

extern "C" __attribute__((visibility("default"))) const molae::BackendPlugin* molae_cuda_entry() {
  static const molae::BackendPlugin plugin{molae::kBackendAbi,  sizeof(molae::BackendPlugin), molae::backend_build(),
                                           molae::cuda::probe,  molae::cuda::create,          molae::cuda::invoke,
                                           molae::cuda::destroy};
  return &plugin;
}
