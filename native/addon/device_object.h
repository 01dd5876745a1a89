#pragma once

#include <vector>

#include "addon/node_api.h"
#include "core/device/device.h"

namespace molae::addon {

// An open device. All results go to tensors that the caller made with empty(): one place to allocate, nothing hidden.
class DeviceObject final : public Napi::ObjectWrap<DeviceObject> {
 public:
  static Napi::Function define(Napi::Env env);
  static Napi::Value open(const Napi::CallbackInfo& info);  // (kind, index, threads)

  explicit DeviceObject(const Napi::CallbackInfo& info);
  void Finalize(Napi::BasicEnv env) override;

 private:
  Device& alive() const;
  // An operation of the backend.
  template <auto method, auto check, class... Readers>
  Napi::Value queue(const Napi::CallbackInfo& info, const Readers&... readers);

  Napi::Value info(const Napi::CallbackInfo& info);
  Napi::Value memory_usage(const Napi::CallbackInfo& info);
  Napi::Value empty(const Napi::CallbackInfo& info);      // (dtype, shape) -> Tensor
  Napi::Value from_data(const Napi::CallbackInfo& info);  // (dtype, shape, typed array) -> Tensor
  Napi::Value copy(const Napi::CallbackInfo& info);       // (from, to) -> Promise
  Napi::Value transpose(const Napi::CallbackInfo& info);  // (from, to) -> Promise
  // (a, b, out, transposeA, transposeB, alpha, beta) -> Promise
  Napi::Value gemm(const Napi::CallbackInfo& info);
  Napi::Value batched_gemm(const Napi::CallbackInfo& info);
  // (tensors, settings) -> Promise
  Napi::Value grouped_gemm(const Napi::CallbackInfo& info);
  Napi::Value submit_products(Napi::Env env, std::vector<Gemm> problems);
  Napi::Value svd(const Napi::CallbackInfo& info);               // (a, u, s, vt) -> Promise
  Napi::Value eigh(const Napi::CallbackInfo& info);              // (a, values, vectors) -> Promise; destroys a
  Napi::Value route(const Napi::CallbackInfo& info);             // (logits, spec, ids, weights)
  Napi::Value timestamp(const Napi::CallbackInfo& info);         // () -> Promise<milliseconds>
  Napi::Value synchronize(const Napi::CallbackInfo& info);       // () -> Promise
  Napi::Value prepare_layer(const Napi::CallbackInfo& info);     // (description) -> Layer
  Napi::Value shared_basis(const Napi::CallbackInfo& info);      // (options) -> SharedBasis
  Napi::Value calibrated_group(const Napi::CallbackInfo& info);  // (options) -> CalibratedGroup
  template <Napi::Value (*call)(const Napi::CallbackInfo&, Device&)>
  Napi::Value decode(const Napi::CallbackInfo& info);  // the operations of decoder_calls.h
  void dispose(const Napi::CallbackInfo& info);

  Device* device_ = nullptr;
};

}  // namespace molae::addon
