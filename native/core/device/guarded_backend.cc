#include "core/device/guarded_backend.h"

#include <utility>

#include "core/error.h"

namespace molae {
namespace {

[[noreturn]] void raise(const PluginFailure& failure) {
  throw Error(static_cast<ErrorCode>(failure.code), failure.message);
}

// Runs `body` under the library's own handler.
template <class Body>
void guarded(const BackendPlugin& plugin, Body&& body) {
  PluginFailure failure;
  using Plain = std::remove_reference_t<Body>;
  if (!plugin.invoke([](void* context) { (*static_cast<Plain*>(context))(); }, &body, &failure)) raise(failure);
}

class GuardedLayer final : public LayerForward {
 public:
  GuardedLayer(const BackendPlugin& plugin, std::unique_ptr<LayerForward> inner)
      : plugin_(plugin), inner_(std::move(inner)) {}

  void run(const Tensor& x, const Routing& routing, const Tensor& y, const Cancellation& cancel) override {
    guarded(plugin_, [&] { inner_->run(x, routing, y, cancel); });
  }

 private:
  const BackendPlugin& plugin_;
  std::unique_ptr<LayerForward> inner_;
};

class GuardedDecoder final : public Decoder {
 public:
  GuardedDecoder(const BackendPlugin& plugin, Decoder& inner) : plugin_(plugin), inner_(inner) {}

  void gather_rows(const Tensor& table, const Tensor& ids, const Tensor& out) override {
    guarded(plugin_, [&] { inner_.gather_rows(table, ids, out); });
  }
  void linear(const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& out) override {
    guarded(plugin_, [&] { inner_.linear(x, weight, bias, out); });
  }
  void rms_norm(const Tensor& x, const Tensor& weight, float eps, const Tensor& out) override {
    guarded(plugin_, [&] { inner_.rms_norm(x, weight, eps, out); });
  }
  void rotary(const Tensor& x, const Tensor& positions, const Tensor& frequencies, const RotarySpec& spec) override {
    guarded(plugin_, [&] { inner_.rotary(x, positions, frequencies, spec); });
  }
  void attention(const Tensor& q, const Tensor& keys, const Tensor& values, const std::vector<Sequence>& sequences,
                 const AttentionSpec& spec, const Tensor& out) override {
    guarded(plugin_, [&] { inner_.attention(q, keys, values, sequences, spec, out); });
  }
  void copy_head_columns(const Tensor& from, const Tensor& to, const HeadColumns& columns) override {
    guarded(plugin_, [&] { inner_.copy_head_columns(from, to, columns); });
  }
  void add(const Tensor& from, const Tensor& to) override {
    guarded(plugin_, [&] { inner_.add(from, to); });
  }
  void cross_entropy(const Tensor& logits, const Tensor& targets, const Tensor& losses) override {
    guarded(plugin_, [&] { inner_.cross_entropy(logits, targets, losses); });
  }
  void compare_distributions(const Tensor& p, const Tensor& q, const Tensor& divergences,
                             const Tensor& agreements) override {
    guarded(plugin_, [&] { inner_.compare_distributions(p, q, divergences, agreements); });
  }

 private:
  const BackendPlugin& plugin_;
  Decoder& inner_;
};

class GuardedBackend final : public Backend {
 public:
  GuardedBackend(const BackendPlugin& plugin, int index, void (*stop_queues)())
      : plugin_(plugin), inner_(nullptr, plugin.destroy) {
    PluginFailure failure;
    inner_.reset(plugin.create(index, this, stop_queues, &failure));
    if (!inner_) raise(failure);
    if (Decoder* decoder = inner_->decoder()) decoder_ = std::make_unique<GuardedDecoder>(plugin, *decoder);
  }

  // These do not throw.
  DeviceInfo info() const override { return inner_->info(); }
  MemoryUsage memory_usage() const override { return inner_->memory_usage(); }
  bool host_memory() const override { return inner_->host_memory(); }
  bool knows_blocks() const override { return inner_->knows_blocks(); }
  Decoder* decoder() override { return decoder_.get(); }

  void trim() override {
    call([&] { inner_->trim(); });
  }
  double timestamp() override {
    return result<double>([&] { return inner_->timestamp(); });
  }
  void synchronize() override {
    call([&] { inner_->synchronize(); });
  }
  std::shared_ptr<Buffer> allocate(size_t bytes) override {
    return result<std::shared_ptr<Buffer>>([&] { return inner_->allocate(bytes); });
  }
  void upload(const void* host, const Tensor& to) override {
    call([&] { inner_->upload(host, to); });
  }
  void download(const Tensor& from, void* host) override {
    call([&] { inner_->download(from, host); });
  }
  void copy(const Tensor& from, const Tensor& to) override {
    call([&] { inner_->copy(from, to); });
  }
  void zero(const Tensor& tensor) override {
    call([&] { inner_->zero(tensor); });
  }
  void transpose(const Tensor& from, const Tensor& to) override {
    call([&] { inner_->transpose(from, to); });
  }
  int64_t find_non_finite(const Tensor& tensor) override {
    return result<int64_t>([&] { return inner_->find_non_finite(tensor); });
  }
  void gemm(std::span<const Gemm> problems) override {
    call([&] { inner_->gemm(problems); });
  }
  void svd(const Tensor& a, const Tensor& u, const Tensor& s, const Tensor& vt) override {
    call([&] { inner_->svd(a, u, s, vt); });
  }
  void eigh(const Tensor& a, const Tensor& values, const Tensor& vectors) override {
    call([&] { inner_->eigh(a, values, vectors); });
  }
  void accumulate_gram(const Tensor& w, SharedSide side, const Tensor& gram) override {
    call([&] { inner_->accumulate_gram(w, side, gram); });
  }
  void signed_permutation(const Tensor& w, SharedSide side, std::span<const int32_t> source,
                          std::span<const int8_t> signs, const Tensor& out) override {
    call([&] { inner_->signed_permutation(w, side, source, signs, out); });
  }
  double squared_norm(const Tensor& w) override {
    return result<double>([&] { return inner_->squared_norm(w); });
  }
  double squared_residual(const Tensor& w, const Tensor& a, const Tensor& b, DType compute) override {
    return result<double>([&] { return inner_->squared_residual(w, a, b, compute); });
  }
  void solve_spd(const Tensor& spd, const Tensor& rhs) override {
    call([&] { inner_->solve_spd(spd, rhs); });
  }
  void route(const Tensor& logits, const RouterSpec& spec, const Routing& routing) override {
    call([&] { inner_->route(logits, spec, routing); });
  }
  std::unique_ptr<LayerForward> prepare(ExpertLayer layer) override {
    auto inner = result<std::unique_ptr<LayerForward>>([&] { return inner_->prepare(std::move(layer)); });
    return std::make_unique<GuardedLayer>(plugin_, std::move(inner));
  }

 private:
  template <class Body>
  void call(Body&& body) const {
    guarded(plugin_, body);
  }
  template <class Result, class Body>
  Result result(Body&& body) const {
    Result value{};
    guarded(plugin_, [&] { value = body(); });
    return value;
  }

  const BackendPlugin& plugin_;
  std::unique_ptr<Backend, void (*)(Backend*)> inner_;
  std::unique_ptr<Decoder> decoder_;
};

}  // namespace

std::unique_ptr<Backend> make_guarded_backend(const BackendPlugin& plugin, int index, void (*stop_queues)()) {
  return std::make_unique<GuardedBackend>(plugin, index, stop_queues);
}

}  // namespace molae
