#include "cuda/api/layer_forward.h"

#include <cstdlib>
#include <utility>

#include "core/error.h"
#include "cuda/api/check.h"
#include "cuda/api/weight_maps.h"
#include "cuda/config/tile_request.h"
#include "cuda/kernels/launch.h"
#include "cuda/logic/layer_chain.h"

namespace molae::cuda {
namespace {

// The layer's steps (logic/layer_chain.h) on a GPU: memory from its pool, kernels on its stream.
class CudaRuntime {
 public:
  using Memory = Scratch;

  CudaRuntime(Gpu& gpu, const TileRequest& tiles) : gpu_(&gpu), tiles_(tiles) {}

  void begin() { gpu_->activate(); }
  Memory memory(size_t bytes) { return gpu_->scratch(bytes, 1); }
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

  void sort_rows(const RoutingPlan& plan) { check(kernels::sort_rows(gpu_->stream(), plan), "sorting a routing"); }
  void convert(DType from_dtype, const void* from, DType to_dtype, void* to, int64_t count) {
    check(kernels::convert(gpu_->stream(), from_dtype, from, to_dtype, to, count), "converting x");
  }
  template <class In>
  void grouped_gemm(GemmTile tile, bool dual, const GroupedGemm<In>& args, int64_t row_tiles, int64_t max_cols) {
    if constexpr (is_half(DTypeOf<In>::value)) {
      if (tile_family(tile) == TileFamily::Hopper) {
        const hopper::HopperGemm<In> product{args, row_tiles, max_cols, dual};
        return check(kernels::hopper_gemm<In>(gpu_->stream(), tile, product, multiprocessors()), "a grouped product");
      }
    }
    check(kernels::grouped_gemm<In>(gpu_->stream(), tile, dual, args, row_tiles, max_cols), "a grouped product");
  }
  int multiprocessors() const { return gpu_->description().multiprocessors; }
  template <class In>
  void streamed_gemm(const StreamedGemm<In>& args) {
    check(kernels::streamed_gemm<In>(gpu_->stream(), args), "a product of few rows");
  }
  template <class In>
  void join_splits(const JoinSplits<In>& args) {
    check(kernels::join_splits<In>(gpu_->stream(), args), "adding up split sums");
  }
  template <class In>
  void combine_latent(const LatentCombine<In>& args, int64_t latent_rows) {
    check(kernels::combine_latent<In>(gpu_->stream(), args, latent_rows), "adding up in the latent space");
  }
  template <class In>
  void combine_output(const OutputCombine<In>& args) {
    check(kernels::combine_output<In>(gpu_->stream(), args), "adding up the experts");
  }
  template <class In>
  void shared_expert_scale(const SharedScale<In>& args, int64_t tokens) {
    check(kernels::shared_expert_scale<In>(gpu_->stream(), args, tokens), "scaling the shared expert");
  }

 private:
  Gpu* gpu_;
  TileRequest tiles_;
};

TileRequest requested_tiles(const GpuDescription& gpu) {
  const char* text = std::getenv(kTilesVariable);
  const TileRequest request =
      parse_tile_request(text ? text : "", gpu.has_hopper_tiles(), gpu.name + " of " + gpu.capability());
  if (wants_hopper(request)) check(kernels::prepare_hopper_gemm(), "preparing Hopper's kernels");
  return request;
}

}  // namespace

std::unique_ptr<LayerForward> make_layer_forward(Gpu& gpu, ExpertLayer layer) {
  if (layer.num_experts() > kMaxExperts) {
    fail(ErrorCode::InvalidArgument, "A layer on a GPU has at most ", kMaxExperts, " experts, but this one has ",
         layer.num_experts());
  }
  const CudaRuntime runtime(gpu, requested_tiles(gpu.description()));
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
