#pragma once

#include <atomic>
#include <cstddef>
#include <memory>
#include <vector>

#include "core/backend.h"
#include "cpu/system/freed_blocks.h"

namespace molae {

// 64-byte aligned, uninitialized memory. Throws OutOfMemory.
void* allocate_aligned(size_t bytes);
void free_aligned(void* data, size_t bytes);

// The memory of a backend, and how much of it there is. Freed blocks that it keeps count as workspace.
class HostMemory {
 public:
  // As allocate_aligned, or a block that was freed before.
  void* allocate_tensor(size_t bytes);
  void free_tensor(void* data, size_t bytes);
  void add_workspace(size_t bytes);
  void remove_workspace(size_t bytes);
  // Gives freed blocks back to the system.
  void trim() { freed_.release(); }
  MemoryUsage usage() const;

 private:
  void* allocate_block(size_t bytes);
  void update_peak();

  FreedBlocks freed_;
  std::atomic<size_t> tensors_{0};
  std::atomic<size_t> workspaces_{0};
  std::atomic<size_t> peak_{0};
};

// A tensor's memory, which outlives the backend where a tensor does.
std::shared_ptr<Buffer> allocate_host_buffer(const Backend* owner, std::shared_ptr<HostMemory> memory, size_t bytes);

// Memory that operations reuse from call to call: fresh large allocations page-fault, which costs as much as
// the arithmetic on small layers. One block a slot, grown when a larger one is asked for; contents do not survive
// the next request for the same slot.
class Workspace {
 public:
  explicit Workspace(std::shared_ptr<HostMemory> memory) : memory_(std::move(memory)) {}
  ~Workspace() { release(); }
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  template <class T>
  T* get(size_t slot, size_t count) {
    return static_cast<T*>(get_bytes(slot, count, sizeof(T)));
  }
  void release();

 private:
  struct Block {
    void* data = nullptr;
    size_t bytes = 0;
  };
  void* get_bytes(size_t slot, size_t count, size_t item_bytes);

  std::shared_ptr<HostMemory> memory_;
  std::vector<Block> blocks_;
};

}  // namespace molae
