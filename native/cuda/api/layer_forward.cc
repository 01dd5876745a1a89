#include "cuda/api/layer_forward.h"

#include <cstdlib>
#include <utility>

#include "core/error.h"
#include "cuda/api/check.h"
#include "cuda/api/graph.h"
#include "cuda/api/weight_maps.h"
#include "cuda/config/launch_choice.h"
#include "cuda/config/tile_request.h"
#include "cuda/kernels/launch.h"
#include "cuda/logic/layer_chain.h"

namespace molae::cuda {
namespace {

// The layer's steps (logic/layer_chain.h) on a GPU: memory from its pool, kernels on its stream.
class CudaRuntime {
 public:
  using Memory = Scratch;
  using Graph = cuda::Graph;

  CudaRuntime(Gpu& gpu, const TileRequest& tiles, LaunchMode mode)
      : gpu_(&gpu), tiles_(tiles), mode_(mode), chain_{gpu.stream(), Overlap(false)} {}

  void begin() { gpu_->activate(); }
  Memory memory(size_t bytes) {
    if (capturing_) fail(ErrorCode::Internal, "Memory was asked for while a graph was captured");
    return gpu_->scratch(bytes, 1);
  }
  Memory upload(const void* data, size_t bytes) {
    Memory to = memory(bytes);
    gpu_->staging().upload(data, to.as(), bytes);
    return to;
  }
  unsigned long long* error_record() { return gpu_->error_record(); }
  TileRequest tiles() const { return tiles_; }
  Memory weight_maps(const std::vector<hopper::WeightMapArguments>& arguments) {
    std::vector<WeightMap> maps;
    for (const auto& of_one : arguments) maps.push_back(encode_weight_map(of_one));
    return upload(maps.data(), maps.size() * sizeof(WeightMap));
  }

  LaunchMode launch_mode() const { return mode_; }
  template <class Queue>
  Graph capture(Queue queue) {
    // To free memory is to wait for the GPU, which nobody may while a stream is captured.
    const auto held = gpu_->pool()->hold();
    const Capturing capturing(*this);
    return Graph(gpu_->stream(), queue);
  }
  void launch(const Graph& graph) { graph.launch(gpu_->stream()); }
  void copy(void* to, const void* from, size_t bytes) {
    if (bytes == 0) return;
    check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, gpu_->stream()), "copying a graph's arguments");
  }

  void sort_rows(const RoutingPlan& plan) { check(kernels::sort_rows(chain_, plan), "sorting a routing"); }
  void convert(DType from_dtype, const void* from, DType to_dtype, void* to, int64_t count) {
    check(kernels::convert(gpu_->stream(), from_dtype, from, to_dtype, to, count), "converting x");
  }
  template <class In>
  void grouped_gemm(GemmTile tile, const GroupedGemms<In>& args) {
    if constexpr (is_half(DTypeOf<In>::value)) {
      if (tile_family(tile) == TileFamily::Hopper) {
        return check(kernels::hopper_gemm<In>(chain_, tile, args, multiprocessors()), "a grouped product");
      }
    }
    check(kernels::grouped_gemm<In>(chain_, tile, args), "a grouped product");
  }
  int multiprocessors() const { return gpu_->description().multiprocessors; }
  template <class In>
  void streamed_gemm(const StreamedGemm<In>& args) {
    check(kernels::streamed_gemm<In>(chain_, args), "a product of few rows");
  }
  template <class In>
  void join_splits(const JoinSplits<In>& args) {
    check(kernels::join_splits<In>(chain_, args), "adding up split sums");
  }
  template <class In>
  void combine_latent(const LatentCombine<In>& args, int64_t latent_rows) {
    check(kernels::combine_latent<In>(chain_, args, latent_rows), "adding up in the latent space");
  }
  template <class In>
  void combine_output(const OutputCombine<In>& args) {
    check(kernels::combine_output<In>(chain_, args), "adding up the experts");
  }
  template <class In>
  void shared_expert_scale(const SharedScale<In>& args, int64_t tokens) {
    check(kernels::shared_expert_scale<In>(chain_, args, tokens), "scaling the shared expert");
  }

 private:
  // Kernels overlap in graphs alone, and where the GPU knows how.
  struct Capturing {
    explicit Capturing(CudaRuntime& of) : runtime(of) {
      runtime.capturing_ = true;
      runtime.chain_.overlap = Overlap(runtime.gpu_->description().has_dependent_launch());
    }
    ~Capturing() {
      runtime.capturing_ = false;
      runtime.chain_.overlap = Overlap(false);
    }
    CudaRuntime& runtime;
  };

  Gpu* gpu_;
  TileRequest tiles_;
  LaunchMode mode_;
  kernels::Chain chain_;
  bool capturing_ = false;
};

TileRequest requested_tiles(const GpuDescription& gpu) {
  const char* text = std::getenv(kTilesVariable);
  const TileRequest request =
      parse_tile_request(text ? text : "", gpu.has_hopper_tiles(), gpu.name + " of " + gpu.capability());
  if (wants_hopper(request)) check(kernels::prepare_hopper_gemm(), "preparing Hopper's kernels");
  return request;
}

LaunchMode requested_launch_mode() {
  const char* text = std::getenv(kLaunchVariable);
  return parse_launch_mode(text ? text : "");
}

}  // namespace

std::unique_ptr<LayerForward> make_layer_forward(Gpu& gpu, ExpertLayer layer) {
  if (layer.num_experts() > kMaxExperts) {
    fail(ErrorCode::InvalidArgument, "A layer on a GPU has at most ", kMaxExperts, " experts, but this one has ",
         layer.num_experts());
  }
  const CudaRuntime runtime(gpu, requested_tiles(gpu.description()), requested_launch_mode());
  switch (common_dtype(layer)) {
    case DType::F64:
      return std::make_unique<LayerChain<double, CudaRuntime>>(runtime, std::move(layer));
    case DType::BF16:
      return std::make_unique<LayerChain<BF16, CudaRuntime>>(runtime, std::move(layer));
    case DType::F16:
      return std::make_unique<LayerChain<F16, CudaRuntime>>(runtime, std::move(layer));
    default:
      return std::make_unique<LayerChain<float, CudaRuntime>>(runtime, std::move(layer));
  }
}

}  // namespace molae::cuda
