#pragma once

#include <memory>

#include "addon/args.h"
#include "addon/node_api.h"
#include "core/device/device.h"
#include "core/factorization/calibrated_group.h"

namespace molae::addon {

// The calibrated factorization of one group of experts.
class CalibratedGroupObject final : public Napi::ObjectWrap<CalibratedGroupObject> {
 public:
  static Napi::Function define(Napi::Env env);
  // options: { x, ids, weights, experts, hiddenSize, intermediateSize, activation, sharedGateUp, shrinkage, refit,
  // weighRows, refitDown }
  static Napi::Object make(Napi::Env env, Device& device, const Fields& options);

  explicit CalibratedGroupObject(const Napi::CallbackInfo& info);

 private:
  class Lazy;

  std::shared_ptr<Lazy> alive() const;
  Napi::Value observe(const Napi::CallbackInfo& info);             // (index, gate, up, down) -> Promise<tokens>
  Napi::Value spectrum(const Napi::CallbackInfo& info);            // (operator) -> Promise<Float64Array>
  Napi::Value solve(const Napi::CallbackInfo& info);               // (operator, b) -> Promise<Float64Array>
  Napi::Value begin_alternation(const Napi::CallbackInfo& info);   // (operator) -> Promise
  Napi::Value add_to_alternation(const Napi::CallbackInfo& info);  // (operator, index, w) -> Promise
  Napi::Value end_alternation(const Napi::CallbackInfo& info);     // (operator, b) -> Promise
  Napi::Value project(const Napi::CallbackInfo& info);  // (index, gate, up, down, aGate, aUp, aDown) -> Promise<loss>
  void dispose(const Napi::CallbackInfo& info);

  Device* device_ = nullptr;
  std::shared_ptr<Lazy> group_;
};

}  // namespace molae::addon
