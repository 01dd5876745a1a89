#include "cuda/kernels/grouped_gemm.cuh"

namespace molae::cuda::kernels {

template <>
cudaError_t grouped_gemm<BF16>(Chain& chain, GemmTile tile, bool dual, const GroupedGemm<BF16>& args, int64_t row_tiles,
                               int64_t max_cols) {
  return tensor_core_gemm(chain, tile, dual, args, row_tiles, max_cols);
}

cudaError_t prepare_bf16() { return prepare_tensor_core_tiles<BF16>(); }

}  // namespace molae::cuda::kernels
