#pragma once

#include <cstdint>

#include "cuda/logic/host_device.h"

// What a kernel found wrong with its input, in one 64-bit word of device memory. A kernel cannot throw: it leaves the
// record and carries on with a result that is defined but incomplete; the next call that waits for the device reads
// the record and throws. The smallest record wins, so that the report does not depend on the order of blocks.
namespace molae::cuda {

enum class InputError : uint32_t {
  ExpertOutOfRange = 0,
  ExpertTwice = 1,
  LogitsNotFinite = 2,
  BiasNotFinite = 3,
  TokenOutOfRange = 4,
  TargetOutOfRange = 5,
  RowNotFinite = 6,
};

inline constexpr uint64_t kNoError = ~uint64_t{0};

// Token (or row) in the upper 31 bits, then the kind in 3, then the expert (or the id that was given) in 30: clamped,
// for the message only.
MOLAE_HD uint64_t error_record(InputError kind, int64_t token, int32_t expert) {
  const int32_t limit = 1 << 29;
  const int32_t clamped = expert < -limit ? -limit : expert >= limit ? limit - 1 : expert;
  return static_cast<uint64_t>(token) << 33 | static_cast<uint64_t>(kind) << 30 |
         (static_cast<uint64_t>(clamped) & 0x3fffffffu);
}

struct DecodedError {
  InputError kind;
  int64_t token;
  int32_t expert;
};

inline DecodedError decode_error(uint64_t record) {
  const auto expert = static_cast<int32_t>(static_cast<uint32_t>(record & 0x3fffffffu) << 2) >> 2;
  return {static_cast<InputError>((record >> 30) & 7u), static_cast<int64_t>(record >> 33), expert};
}

MOLAE_HD void report_error(unsigned long long* record, uint64_t error) {
#ifdef __CUDA_ARCH__
  atomicMin(record, static_cast<unsigned long long>(error));
#else
  if (error < *record) *record = error;
#endif
}

}  // namespace molae::cuda
