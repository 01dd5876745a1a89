#include "cuda/kernels/grouped_gemm.cuh"

namespace molae::cuda::kernels {

template <>
cudaError_t grouped_gemm<float>(Chain& chain, GemmTile, const GroupedGemms<float>& args) {
  return launch_grouped_gemm<SimtTile<float>>(chain, args);
}

template <>
cudaError_t grouped_gemm<double>(Chain& chain, GemmTile, const GroupedGemms<double>& args) {
  return launch_grouped_gemm<SimtTile<double>>(chain, args);
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
