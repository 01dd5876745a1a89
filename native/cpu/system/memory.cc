#include "cpu/system/memory.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <new>

#include "core/checked.h"

namespace molae {
namespace {

constexpr std::align_val_t kAlignment{64};

#if defined(__linux__) && !defined(MOLAE_SANITIZED)
// Large blocks are mapped by ourselves. glibc keeps what aligned allocations of one thread free on another: converting
// a layer grew by every expert it had read. And only a mapping of our own can ask for huge pages.
constexpr size_t kMappedBytes = size_t{1} << 20;
constexpr size_t kHugePageBytes = size_t{2} << 20;

bool is_mapped(size_t bytes) { return bytes >= kMappedBytes; }

// Whole huge pages where that costs little: Linux then aligns the mapping, and all of it can be huge.
size_t mapped_bytes(size_t bytes) {
  const size_t rest = bytes % kHugePageBytes;
  const size_t missing = rest == 0 ? 0 : kHugePageBytes - rest;
  return missing <= bytes / 16 ? bytes + missing : bytes;
}

void* map_pages(size_t bytes) {
  void* data = mmap(nullptr, mapped_bytes(bytes), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (data == MAP_FAILED) return nullptr;
  // A wish. Without huge pages there are more faults, and a thread reads memory about a quarter slower.
  if (bytes >= kHugePageBytes) madvise(data, mapped_bytes(bytes), MADV_HUGEPAGE);
  return data;
}

void unmap_pages(void* data, size_t bytes) { munmap(data, mapped_bytes(bytes)); }
#else
bool is_mapped(size_t) { return false; }
void* map_pages(size_t) { return nullptr; }
void unmap_pages(void*, size_t) {}
#endif

// nullptr: there is no more.
void* try_allocate(size_t bytes) {
  return is_mapped(bytes) ? map_pages(bytes) : ::operator new(bytes == 0 ? 1 : bytes, kAlignment, std::nothrow);
}

[[noreturn]] void fail_to_allocate(size_t bytes) {
  fail(ErrorCode::OutOfMemory, "Out of memory: ", bytes, " bytes were asked for");
}

class HostBuffer final : public Buffer {
 public:
  HostBuffer(const Backend* owner, std::shared_ptr<HostMemory> memory, size_t bytes)
      : Buffer(owner, memory->allocate_tensor(bytes), bytes), memory_(std::move(memory)) {}
  ~HostBuffer() override { memory_->free_tensor(data(), bytes()); }

 private:
  std::shared_ptr<HostMemory> memory_;
};

}  // namespace

void* allocate_aligned(size_t bytes) {
  void* data = try_allocate(bytes);
  if (!data) fail_to_allocate(bytes);
  return data;
}

void free_aligned(void* data, size_t bytes) {
  if (is_mapped(bytes)) {
    unmap_pages(data, bytes);
  } else {
    ::operator delete(data, kAlignment);
  }
}

void* HostMemory::allocate_block(size_t bytes) {
  if (void* freed = freed_.take(bytes)) return freed;
  void* data = try_allocate(FreedBlocks::block_bytes(bytes));
  if (!data && freed_.release() > 0) data = try_allocate(FreedBlocks::block_bytes(bytes));
  if (!data) fail_to_allocate(bytes);
  return data;
}

void* HostMemory::allocate_tensor(size_t bytes) {
  void* data = allocate_block(bytes);
  tensors_.fetch_add(bytes, std::memory_order_relaxed);
  update_peak();
  return data;
}

void HostMemory::free_tensor(void* data, size_t bytes) {
  tensors_.fetch_sub(bytes, std::memory_order_relaxed);
  if (!freed_.keep(data, bytes)) free_aligned(data, FreedBlocks::block_bytes(bytes));
}

void HostMemory::add_workspace(size_t bytes) {
  workspaces_.fetch_add(bytes, std::memory_order_relaxed);
  update_peak();
}

void HostMemory::remove_workspace(size_t bytes) { workspaces_.fetch_sub(bytes, std::memory_order_relaxed); }

MemoryUsage HostMemory::usage() const { return {tensors_.load(), workspaces_.load() + freed_.bytes(), peak_.load()}; }

void HostMemory::update_peak() {
  const MemoryUsage now = usage();
  size_t peak = peak_.load(std::memory_order_relaxed);
  while (peak < now.tensors + now.workspaces &&
         !peak_.compare_exchange_weak(peak, now.tensors + now.workspaces, std::memory_order_relaxed)) {
  }
}

std::shared_ptr<Buffer> allocate_host_buffer(const Backend* owner, std::shared_ptr<HostMemory> memory, size_t bytes) {
  return std::make_shared<HostBuffer>(owner, std::move(memory), bytes);
}

void* Workspace::get_bytes(size_t slot, size_t count, size_t item_bytes) {
  const size_t bytes = checked_mul(count, item_bytes);
  if (slot >= blocks_.size()) blocks_.resize(slot + 1);
  Block& block = blocks_[slot];
  if (block.bytes < bytes) {
    free_aligned(block.data, block.bytes);
    memory_->remove_workspace(block.bytes);
    block = {};
    block.data = allocate_aligned(bytes);
    block.bytes = bytes;
    memory_->add_workspace(bytes);
  }
  return block.data;
}

void Workspace::release() {
  for (Block& block : blocks_) {
    free_aligned(block.data, block.bytes);
    memory_->remove_workspace(block.bytes);
  }
  blocks_.clear();
}

}  // namespace molae
