#include "cuda/api/cuda_decoder.h"

#include "cuda/api/check.h"
#include "cuda/api/linalg.h"
#include "cuda/kernels/launch.h"
#include "cuda/logic/kernel_decoder.h"

namespace molae::cuda {
namespace {

// The decoder's steps (logic/kernel_decoder.h) on a GPU: memory from its pool, kernels on its stream, products by
// cuBLAS.
class DecoderRuntime {
 public:
  explicit DecoderRuntime(Gpu& gpu) : gpu_(&gpu) {}

  void begin() { gpu_->activate(); }
  Scratch memory(size_t bytes) { return gpu_->scratch(bytes, 1); }
  Scratch upload(const void* data, size_t bytes) {
    Scratch to = memory(bytes);
    gpu_->staging().upload(data, to.as(), bytes);
    return to;
  }
  unsigned long long* error_record() { return gpu_->error_record(); }

  template <class Kernel>
  void launch(const Kernel& kernel, const char* what) {
    check(kernels::launch(gpu_->stream(), kernel), what);
  }
  void convert(DType from_dtype, const void* from, DType to_dtype, void* to, int64_t count) {
    check(kernels::convert(gpu_->stream(), from_dtype, from, to_dtype, to, count), "widening weights");
  }
  void multiply(const LinearProduct& p) {
    cuda::multiply(*gpu_, {p.dtype, DType::F32, false, true, p.rows, p.cols, p.inner, 1, p.x, p.inner, p.weight,
                           p.inner, p.accumulate ? 1.0 : 0.0, p.out, p.out_stride});
  }

 private:
  Gpu* gpu_;
};

}  // namespace

std::unique_ptr<Decoder> make_decoder(Gpu& gpu) {
  return std::make_unique<KernelDecoder<DecoderRuntime>>(DecoderRuntime(gpu));
}

}  // namespace molae::cuda
