#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/calibration_steps.h"
#include "core/cancellation.h"
#include "core/decoder.h"
#include "core/error.h"
#include "core/expert_layer.h"
#include "core/routing.h"
#include "core/tensor/tensor.h"

namespace molae {

struct DeviceInfo {
  std::string kind;  // "cpu", "cuda"
  int index = 0;
  std::string name;                   // "AMD EPYC ..."
  std::string library;                // the BLAS that does the matrix products, with its version
  std::vector<std::string> features;  // instruction sets or compute capability
  int threads = 0;                    // 0 where it has no meaning
  size_t memory_bytes = 0;
};

struct MemoryUsage {
  size_t tensors = 0;     // bytes of live tensors
  size_t workspaces = 0;  // bytes kept for reuse between calls
  size_t peak = 0;        // the largest sum of both so far
};

// C = alpha op(A) op(B) + beta C, row-major. Where beta is 0, C is not read.
struct Gemm {
  Tensor a, b, c;
  bool transpose_a = false;
  bool transpose_b = false;
  double alpha = 1;
  double beta = 0;
};

// Which side of an expert's matrix the group shares: gate and up share their input (right singular) space, down
// shares its output (left singular) space.
enum class SharedSide { Input, Output };

// What products with packed bf16 weights multiply: inputs as they are, or rounded to bf16 first, whose products some
// processors add up in pairs.
enum class PackedInputs { F32, BF16 };

// The forward pass of one layer, prepared for one backend (captured graphs, workspaces).
class LayerForward {
 public:
  virtual ~LayerForward() = default;
  // y [T, n] = the experts applied to x [T, n]; both of one floating dtype.
  virtual void run(const Tensor& x, const Routing& routing, const Tensor& y, const Cancellation& cancel) = 0;
  // The same with its own copy of the weights, in the order in which the kernels read fastest; null where they read
  // weights as they came, or are packed already and multiply such inputs.
  virtual std::unique_ptr<LayerForward> packed(PackedInputs, const Cancellation&) const { return nullptr; }
  // What such a copy takes; 0 where weights are read as they came.
  virtual size_t packed_bytes() const { return 0; }
};

// What a device can do. One operation at a time: the device's queue sees to it. Arguments have been checked
// (core/checks.h) when an operation is called, so that every backend refuses the same input with the same words.
class Backend {
 public:
  virtual ~Backend() = default;

  virtual DeviceInfo info() const = 0;
  virtual MemoryUsage memory_usage() const = 0;
  virtual void trim() = 0;  // gives the workspaces back
  // Milliseconds on the device's own clock, from an arbitrary start, once everything before is done.
  virtual double timestamp() = 0;
  virtual void synchronize() {}  // waits for what was queued, and throws what only then shows (devices of their own)

  // Memory. May be called from any thread, unlike everything else. Throws OutOfMemory.
  virtual std::shared_ptr<Buffer> allocate(size_t bytes) = 0;
  virtual bool host_memory() const = 0;                // buffers can be read and written through their pointers
  virtual bool knows_blocks() const { return false; }  // weights may be q8 and q4
  virtual void upload(const void* host, const Tensor& to) = 0;
  virtual void download(const Tensor& from, void* host) = 0;
  // Same elements; converts between float dtypes and blocks. Throws NonFinite with the position of what no block holds.
  virtual void copy(const Tensor& from, const Tensor& to) = 0;

  virtual void zero(const Tensor& tensor) = 0;
  virtual void transpose(const Tensor& from, const Tensor& to) = 0;  // [p, q] -> [q, p], same dtype

  // Flat index of the first NaN or infinity, -1 if there is none.
  virtual int64_t find_non_finite(const Tensor& tensor) = 0;

  // Linear algebra.
  virtual void gemm(std::span<const Gemm> problems) = 0;  // independent products of any shapes
  // Full decomposition of a [p, q] with k = min(p, q): u [p, k], s [k], vt [k, q], descending. f32 or f64.
  virtual void svd(const Tensor& a, const Tensor& u, const Tensor& s, const Tensor& vt) = 0;
  // a [n, n] symmetric, only its lower triangle is read, destroyed. values [n]: all eigenvalues, descending.
  // vectors [top, n]: row j is the unit eigenvector of values[j]. f32 or f64.
  virtual void eigh(const Tensor& a, const Tensor& values, const Tensor& vectors) = 0;

  // What factorization needs beside them.
  // gram [n, n] f64, lower triangle += WᵀW (Input) or WWᵀ (Output). f32 sums over at most 512 products of halves
  // (exact in f32, as long as they are in its range: see core/factorization/products.h), everything else in f64.
  virtual void accumulate_gram(const Tensor& w, SharedSide side, const Tensor& gram) = 0;
  // out[i][j] = signs[j] w[i][source[j]] (Input) or signs[i] w[source[i]][j] (Output).
  virtual void signed_permutation(const Tensor& w, SharedSide side, std::span<const int32_t> source,
                                  std::span<const int8_t> signs, const Tensor& out) = 0;
  // The sum of squares of w, and of w - a b computed in f32 or f64, accumulated in f64.
  virtual double squared_norm(const Tensor& w) = 0;
  virtual double squared_residual(const Tensor& w, const Tensor& a, const Tensor& b, DType compute) = 0;
  // Solves spd X = rhs in place of rhs, spd [r, r] symmetric positive definite (lower triangle read, destroyed).
  virtual void solve_spd(const Tensor& spd, const Tensor& rhs) = 0;

  // Mixture of experts.
  virtual void route(const Tensor& logits, const RouterSpec& spec, const Routing& routing) = 0;
  virtual std::unique_ptr<LayerForward> prepare(ExpertLayer layer) = 0;  // after check_layer (core/expert_layer.h)

  // What whole models need beside that; null where the backend cannot run them.
  virtual Decoder* decoder() { return nullptr; }
  // What calibrated factorization needs beside that; null where the backend cannot do it.
  virtual CalibrationSteps* calibration_steps() { return nullptr; }
};

// A new, uninitialized tensor. Throws DTypeMismatch for blocks where the backend has no kernels for them.
inline Tensor empty(Backend& backend, DType dtype, Shape shape) {
  if (is_block(dtype) && !backend.knows_blocks()) {
    fail(ErrorCode::DTypeMismatch, "This device has no kernels for ", dtype_name(dtype), " weights; the CPU has");
  }
  const size_t bytes = byte_count(dtype, shape);
  return Tensor(backend.allocate(bytes), 0, dtype, std::move(shape));
}

}  // namespace molae
