#pragma once

#include <memory>

#include "addon/args.h"
#include "addon/node_api.h"
#include "core/device/device.h"
#include "core/factorization/shared_basis.h"

namespace molae::addon {

// The factorization of one operator of one group, expert by expert.
class BasisObject final : public Napi::ObjectWrap<BasisObject> {
 public:
  static Napi::Function define(Napi::Env env);
  // options: { side: 'input' | 'output', sharedSize, solver: 'gram' | 'svd', rankReduction, controlSeed? }
  static Napi::Object make(Napi::Env env, Device& device, const Fields& options);

  explicit BasisObject(const Napi::CallbackInfo& info);

 private:
  std::shared_ptr<SharedBasis> alive() const;
  Napi::Value add(const Napi::CallbackInfo& info);      // (w) -> Promise
  Napi::Value solve(const Napi::CallbackInfo& info);    // (b) -> Promise<report>
  Napi::Value project(const Napi::CallbackInfo& info);  // (w, a) -> Promise<squared residual>
  void dispose(const Napi::CallbackInfo& info);

  Device* device_ = nullptr;
  std::shared_ptr<SharedBasis> basis_;
};

}  // namespace molae::addon
