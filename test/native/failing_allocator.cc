#include "native/failing_allocator.h"

#include <sys/mman.h>

#include <atomic>
#include <cstddef>
#include <cstdlib>
#include <new>

namespace molae::test {
namespace {

// native/cpu/system/memory.cc maps blocks from 1 MiB on. OpenBLAS maps its buffers, too; those are larger, and not
// ours.
constexpr size_t kSmallestMapping = size_t{1} << 20;
constexpr size_t kLargestMapping = size_t{16} << 20;

std::atomic<int64_t> live{0};
std::atomic<int64_t> heap_made{0};
std::atomic<bool> armed{false};
std::atomic<Allocations> kind_to_fail{Allocations::Heap};
std::atomic<int64_t> left{0};
std::atomic<bool> lasts{false};
std::atomic<bool> failed_one{false};

bool must_fail(Allocations kind) {
  if (!armed.load() || kind != kind_to_fail.load()) return false;
  const int64_t before = left.fetch_sub(1);
  if (before > 0 || (before < 0 && !lasts.load())) return false;
  failed_one.store(true);
  return true;
}

void* allocate(size_t bytes, size_t alignment) {
  if (must_fail(Allocations::Heap)) return nullptr;
  const size_t rounded = (bytes + alignment) / alignment * alignment;
  void* data = alignment <= alignof(std::max_align_t) ? std::malloc(bytes == 0 ? 1 : bytes)
                                                      : std::aligned_alloc(alignment, rounded);
  if (data) live.fetch_add(1);
  heap_made.fetch_add(1);
  return data;
}

void* allocate_or_throw(size_t bytes, size_t alignment) {
  void* data = allocate(bytes, alignment);
  if (!data) throw std::bad_alloc();
  return data;
}

void release(void* data) {
  if (!data) return;
  live.fetch_sub(1);
  std::free(data);
}

bool is_ours(size_t bytes) { return bytes >= kSmallestMapping && bytes <= kLargestMapping; }

}  // namespace

void fail_allocation(Allocations kind, int64_t index, bool lasting) {
  kind_to_fail = kind;
  left = index;
  lasts = lasting;
  failed_one = false;
  armed = true;
}

bool stop_failing() {
  armed = false;
  return failed_one;
}

int64_t live_blocks() { return live; }
int64_t heap_allocations() { return heap_made; }

void* map(void* (*real)(void*, size_t, int, int, int, off_t), void* at, size_t bytes, int protection, int flags,
          int file, off_t offset) {
  if (!is_ours(bytes)) return real(at, bytes, protection, flags, file, offset);
  if (must_fail(Allocations::Mappings)) return MAP_FAILED;
  void* data = real(at, bytes, protection, flags, file, offset);
  if (data != MAP_FAILED) live.fetch_add(1);
  return data;
}

int unmap(int (*real)(void*, size_t), void* data, size_t bytes) {
  if (is_ours(bytes)) live.fetch_sub(1);
  return real(data, bytes);
}

}  // namespace molae::test

extern "C" {
void* __real_mmap(void*, size_t, int, int, int, off_t);
int __real_munmap(void*, size_t);
void* __wrap_mmap(void* at, size_t bytes, int protection, int flags, int file, off_t offset) {
  return molae::test::map(__real_mmap, at, bytes, protection, flags, file, offset);
}
int __wrap_munmap(void* data, size_t bytes) { return molae::test::unmap(__real_munmap, data, bytes); }
}

// The arrays' forms call these.
void* operator new(size_t bytes) { return molae::test::allocate_or_throw(bytes, 1); }
void* operator new(size_t bytes, const std::nothrow_t&) noexcept { return molae::test::allocate(bytes, 1); }
void* operator new(size_t bytes, std::align_val_t alignment) {
  return molae::test::allocate_or_throw(bytes, static_cast<size_t>(alignment));
}
void* operator new(size_t bytes, std::align_val_t alignment, const std::nothrow_t&) noexcept {
  return molae::test::allocate(bytes, static_cast<size_t>(alignment));
}
void operator delete(void* data) noexcept { molae::test::release(data); }
void operator delete(void* data, size_t) noexcept { molae::test::release(data); }
void operator delete(void* data, std::align_val_t) noexcept { molae::test::release(data); }
void operator delete(void* data, size_t, std::align_val_t) noexcept { molae::test::release(data); }
void operator delete(void* data, const std::nothrow_t&) noexcept { molae::test::release(data); }
