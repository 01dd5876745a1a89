#pragma once

#include <span>

#include "core/backend.h"
#include "cuda/api/gpu.h"

// The linear algebra of the CUDA backend, over cuBLAS and cuSOLVER. Files and names mirror native/cpu.
namespace molae::cuda {

void gemm(Gpu& gpu, std::span<const Gemm> problems);
void svd(Gpu& gpu, const Tensor& a, const Tensor& u, const Tensor& s, const Tensor& vt);
void eigh(Gpu& gpu, const Tensor& a, const Tensor& values, const Tensor& vectors);
void solve_spd(Gpu& gpu, const Tensor& spd, const Tensor& rhs);

void accumulate_gram(Gpu& gpu, const Tensor& w, SharedSide side, const Tensor& gram);
void signed_permutation(Gpu& gpu, const Tensor& w, SharedSide side, std::span<const int32_t> source,
                        std::span<const int8_t> signs, const Tensor& out);
double squared_norm(Gpu& gpu, const Tensor& w);
double squared_residual(Gpu& gpu, const Tensor& w, const Tensor& a, const Tensor& b, DType compute);

void copy(Gpu& gpu, const Tensor& from, const Tensor& to);
void transpose(Gpu& gpu, const Tensor& from, const Tensor& to);
int64_t find_non_finite(Gpu& gpu, const Tensor& tensor);

// A row-major product c = alpha op(a) op(b) + beta c on raw memory; a, b and c may be parts of wider matrices.
struct Product {
  DType dtype, c_dtype;
  bool transpose_a, transpose_b;
  int64_t m, n, k;
  double alpha;
  const void* a;
  int64_t lda;
  const void* b;
  int64_t ldb;
  double beta;
  void* c;
  int64_t ldc;
};
void multiply(Gpu& gpu, const Product& product);

cudaDataType cuda_type(DType dtype);

}  // namespace molae::cuda
