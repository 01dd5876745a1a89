#include "addon/cancellation_object.h"

#include "addon/type_tags.h"

namespace molae::addon {

Napi::Function CancellationObject::define(Napi::Env env) {
  return DefineClass(env, "Cancellation", {InstanceMethod<&CancellationObject::cancel>("cancel")});
}

CancellationObject* CancellationObject::from(Napi::Value value) {
  return unwrap<CancellationObject>(value, kCancellationTag);
}

CancellationObject::CancellationObject(const Napi::CallbackInfo& info) : ObjectWrap(info) {
  info.This().As<Napi::Object>().TypeTag(&kCancellationTag);
}

void CancellationObject::cancel(const Napi::CallbackInfo&) { cancellation_->cancel(); }

}  // namespace molae::addon
