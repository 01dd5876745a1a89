#include "cuda/api/memory_pool.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <bit>

#include "core/error.h"
#include "cuda/api/check.h"

namespace molae::cuda {
namespace {

class DeviceBuffer final : public Buffer {
 public:
  DeviceBuffer(const Backend* owner, std::shared_ptr<MemoryPool> pool, size_t bytes)
      : Buffer(owner, pool->take(bytes), bytes), pool_(std::move(pool)) {
    pool_->count_tensor(bytes);
  }
  ~DeviceBuffer() override {
    pool_->uncount_tensor(bytes());
    pool_->give(data());
  }

 private:
  std::shared_ptr<MemoryPool> pool_;
};

}  // namespace

MemoryPool::~MemoryPool() {
  cudaSetDevice(device_);
  free_kept();
}

// Up to an eighth more than asked for: sizes that differ a little share their blocks.
size_t MemoryPool::rounded(size_t bytes) {
  constexpr size_t kSmallest = 512;
  if (bytes > SIZE_MAX / 2) fail(ErrorCode::OutOfMemory, "Out of GPU memory: ", bytes, " bytes were asked for");
  const size_t step = std::max(kSmallest, std::bit_floor(std::max<size_t>(bytes, 1)) / 8);
  return std::max(kSmallest, (bytes + step - 1) / step * step);
}

void* MemoryPool::reuse(size_t bytes) {
  const auto found = kept_.lower_bound(bytes);
  if (found == kept_.end() || found->first - bytes > bytes / 2) return nullptr;
  void* block = found->second;
  kept_.erase(found);
  return block;
}

void* MemoryPool::allocate(size_t bytes) {
  if (limit_ != 0 && (bytes > limit_ || held_ > limit_ - bytes)) return nullptr;
  void* block = nullptr;
  const cudaError_t status = cudaMalloc(&block, bytes);
  if (status == cudaErrorMemoryAllocation) {
    cudaGetLastError();  // not fatal: forget it
    return nullptr;
  }
  check(status, "allocating GPU memory");
  sizes_.emplace(block, bytes);
  held_ += bytes;
  peak_ = std::max(peak_, held_);
  return block;
}

void* MemoryPool::take(size_t bytes) {
  const size_t size = rounded(bytes);
  std::lock_guard lock(mutex_);
  if (void* block = reuse(size)) return block;
  check(cudaSetDevice(device_), "selecting the GPU");
  if (void* block = allocate(size)) return block;
  free_kept();
  if (void* block = allocate(size)) return block;
  size_t free = 0, total = 0;
  if (cudaMemGetInfo(&free, &total) != cudaSuccess) cudaGetLastError();
  fail(ErrorCode::OutOfMemory, "Out of GPU memory: ", bytes, " bytes were asked for; molae holds ", held_, " of ",
       total, ", ", free, " are free", limit_ ? ", and MOLAE_CUDA_MEMORY_LIMIT is set" : "");
}

void MemoryPool::give(void* block) {
  std::lock_guard lock(mutex_);
  kept_.emplace(sizes_.at(block), block);
}

void MemoryPool::free_kept() {
  if (kept_.empty()) return;
  cudaDeviceSynchronize();  // queued work may still use them
  for (const auto& [bytes, block] : kept_) {
    cudaFree(block);
    sizes_.erase(block);
    held_ -= bytes;
  }
  kept_.clear();
  cudaGetLastError();
}

void MemoryPool::trim() {
  std::lock_guard lock(mutex_);
  if (cudaSetDevice(device_) == cudaSuccess) free_kept();
}

void MemoryPool::count_tensor(size_t bytes) {
  std::lock_guard lock(mutex_);
  tensors_ += bytes;
}

void MemoryPool::uncount_tensor(size_t bytes) {
  std::lock_guard lock(mutex_);
  tensors_ -= bytes;
}

MemoryUsage MemoryPool::usage() const {
  std::lock_guard lock(mutex_);
  return {tensors_, held_ - std::min(held_, tensors_), peak_};
}

std::shared_ptr<Buffer> allocate_device_buffer(const Backend* owner, std::shared_ptr<MemoryPool> pool, size_t bytes) {
  return std::make_shared<DeviceBuffer>(owner, std::move(pool), bytes);
}

}  // namespace molae::cuda
