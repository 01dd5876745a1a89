#include "cuda/kernels/grouped_gemm.cuh"

namespace molae::cuda::kernels {
namespace {

static_assert(SimtTile<float>::kRows == tile_rows(GemmTile::Simt));

}  // namespace

template <>
cudaError_t grouped_gemm<float>(Chain& chain, GemmTile, bool dual, const GroupedGemm<float>& args, int64_t row_tiles,
                                int64_t max_cols) {
  return launch_grouped_gemm<SimtTile<float>>(chain, dual, args, row_tiles, max_cols);
}

template <>
cudaError_t grouped_gemm<double>(Chain& chain, GemmTile, bool dual, const GroupedGemm<double>& args, int64_t row_tiles,
                                 int64_t max_cols) {
  return launch_grouped_gemm<SimtTile<double>>(chain, dual, args, row_tiles, max_cols);
}

cudaError_t prepare_simt() {
  const cudaError_t error = allow_shared_memory<SimtTile<float>>();
  return error != cudaSuccess ? error : allow_shared_memory<SimtTile<double>>();
}

cudaError_t prepare_grouped_gemm() {
  for (const cudaError_t error : {prepare_bf16(), prepare_f16(), prepare_simt()}) {
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace molae::cuda::kernels
