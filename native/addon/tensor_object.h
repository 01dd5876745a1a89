#pragma once

#include "addon/node_api.h"
#include "core/device/device.h"
#include "core/tensor/tensor.h"

namespace molae::addon {

// A tensor on a device. Work in flight holds the memory by itself, so that dispose() is safe at any time.
class TensorObject final : public Napi::ObjectWrap<TensorObject> {
 public:
  static Napi::Function define(Napi::Env env);
  static Napi::Object make(Napi::Env env, Device& device, Tensor tensor);
  static TensorObject* from(Napi::Value value);

  explicit TensorObject(const Napi::CallbackInfo& info);
  void Finalize(Napi::BasicEnv env) override;

  const Tensor& tensor() const { return tensor_; }

 private:
  Tensor alive() const;
  void account(Napi::BasicEnv env, bool add);

  Napi::Value slice(const Napi::CallbackInfo& info);      // (index)
  Napi::Value row_range(const Napi::CallbackInfo& info);  // (begin, end)
  Napi::Value reshape(const Napi::CallbackInfo& info);    // (shape)
  Napi::Value read(const Napi::CallbackInfo& info);       // (target) -> Promise
  void read_sync(const Napi::CallbackInfo& info);         // (target)
  Napi::Value write(const Napi::CallbackInfo& info);      // (source) -> Promise
  void dispose(const Napi::CallbackInfo& info);

  Device* device_ = nullptr;
  Tensor tensor_;
  int64_t accounted_ = 0;
};

}  // namespace molae::addon
