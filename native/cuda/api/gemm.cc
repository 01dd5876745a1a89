#include <algorithm>
#include <cstdint>
#include <vector>

#include "core/error.h"
#include "cuda/api/check.h"
#include "cuda/api/linalg.h"
#include "cuda/kernels/launch.h"

// cuBLAS thinks in columns: our row-major c = a b is, column by column, c^T = b^T a^T. So a and b change places, and
// each keeps its own transposition.
namespace molae::cuda {
namespace {

// alpha and beta in the type that cuBLAS wants them in.
struct Scalars {
  Scalars(DType dtype, double alpha_value, double beta_value)
      : wide{alpha_value, beta_value},
        narrow{static_cast<float>(alpha_value), static_cast<float>(beta_value)},
        is_wide(dtype == DType::F64) {}
  const void* alpha() const { return is_wide ? static_cast<const void*>(&wide[0]) : &narrow[0]; }
  const void* beta() const { return is_wide ? static_cast<const void*>(&wide[1]) : &narrow[1]; }

  double wide[2];
  float narrow[2];
  bool is_wide;
};

cublasComputeType_t compute_type(DType dtype) { return dtype == DType::F64 ? CUBLAS_COMPUTE_64F : CUBLAS_COMPUTE_32F; }

cublasOperation_t operation(bool transposed) { return transposed ? CUBLAS_OP_T : CUBLAS_OP_N; }

// A leading dimension is at least 1, also of an empty matrix.
int64_t leading(int64_t size) { return std::max<int64_t>(size, 1); }

Product product_of(const Gemm& g) {
  return {
      g.a.dtype(), g.c.dtype(), g.transpose_a, g.transpose_b, g.c.rows(), g.c.cols(), g.a.dim(g.transpose_a ? 0 : 1),
      g.alpha,     g.a.data(),  g.a.cols(),    g.b.data(),    g.b.cols(), g.beta,     g.c.data(),
      g.c.cols()};
}

// c = beta c, for products without any terms.
void scale_result(Gpu& gpu, const Product& p) {
  if (p.beta == 1) return;
  if (p.ldc != p.n) fail(ErrorCode::Internal, "An empty product into a part of a matrix");
  if (p.beta == 0) {
    check(cudaMemsetAsync(p.c, 0, static_cast<size_t>(p.m * p.n) * item_size(p.c_dtype), gpu.stream()), "clearing c");
  } else {
    check(kernels::scale(gpu.stream(), p.c_dtype, p.c, p.m * p.n, p.beta), "scaling c");
  }
}

bool aligned(const void* pointer) { return (reinterpret_cast<uintptr_t>(pointer) & 15u) == 0; }

// One launch for many small products of one shape: worth it where a product alone does not fill the GPU.
bool batches_with(const Product& p, const Product& first) {
  constexpr int64_t kSmall = 512 * 512;
  return p.m * p.n <= kSmall && p.m > 0 && p.n > 0 && p.k > 0 && p.dtype == first.dtype && p.c_dtype == first.c_dtype &&
         p.transpose_a == first.transpose_a && p.transpose_b == first.transpose_b && p.m == first.m && p.n == first.n &&
         p.k == first.k && p.alpha == first.alpha && p.beta == first.beta && p.lda == first.lda && p.ldb == first.ldb &&
         aligned(p.a) && aligned(p.b) && aligned(p.c);
}

void multiply_batch(Gpu& gpu, std::span<const Product> batch) {
  const Product& p = batch.front();
  const size_t count = batch.size();
  std::vector<const void*> pointers(3 * count);
  for (size_t i = 0; i < count; ++i) {
    pointers[i] = batch[i].b;
    pointers[count + i] = batch[i].a;
    pointers[2 * count + i] = batch[i].c;
  }
  const Scratch device = gpu.scratch(pointers.size(), sizeof(void*));
  gpu.staging().upload(pointers.data(), device.as(), pointers.size() * sizeof(void*));
  const auto lists = device.as<const void*>();
  const auto results = reinterpret_cast<void* const*>(device.as<void*>() + 2 * count);
  const Scalars scalars(p.dtype, p.alpha, p.beta);
  const cudaDataType type = cuda_type(p.dtype);
  check(Cublas::instance().cublasGemmBatchedEx_64(
            gpu.cublas(), operation(p.transpose_b), operation(p.transpose_a), p.n, p.m, p.k, scalars.alpha(), lists,
            type, leading(p.ldb), lists + count, type, leading(p.lda), scalars.beta(), results, cuda_type(p.c_dtype),
            leading(p.ldc), static_cast<int64_t>(count), compute_type(p.dtype), CUBLAS_GEMM_DEFAULT),
        "a batch of matrix products");
}

}  // namespace

cudaDataType cuda_type(DType dtype) {
  switch (dtype) {
    case DType::F32:
      return CUDA_R_32F;
    case DType::F64:
      return CUDA_R_64F;
    case DType::F16:
      return CUDA_R_16F;
    case DType::BF16:
      return CUDA_R_16BF;
    default:
      fail(ErrorCode::DTypeMismatch, "i32 cannot be used as a number");
  }
}

void multiply(Gpu& gpu, const Product& p) {
  if (p.m == 0 || p.n == 0) return;
  if (p.k == 0) return scale_result(gpu, p);
  const Scalars scalars(p.dtype, p.alpha, p.beta);
  const cudaDataType type = cuda_type(p.dtype);
  check(Cublas::instance().cublasGemmEx_64(gpu.cublas(), operation(p.transpose_b), operation(p.transpose_a), p.n, p.m,
                                           p.k, scalars.alpha(), p.b, type, leading(p.ldb), p.a, type, leading(p.lda),
                                           scalars.beta(), p.c, cuda_type(p.c_dtype), leading(p.ldc),
                                           compute_type(p.dtype), CUBLAS_GEMM_DEFAULT),
        "a matrix product");
}

// Products of one shape that follow each other go out together, all others one by one on the stream.
void gemm(Gpu& gpu, std::span<const Gemm> problems) {
  std::vector<Product> products;
  products.reserve(problems.size());
  for (const Gemm& g : problems) products.push_back(product_of(g));
  size_t begin = 0;
  while (begin < products.size()) {
    size_t end = begin;
    while (end < products.size() && batches_with(products[end], products[begin])) ++end;
    if (end - begin >= 2) {
      multiply_batch(gpu, std::span(products).subspan(begin, end - begin));
      begin = end;
    } else {
      multiply(gpu, products[begin++]);
    }
  }
}

}  // namespace molae::cuda
