#pragma once

#include <cublas_v2.h>
#include <cuda_runtime_api.h>
#include <cusolverDn.h>

#include <memory>
#include <string>

#include "core/backend.h"
#include "cuda/api/cublas.h"
#include "cuda/api/cusolver.h"
#include "cuda/api/driver.h"
#include "cuda/api/memory_pool.h"
#include "cuda/api/staging.h"

namespace molae::cuda {

// One GPU: its stream, its memory, its library handles. What the operations of the backend work with.
class Gpu {
 public:
  explicit Gpu(int index);
  ~Gpu();
  Gpu(const Gpu&) = delete;
  Gpu& operator=(const Gpu&) = delete;

  // Makes it the calling thread's device. Every operation does so first: they come from several threads.
  void activate() const;

  int index() const { return index_; }
  const GpuDescription& description() const { return description_; }
  cudaStream_t stream() const { return stream_; }
  const std::shared_ptr<MemoryPool>& pool() const { return pool_; }
  Staging& staging() { return *staging_; }
  Scratch scratch(size_t count, size_t item_bytes);

  cublasHandle_t cublas();  // opened on first use
  struct Solver {
    cusolverDnHandle_t handle;
    cusolverDnParams_t params;
  };
  Solver cusolver();  // opened on first use

  // Where kernels leave what they find wrong (logic/error_record.h).
  unsigned long long* error_record() const { return error_record_; }
  // Waits for the stream; throws what kernels found wrong since the last time.
  void synchronize();

  // Milliseconds between the opening of the GPU and the end of what its stream has been given, by its own clock. As
  // exact after days as at first: a sum of the times between one call and the next, which CUDA gives as floats.
  double timestamp();

  // Copies a small value from the GPU, waiting for it.
  template <class T>
  T read(const T* device) {
    T value;
    staging_->download(device, &value, sizeof value);
    return value;
  }

 private:
  int index_;
  GpuDescription description_;
  cudaStream_t stream_ = nullptr;
  std::shared_ptr<MemoryPool> pool_;
  std::unique_ptr<Staging> staging_;
  cublasHandle_t cublas_ = nullptr;
  Solver cusolver_{};
  unsigned long long* error_record_ = nullptr;
  double elapsed_ms_ = 0;  // until last_, the last time somebody asked
  cudaEvent_t last_ = nullptr;
  cudaEvent_t now_ = nullptr;
};

}  // namespace molae::cuda
