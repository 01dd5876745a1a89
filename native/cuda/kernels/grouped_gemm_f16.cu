#include "cuda/kernels/grouped_gemm.cuh"

namespace molae::cuda::kernels {

template <>
cudaError_t grouped_gemm<F16>(Chain& chain, GemmTile tile, bool dual, const GroupedGemm<F16>& args, int64_t row_tiles,
                              int64_t max_cols) {
  return tensor_core_gemm(chain, tile, dual, args, row_tiles, max_cols);
}

cudaError_t prepare_f16() { return prepare_tensor_core_tiles<F16>(); }

}  // namespace molae::cuda::kernels
