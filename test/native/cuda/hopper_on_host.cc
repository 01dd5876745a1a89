#include "native/cuda/hopper_on_host.h"

#include "native/cuda/hopper_model.h"

namespace molae::test {
template <class In>
int64_t hopper_gemm_on_host(cuda::GemmTile tile, const cuda::hopper::HopperGemm<In>& args, int64_t blocks,
                            uint64_t seed, const std::function<void()>& after_previous) {
  using namespace cuda;
  using namespace cuda::hopper;
  switch (tile) {
    case GemmTile::Hopper8:
      return run_on_model<SwappedTile<In, 8>>(args, blocks, seed, after_previous);
    case GemmTile::Hopper16:
      return run_on_model<SwappedTile<In, 16>>(args, blocks, seed, after_previous);
    case GemmTile::Hopper32:
      return run_on_model<SwappedTile<In, 32>>(args, blocks, seed, after_previous);
    case GemmTile::Hopper64:
      return run_on_model<SwappedTile<In, 64>>(args, blocks, seed, after_previous);
    default:
      if (args.dual && !shares_tokens(args.product))
        return run_on_model<PairedTile<In>>(args, blocks, seed, after_previous);
      return run_on_model<WideTile<In>>(args, blocks, seed, after_previous);
  }
}

template int64_t hopper_gemm_on_host(cuda::GemmTile, const cuda::hopper::HopperGemm<cuda::BF16>&, int64_t, uint64_t,
                                     const std::function<void()>&);
template int64_t hopper_gemm_on_host(cuda::GemmTile, const cuda::hopper::HopperGemm<cuda::F16>&, int64_t, uint64_t,
                                     const std::function<void()>&);

}  // namespace molae::test
