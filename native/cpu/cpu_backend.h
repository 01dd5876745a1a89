#pragma once

#include <memory>

#include "core/backend.h"

namespace molae {

std::unique_ptr<Backend> make_cpu_backend(int threads);

}  // namespace molae
