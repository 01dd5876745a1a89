#pragma once

#include <memory>

#include "addon/node_api.h"
#include "core/cancellation.h"

namespace molae::addon {

// new Cancellation().cancel(): what an AbortSignal pulls.
class CancellationObject final : public Napi::ObjectWrap<CancellationObject> {
 public:
  static Napi::Function define(Napi::Env env);
  static CancellationObject* from(Napi::Value value);

  explicit CancellationObject(const Napi::CallbackInfo& info);
  const std::shared_ptr<Cancellation>& cancellation() const { return cancellation_; }

 private:
  void cancel(const Napi::CallbackInfo& info);

  std::shared_ptr<Cancellation> cancellation_ = std::make_shared<Cancellation>();
};

}  // namespace molae::addon
