#include "cpu/system/freed_blocks.h"

#include <algorithm>
#include <bit>
#include <iterator>

#include "cpu/system/memory.h"

namespace molae {
namespace {

constexpr size_t kSmallest = size_t{1} << 20;  // below, the C library keeps them
#if defined(MOLAE_SANITIZED)
constexpr size_t kLargest = 0;  // the sanitizer is to see every access to freed memory
#else
constexpr size_t kLargest = size_t{16} << 20;
#endif
constexpr size_t kMostBytes = size_t{64} << 20;

bool is_kept(size_t bytes) { return bytes >= kSmallest && bytes <= kLargest; }

}  // namespace

// Eight sizes from one power of two to the next: at most an eighth of a block is not asked for.
size_t FreedBlocks::block_bytes(size_t bytes) {
  if (!is_kept(bytes)) return bytes;
  const size_t step = std::bit_floor(bytes) / 8;
  return (bytes + step - 1) / step * step;
}

void* FreedBlocks::take(size_t bytes) {
  if (!is_kept(bytes)) return nullptr;
  const std::lock_guard lock(mutex_);
  const auto end = blocks_.begin() + count_;
  // The one freed last is the likeliest to be in a cache.
  const auto found = std::find_if(std::make_reverse_iterator(end), blocks_.rend(),
                                  [&](const Block& block) { return block.bytes == block_bytes(bytes); });
  if (found == blocks_.rend()) return nullptr;
  void* data = found->data;
  std::move(found.base(), end, found.base() - 1);
  --count_;
  bytes_ -= block_bytes(bytes);
  return data;
}

bool FreedBlocks::keep(void* block, size_t bytes) {
  if (!is_kept(bytes)) return false;
  const std::lock_guard lock(mutex_);
  while (count_ == kMostBlocks || bytes_ + block_bytes(bytes) > kMostBytes) drop_oldest();
  blocks_[count_++] = {block, block_bytes(bytes)};
  bytes_ += block_bytes(bytes);
  return true;
}

void FreedBlocks::drop_oldest() {
  const Block oldest = blocks_.front();
  std::move(blocks_.begin() + 1, blocks_.begin() + count_, blocks_.begin());
  --count_;
  bytes_ -= oldest.bytes;
  free_aligned(oldest.data, oldest.bytes);
}

size_t FreedBlocks::release() {
  const std::lock_guard lock(mutex_);
  const size_t released = bytes_;
  while (count_ > 0) drop_oldest();
  return released;
}

}  // namespace molae
