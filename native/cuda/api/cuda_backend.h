#pragma once

#include <memory>

#include "core/backend.h"

namespace molae::cuda {

// owner: the backend that buffers say they belong to; null for the new one itself. Throws DeviceUnavailable.
std::unique_ptr<Backend> make_cuda_backend(int index, const Backend* owner);

}  // namespace molae::cuda
