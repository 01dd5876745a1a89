#pragma once

#include <algorithm>
#include <utility>
#include <vector>

#include "core/decoder.h"
#include "cuda/logic/attention.h"
#include "cuda/logic/distributions.h"
#include "cuda/logic/elementwise.h"
#include "cuda/logic/rms_norm.h"
#include "cuda/logic/rotary.h"
#include "cuda/logic/streamed_linear.h"
#include "cuda/logic/token_rows.h"

// What a decoder does beside its experts, as launches of kernels.
//
// Products of many rows are the library's: f32 weights as they are; bf16 weights by the tensor cores, with the
// activations as the sum of two bf16 matrices, which loses no more than f32 sums do; f16 weights, whose range
// activations may leave, are widened to f32, some rows at a time.
namespace molae::cuda {

// out [rows, cols] = x [rows, inner] weight [cols, inner]^T, added to out or not; x and weight of one dtype, sums in
// f32.
struct LinearProduct {
  DType dtype;
  const void* x;
  const void* weight;
  int64_t rows, cols, inner;
  bool accumulate;
  float* out;
  int64_t out_stride;
};

// Widened weights take this much at a time.
inline constexpr int64_t kWidenedBytes = int64_t{256} << 20;

// Runtime: memory, launches and large products. On the GPU it is api/cuda_decoder.cc's; the tests have one that runs
// the kernels' blocks on the host.
template <class Runtime>
class KernelDecoder final : public Decoder {
 public:
  explicit KernelDecoder(Runtime runtime) : runtime_(std::move(runtime)) {}

  void gather_rows(const Tensor& table, const Tensor& ids, const Tensor& out) override {
    runtime_.begin();
    runtime_.launch(GatherRows{table.dtype(), table.data(), table.rows(), table.cols(), ids.as<const int32_t>(),
                               ids.dim(0), out.as<float>(), runtime_.error_record()},
                    "gathering rows");
  }

  void linear(const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& out) override {
    runtime_.begin();
    if (x.rows() <= kStreamedRows) return streamed(x, weight, bias, out);
    switch (weight.dtype()) {
      case DType::F32:
        runtime_.multiply({DType::F32, x.data(), weight.data(), x.rows(), weight.rows(), x.cols(), false,
                           out.as<float>(), weight.rows()});
        break;
      case DType::BF16:
        multiply_split(x, weight, out);
        break;
      default:
        multiply_widened(x, weight, out);
    }
    if (!bias) return;
    runtime_.launch(AddBias{bias.dtype(), bias.data(), out.as<float>(), out.cols(), count(out)}, "adding a bias");
  }

  void rms_norm(const Tensor& x, const Tensor& weight, float eps, const Tensor& out) override {
    runtime_.begin();
    const int64_t size = weight.dim(0);
    runtime_.launch(
        RmsNorm{weight.dtype(), weight.data(), x.as<const float>(), out.as<float>(), count(x) / size, size, eps},
        "normalizing");
  }

  void rotary(const Tensor& x, const Tensor& positions, const Tensor& frequencies, const RotarySpec& spec) override {
    runtime_.begin();
    runtime_.launch(Rotary{x.as<float>(), positions.as<const int32_t>(), frequencies.as<const float>(), x.rows(),
                           frequencies.dim(0), spec},
                    "rotating");
  }

  void attention(const Tensor& q, const Tensor& keys, const Tensor& values, const std::vector<Sequence>& sequences,
                 const AttentionSpec& spec, const Tensor& out) override {
    runtime_.begin();
    const AttentionPlan plan = plan_attention(sequences, spec);
    if (plan.tiles.empty()) return;
    const auto tiles = runtime_.upload(plan.tiles.data(), plan.tiles.size() * sizeof(AttentionTile));
    const auto joined = runtime_.upload(plan.joined.data(), plan.joined.size() * sizeof(JoinedRow));
    const auto parts = runtime_.memory(plan.part_rows * spec.kv_heads * part_size(spec) * sizeof(float));
    runtime_.launch(Attention{q.as<const float>(), keys.as<const float>(), values.as<const float>(), out.as<float>(),
                              parts.template as<float>(), tiles.template as<const AttentionTile>(),
                              static_cast<int64_t>(plan.tiles.size()), spec},
                    "attention");
    if (plan.joined.empty()) return;
    runtime_.launch(
        JoinAttention{parts.template as<const float>(), out.as<float>(), joined.template as<const JoinedRow>(),
                      static_cast<int64_t>(plan.joined.size()), spec},
        "joining attention");
  }

  void copy_head_columns(const Tensor& from, const Tensor& to, const HeadColumns& columns) override {
    runtime_.begin();
    runtime_.launch(CopyHeadColumns{from.as<const float>(), to.as<float>(), from.rows(),
                                    from.cols() / columns.from_heads, to.cols() / columns.heads, columns},
                    "copying columns");
  }

  void add(const Tensor& from, const Tensor& to) override {
    runtime_.begin();
    runtime_.launch(AddTo{from.as<const float>(), to.as<float>(), count(from)}, "adding");
  }

  void cross_entropy(const Tensor& logits, const Tensor& targets, const Tensor& losses) override {
    runtime_.begin();
    runtime_.launch(CrossEntropy{logits.as<const float>(), targets.as<const int32_t>(), losses.as<double>(),
                                 logits.rows(), logits.cols(), runtime_.error_record()},
                    "cross entropy");
  }

  void compare_distributions(const Tensor& p, const Tensor& q, const Tensor& divergences,
                             const Tensor& agreements) override {
    runtime_.begin();
    runtime_.launch(CompareDistributions{p.as<const float>(), q.as<const float>(), divergences.as<double>(),
                                         agreements.as<int32_t>(), p.rows(), p.cols(), runtime_.error_record()},
                    "comparing distributions");
  }

 private:
  static int64_t count(const Tensor& tensor) { return static_cast<int64_t>(tensor.elements()); }

  void streamed(const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& out) {
    switch (weight.dtype()) {
      case DType::F32:
        return streamed_as<float>(x, weight, bias, out);
      case DType::BF16:
        return streamed_as<BF16>(x, weight, bias, out);
      default:
        return streamed_as<F16>(x, weight, bias, out);
    }
  }

  template <class T>
  void streamed_as(const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& out) {
    const auto launch = [&](auto kernel) {
      kernel = {weight.as<const T>(),
                x.as<const float>(),
                bias ? bias.data() : nullptr,
                bias ? bias.dtype() : DType::F32,
                out.as<float>(),
                x.rows(),
                weight.rows(),
                x.cols()};
      runtime_.launch(kernel, "a product with few rows");
    };
    if (x.rows() <= 1) {
      launch(StreamedLinear<T, 1>{});
    } else {
      launch(StreamedLinear<T, kStreamedRows>{});
    }
  }

  void multiply_split(const Tensor& x, const Tensor& weight, const Tensor& out) {
    const auto high = runtime_.memory(x.elements() * sizeof(BF16));
    const auto low = runtime_.memory(x.elements() * sizeof(BF16));
    runtime_.launch(SplitInTwo{x.as<const float>(), high.template as<BF16>(), low.template as<BF16>(), count(x)},
                    "splitting x");
    LinearProduct product{DType::BF16, low.as(), weight.data(),   x.rows(),     weight.rows(),
                          x.cols(),    false,    out.as<float>(), weight.rows()};
    runtime_.multiply(product);
    product.x = high.as();
    product.accumulate = true;
    runtime_.multiply(product);
  }

  void multiply_widened(const Tensor& x, const Tensor& weight, const Tensor& out) {
    const int64_t cols = weight.rows();
    const int64_t row_bytes = std::max<int64_t>(1, weight.cols()) * sizeof(float);
    const int64_t most = std::max<int64_t>(1, std::min(cols, kWidenedBytes / row_bytes));
    const auto wide = runtime_.memory(most * row_bytes);
    for (int64_t begin = 0; begin < cols; begin += most) {
      const Tensor part = weight.row_range(begin, std::min(cols, begin + most));
      runtime_.convert(part.dtype(), part.data(), DType::F32, wide.as(), count(part));
      runtime_.multiply(
          {DType::F32, x.data(), wide.as(), x.rows(), part.rows(), x.cols(), false, out.as<float>() + begin, cols});
    }
  }

  Runtime runtime_;
};

}  // namespace molae::cuda
