#include "cpu/system/freed_blocks.h"
#include "native/harness.h"

namespace molae::test {
namespace {

MOLAE_TEST("freed blocks: at most an eighth more than was asked for", Logic) {
  for (size_t bytes = size_t{1} << 19; bytes <= size_t{1} << 25; bytes += size_t{1} << 16) {
    for (const size_t asked : {bytes - 1, bytes, bytes + 1}) {
      const size_t block = FreedBlocks::block_bytes(asked);
      expect(block >= asked, "a block of ", block, " for ", asked);
      expect(block - asked <= asked / 8, "a block of ", block, " for ", asked);
    }
  }
}

}  // namespace
}  // namespace molae::test
