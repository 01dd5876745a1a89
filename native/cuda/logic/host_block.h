#pragma once

#include <cstdint>
#include <stdexcept>
#include <vector>

#include "cuda/logic/host_warp.h"

// Runs the body of a kernel on the host. A body is written as phases, `block.each_thread(phase)`, with a barrier
// between one phase and the next; here a phase is a loop over the threads, on the GPU (kernels/device_block.cuh) it is
// the thread itself. So the tests run the same source as the GPU, index for index.
namespace molae::cuda {

// The order in which the threads of a phase run. No result may depend on it: a phase in which one thread reads what
// another writes lacks a barrier.
enum class ThreadOrder { Forwards, Backwards };

class HostBlock {
 public:
  HostBlock(int index, int threads, ThreadOrder order = ThreadOrder::Forwards)
      : index_(index), threads_(threads), order_(order) {}

  int index() const { return index_; }
  int threads() const { return threads_; }

  template <class Phase>
  void each_thread(Phase phase) const {
    for (int i = 0; i < threads_; ++i) phase(order_ == ThreadOrder::Forwards ? i : threads_ - 1 - i);
  }

  // A phase without a barrier behind it.
  template <class Phase>
  void each_thread_unsynced(Phase phase) const {
    each_thread(phase);
  }

  // What a warp does together, warp after warp, without a barrier behind it.
  template <class Phase>
  void each_warp(Phase phase) const {
    if (threads_ % HostWarp::kLanes != 0) throw std::logic_error("A block of threads that make no whole warps");
    const int warps = threads_ / HostWarp::kLanes;
    for (int i = 0; i < warps; ++i) {
      phase(HostWarp((order_ == ThreadOrder::Forwards ? i : warps - 1 - i) * HostWarp::kLanes));
    }
  }

  // A variable that every thread has its own of, living through several phases.
  template <class T>
  class Local {
   public:
    explicit Local(const HostBlock& block) : values_(block.threads()) {}
    T& operator[](int thread) { return values_[thread]; }

   private:
    std::vector<T> values_;
  };

  // 16 bytes that nobody reads again. A GPU stops at an address that is not a multiple of 16.
  template <class T>
  static T load_once(const void* from) {
    static_assert(sizeof(T) == 16);
    if (reinterpret_cast<uintptr_t>(from) % 16 != 0) throw std::logic_error("A vector that is not aligned was read");
    return *static_cast<const T*>(from);
  }

  template <class T>
  static T load_from_l2(const T* from) {
    return *from;
  }

  // The line of an address is wanted soon. Read here, so that a sanitizer sees an address outside.
  static void prefetch(const void* from) { static_cast<void>(*static_cast<const volatile char*>(from)); }

  // Asynchronous copies into shared memory: done at once here.
  static void copy16(void* to, const void* from, int bytes) {
    for (int i = 0; i < 16; ++i) static_cast<char*>(to)[i] = i < bytes ? static_cast<const char*>(from)[i] : 0;
  }
  static void commit_copies() {}
  template <int kPending>
  static void await_copies() {}

 private:
  int index_;
  int threads_;
  ThreadOrder order_;
};

}  // namespace molae::cuda
