#pragma once

#include <atomic>

#include "core/error.h"

namespace molae {

// Set by the JavaScript thread when an AbortSignal fires, checked by long operations between their steps.
class Cancellation {
 public:
  void cancel() { cancelled_.store(true, std::memory_order_relaxed); }
  bool cancelled() const { return cancelled_.load(std::memory_order_relaxed); }
  void check() const {
    if (cancelled()) fail(ErrorCode::Aborted, "The operation was aborted");
  }

 private:
  std::atomic<bool> cancelled_{false};
};

}  // namespace molae
