#pragma once

#include <cstring>
#include <memory>

#include "cuda/logic/error_record.h"
#include "cuda/logic/host_block.h"
#include "cuda/logic/kernel_decoder.h"
#include "native/cuda/host_runtime.h"

// The CUDA backend's decoder on the host: the same launches, blocks and arrays. Only the large products, which cuBLAS
// computes on a GPU, are plain loops here.
namespace molae::test {

class HostDecoderRuntime {
 public:
  HostDecoderRuntime(unsigned long long* error, cuda::ThreadOrder order) : error_(error), order_(order) {}

  void begin() {}
  HostMemory memory(size_t bytes) { return HostMemory(bytes); }
  HostMemory upload(const void* data, size_t bytes) {
    HostMemory to(bytes);
    if (bytes > 0) std::memcpy(to.as(), data, bytes);
    return to;
  }
  unsigned long long* error_record() { return error_; }

  template <class Kernel>
  void launch(const Kernel& kernel, const char*) {
    using Shared = typename Kernel::Shared;
    const auto shared = std::make_unique<Shared>();
    for (int64_t i = 0; i < kernel.blocks(); ++i) {
      std::memset(static_cast<void*>(shared.get()), 0xff, sizeof(Shared));  // as on a GPU, nothing is there yet
      kernel.run(cuda::HostBlock(static_cast<int>(i), Kernel::kThreads, order_), *shared);
    }
  }
  void convert(DType from_dtype, const void* from, DType to_dtype, void* to, int64_t count) {
    for (int64_t i = 0; i < count; ++i) cuda::store_as(to_dtype, to, i, cuda::load_as<float>(from_dtype, from, i));
  }
  void multiply(const cuda::LinearProduct& p) {
    for (int64_t i = 0; i < p.rows; ++i) {
      for (int64_t j = 0; j < p.cols; ++j) {
        float sum = 0;
        for (int64_t k = 0; k < p.inner; ++k) {
          sum += cuda::load_as<float>(p.dtype, p.x, i * p.inner + k) *
                 cuda::load_as<float>(p.dtype, p.weight, j * p.inner + k);
        }
        float& to = p.out[i * p.out_stride + j];
        to = p.accumulate ? to + sum : sum;
      }
    }
  }

 private:
  unsigned long long* error_;
  cuda::ThreadOrder order_;
};

}  // namespace molae::test
