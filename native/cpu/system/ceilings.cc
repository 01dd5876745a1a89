#include "cpu/system/ceilings.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <mutex>
#include <vector>

#include "cpu/linalg/blas.h"
#include "cpu/linalg/blas_kernels.h"
#include "cpu/system/compute_pool.h"
#include "cpu/system/instruction_sets.h"
#include "cpu/system/memory.h"

namespace molae::cpu {
namespace {

double seconds() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

template <class Run>
double seconds_of(Run run) {
  const double begin = seconds();
  run();
  return seconds() - begin;
}

// Results kept from the optimizer, and numbers it can't know.
volatile float sink;
volatile float fma_start = 0.001f;
volatile float fma_factor = 0.999f;

// Twelve chains: enough to cover a latency of 4 to 6 cycles at two FMAs a cycle, few enough for 16 registers.
constexpr int kChains = 12;
constexpr int64_t kFmaSteps = 100'000;
constexpr size_t kReadTaskBytes = size_t{2} << 20;

// The numbers come from outside, or the compiler would compute a chain itself.
#define MOLAE_FMA_BURST(name, lanes, attributes)                                                           \
  attributes void name(float start, float factor) {                                                        \
    typedef float Vector __attribute__((vector_size((lanes)*4)));                                          \
    Vector chains[kChains];                                                                                \
    for (int i = 0; i < kChains; ++i) chains[i] = Vector{} + start * static_cast<float>(i);                \
    const Vector scale = Vector{} + factor;                                                                \
    const Vector step = Vector{} + start;                                                                  \
    for (int64_t k = 0; k < kFmaSteps; ++k) {                                                              \
      _Pragma("GCC unroll 12") for (int i = 0; i < kChains; ++i) { chains[i] = chains[i] * scale + step; } \
    }                                                                                                      \
    Vector sum = chains[0];                                                                                \
    for (int i = 1; i < kChains; ++i) sum += chains[i];                                                    \
    sink = sum[0];                                                                                         \
  }

// What is asked for ahead of the loads: as much as memory needs to be busy all the time.
constexpr size_t kBytesAhead = 4096;

// One pass of full-width loads over pieces of some streams in turns, each asked for ahead or not. Which way is fastest
// is the processor's: on a Xeon one stream that nobody asked for had three quarters of what two have with AVX-512, and
// two thirds of what eight have with AVX2; on a Zen 4 it has 1.1 to 1.5 times what eight have with AVX2. Integers, so
// that the order of the sum is free and no value is special.
#define MOLAE_READ_BURST(name, bytes, streams, ahead, attributes)                                     \
  attributes uint64_t name(const std::byte* data, size_t size) {                                      \
    typedef uint64_t Vector __attribute__((vector_size(bytes)));                                      \
    constexpr size_t kLine = 64;                                                                      \
    constexpr size_t kPiece = 2 * kLine;                                                              \
    constexpr size_t kVectors = kPiece / (bytes);                                                     \
    const size_t apart = size / (streams);                                                            \
    Vector sums[8] = {};                                                                              \
    for (size_t at = 0; at + kPiece <= apart; at += kPiece) {                                         \
      _Pragma("GCC unroll 8") for (size_t stream = 0; stream < (streams); ++stream) {                 \
        const std::byte* piece = data + stream * apart + at;                                          \
        if constexpr ((ahead) != 0) __builtin_prefetch(piece + (ahead) / (streams));                  \
        if constexpr ((ahead) != 0) __builtin_prefetch(piece + (ahead) / (streams) + kLine);          \
        _Pragma("GCC unroll 8") for (size_t i = 0; i < kVectors; ++i) {                               \
          sums[(stream * kVectors + i) % 8] += *reinterpret_cast<const Vector*>(piece + i * (bytes)); \
        }                                                                                             \
      }                                                                                               \
    }                                                                                                 \
    for (int i = 1; i < 8; ++i) sums[0] += sums[i];                                                   \
    return sums[0][0] + sums[0][1];                                                                   \
  }

struct Bursts {
  int lanes;
  void (*fma)(float, float);
  // Streams that are asked for, and one that is left to the processor.
  uint64_t (*read_streams)(const std::byte*, size_t);
  uint64_t (*read_run)(const std::byte*, size_t);
};

MOLAE_FMA_BURST(fma_plain, 4, MOLAE_PLAIN)
MOLAE_READ_BURST(read_streams_plain, 16, 8, kBytesAhead, MOLAE_PLAIN)
MOLAE_READ_BURST(read_run_plain, 16, 1, 0, MOLAE_PLAIN)
constexpr Bursts kPlain = {4, fma_plain, read_streams_plain, read_run_plain};
#if defined(__x86_64__)
MOLAE_FMA_BURST(fma_avx2, 8, MOLAE_AVX2)
MOLAE_READ_BURST(read_streams_avx2, 32, 8, kBytesAhead, MOLAE_AVX2)
MOLAE_READ_BURST(read_run_avx2, 32, 1, 0, MOLAE_AVX2)
MOLAE_FMA_BURST(fma_avx512, 16, MOLAE_AVX512)
MOLAE_READ_BURST(read_streams_avx512, 64, 2, kBytesAhead, MOLAE_AVX512)
MOLAE_READ_BURST(read_run_avx512, 64, 1, 0, MOLAE_AVX512)
constexpr Bursts kAvx2 = {8, fma_avx2, read_streams_avx2, read_run_avx2};
constexpr Bursts kAvx512 = {16, fma_avx512, read_streams_avx512, read_run_avx512};
#endif

// Many more bursts than threads, handed out one by one: a thread that loses its core for a while holds nobody up.
double fma_gflops(int threads, const Bursts& bursts) {
  const int64_t tasks = 100 * static_cast<int64_t>(threads);
  const float start = fma_start;
  const float factor = fma_factor;
  const double took = seconds_of(
      [&] { ComputePool::instance().parallel_for(threads, tasks, [&](int64_t, int) { bursts.fma(start, factor); }); });
  return 2.0 * kChains * bursts.lanes * kFmaSteps * tasks / took / 1e9;
}

// Each of two halves is to be larger than the third cache. What is reported for it on a virtual machine may be the sum
// over a host's chips, of which we see one: hence the upper bound, which still is more than any one chip has.
constexpr size_t kLeastReadBytes = size_t{256} << 20;
constexpr size_t kMostReadBytes = size_t{1} << 30;

size_t read_bytes() {
  size_t bytes = kLeastReadBytes;
#if defined(_SC_LEVEL3_CACHE_SIZE)
  const long cache = sysconf(_SC_LEVEL3_CACHE_SIZE);
  if (cache > 0) bytes = std::clamp(4 * static_cast<size_t>(cache), kLeastReadBytes, kMostReadBytes);
#endif
  return bytes / (2 * kReadTaskBytes) * (2 * kReadTaskBytes);
}

constexpr int64_t kSize = 2048;
constexpr int64_t kElements = kSize * kSize;

// Memory for measurements, kept for the next one: where memory is slow to come, as on many virtual machines, faulting
// it in takes far longer than measuring. It begins with two factors and room for their product. One user at a time.
struct Scratch {
  std::byte* data = nullptr;
  size_t bytes = 0;
};

Scratch& scratch() {
  static auto& kept = *new Scratch;  // never destroyed: the queue may be inside at process exit
  if (!kept.data) {
    kept.bytes = read_bytes();
    kept.data = static_cast<std::byte*>(allocate_aligned(kept.bytes));
#if defined(MADV_HUGEPAGE)
    // The limit is the memory's, not the page tables'.
    const auto address = reinterpret_cast<uintptr_t>(kept.data);
    const size_t offset = -address & 4095;
    madvise(kept.data + offset, kept.bytes - offset, MADV_HUGEPAGE);
#endif
    // Every page must be there, and its own: untouched ones may all be one page of zeros.
    auto* words = reinterpret_cast<uint64_t*>(kept.data);
    for (size_t i = 0; i < kept.bytes / sizeof(uint64_t); ++i) words[i] = i * 0x9e3779b97f4a7c15u;
    auto* factors = reinterpret_cast<float*>(kept.data);
    uint32_t state = 1;
    for (int64_t i = 0; i < 2 * kElements; ++i) {
      state = state * 1664525u + 1013904223u;
      factors[i] = static_cast<float>(state >> 8) / (1 << 23) - 1.0f;
    }
  }
  return kept;
}

double read_gbps(int threads, const std::byte* data, int64_t tasks, uint64_t (*read)(const std::byte*, size_t)) {
  std::vector<uint64_t> sums(tasks);
  const double took = seconds_of([&] {
    ComputePool::instance().parallel_for(
        threads, tasks, [&](int64_t task, int) { sums[task] = read(data + task * kReadTaskBytes, kReadTaskBytes); });
  });
  sink = static_cast<float>(sums.back());
  return static_cast<double>(tasks * kReadTaskBytes) / took / 1e9;
}

// The faster of two ways, each through half of the memory.
double read_gbps(int threads, const Bursts& bursts) {
  const Scratch& memory = scratch();
  const auto tasks = static_cast<int64_t>(memory.bytes / 2 / kReadTaskBytes);
  return std::max(read_gbps(threads, memory.data, tasks, bursts.read_streams),
                  read_gbps(threads, memory.data + memory.bytes / 2, tasks, bursts.read_run));
}

// The most square grid of parts, one a thread: each packs what it reads anew, so long strips would cost more.
struct Grid {
  int down;
  int across;
};

Grid square_grid(int threads) {
  int across = 1;
  for (int i = 1; i * i <= threads; ++i) {
    if (threads % i == 0) across = i;
  }
  return {threads / across, across};
}

// On our threads: OpenBLAS's own go on spinning after a product, for tens of milliseconds in which something else is
// measured.
double sgemm_gflops(int threads, const Bursts& bursts) {
  auto* a = reinterpret_cast<float*>(scratch().data);
  float* b = a + kElements;
  float* c = b + kElements;
  // The limit is arithmetic's: what is read has been read just before.
  const auto* factors = reinterpret_cast<const std::byte*>(a);
  sink = static_cast<float>(bursts.read_run(factors, 2 * kElements * sizeof(float)));
  const Grid grid = square_grid(threads);
  const double took = seconds_of([&] {
    ComputePool::instance().parallel_for(threads, threads, [&](int64_t part, int) {
      const int64_t row = kSize * (part / grid.across) / grid.down;
      const int64_t rows = kSize * (part / grid.across + 1) / grid.down - row;
      const int64_t col = kSize * (part % grid.across) / grid.across;
      const int64_t cols = kSize * (part % grid.across + 1) / grid.across - col;
      blas::gemm(false, false, rows, cols, kSize, 1.0f, a + row * kSize, kSize, b + col, kSize, 0.0f,
                 c + row * kSize + col, kSize);
    });
  });
  sink = c[kElements / 2];
  return 2.0 * kSize * kSize * kSize / took / 1e9;
}

}  // namespace

Ceilings measure_ceilings(int threads) {
  // Devices with other numbers of threads have queues of their own: nothing else is to be measured meanwhile.
  static auto& turn = *new std::mutex;
  const std::lock_guard lock(turn);
  choose_blas_kernels();
  const Bursts& bursts = MOLAE_BEST_OF(kPlain, kAvx2, kAvx512);
  return {fma_gflops(threads, bursts), sgemm_gflops(threads, bursts), read_gbps(threads, bursts)};
}

}  // namespace molae::cpu
