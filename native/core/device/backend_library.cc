#include "core/device/backend_library.h"

#include <dlfcn.h>
#include <unistd.h>

#include <map>
#include <mutex>

#include "core/device/backend_plugin.h"
#include "core/device/guarded_backend.h"
#include "core/error.h"

namespace molae {
namespace {

// The folder of the file that contains this function.
std::string own_folder() {
  Dl_info info{};
  if (dladdr(reinterpret_cast<const void*>(&load_backend), &info) == 0 || !info.dli_fname) return ".";
  const std::string file = info.dli_fname;
  const size_t slash = file.rfind('/');
  return slash == std::string::npos ? "." : file.substr(0, slash);
}

const BackendPlugin& open_library(const std::string& kind) {
  const std::string path = own_folder() + "/libmolae_" + kind + ".so";
  if (access(path.c_str(), F_OK) != 0) {
    fail(ErrorCode::DeviceUnavailable, "This build of molae is without the ", kind, " backend: there is no ", path);
  }
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!library) fail(ErrorCode::DeviceUnavailable, "The ", kind, " backend could not be loaded: ", dlerror());
  const std::string symbol = "molae_" + kind + "_entry";
  const auto entry = reinterpret_cast<BackendEntry>(dlsym(library, symbol.c_str()));
  if (!entry) fail(ErrorCode::DeviceUnavailable, path, " has no ", symbol, ": it does not belong to molae");
  const BackendPlugin* plugin = entry();
  if (plugin->abi != kBackendAbi || plugin->table_bytes != sizeof(BackendPlugin)) {
    fail(ErrorCode::DeviceUnavailable, path, " has interface ", plugin->abi, " but this molae needs ", kBackendAbi,
         ": install one version of both");
  }
  if (std::string(plugin->build) != backend_build()) {
    fail(ErrorCode::DeviceUnavailable, path, " was built as \"", plugin->build, "\" but this molae is \"",
         backend_build(), "\": build both together");
  }
  return *plugin;
}

// Each library is opened once; one that could not be opened is tried again next time, for it may have been put there.
const BackendPlugin& plugin_of(const std::string& kind) {
  // Never destroyed: at process exit other threads may still be inside.
  static auto& mutex = *new std::mutex;
  static auto& plugins = *new std::map<std::string, const BackendPlugin*>;
  std::lock_guard lock(mutex);
  const BackendPlugin*& plugin = plugins[kind];
  if (!plugin) plugin = &open_library(kind);
  return *plugin;
}

}  // namespace

std::unique_ptr<Backend> load_backend(const std::string& kind, int index, void (*stop_queues)()) {
  return make_guarded_backend(plugin_of(kind), index, stop_queues);
}

BackendProbe probe_backend(const std::string& kind) {
  BackendProbe probe;
  try {
    plugin_of(kind).probe(&probe, [](void* sink, const char* key, const char* value) {
      auto& result = *static_cast<BackendProbe*>(sink);
      if (std::string_view(key) == "available") {
        result.available = std::string_view(value) == "true";
      } else if (std::string_view(key) == "reason") {
        result.reason = value;
      } else {
        result.details.emplace_back(key, value);
      }
    });
  } catch (const Error& error) {
    probe.reason = error.what();
  }
  return probe;
}

}  // namespace molae
