#include <algorithm>

#include "core/error.h"
#include "cuda/api/check.h"
#include "cuda/api/linalg.h"
#include "cuda/kernels/launch.h"

// What factorization needs beside general linear algebra, and the plain moves of data.
namespace molae::cuda {
namespace {

// Products of halves are exact in f32; at most this many of them are summed in f32.
constexpr int64_t kGramChunk = 512;

// A tensor in another dtype: its own memory where it has that dtype already.
class Converted {
 public:
  Converted(Gpu& gpu, const Tensor& tensor, DType dtype) : data_(tensor.data()) {
    if (tensor.dtype() == dtype) return;
    copy_ = gpu.scratch(tensor.elements(), item_size(dtype));
    data_ = copy_.as();
    check(kernels::convert(gpu.stream(), tensor.dtype(), tensor.data(), dtype, data_,
                           static_cast<int64_t>(tensor.elements())),
          "converting");
  }
  void* data() const { return data_; }

 private:
  Scratch copy_;
  void* data_;
};

// gram += W^T W or W W^T in f64. Our lower triangle by rows is cuBLAS's upper one by columns, and our W its W^T.
void accumulate_in_f64(Gpu& gpu, const Tensor& w, bool input, const Tensor& gram) {
  const Converted wide(gpu, w, DType::F64);
  const int n = static_cast<int>(gram.rows());
  const int inner = static_cast<int>(input ? w.rows() : w.cols());
  const int lda = static_cast<int>(std::max<int64_t>(w.cols(), 1));
  const double one = 1;
  check(Cublas::instance().cublasDsyrk_v2(gpu.cublas(), CUBLAS_FILL_MODE_UPPER, input ? CUBLAS_OP_N : CUBLAS_OP_T, n,
                                          inner, &one, static_cast<const double*>(wide.data()), lda, &one,
                                          gram.as<double>(), n),
        "a Gram matrix");
}

// Chunk by chunk in f32, each added to the f64 sums.
void accumulate_halves(Gpu& gpu, const Tensor& w, bool input, const Tensor& gram) {
  const int64_t n = gram.rows();
  const int64_t inner = input ? w.rows() : w.cols();
  const Scratch part = gpu.scratch(static_cast<size_t>(n) * n, sizeof(float));
  for (int64_t begin = 0; begin < inner; begin += kGramChunk) {
    const int64_t length = std::min(kGramChunk, inner - begin);
    const void* chunk = w.as<const uint16_t>() + (input ? begin * w.cols() : begin);
    multiply(gpu, {w.dtype(), DType::F32, input, !input, n, n, length, 1, chunk, w.cols(), chunk, w.cols(), 0,
                   part.as(), n});
    check(kernels::add_lower(gpu.stream(), part.as<const float>(), gram.as<double>(), n), "adding to a Gram matrix");
  }
}

double norm_of(Gpu& gpu, DType dtype, const void* data, size_t elements) {
  if (elements == 0) return 0;
  const Scratch sums = gpu.scratch(kernels::kNormParts + 1, sizeof(double));
  double* result = sums.as<double>() + kernels::kNormParts;
  check(kernels::squared_norm(gpu.stream(), dtype, data, static_cast<int64_t>(elements), sums.as<double>(), result),
        "summing squares");
  return gpu.read(result);
}

}  // namespace

void accumulate_gram(Gpu& gpu, const Tensor& w, SharedSide side, const Tensor& gram) {
  if (w.elements() == 0) return;
  const bool input = side == SharedSide::Input;
  if (is_half(w.dtype())) {
    accumulate_halves(gpu, w, input, gram);
  } else {
    accumulate_in_f64(gpu, w, input, gram);
  }
}

double squared_norm(Gpu& gpu, const Tensor& w) { return norm_of(gpu, w.dtype(), w.data(), w.elements()); }

double squared_residual(Gpu& gpu, const Tensor& w, const Tensor& a, const Tensor& b, DType compute) {
  if (w.elements() == 0) return 0;
  const Scratch residual = gpu.scratch(w.elements(), item_size(compute));
  check(kernels::convert(gpu.stream(), w.dtype(), w.data(), compute, residual.as(), static_cast<int64_t>(w.elements())),
        "converting");
  // cuBLAS multiplies halves into f32 itself; any other mix of dtypes is converted first.
  const bool halves = compute == DType::F32 && is_half(a.dtype()) && a.dtype() == b.dtype();
  const DType factors = halves ? a.dtype() : compute;
  const Converted left(gpu, a, factors);
  const Converted right(gpu, b, factors);
  multiply(gpu, {factors, compute, false, false, w.rows(), w.cols(), a.cols(), -1, left.data(), a.cols(), right.data(),
                 b.cols(), 1, residual.as(), w.cols()});
  return norm_of(gpu, compute, residual.as(), w.elements());
}

void signed_permutation(Gpu& gpu, const Tensor& w, SharedSide side, std::span<const int32_t> source,
                        std::span<const int8_t> signs, const Tensor& out) {
  const Scratch device_source = gpu.scratch(source.size(), sizeof(int32_t));
  const Scratch device_signs = gpu.scratch(signs.size(), sizeof(int8_t));
  gpu.staging().upload(source.data(), device_source.as(), source.size_bytes());
  gpu.staging().upload(signs.data(), device_signs.as(), signs.size_bytes());
  check(kernels::signed_permutation(gpu.stream(), item_size(w.dtype()), w.data(), out.data(), w.rows(), w.cols(),
                                    side == SharedSide::Input, device_source.as<const int32_t>(),
                                    device_signs.as<const int8_t>()),
        "permuting");
}

void copy(Gpu& gpu, const Tensor& from, const Tensor& to) {
  if (from.elements() == 0) return;
  if (from.dtype() == to.dtype()) {
    check(cudaMemcpyAsync(to.data(), from.data(), from.bytes(), cudaMemcpyDeviceToDevice, gpu.stream()), "copying");
    return;
  }
  if (!is_float(from.dtype()) || !is_float(to.dtype())) {
    fail(ErrorCode::DTypeMismatch, "Cannot convert ", dtype_name(from.dtype()), " to ", dtype_name(to.dtype()));
  }
  check(kernels::convert(gpu.stream(), from.dtype(), from.data(), to.dtype(), to.data(),
                         static_cast<int64_t>(from.elements())),
        "converting");
}

void transpose(Gpu& gpu, const Tensor& from, const Tensor& to) {
  check(kernels::transpose(gpu.stream(), item_size(from.dtype()), from.data(), to.data(), from.rows(), from.cols()),
        "transposing");
}

int64_t find_non_finite(Gpu& gpu, const Tensor& tensor) {
  if (tensor.elements() == 0) return -1;
  const Scratch result = gpu.scratch(1, sizeof(unsigned long long));
  check(kernels::find_non_finite(gpu.stream(), tensor.dtype(), tensor.data(), static_cast<int64_t>(tensor.elements()),
                                 result.as<unsigned long long>()),
        "looking for NaN");
  return static_cast<int64_t>(gpu.read(result.as<unsigned long long>()));  // ~0 is -1
}

}  // namespace molae::cuda
