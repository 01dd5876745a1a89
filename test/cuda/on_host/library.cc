#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>

#include "core/device/backend_plugin.h"
#include "core/error.h"
#include "cpu/cpu_backend.h"
#include "cpu/system/processor.h"
#include "cuda/config/tile_request.h"
#include "cuda/logic/raise_error.h"
#include "cuda/logic/router.h"
#include "native/cuda/host_decoder.h"
#include "native/cuda/host_runtime.h"

// A libmolae_cuda.so without a GPU: the CUDA backend's layers, router and decoder run on the host, block after block,
// and the rest is the CPU backend's. Like a GPU it calls its memory its own, so that nothing may read it by its
// pointer, and tells what its kernels found wrong only when it is waited for. scripts/test-gpu.mjs runs the GPU tests
// on it: what they cannot show then is the GPU itself, and cuBLAS and cuSOLVER.
namespace molae::test {
namespace {

class OwnBuffer final : public Buffer {
 public:
  OwnBuffer(const Backend* owner, HostMemory memory, size_t bytes, std::shared_ptr<std::atomic<size_t>> held)
      : Buffer(owner, memory.as(), bytes), memory_(std::move(memory)), held_(std::move(held)) {
    *held_ += bytes;
  }
  ~OwnBuffer() override { *held_ -= bytes(); }

 private:
  HostMemory memory_;
  std::shared_ptr<std::atomic<size_t>> held_;
};

class HostCudaBackend final : public Backend {
 public:
  explicit HostCudaBackend(const Backend* owner)
      : owner_(owner),
        cpu_(make_cpu_backend(resolve_threads(0))),
        decoder_(HostDecoderRuntime(&error_, cuda::ThreadOrder::Forwards)) {}

  DeviceInfo info() const override {
    DeviceInfo info = cpu_->info();
    info.kind = "cuda";
    info.name = "CUDA blocks on the host, " + info.name;
    info.features.push_back("Hopper tiles");
    return info;
  }
  MemoryUsage memory_usage() const override { return {*held_, 0, *held_}; }
  void trim() override { cpu_->trim(); }
  double timestamp() override { return cpu_->timestamp(); }
  void synchronize() override {
    const unsigned long long record = std::exchange(error_, cuda::kNoError);
    if (record != cuda::kNoError) cuda::raise(cuda::decode_error(record));
  }

  std::shared_ptr<Buffer> allocate(size_t bytes) override {
    if (bytes >= size_t{1} << 40) fail(ErrorCode::OutOfMemory, "Could not allocate ", bytes, " bytes");
    return std::make_shared<OwnBuffer>(owner_, HostMemory(bytes), bytes, held_);
  }
  bool host_memory() const override { return false; }
  void upload(const void* host, const Tensor& to) override { cpu_->upload(host, to); }
  void download(const Tensor& from, void* host) override {
    cpu_->download(from, host);
    synchronize();
  }
  void copy(const Tensor& from, const Tensor& to) override { cpu_->copy(from, to); }
  void zero(const Tensor& tensor) override { cpu_->zero(tensor); }
  void transpose(const Tensor& from, const Tensor& to) override { cpu_->transpose(from, to); }
  int64_t find_non_finite(const Tensor& tensor) override { return cpu_->find_non_finite(tensor); }
  void gemm(std::span<const Gemm> problems) override { cpu_->gemm(problems); }
  void svd(const Tensor& a, const Tensor& u, const Tensor& s, const Tensor& vt) override { cpu_->svd(a, u, s, vt); }
  void eigh(const Tensor& a, const Tensor& values, const Tensor& vectors) override { cpu_->eigh(a, values, vectors); }
  void accumulate_gram(const Tensor& w, SharedSide side, const Tensor& gram) override {
    cpu_->accumulate_gram(w, side, gram);
  }
  void signed_permutation(const Tensor& w, SharedSide side, std::span<const int32_t> source,
                          std::span<const int8_t> signs, const Tensor& out) override {
    cpu_->signed_permutation(w, side, source, signs, out);
  }
  double squared_norm(const Tensor& w) override { return cpu_->squared_norm(w); }
  double squared_residual(const Tensor& w, const Tensor& a, const Tensor& b, DType compute) override {
    return cpu_->squared_residual(w, a, b, compute);
  }
  void solve_spd(const Tensor& spd, const Tensor& rhs) override { cpu_->solve_spd(spd, rhs); }

  void route(const Tensor& logits, const RouterSpec& spec, const Routing& routing) override {
    const cuda::RouterArgs args = cuda::router_args(logits.as<const float>(), logits.cols(), spec,
                                                    routing.ids.as<int32_t>(), routing.weights.as<float>(), &error_);
    cuda::RouterShared shared;
    const HostMemory scratch(cuda::router_scratch_floats(args.experts, args.num_groups) * sizeof(float));
    for (int64_t t = 0; t < logits.rows(); ++t) {
      cuda::route_token(cuda::HostBlock(static_cast<int>(t), cuda::kRouterThreads), args, shared, scratch.as<float>());
    }
  }
  std::unique_ptr<LayerForward> prepare(ExpertLayer layer) override {
    const char* tiles = std::getenv(cuda::kTilesVariable);
    const char* launch = std::getenv(cuda::kLaunchVariable);
    const bool graph = cuda::parse_launch_mode(launch ? launch : "") == cuda::LaunchMode::Graph;
    const HostRuntime runtime(&error_, cuda::parse_tile_request(tiles ? tiles : "", true, "the host"), 0, 8,
                              graph ? &graphs_ : nullptr);
    switch (cuda::common_dtype(layer)) {
      case DType::F64:
        return std::make_unique<cuda::LayerChain<double, HostRuntime>>(runtime, std::move(layer));
      case DType::BF16:
        return std::make_unique<cuda::LayerChain<cuda::BF16, HostRuntime>>(runtime, std::move(layer));
      case DType::F16:
        return std::make_unique<cuda::LayerChain<cuda::F16, HostRuntime>>(runtime, std::move(layer));
      default:
        return std::make_unique<cuda::LayerChain<float, HostRuntime>>(runtime, std::move(layer));
    }
  }
  Decoder* decoder() override { return &decoder_; }

 private:
  const Backend* owner_;
  std::unique_ptr<Backend> cpu_;
  unsigned long long error_ = cuda::kNoError;
  HostGraphs graphs_;
  cuda::KernelDecoder<HostDecoderRuntime> decoder_;
  std::shared_ptr<std::atomic<size_t>> held_ = std::make_shared<std::atomic<size_t>>(0);
};

void describe(PluginFailure* failure, ErrorCode code, const char* message) {
  failure->code = static_cast<int32_t>(code);
  std::snprintf(failure->message, sizeof failure->message, "%s", message);
}

void probe(void* sink, void (*line)(void*, const char*, const char*)) { line(sink, "available", "true"); }

// As the handlers of the CUDA runtime do, this one takes away what jobs in flight need.
std::atomic<bool> torn_down = false;

void fail_where_torn_down() {
  if (!torn_down) return;
  std::fputs("A job ran after the backend was torn down\n", stderr);
  std::abort();
}

Backend* create(int32_t index, const Backend* owner, void (*stop_queues)(), PluginFailure* failure) {
  if (index == 0) {
    std::atexit([] { torn_down = true; });
    if (stop_queues) std::atexit(stop_queues);
    return new HostCudaBackend(owner);
  }
  describe(failure, ErrorCode::DeviceUnavailable, "There is one device on the host");
  return nullptr;
}

bool invoke(void (*body)(void*), void* context, PluginFailure* failure) {
  fail_where_torn_down();
  try {
    body(context);
    fail_where_torn_down();
    return true;
  } catch (const Error& error) {
    describe(failure, error.code(), error.what());
  } catch (const std::bad_alloc&) {
    describe(failure, ErrorCode::OutOfMemory, "Out of memory");
  } catch (const std::exception& error) {
    describe(failure, ErrorCode::Internal, error.what());
  }
  return false;
}

}  // namespace
}  // namespace molae::test

extern "C" __attribute__((visibility("default"))) const molae::BackendPlugin* molae_cuda_entry() {
  using namespace molae;
  static const BackendPlugin plugin{kBackendAbi,
                                    sizeof(BackendPlugin),
                                    backend_build(),
                                    test::probe,
                                    test::create,
                                    test::invoke,
                                    [](Backend* backend) { delete backend; }};
  return &plugin;
}
