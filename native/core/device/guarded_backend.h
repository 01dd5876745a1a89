#pragma once

#include <memory>

#include "core/backend.h"
#include "core/device/backend_plugin.h"

namespace molae {

// A backend in another library as one of ours: every call that may throw goes through the library's invoke(), and its
// failures come out as our molae::Error. Tensors of the backend are owned by this object, not by the one inside.
// stop_queues is what create() gets. Throws what that failed with.
std::unique_ptr<Backend> make_guarded_backend(const BackendPlugin& plugin, int index, void (*stop_queues)());

}  // namespace molae
