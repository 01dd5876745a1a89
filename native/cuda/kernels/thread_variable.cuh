#pragma once

namespace molae::cuda {

// A variable that every thread of a block or a warpgroup has its own of: on the GPU it is the calling thread's, in
// registers. logic/host_block.h and the model of a warpgroup have one for each thread.
template <class T>
class ThreadVariable {
 public:
  template <class Threads>
  __device__ __forceinline__ explicit ThreadVariable(const Threads&) {}
  __device__ __forceinline__ T& operator[](int) { return value_; }

 private:
  T value_;
};

}  // namespace molae::cuda
