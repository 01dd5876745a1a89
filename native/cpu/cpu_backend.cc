#include "cpu/cpu_backend.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <vector>

#include "core/tensor/blocks.h"
#include "cpu/decoder/cpu_decoder.h"
#include "cpu/factorization/calibration_steps.h"
#include "cpu/layer/experts_forward.h"
#include "cpu/layer/route.h"
#include "cpu/linalg/blas.h"
#include "cpu/linalg/blas_kernels.h"
#include "cpu/linalg/blas_memory.h"
#include "cpu/linalg/linalg.h"
#include "cpu/simd/convert.h"
#include "cpu/system/compute_pool.h"
#include "cpu/system/memory.h"
#include "cpu/system/processor.h"

namespace molae {
namespace {

// Elements of a copy that one task converts.
constexpr int64_t kCopyElements = 1 << 18;

// memcpy, which must not see a null pointer even for 0 bytes: what an empty array may have.
void copy_bytes(void* to, const void* from, size_t bytes) {
  if (bytes != 0) std::memcpy(to, from, bytes);
}

class CpuBackend final : public Backend {
 public:
  explicit CpuBackend(int threads) : threads_(threads), memory_(std::make_shared<HostMemory>()), workspace_(memory_) {
    cpu::choose_blas_kernels();
    openblas_set_num_threads(1);
    cpu::reserve_blas_memory(threads);
  }

  DeviceInfo info() const override {
    return {"cpu",
            0,
            cpu::processor_name(),
            openblas_get_config(),
            cpu::processor_features(),
            threads_,
            cpu::memory_bytes()};
  }
  MemoryUsage memory_usage() const override { return memory_->usage(); }
  void trim() override {
    workspace_.release();
    memory_->trim();
  }

  std::shared_ptr<Buffer> allocate(size_t bytes) override { return allocate_host_buffer(this, memory_, bytes); }
  double timestamp() override {
    const auto now = std::chrono::steady_clock::now().time_since_epoch();
    return std::chrono::duration<double, std::milli>(now).count();
  }
  bool host_memory() const override { return true; }
  void upload(const void* host, const Tensor& to) override { copy_bytes(to.data(), host, to.bytes()); }
  void download(const Tensor& from, void* host) override { copy_bytes(host, from.data(), from.bytes()); }
  void zero(const Tensor& tensor) override { std::memset(tensor.data(), 0, tensor.bytes()); }

  bool knows_blocks() const override { return true; }
  void copy(const Tensor& from, const Tensor& to) override {
    if (is_block(from.dtype()) || is_block(to.dtype())) return copy_rows(from, to);
    const auto count = static_cast<int64_t>(from.elements());
    ComputePool::instance().for_ranges(threads_, count, kCopyElements, [&](int64_t begin, int64_t end, int) {
      convert_elements(from.dtype(), from.as<const std::byte>() + begin * item_size(from.dtype()), to.dtype(),
                       to.as<std::byte>() + begin * item_size(to.dtype()), end - begin);
    });
  }

  int64_t find_non_finite(const Tensor& tensor) override {
    return first_non_finite(tensor.dtype(), tensor.data(), tensor.elements());
  }

  void transpose(const Tensor& from, const Tensor& to) override { cpu::transpose(context(), from, to); }
  void gemm(std::span<const Gemm> problems) override { cpu::gemm(context(), problems); }
  void svd(const Tensor& a, const Tensor& u, const Tensor& s, const Tensor& vt) override {
    cpu::svd(context(), a, u, s, vt);
  }
  void eigh(const Tensor& a, const Tensor& values, const Tensor& vectors) override {
    cpu::eigh(context(), a, values, vectors);
  }
  void accumulate_gram(const Tensor& w, SharedSide side, const Tensor& gram) override {
    cpu::accumulate_gram(context(), w, side, gram);
  }
  void signed_permutation(const Tensor& w, SharedSide side, std::span<const int32_t> source,
                          std::span<const int8_t> signs, const Tensor& out) override {
    cpu::signed_permutation(w, side, source, signs, out);
  }
  double squared_norm(const Tensor& w) override { return cpu::squared_norm(context(), w); }
  double squared_residual(const Tensor& w, const Tensor& a, const Tensor& b, DType compute) override {
    return cpu::squared_residual(context(), w, a, b, compute);
  }
  void solve_spd(const Tensor& spd, const Tensor& rhs) override { cpu::solve_spd(context(), spd, rhs); }
  void route(const Tensor& logits, const RouterSpec& spec, const Routing& routing) override {
    cpu::route(context(), logits, spec, routing);
  }
  std::unique_ptr<LayerForward> prepare(ExpertLayer layer) override {
    return cpu::make_layer_forward(*this, context(), layer);
  }
  Decoder* decoder() override { return decoder_.get(); }
  CalibrationSteps* calibration_steps() override { return calibration_steps_.get(); }

 private:
  cpu::Context context() { return {threads_, workspace_}; }

  // With blocks on either side.
  void copy_rows(const Tensor& from, const Tensor& to) {
    const int64_t cols = from.shape().back();
    if (cols == 0) return;
    const int64_t rows = static_cast<int64_t>(from.elements()) / cols;
    const int64_t step = std::max<int64_t>(1, kCopyElements / cols);
    const auto from_stride = static_cast<int64_t>(row_bytes(from.dtype(), cols));
    const auto to_stride = static_cast<int64_t>(row_bytes(to.dtype(), cols));
    ComputePool::instance().for_ranges(threads_, rows, step, [&](int64_t begin, int64_t end, int) {
      std::vector<float> wide(cols);
      for (int64_t row = begin; row < end; ++row) {
        const std::byte* source = from.as<const std::byte>() + row * from_stride;
        std::byte* target = to.as<std::byte>() + row * to_stride;
        if (from.dtype() == to.dtype() || !is_block(to.dtype())) {
          convert_elements(from.dtype(), source, to.dtype(), target, cols);
        } else {
          widen_elements(from.dtype(), source, wide.data(), cols);
          to_blocks(to.dtype(), wide, row, target);
        }
      }
    });
  }

  int threads_;
  std::shared_ptr<HostMemory> memory_;
  Workspace workspace_;
  std::unique_ptr<Decoder> decoder_ = cpu::make_decoder(context());
  std::unique_ptr<CalibrationSteps> calibration_steps_ = cpu::make_calibration_steps(context());
};

}  // namespace

std::unique_ptr<Backend> make_cpu_backend(int threads) { return std::make_unique<CpuBackend>(threads); }

}  // namespace molae
