#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <mutex>

namespace molae {

// Blocks of freed tensors, for the next tensors of about their size: what an operation computes on the way is as large
// each time, and a fresh block costs a page fault every 4 KiB. Neither small blocks nor very large ones are kept.
class FreedBlocks {
 public:
  FreedBlocks() = default;
  ~FreedBlocks() { release(); }
  FreedBlocks(const FreedBlocks&) = delete;
  FreedBlocks& operator=(const FreedBlocks&) = delete;

  // The bytes of a block for so many: sizes that differ little share their blocks.
  static size_t block_bytes(size_t bytes);

  // nullptr: none is kept of block_bytes(bytes).
  void* take(size_t bytes);
  // Of block_bytes(bytes). The oldest ones make room; false where blocks of this size are not kept.
  bool keep(void* block, size_t bytes);
  // Gives all back to the system, and says how many bytes that were.
  size_t release();
  size_t bytes() const { return bytes_.load(std::memory_order_relaxed); }

 private:
  struct Block {
    void* data;
    size_t bytes;
  };
  // Not a vector: freeing must not allocate.
  static constexpr size_t kMostBlocks = 64;

  void drop_oldest();

  std::mutex mutex_;
  std::array<Block, kMostBlocks> blocks_{};  // the oldest first
  size_t count_ = 0;
  std::atomic<size_t> bytes_{0};
};

}  // namespace molae
