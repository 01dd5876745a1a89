#pragma once

#include <cstdint>

#include "cuda/logic/host_device.h"

// The stages of shared memory between producer and consumers. Each has two barriers: `full` completes a phase when the
// stage has been filled, `empty` when every consumer is done with it. Both sides go around the ring and count the
// rounds for themselves; a wait names the parity of the phase that it needs completed.
namespace molae::cuda::hopper {

// A barrier object of the hardware; on the host just its place.
struct alignas(8) Barrier {
  uint64_t state;
};

template <int kStages>
struct RingPosition {
  int stage = 0;
  uint32_t round = 0;

  // What the consumer waits for on `full`: phase number `round`.
  MOLAE_HD uint32_t full_parity() const { return round & 1; }
  // What the producer waits for on `empty`: phase number round - 1. In the first round that is the phase before the
  // first, which counts as completed.
  MOLAE_HD uint32_t empty_parity() const { return (round + 1) & 1; }
  MOLAE_HD void advance() {
    if (++stage < kStages) return;
    stage = 0;
    ++round;
  }
};

}  // namespace molae::cuda::hopper
