#pragma once

#include <cuda_runtime_api.h>

#include <functional>
#include <utility>

namespace molae::cuda {

// Kernels that are launched together.
class Graph {
 public:
  // What `queue` launches on the stream, which runs none of it. It must not allocate, copy from the host or wait.
  // Throws what `queue` throws, and Internal where CUDA refuses; the stream is then as it was.
  Graph(cudaStream_t stream, const std::function<void()>& queue);
  Graph(Graph&& other) noexcept : executable_(std::exchange(other.executable_, nullptr)) {}
  Graph& operator=(Graph&& other) noexcept {
    std::swap(executable_, other.executable_);
    return *this;
  }
  ~Graph();  // a graph that still runs is freed when it has ended

  void launch(cudaStream_t stream) const;

 private:
  cudaGraphExec_t executable_ = nullptr;
};

}  // namespace molae::cuda
