#include "cpu/memory.h"

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

class HostBuffer final : public Buffer {
 public:
  HostBuffer(const Backend* owner, std::shared_ptr<MemoryAccount> account, size_t bytes)
      : Buffer(owner, allocate_aligned(bytes), bytes), account_(std::move(account)) {
    account_->add_tensor(bytes);
  }
  ~HostBuffer() override {
    account_->remove_tensor(bytes());
    free_aligned(data(), bytes());
  }

 private:
  std::shared_ptr<MemoryAccount> account_;
};

}  // namespace

void MemoryAccount::update(std::atomic<size_t>& counter, size_t bytes) {
  counter.fetch_add(bytes, std::memory_order_relaxed);
  const size_t total = tensors_.load(std::memory_order_relaxed) + workspaces_.load(std::memory_order_relaxed);
  size_t peak = peak_.load(std::memory_order_relaxed);
  while (peak < total && !peak_.compare_exchange_weak(peak, total, std::memory_order_relaxed)) {
  }
}

void* allocate_aligned(size_t bytes) {
  void* data = is_mapped(bytes) ? map_pages(bytes) : ::operator new(bytes == 0 ? 1 : bytes, kAlignment, std::nothrow);
  if (!data) fail(ErrorCode::OutOfMemory, "Out of memory: ", bytes, " bytes were asked for");
  return data;
}

void free_aligned(void* data, size_t bytes) {
  if (is_mapped(bytes)) {
    unmap_pages(data, bytes);
  } else {
    ::operator delete(data, kAlignment);
  }
}

std::shared_ptr<Buffer> allocate_host_buffer(const Backend* owner, std::shared_ptr<MemoryAccount> account,
                                             size_t bytes) {
  return std::make_shared<HostBuffer>(owner, std::move(account), bytes);
}

void* Workspace::get_bytes(size_t slot, size_t count, size_t item_bytes) {
  const size_t bytes = checked_mul(count, item_bytes);
  if (slot >= blocks_.size()) blocks_.resize(slot + 1);
  Block& block = blocks_[slot];
  if (block.bytes < bytes) {
    free_aligned(block.data, block.bytes);
    account_->remove_workspace(block.bytes);
    block = {};
    block.data = allocate_aligned(bytes);
    block.bytes = bytes;
    account_->add_workspace(bytes);
  }
  return block.data;
}

void Workspace::release() {
  for (Block& block : blocks_) {
    free_aligned(block.data, block.bytes);
    account_->remove_workspace(block.bytes);
  }
  blocks_.clear();
}

}  // namespace molae
