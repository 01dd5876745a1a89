#include "cpu/system/processor.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <string_view>
#include <thread>

#include "core/error.h"

namespace molae {
namespace {

constexpr int kMaxThreads = 1024;

// Whole processors that the cgroup's quota allows; 0 where there is none.
int cgroup_processors() {
  std::ifstream file("/sys/fs/cgroup/cpu.max");
  std::string quota;
  double period = 0;
  if (!(file >> quota >> period) || quota == "max" || period <= 0) return 0;
  return std::max(1, static_cast<int>(std::ceil(std::atof(quota.c_str()) / period)));
}

int usable_processors() {
  int count = static_cast<int>(std::thread::hardware_concurrency());
#if defined(__linux__)
  cpu_set_t mask;
  if (sched_getaffinity(0, sizeof mask, &mask) == 0) count = CPU_COUNT(&mask);
  const int quota = cgroup_processors();
  if (quota > 0) count = std::min(count, quota);
#endif
  return std::clamp(count, 1, kMaxThreads);
}

}  // namespace

int resolve_threads(int requested) {
  if (requested < 0 || requested > kMaxThreads) {
    fail(ErrorCode::InvalidArgument, "Expected 0 to ", kMaxThreads, " for threads but received ", requested);
  }
  return requested == 0 ? usable_processors() : requested;
}

namespace cpu {

std::string processor_name() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    if (line.rfind("model name", 0) != 0) continue;
    const size_t colon = line.find(": ");
    if (colon != std::string::npos) return line.substr(colon + 2);
  }
  return "unknown processor";
}

namespace {

#if defined(__x86_64__)
// Not every compiler knows it by name.
bool has_f16c() {
  unsigned eax, ebx, ecx, edx;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
}
#endif

Instructions processor_instructions() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
  if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq")) {
    return Instructions::Avx512;
  }
  if (avx2) return Instructions::Avx2;
#endif
  return Instructions::Plain;
}

constexpr std::string_view kNames[] = {"plain", "avx2", "avx512"};  // by Instructions

Instructions allowed_instructions() {
  const Instructions most = processor_instructions();
  const char* wanted = std::getenv("MOLAE_INSTRUCTIONS");
  if (!wanted || *wanted == 0) return most;
  const auto* name = std::find(std::begin(kNames), std::end(kNames), wanted);
  if (name == std::end(kNames)) {
    fail(ErrorCode::InvalidArgument, "Expected plain, avx2 or avx512 for MOLAE_INSTRUCTIONS but received ", wanted);
  }
  const auto asked = static_cast<Instructions>(name - std::begin(kNames));
  if (asked > most) {
    fail(ErrorCode::InvalidArgument, "Expected instructions that this processor has for MOLAE_INSTRUCTIONS, ",
         kNames[static_cast<size_t>(most)], " at most, but received ", wanted);
  }
  return asked;
}

}  // namespace

Instructions instructions() {
  static const Instructions allowed = allowed_instructions();
  return allowed;
}

std::vector<std::string> processor_features() {
  std::vector<std::string> features;
  if (instructions() >= Instructions::Avx2) features.insert(features.end(), {"avx2", "fma"});
  if (instructions() >= Instructions::Avx512) features.emplace_back("avx512");
  return features;
}

size_t memory_bytes() {
  const long pages = sysconf(_SC_PHYS_PAGES);
  const long page_bytes = sysconf(_SC_PAGE_SIZE);
  return pages > 0 && page_bytes > 0 ? static_cast<size_t>(pages) * static_cast<size_t>(page_bytes) : 0;
}

const Caches& caches() {
  constexpr int64_t kUsualFirstBytes = 32 << 10;
#if defined(_SC_LEVEL1_DCACHE_SIZE)
  static const Caches found = [] {
    const int64_t first_bytes = sysconf(_SC_LEVEL1_DCACHE_SIZE);
    return Caches{first_bytes > 0 ? first_bytes : kUsualFirstBytes,
                  std::max<int64_t>(0, sysconf(_SC_LEVEL1_DCACHE_ASSOC)),
                  std::max<int64_t>(0, sysconf(_SC_LEVEL2_CACHE_SIZE))};
  }();
#else
  static const Caches found = {kUsualFirstBytes, 0, 0};
#endif
  return found;
}

namespace {

bool is_amd() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  return __builtin_cpu_is("amd");
#else
  return false;
#endif
}

bool has_bf16_pairs() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}

}  // namespace

bool reads_ahead() {
  static const bool reads = is_amd();
  return reads;
}

bool multiplies_pairs_fast() {
  static const bool fast = instructions() == Instructions::Avx512 && has_bf16_pairs() && is_amd();
  return fast;
}

}  // namespace cpu
}  // namespace molae
