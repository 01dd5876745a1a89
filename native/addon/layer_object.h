#pragma once

#include <memory>

#include "addon/args.h"
#include "addon/node_api.h"
#include "core/device/device.h"

namespace molae::addon {

// The experts of one layer, prepared for their device.
class LayerObject final : public Napi::ObjectWrap<LayerObject> {
 public:
  static Napi::Function define(Napi::Env env);
  // description: { activation, groups, gate, up, down: { perExpert: Tensor[], shared: Tensor[] },
  //                sharedExpert?: { gate, up, down, gateLogit? } }
  static Napi::Object make(Napi::Env env, Device& device, const Fields& description);

  explicit LayerObject(const Napi::CallbackInfo& info);
  void Finalize(Napi::BasicEnv env) override;

 private:
  struct Prepared {
    int64_t hidden_size;
    int64_t num_experts;
    std::unique_ptr<LayerForward> forward;
  };

  std::shared_ptr<Prepared> alive() const;
  void account(Napi::BasicEnv env, int64_t bytes);
  Napi::Value forward(const Napi::CallbackInfo& info);  // (x, ids, weights, out, cancellation?) -> Promise
  void forward_sync(const Napi::CallbackInfo& info);    // (x, ids, weights, out)
  Napi::Value pack(const Napi::CallbackInfo& info);     // (cancellation?) -> Promise
  void dispose(const Napi::CallbackInfo& info);

  Device* device_ = nullptr;
  std::shared_ptr<Prepared> prepared_;
  int64_t accounted_ = 0;
};

}  // namespace molae::addon
