#include "cpu/decoder/cpu_decoder.h"

#include <algorithm>
#include <cmath>

#include "core/error.h"
#include "cpu/decoder/attention.h"
#include "cpu/linear/linear_tile.h"
#include "cpu/linear/tile_list.h"
#include "cpu/simd/convert.h"
#include "cpu/system/compute_pool.h"

namespace molae::cpu {
namespace {

// Rows that one task of a row-wise operation takes.
constexpr int64_t kRows = 16;

class CpuDecoder final : public Decoder {
 public:
  explicit CpuDecoder(Context context) : context_(context) {}

  void gather_rows(const Tensor& table, const Tensor& ids, const Tensor& out) override {
    const int64_t n = table.cols();
    const size_t row_bytes = n * item_size(table.dtype());
    for_rows(ids.dim(0), [&](int64_t t) {
      const int32_t id = ids.as<const int32_t>()[t];
      if (id < 0 || id >= table.rows()) {
        fail(ErrorCode::InvalidArgument, "Token id ", id, " at ", t, " is outside of the ", table.rows(), " known");
      }
      widen_elements(table.dtype(), table.as<const std::byte>() + id * row_bytes, out.as<float>() + t * n, n);
    });
  }

  void linear(const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& out) override {
    const int64_t rows = x.rows();
    const int64_t inner = x.cols();
    const int64_t cols = weight.rows();
    const float* wide_bias = bias ? widened_bias(bias) : nullptr;
    const int64_t scratch_stride = tile_scratch<float>(inner);
    float* scratch = context_.workspace.get<float>(kScratch, scratch_stride * context_.threads);
    tiles_.clear();
    tiles_.add(0, rows, cols, inner);
    const int threads = tiles_.cut(context_.threads);
    ComputePool::instance().parallel_for(threads, tiles_.size(), [&](int64_t index, int participant) {
      const Tile& tile = tiles_[index];
      float* to = out.as<float>() + tile.row * cols + tile.col;
      linear_tile<float>(Rows<float>{x.as<const float>() + tile.row * inner, inner}, tile.rows, weight, tile.col,
                         tile.cols, to, cols, scratch + scratch_stride * participant);
      if (!wide_bias) return;
      for (int64_t i = 0; i < tile.rows; ++i) {
        for (int64_t j = 0; j < tile.cols; ++j) to[i * cols + j] += wide_bias[tile.col + j];
      }
    });
  }

  void rms_norm(const Tensor& x, const Tensor& weight, float eps, const Tensor& out) override {
    const int64_t size = weight.dim(0);
    float* scale = context_.workspace.get<float>(kVectorA, size);
    widen_elements(weight.dtype(), weight.data(), scale, size);
    const auto groups = static_cast<int64_t>(x.elements()) / size;
    for_rows(groups, [&](int64_t group) {
      const float* from = x.as<const float>() + group * size;
      float* to = out.as<float>() + group * size;
      double squares = 0;
      for (int64_t j = 0; j < size; ++j) squares += static_cast<double>(from[j]) * from[j];
      const float inverse = static_cast<float>(1 / std::sqrt(squares / static_cast<double>(size) + eps));
      for (int64_t j = 0; j < size; ++j) to[j] = from[j] * inverse * scale[j];
    });
  }

  void rotary(const Tensor& x, const Tensor& positions, const Tensor& frequencies, const RotarySpec& spec) override {
    const int64_t count = frequencies.dim(0);
    float* scratch = context_.workspace.get<float>(kScratch, 2 * count * context_.threads);
    const bool halves = spec.pairs == RotaryPairs::Halves;
    ComputePool::instance().parallel_for(context_.threads, x.rows(), [&](int64_t t, int participant) {
      float* cosine = scratch + 2 * count * participant;
      float* sine = cosine + count;
      for (int64_t j = 0; j < count; ++j) {
        const float angle = static_cast<float>(positions.as<const int32_t>()[t]) * frequencies.as<const float>()[j];
        cosine[j] = std::cos(angle) * spec.magnitude;
        sine[j] = std::sin(angle) * spec.magnitude;
      }
      for (int64_t head = 0; head < spec.heads; ++head) {
        float* values = x.as<float>() + t * x.cols() + head * spec.head_size + spec.offset;
        for (int64_t j = 0; j < count; ++j) {
          float& a = values[halves ? j : 2 * j];
          float& b = values[halves ? j + count : 2 * j + 1];
          const float rotated = a * cosine[j] - b * sine[j];
          b = b * cosine[j] + a * sine[j];
          a = rotated;
        }
      }
    });
  }

  void attention(const Tensor& q, const Tensor& keys, const Tensor& values, const std::vector<Sequence>& sequences,
                 const AttentionSpec& spec, const Tensor& out) override {
    cpu::attention(context_, q, keys, values, sequences, spec, out);
  }

  void copy_head_columns(const Tensor& from, const Tensor& to, const HeadColumns& columns) override {
    const int64_t from_size = from.cols() / columns.from_heads;
    const int64_t to_size = to.cols() / columns.heads;
    for_rows(from.rows(), [&](int64_t t) {
      const float* source = from.as<const float>() + t * from.cols() + columns.from_offset;
      float* target = to.as<float>() + t * to.cols() + columns.to_offset;
      for (int64_t head = 0; head < columns.heads; ++head) {
        const int64_t from_head = columns.from_heads == 1 ? 0 : head;
        std::copy_n(source + from_head * from_size, columns.width, target + head * to_size);
      }
    });
  }

  void add(const Tensor& from, const Tensor& to) override {
    const float* source = from.as<const float>();
    float* target = to.as<float>();
    const auto count = static_cast<int64_t>(from.elements());
    constexpr int64_t kPiece = 1 << 16;
    ComputePool::instance().for_ranges(context_.threads, count, kPiece, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) target[i] += source[i];
    });
  }

  void cross_entropy(const Tensor& logits, const Tensor& targets, const Tensor& losses) override {
    const int64_t size = logits.cols();
    for_rows(logits.rows(), [&](int64_t t) {
      const int32_t target = targets.as<const int32_t>()[t];
      if (target < 0 || target >= size) {
        fail(ErrorCode::InvalidArgument, "Target ", target, " at ", t, " is outside of the ", size, " logits");
      }
      const float* row = logits.as<const float>() + t * size;
      losses.as<double>()[t] = log_sum_exp(row, size, t) - row[target];
    });
  }

  void compare_distributions(const Tensor& p, const Tensor& q, const Tensor& divergences,
                             const Tensor& agreements) override {
    const int64_t size = p.cols();
    for_rows(p.rows(), [&](int64_t t) {
      const float* a = p.as<const float>() + t * size;
      const float* b = q.as<const float>() + t * size;
      const double a_sum = log_sum_exp(a, size, t);
      const double b_sum = log_sum_exp(b, size, t);
      double divergence = 0;
      for (int64_t j = 0; j < size; ++j) {
        const double log_p = a[j] - a_sum;
        const double probability = std::exp(log_p);
        if (probability > 0) divergence += probability * (log_p - (b[j] - b_sum));  // 0 log 0 = 0: masked tokens
      }
      divergences.as<double>()[t] = divergence;
      agreements.as<int32_t>()[t] = std::max_element(a, a + size) - a == std::max_element(b, b + size) - b ? 1 : 0;
    });
  }

 private:
  template <class Body>
  void for_rows(int64_t rows, Body body) {
    ComputePool::instance().for_ranges(context_.threads, rows, kRows, [&](int64_t begin, int64_t end, int) {
      for (int64_t row = begin; row < end; ++row) body(row);
    });
  }

  const float* widened_bias(const Tensor& bias) {
    float* wide = context_.workspace.get<float>(kVectorA, bias.elements());
    widen_elements(bias.dtype(), bias.data(), wide, bias.elements());
    return wide;
  }

  static double log_sum_exp(const float* row, int64_t size, int64_t t) {
    const double largest = *std::max_element(row, row + size);
    double sum = 0;
    for (int64_t j = 0; j < size; ++j) sum += std::exp(row[j] - largest);
    if (!std::isfinite(sum)) fail(ErrorCode::NonFinite, "The logits of row ", t, " have NaN or infinity");
    return largest + std::log(sum);
  }

  Context context_;
  TileList tiles_{tile_shape<Tensor>()};
};

}  // namespace

std::unique_ptr<Decoder> make_decoder(Context context) { return std::make_unique<CpuDecoder>(context); }

}  // namespace molae::cpu
