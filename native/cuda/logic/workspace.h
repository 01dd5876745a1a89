#pragma once

#include <vector>

#include "core/checked.h"
#include "core/error.h"

namespace molae::cuda {

// The arrays of one run of a chain of kernels, in the order in which it asks for them. Given back in stream order: see
// MemoryPool.
template <class Runtime>
class Workspace {
 public:
  template <class T>
  T* array(Runtime& runtime, int64_t count) {
    blocks_.push_back(runtime.memory(checked_mul(static_cast<size_t>(count), sizeof(T))));
    return blocks_.back().template as<T>();
  }

 private:
  std::vector<typename Runtime::Memory> blocks_;
};

}  // namespace molae::cuda
