#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/backend.h"

namespace molae {

// What a backend's library says about this machine; for `molae doctor`.
struct BackendProbe {
  bool available = false;
  std::string reason;                                        // empty where it is available
  std::vector<std::pair<std::string, std::string>> details;  // "driver", "device", "library", "tried": in this order
};

// The backend of `kind` ("cuda") lives in libmolae_<kind>.so beside the file this code is in: the addon, or a native
// test. It is opened on first use and never closed. `stop_queues` is what is to run first at the end of the process.
// Throws DeviceUnavailable with the reason.
std::unique_ptr<Backend> load_backend(const std::string& kind, int index, void (*stop_queues)());

BackendProbe probe_backend(const std::string& kind);

}  // namespace molae
