#pragma once

#include <cstdint>

// Makes memory run out on purpose. This executable has an operator new of its own, and its mmap calls are wrapped
// (CMakeLists.txt): every allocation of the native code passes here, on whatever thread.
namespace molae::test {

enum class Allocations {
  Heap,
  Mappings
};  // operator new; mmap of the blocks that native/cpu/system/memory.cc maps itself

// The allocation number `index` of this kind from now on fails, and with `lasting` all after it.
void fail_allocation(Allocations kind, int64_t index, bool lasting);
// Back to normal. True if an allocation was made to fail.
bool stop_failing();

// Blocks from either that were not given back.
int64_t live_blocks();
// Calls of operator new so far, of all threads.
int64_t heap_allocations();

}  // namespace molae::test
