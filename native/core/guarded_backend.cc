#include "core/guarded_backend.h"

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

class GuardedBackend final : public Backend {
 public:
  GuardedBackend(const BackendPlugin& plugin, int index) : plugin_(plugin) {
    PluginFailure failure;
    inner_ = plugin.create(index, this, &failure);
    if (!inner_) raise(failure);
  }
  ~GuardedBackend() override { plugin_.destroy(inner_); }

  // These three do not throw.
  DeviceInfo info() const override { return inner_->info(); }
  MemoryUsage memory_usage() const override { return inner_->memory_usage(); }
  bool host_memory() const override { return inner_->host_memory(); }

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
  double squared_residual(const Tensor& w, const Tensor& a, const Tensor& b) override {
    return result<double>([&] { return inner_->squared_residual(w, a, b); });
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
  Backend* inner_ = nullptr;
};

}  // namespace

std::unique_ptr<Backend> make_guarded_backend(const BackendPlugin& plugin, int index) {
  return std::make_unique<GuardedBackend>(plugin, index);
}

}  // namespace molae
