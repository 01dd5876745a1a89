#include "cuda/api/cuda_backend.h"

#include <string>

#include "core/error.h"
#include "cuda/api/check.h"
#include "cuda/api/cuda_decoder.h"
#include "cuda/api/driver.h"
#include "cuda/api/gpu.h"
#include "cuda/api/layer_forward.h"
#include "cuda/api/linalg.h"
#include "cuda/kernels/launch.h"

namespace molae::cuda {
namespace {

std::string cublas_name(Gpu& gpu) {
  int version = 0;
  check(Cublas::instance().cublasGetVersion_v2(gpu.cublas(), &version), "asking for the version of cuBLAS");
  return "cuBLAS " + std::to_string(version / 10000) + "." + std::to_string(version / 100 % 100) + "." +
         std::to_string(version % 100) + " (" + Cublas::instance().path + ")";
}

class CudaBackend final : public Backend {
 public:
  // cuBLAS is opened here, so that a device that opens can multiply.
  CudaBackend(int index, const Backend* owner)
      : owner_(owner ? owner : this), gpu_(index), decoder_(make_decoder(gpu_)) {
    const GpuDescription& gpu = gpu_.description();
    info_.kind = "cuda";
    info_.index = index;
    info_.name = gpu.name;
    info_.library = cublas_name(gpu_);
    info_.features = {"compute capability " + gpu.capability(),
                      std::to_string(gpu.multiprocessors) + " multiprocessors"};
    if (gpu.has_hopper_tiles()) info_.features.push_back("Hopper tiles");
    info_.memory_bytes = gpu.memory_bytes;
  }

  DeviceInfo info() const override { return info_; }
  MemoryUsage memory_usage() const override { return gpu_.pool()->usage(); }
  void trim() override { gpu_.pool()->trim(); }
  double timestamp() override { return active().timestamp(); }
  void synchronize() override { active().synchronize(); }

  std::shared_ptr<Buffer> allocate(size_t bytes) override { return allocate_device_buffer(owner_, gpu_.pool(), bytes); }
  bool host_memory() const override { return false; }
  void upload(const void* host, const Tensor& to) override { active().staging().upload(host, to.data(), to.bytes()); }
  void download(const Tensor& from, void* host) override {
    active().staging().download(from.data(), host, from.bytes());
    gpu_.synchronize();
  }
  void copy(const Tensor& from, const Tensor& to) override { cuda::copy(active(), from, to); }
  void zero(const Tensor& tensor) override {
    check(cudaMemsetAsync(tensor.data(), 0, tensor.bytes(), active().stream()), "clearing a tensor");
  }
  void transpose(const Tensor& from, const Tensor& to) override { cuda::transpose(active(), from, to); }
  int64_t find_non_finite(const Tensor& tensor) override { return cuda::find_non_finite(active(), tensor); }

  void gemm(std::span<const Gemm> problems) override { cuda::gemm(active(), problems); }
  void svd(const Tensor& a, const Tensor& u, const Tensor& s, const Tensor& vt) override {
    cuda::svd(active(), a, u, s, vt);
  }
  void eigh(const Tensor& a, const Tensor& values, const Tensor& vectors) override {
    cuda::eigh(active(), a, values, vectors);
  }
  void accumulate_gram(const Tensor& w, SharedSide side, const Tensor& gram) override {
    cuda::accumulate_gram(active(), w, side, gram);
  }
  void signed_permutation(const Tensor& w, SharedSide side, std::span<const int32_t> source,
                          std::span<const int8_t> signs, const Tensor& out) override {
    cuda::signed_permutation(active(), w, side, source, signs, out);
  }
  double squared_norm(const Tensor& w) override { return cuda::squared_norm(active(), w); }
  double squared_residual(const Tensor& w, const Tensor& a, const Tensor& b, DType compute) override {
    return cuda::squared_residual(active(), w, a, b, compute);
  }
  void solve_spd(const Tensor& spd, const Tensor& rhs) override { cuda::solve_spd(active(), spd, rhs); }

  void route(const Tensor& logits, const RouterSpec& spec, const Routing& routing) override {
    const int64_t experts = logits.cols();
    if (experts > kernels::kMaxRouterExperts) {
      fail(ErrorCode::InvalidArgument, "A router on a GPU has at most ", kernels::kMaxRouterExperts,
           " experts, but the logits have ", experts);
    }
    const RouterArgs args = router_args(logits.as<const float>(), experts, spec, routing.ids.as<int32_t>(),
                                        routing.weights.as<float>(), gpu_.error_record());
    check(kernels::route(active().stream(), args, logits.rows()), "routing");
  }
  std::unique_ptr<LayerForward> prepare(ExpertLayer layer) override {
    return make_layer_forward(active(), std::move(layer));
  }
  Decoder* decoder() override { return decoder_.get(); }

 private:
  Gpu& active() {
    gpu_.activate();
    return gpu_;
  }

  const Backend* owner_;
  Gpu gpu_;
  std::unique_ptr<Decoder> decoder_;
  DeviceInfo info_;
};

}  // namespace

std::unique_ptr<Backend> make_cuda_backend(int index, const Backend* owner) {
  require_gpu(index);
  return std::make_unique<CudaBackend>(index, owner);
}

}  // namespace molae::cuda
