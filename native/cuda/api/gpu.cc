#include "cuda/api/gpu.h"

#include <cstdlib>
#include <utility>

#include "core/checked.h"
#include "core/error.h"
#include "cuda/api/check.h"
#include "cuda/api/exit_order.h"
#include "cuda/kernels/launch.h"
#include "cuda/logic/raise_error.h"

namespace molae::cuda {
namespace {

// A cap on what molae takes of a GPU that others use as well.
size_t memory_limit() {
  const char* text = std::getenv("MOLAE_CUDA_MEMORY_LIMIT");
  if (!text || !*text) return 0;
  char* end = nullptr;
  const unsigned long long bytes = std::strtoull(text, &end, 10);
  if (*end != '\0' || bytes == 0) {
    fail(ErrorCode::InvalidArgument, "Expected a number of bytes for MOLAE_CUDA_MEMORY_LIMIT but received \"", text,
         "\"");
  }
  return bytes;
}

}  // namespace

Gpu::Gpu(int index)
    : index_(index), description_(describe_gpu(index)), pool_(std::make_shared<MemoryPool>(index, memory_limit())) {
  activate();
  check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "creating a stream");
  staging_ = std::make_unique<Staging>(stream_);
  void* record = nullptr;
  check(cudaMalloc(&record, sizeof *error_record_), "allocating GPU memory");
  error_record_ = static_cast<unsigned long long*>(record);
  check(cudaMemsetAsync(error_record_, 0xff, sizeof *error_record_, stream_), "clearing GPU memory");
  check(kernels::prepare_grouped_gemm(), "preparing the kernels");
  check(cudaEventCreate(&last_), "creating an event");
  check(cudaEventCreate(&now_), "creating an event");
  check(cudaEventRecord(last_, stream_), "recording an event");
  stop_queues_first();
}

Gpu::~Gpu() {
  if (cudaSetDevice(index_) != cudaSuccess) return;
  if (cublas_) Cublas::instance().cublasDestroy_v2(cublas_);
  if (cusolver_.params) Cusolver::instance().cusolverDnDestroyParams(cusolver_.params);
  if (cusolver_.handle) Cusolver::instance().cusolverDnDestroy(cusolver_.handle);
  staging_.reset();
  for (cudaEvent_t event : {last_, now_}) {
    if (event) cudaEventDestroy(event);
  }
  cudaFree(error_record_);
  if (stream_) cudaStreamDestroy(stream_);
}

void Gpu::activate() const { check(cudaSetDevice(index_), "selecting the GPU"); }

Scratch Gpu::scratch(size_t count, size_t item_bytes) { return Scratch(*pool_, checked_mul(count, item_bytes)); }

cublasHandle_t Gpu::cublas() {
  if (cublas_) return cublas_;
  const Cublas& library = Cublas::instance();
  cublasHandle_t handle = nullptr;
  check(library.cublasCreate_v2(&handle), "opening cuBLAS");
  cublas_ = handle;
  check(library.cublasSetStream_v2(handle, stream_), "opening cuBLAS");
  // f32 products stay f32 (TF32 would have to be asked for), and split sums of halves are added in f32.
  const auto mode = static_cast<cublasMath_t>(CUBLAS_DEFAULT_MATH | CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION);
  check(library.cublasSetMathMode(handle, mode), "opening cuBLAS");
  stop_queues_first();
  return cublas_;
}

Gpu::Solver Gpu::cusolver() {
  if (cusolver_.params) return cusolver_;
  const Cusolver& library = Cusolver::instance();
  if (!cusolver_.handle) {
    check(library.cusolverDnCreate(&cusolver_.handle), "opening cuSOLVER");
    check(library.cusolverDnSetStream(cusolver_.handle, stream_), "opening cuSOLVER");
  }
  check(library.cusolverDnCreateParams(&cusolver_.params), "opening cuSOLVER");
  stop_queues_first();
  return cusolver_;
}

double Gpu::timestamp() {
  float since_last = 0;
  check(cudaEventRecord(now_, stream_), "recording an event");
  check(cudaEventSynchronize(now_), "waiting for the GPU");
  check(cudaEventElapsedTime(&since_last, last_, now_), "reading the GPU's clock");
  std::swap(last_, now_);
  return elapsed_ms_ += since_last;
}

void Gpu::synchronize() {
  const auto record = read(error_record_);
  check(cudaStreamSynchronize(stream_), "waiting for the GPU");
  if (record == kNoError) return;
  check(cudaMemsetAsync(error_record_, 0xff, sizeof *error_record_, stream_), "clearing GPU memory");
  raise(decode_error(record));
}

}  // namespace molae::cuda
