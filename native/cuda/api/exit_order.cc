#include "cuda/api/exit_order.h"

#include <atomic>
#include <cstdlib>

namespace molae::cuda {
namespace {

std::atomic<void (*)()> stop = nullptr;

}  // namespace

void set_stop_queues(void (*stop_queues)()) { stop = stop_queues; }

void stop_queues_first() {
  if (void (*stop_queues)() = stop) std::atexit(stop_queues);
}

}  // namespace molae::cuda
