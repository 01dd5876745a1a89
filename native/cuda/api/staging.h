#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

namespace molae::cuda {

// Copies between ordinary host memory and the GPU by way of two pinned buffers, so that copying on the host and the
// transfer overlap, and that the caller's memory is its own again when upload() returns.
class Staging {
 public:
  explicit Staging(cudaStream_t stream) : stream_(stream) {}
  ~Staging();
  Staging(const Staging&) = delete;
  Staging& operator=(const Staging&) = delete;

  void upload(const void* host, void* device, size_t bytes);
  // Waits for the stream.
  void download(const void* device, void* host, size_t bytes);

 private:
  static constexpr size_t kBytes = size_t{8} << 20;

  struct Slot {
    void* data = nullptr;
    cudaEvent_t done = nullptr;  // of the last transfer from or to it
  };
  Slot& next_slot();  // waits until it is free

  cudaStream_t stream_;
  Slot slots_[2];
  int next_ = 0;
};

}  // namespace molae::cuda
