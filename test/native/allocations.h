#pragma once

#include <cstdint>

namespace molae::test {

// Allocations by operator new, of all threads, while one of these lives. Counts nothing under sanitizers, which have
// their own operator new.
class AllocationCount {
 public:
  AllocationCount();
  ~AllocationCount();
  int64_t value() const;
  static bool works();
};

}  // namespace molae::test
