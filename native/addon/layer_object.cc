#include "addon/layer_object.h"

#include <string>

#include "addon/args.h"
#include "addon/errors.h"
#include "addon/module.h"
#include "addon/type_tags.h"
#include "core/checks.h"

namespace molae::addon {
namespace {

ExpertOperator to_operator(const Fields& fields) { return {fields.tensors("perExpert"), fields.tensors("shared")}; }

std::vector<std::vector<int32_t>> to_groups(Napi::Value value) {
  if (!value.IsArray()) unexpected("an array of arrays", "groups", value);
  std::vector<std::vector<int32_t>> groups;
  const auto array = value.As<Napi::Array>();
  for (uint32_t g = 0; g < array.Length(); ++g) {
    groups.push_back(to_indices(array.Get(g), "groups[" + std::to_string(g) + "]"));
  }
  return groups;
}

SharedExpert to_shared_expert(const Fields& fields) {
  SharedExpert shared{fields.tensor("gate"), fields.tensor("up"), fields.tensor("down"), std::nullopt};
  if (!fields.is_undefined("gateLogit")) shared.gate_logit = fields.tensor("gateLogit");
  return shared;
}

ExpertLayer to_layer(const Fields& description) {
  ExpertLayer layer;
  layer.activation = parse_activation(description.text("activation"));
  layer.groups = to_groups(description.value("groups"));
  layer.gate = to_operator(description.fields("gate"));
  layer.up = to_operator(description.fields("up"));
  layer.down = to_operator(description.fields("down"));
  if (!description.is_undefined("sharedExpert")) {
    layer.shared_expert = to_shared_expert(description.fields("sharedExpert"));
  }
  layer.take_sizes();
  return layer;
}

// The arguments of both forwards.
struct Call {
  Tensor x;
  Routing routing;
  Tensor y;
};

Call to_call(const Args& args) {
  return {
      args.tensor(0, "x"), {args.tensor(1, "routing.ids"), args.tensor(2, "routing.weights")}, args.tensor(3, "out")};
}

}  // namespace

Napi::Function LayerObject::define(Napi::Env env) {
  return DefineClass(
      env, "Layer",
      {InstanceMethod<&LayerObject::forward>("forward"), InstanceMethod<&LayerObject::forward_sync>("forwardSync"),
       InstanceMethod<&LayerObject::pack>("pack"), InstanceMethod<&LayerObject::dispose>("dispose")});
}

Napi::Object LayerObject::make(Napi::Env env, Device& device, const Fields& description) {
  auto prepared = std::make_shared<Prepared>();
  ExpertLayer layer = to_layer(description);
  check_layer(layer, &device.backend());
  prepared->hidden_size = layer.hidden_size;
  prepared->num_experts = layer.num_experts();
  device.run_inline([&] { prepared->forward = device.backend().prepare(std::move(layer)); });
  Napi::Object object = Module::of(env).layer_constructor.New({});
  LayerObject* self = Unwrap(object);
  self->device_ = &device;
  self->prepared_ = std::move(prepared);
  return object;
}

LayerObject::LayerObject(const Napi::CallbackInfo& info) : ObjectWrap(info) {
  info.This().As<Napi::Object>().TypeTag(&kLayerTag);
}

void LayerObject::Finalize(Napi::BasicEnv env) { account(env, 0); }

// Tells the garbage collector how much memory packed weights take, behind this small object.
void LayerObject::account(Napi::BasicEnv env, int64_t bytes) {
  if (bytes != accounted_) Napi::MemoryManagement::AdjustExternalMemory(env, bytes - accounted_);
  accounted_ = bytes;
}

std::shared_ptr<LayerObject::Prepared> LayerObject::alive() const {
  if (!prepared_) fail(ErrorCode::Disposed, "The experts were disposed");
  return prepared_;
}

Napi::Value LayerObject::forward(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    const Args args(info);
    const auto prepared = alive();
    const Call call = to_call(args);
    check_forward(prepared->hidden_size, prepared->num_experts, call.x, call.routing, call.y, &device_->backend());
    const auto cancellation = args.cancellation(4);
    const auto run = [prepared, call, cancellation] {
      prepared->forward->run(call.x, call.routing, call.y, *cancellation);
    };
    return Module::of(info.Env()).submit(info.Env(), *device_, run, cancellation);
  });
}

void LayerObject::forward_sync(const Napi::CallbackInfo& info) {
  guarded(info.Env(), [&] {
    const auto prepared = alive();
    const Call call = to_call(Args(info));
    check_forward(prepared->hidden_size, prepared->num_experts, call.x, call.routing, call.y, &device_->backend());
    const Cancellation never;
    device_->run_inline([&] { prepared->forward->run(call.x, call.routing, call.y, never); });
  });
}

Napi::Value LayerObject::pack(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    const auto prepared = alive();
    const Args args(info);
    const PackedInputs inputs = args.string(0, "inputs") == "bf16" ? PackedInputs::BF16 : PackedInputs::F32;
    const auto cancellation = args.cancellation(1);
    const auto run = [prepared, inputs, cancellation] {
      if (auto packed = prepared->forward->packed(inputs, *cancellation)) prepared->forward = std::move(packed);
      return static_cast<int64_t>(prepared->forward->packed_bytes());
    };
    const auto self = std::make_shared<Napi::ObjectReference>(Napi::Persistent(info.This().As<Napi::Object>()));
    const auto account = [self](Napi::Env env, int64_t bytes) {
      LayerObject* layer = Unwrap(self->Value());
      if (layer->prepared_) layer->account(env, bytes);
      return env.Undefined();
    };
    return Module::of(info.Env()).compute(info.Env(), *device_, run, account, cancellation);
  });
}

void LayerObject::dispose(const Napi::CallbackInfo& info) {
  account(info.Env(), 0);
  prepared_.reset();
}

}  // namespace molae::addon
