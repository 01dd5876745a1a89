#pragma once

#include <vector>

#include "core/checked.h"
#include "core/error.h"

namespace molae::cuda {

// The arrays of a chain of kernels, in the order in which it asks for them. Given back in stream order: see MemoryPool.
// A chain that runs again with the same sizes can have the same arrays again, which a graph of it needs.
template <class Runtime>
class Workspace {
 public:
  template <class T>
  T* array(Runtime& runtime, int64_t count) {
    const size_t bytes = checked_mul(static_cast<size_t>(count), sizeof(T));
    if (next_ == blocks_.size()) blocks_.push_back({runtime.memory(bytes), bytes});
    const Block& block = blocks_[next_++];
    if (block.bytes != bytes) fail(ErrorCode::Internal, "A chain of kernels has asked for other arrays than before");
    return block.memory.template as<T>();
  }

  // The next array is the first one again.
  void rewind() { next_ = 0; }

 private:
  struct Block {
    typename Runtime::Memory memory;
    size_t bytes;
  };
  std::vector<Block> blocks_;
  size_t next_ = 0;
};

}  // namespace molae::cuda
