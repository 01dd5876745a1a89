#pragma once

#include <cstddef>
#include <map>
#include <memory>
#include <mutex>
#include <unordered_map>

#include "core/backend.h"

namespace molae::cuda {

// The memory of one GPU. cudaMalloc waits for the device and is slow: freed blocks are kept and given out again. That
// is safe without waiting because all work of a device is on one stream: whoever gets a block next uses it after
// whoever had it before. May be called from any thread.
class MemoryPool {
 public:
  // limit: bytes that may be held at most, 0 for all that the device has.
  MemoryPool(int device, size_t limit) : device_(device), limit_(limit) {}
  ~MemoryPool();
  MemoryPool(const MemoryPool&) = delete;
  MemoryPool& operator=(const MemoryPool&) = delete;

  // 256-byte aligned, never null. Throws OutOfMemory, after everything kept was given back and it was tried again.
  void* take(size_t bytes);
  void give(void* block);

  void count_tensor(size_t bytes);
  void uncount_tensor(size_t bytes);

  void trim();  // frees what is kept
  // While it lives, nothing is taken, given back or freed: other threads wait.
  std::unique_lock<std::mutex> hold() { return std::unique_lock(mutex_); }
  MemoryUsage usage() const;

 private:
  void* reuse(size_t bytes);     // with the lock held; null where no kept block fits
  void* allocate(size_t bytes);  // with the lock held; null where the device has no memory left
  void free_kept();              // with the lock held
  static size_t rounded(size_t bytes);

  const int device_;
  const size_t limit_;
  mutable std::mutex mutex_;
  std::multimap<size_t, void*> kept_;
  std::unordered_map<void*, size_t> sizes_;  // of every block
  size_t held_ = 0;                          // bytes of every block
  size_t tensors_ = 0;
  size_t peak_ = 0;
};

// Memory for the length of a call.
class Scratch {
 public:
  Scratch() = default;
  Scratch(MemoryPool& pool, size_t bytes) : pool_(&pool), data_(pool.take(bytes)) {}
  Scratch(Scratch&& other) noexcept : pool_(other.pool_), data_(other.data_) { other.data_ = nullptr; }
  Scratch& operator=(Scratch&& other) noexcept {
    std::swap(pool_, other.pool_);
    std::swap(data_, other.data_);
    return *this;
  }
  ~Scratch() {
    if (data_) pool_->give(data_);
  }

  template <class T = void>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  MemoryPool* pool_ = nullptr;
  void* data_ = nullptr;
};

std::shared_ptr<Buffer> allocate_device_buffer(const Backend* owner, std::shared_ptr<MemoryPool> pool, size_t bytes);

}  // namespace molae::cuda
