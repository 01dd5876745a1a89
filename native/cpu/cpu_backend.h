#pragma once

#include <memory>

#include "core/backend.h"

namespace molae {

// The processors this process may use: its affinity mask and its cgroup's quota. 0 asks for that number.
// Throws InvalidArgument for a negative or absurd number.
int resolve_threads(int requested);

std::unique_ptr<Backend> make_cpu_backend(int threads);

}  // namespace molae
