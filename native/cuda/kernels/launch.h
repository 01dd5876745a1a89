#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "core/tensor/dtype.h"
#include "cuda/config/tile_choice.h"
#include "cuda/logic/combine.h"
#include "cuda/logic/grouped_gemm.h"
#include "cuda/logic/overlap.h"
#include "cuda/logic/router.h"
#include "cuda/logic/routing_plan.h"
#include "cuda/logic/streamed_gemm.h"

// What the host calls of the device code. Every function queues its kernels on a stream and returns the launch's error;
// none waits, allocates or copies, so that all may be captured in a graph. Empty work is no launch.
namespace molae::cuda::kernels {

// Elementwise, on dense arrays.
cudaError_t convert(cudaStream_t stream, DType from_dtype, const void* from, DType to_dtype, void* to, int64_t count);
cudaError_t scale(cudaStream_t stream, DType dtype, void* data, int64_t count, double factor);
cudaError_t transpose(cudaStream_t stream, size_t item_bytes, const void* from, void* to, int64_t rows, int64_t cols);
// to[i] = from[rows - 1 - i] for the first `to_rows` rows.
cudaError_t reverse_rows(cudaStream_t stream, DType dtype, const void* from, void* to, int64_t rows, int64_t cols,
                         int64_t to_rows);
// out[i][j] = signs[j] w[i][source[j]], or by rows.
cudaError_t signed_permutation(cudaStream_t stream, size_t item_bytes, const void* w, void* out, int64_t rows,
                               int64_t cols, bool by_column, const int32_t* source, const int8_t* signs);
// The lower triangle of sums [n, n] += that of part.
cudaError_t add_lower(cudaStream_t stream, const float* part, double* sums, int64_t n);

// Reductions. *result = the first flat index of a NaN or infinity, ~0 if there is none.
cudaError_t find_non_finite(cudaStream_t stream, DType dtype, const void* data, int64_t count,
                            unsigned long long* result);
inline constexpr int kNormParts = 1024;
// parts [kNormParts] is scratch. Fixed partial sums in a fixed order: the same bits every time.
cudaError_t squared_norm(cudaStream_t stream, DType dtype, const void* data, int64_t count, double* parts,
                         double* result);

// Where the kernels of a layer's forward pass go.
struct Chain {
  cudaStream_t stream;
  Overlap overlap;
};

// Mixture of experts.
inline constexpr int32_t kMaxRouterExperts = 3072;  // a token's scores are in shared memory
cudaError_t route(cudaStream_t stream, const RouterArgs& args, int64_t tokens);
cudaError_t sort_rows(Chain& chain, const RoutingPlan& plan);

template <class In>
cudaError_t grouped_gemm(Chain& chain, GemmTile tile, const GroupedGemms<In>& args);
template <>
cudaError_t grouped_gemm(Chain&, GemmTile, const GroupedGemms<float>&);
template <>
cudaError_t grouped_gemm(Chain&, GemmTile, const GroupedGemms<double>&);
template <>
cudaError_t grouped_gemm(Chain&, GemmTile, const GroupedGemms<F16>&);
template <>
cudaError_t grouped_gemm(Chain&, GemmTile, const GroupedGemms<BF16>&);
// The same by Hopper's tiles, on a GPU of compute capability 9.0 with so many multiprocessors.
template <class In>
cudaError_t hopper_gemm(Chain& chain, GemmTile tile, const GroupedGemms<In>& args, int multiprocessors);
template <>
cudaError_t hopper_gemm(Chain&, GemmTile, const GroupedGemms<F16>&, int);
template <>
cudaError_t hopper_gemm(Chain&, GemmTile, const GroupedGemms<BF16>&, int);
// The same for tiles of up to 4 rows.
template <class In>
cudaError_t streamed_gemm(Chain& chain, const StreamedGemm<In>& args);
template <class In>
cudaError_t join_splits(Chain& chain, const JoinSplits<In>& args);
template <class In>
cudaError_t combine_latent(Chain& chain, const LatentCombine<In>& args, int64_t latent_rows);
template <class In>
cudaError_t combine_output(Chain& chain, const OutputCombine<In>& args);
template <class In>
cudaError_t shared_expert_scale(Chain& chain, const SharedScale<In>& args, int64_t tokens);

// A kernel of the decoder (logic/decoder_kernel.h).
template <class Kernel>
cudaError_t launch(cudaStream_t stream, const Kernel& kernel);

// Lets the kernels use as much shared memory as they need on the current device. Once per device.
cudaError_t prepare_grouped_gemm();
cudaError_t prepare_hopper_gemm();  // where compute capability is 9.0

}  // namespace molae::cuda::kernels
