#pragma once

#include "cpu/system/memory.h"

namespace molae::cpu {

// What an operation of the CPU backend may use.
struct Context {
  int threads;
  Workspace& workspace;
};

// Who uses which workspace slot. Operations do not call each other, so slots may overlap between files but not
// within one.
enum Slot : size_t {
  kOperandA,
  kOperandB,
  kResult,
  kWork,
  kIntegers,
  kVectorA,
  kVectorB,
  kVectorC,
  kScratch,       // one block for all threads
  kForwardFirst,  // experts_forward.cc numbers its own from here on
};

}  // namespace molae::cpu
