#include "cpu/linalg/blas_memory.h"

#if defined(__linux__)
#include <sys/mman.h>
#include <sys/resource.h>
#endif

#include <atomic>
#include <mutex>
#include <thread>
#include <vector>

#include "core/error.h"
#include "cpu/linalg/blas.h"
#include "cpu/system/compute_pool.h"

namespace molae::cpu {

#if defined(__linux__)
namespace {

// As much as any build of OpenBLAS for x86-64 takes at once.
constexpr size_t kBufferBytes = size_t{128} << 20;

// Of a product that is none of the small ones, which need no buffer.
constexpr int64_t kSide = 512;

bool is_limited() {
  rlimit limit{};
  return getrlimit(RLIMIT_AS, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY;
}

void check_there_is_room(int threads) {
  // OpenBLAS's own threads, and ours.
  const size_t bytes = 2 * static_cast<size_t>(threads) * kBufferBytes;
  void* room = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (room == MAP_FAILED) {
    fail(ErrorCode::OutOfMemory, "Out of memory: OpenBLAS needs ", bytes, " bytes of address space for ", threads,
         " threads, more than is left (ulimit -v)");
  }
  munmap(room, bytes);
}

// As many products at once as will ever be.
void multiply_on_all(int threads) {
  std::vector<float> a(kSide * kSide, 1.0f), out(kSide * kSide * threads);
  const auto multiply = [&](int64_t index) {
    blas::gemm(false, false, kSide, kSide, kSide, 1.0f, a.data(), kSide, a.data(), kSide, 0.0f,
               out.data() + index * kSide * kSide, kSide);
  };
  {
    const blas::Threads of_openblas(threads);
    multiply(0);
  }
  std::atomic<int> arrived = 0;
  ComputePool::instance().parallel_for(threads, threads, [&](int64_t index, int) {
    ++arrived;
    while (arrived < threads) std::this_thread::yield();
    multiply(index);
  });
}

}  // namespace

void reserve_blas_memory(int threads) {
  static auto& mutex = *new std::mutex;
  static int reserved = 0;
  const std::lock_guard lock(mutex);
  if (threads <= reserved || !is_limited()) return;
  check_there_is_room(threads - reserved);
  multiply_on_all(threads);
  reserved = threads;
}
#else
void reserve_blas_memory(int) {}
#endif

}  // namespace molae::cpu
