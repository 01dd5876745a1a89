#include "addon/tensor_object.h"

#include <cstring>
#include <memory>
#include <vector>

#include "addon/args.h"
#include "addon/errors.h"
#include "addon/module.h"
#include "addon/type_tags.h"

namespace molae::addon {
namespace {

void check_size(const Tensor& tensor, const Bytes& bytes, const char* name) {
  if (bytes.size != tensor.bytes()) {
    fail(ErrorCode::ShapeMismatch, "Expected ", tensor.bytes(), " bytes for ", name, " but received ", bytes.size);
  }
}

}  // namespace

Napi::Function TensorObject::define(Napi::Env env) {
  return DefineClass(
      env, "Tensor",
      {InstanceMethod<&TensorObject::slice>("slice"), InstanceMethod<&TensorObject::row_range>("rowRange"),
       InstanceMethod<&TensorObject::reshape>("reshape"), InstanceMethod<&TensorObject::read>("read"),
       InstanceMethod<&TensorObject::read_sync>("readSync"), InstanceMethod<&TensorObject::write>("write"),
       InstanceMethod<&TensorObject::dispose>("dispose")});
}

Napi::Object TensorObject::make(Napi::Env env, Device& device, Tensor tensor) {
  Napi::Object object = Module::of(env).tensor_constructor.New({});
  TensorObject* self = Unwrap(object);
  self->device_ = &device;
  self->tensor_ = std::move(tensor);
  self->account(env, true);
  return object;
}

TensorObject* TensorObject::from(Napi::Value value) { return unwrap<TensorObject>(value, kTensorTag); }

TensorObject::TensorObject(const Napi::CallbackInfo& info) : ObjectWrap(info) {
  info.This().As<Napi::Object>().TypeTag(&kTensorTag);
}

void TensorObject::Finalize(Napi::BasicEnv env) { account(env, false); }

// Tells the garbage collector of the memory behind this small object; views share theirs with the first.
void TensorObject::account(Napi::BasicEnv env, bool add) {
  if (add) {
    const bool whole = tensor_.bytes() == tensor_.buffer()->bytes() && tensor_.buffer().use_count() == 1;
    accounted_ = whole ? static_cast<int64_t>(tensor_.bytes()) : 0;
  }
  if (accounted_ != 0) Napi::MemoryManagement::AdjustExternalMemory(env, add ? accounted_ : -accounted_);
  if (!add) accounted_ = 0;
}

Tensor TensorObject::alive() const {
  if (!tensor_) fail(ErrorCode::Disposed, "The tensor was disposed");
  return tensor_;
}

Napi::Value TensorObject::slice(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    return make(info.Env(), *device_, alive().slice(Args(info).integer(0, "index", 0, kMaxSafeInteger)));
  });
}

Napi::Value TensorObject::row_range(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    const Args args(info);
    return make(
        info.Env(), *device_,
        alive().row_range(args.integer(0, "begin", 0, kMaxSafeInteger), args.integer(1, "end", 0, kMaxSafeInteger)));
  });
}

Napi::Value TensorObject::reshape(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] { return make(info.Env(), *device_, alive().reshape(Args(info).shape(0, "shape"))); });
}

// The queue copies to memory of our own, the JavaScript thread from there into the caller's array: nothing but the
// JavaScript thread touches JavaScript memory, which may be detached or resized meanwhile.
Napi::Value TensorObject::read(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    const Tensor tensor = alive();
    check_size(tensor, to_bytes(info[0], "target"), "target");
    const auto download = [&backend = device_->backend(), tensor] {
      std::vector<uint8_t> staging(tensor.bytes());
      backend.download(tensor, staging.data());
      return staging;
    };
    auto target = std::make_shared<Napi::ObjectReference>(Napi::Persistent(info[0].As<Napi::Object>()));
    const auto fill = [target](Napi::Env env, const std::vector<uint8_t>& staging) {
      const Bytes bytes = to_bytes(target->Value(), "target");
      if (bytes.size != staging.size())
        fail(ErrorCode::InvalidArgument, "The target was detached or resized meanwhile");
      if (!staging.empty()) std::memcpy(bytes.data, staging.data(), staging.size());
      return env.Undefined();
    };
    return Module::of(info.Env()).compute(info.Env(), *device_, download, fill);
  });
}

void TensorObject::read_sync(const Napi::CallbackInfo& info) {
  guarded(info.Env(), [&] {
    const Tensor tensor = alive();
    const Bytes bytes = to_bytes(info[0], "target");
    check_size(tensor, bytes, "target");
    device_->run_inline([&] { device_->backend().download(tensor, bytes.data); });
  });
}

// Takes a copy of the source before it returns.
Napi::Value TensorObject::write(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    const Tensor tensor = alive();
    const Bytes bytes = to_bytes(info[0], "source");
    check_size(tensor, bytes, "source");
    auto staging = std::make_shared<std::vector<uint8_t>>(bytes.data, bytes.data + bytes.size);
    return Module::of(info.Env()).submit(info.Env(), *device_, [&backend = device_->backend(), tensor, staging] {
      backend.upload(staging->data(), tensor);
    });
  });
}

void TensorObject::dispose(const Napi::CallbackInfo& info) {
  account(info.Env(), false);
  tensor_ = Tensor();
}

}  // namespace molae::addon
