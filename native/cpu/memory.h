#pragma once

#include <atomic>
#include <cstddef>
#include <memory>
#include <vector>

#include "core/backend.h"

namespace molae {

// Counts the bytes a backend holds.
class MemoryAccount {
 public:
  void add_tensor(size_t bytes) { update(tensors_, bytes); }
  void remove_tensor(size_t bytes) { tensors_.fetch_sub(bytes, std::memory_order_relaxed); }
  void add_workspace(size_t bytes) { update(workspaces_, bytes); }
  void remove_workspace(size_t bytes) { workspaces_.fetch_sub(bytes, std::memory_order_relaxed); }
  MemoryUsage usage() const { return {tensors_.load(), workspaces_.load(), peak_.load()}; }

 private:
  void update(std::atomic<size_t>& counter, size_t bytes);

  std::atomic<size_t> tensors_{0};
  std::atomic<size_t> workspaces_{0};
  std::atomic<size_t> peak_{0};
};

// 64-byte aligned, uninitialized memory. Throws OutOfMemory.
void* allocate_aligned(size_t bytes);
void free_aligned(void* data, size_t bytes);

// A tensor's memory. The account outlives the backend where a tensor does.
std::shared_ptr<Buffer> allocate_host_buffer(const Backend* owner, std::shared_ptr<MemoryAccount> account,
                                             size_t bytes);

// Memory that operations reuse from call to call: fresh large allocations page-fault, which costs as much as
// the arithmetic on small layers. One block a slot, grown when a larger one is asked for; contents do not survive
// the next request for the same slot.
class Workspace {
 public:
  explicit Workspace(std::shared_ptr<MemoryAccount> account) : account_(std::move(account)) {}
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

  std::shared_ptr<MemoryAccount> account_;
  std::vector<Block> blocks_;
};

}  // namespace molae
