#include "addon/calibrated_group_object.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "addon/args.h"
#include "addon/errors.h"
#include "addon/module.h"
#include "addon/type_tags.h"

namespace molae::addon {

// Made with the first operation on the device's queue: making it reads tensors.
class CalibratedGroupObject::Lazy {
 public:
  CalibratedGroup::Options options;
  Tensor x;
  Routing routing;
  std::vector<int32_t> experts;
  Backend* backend = nullptr;

  CalibratedGroup& group() {
    if (!group_) group_ = std::make_unique<CalibratedGroup>(*backend, options, x, routing, experts);
    return *group_;
  }

 private:
  std::unique_ptr<CalibratedGroup> group_;
};

namespace {

constexpr int64_t kMaxSize = std::numeric_limits<int32_t>::max();

bool to_boolean(Napi::Object object, const char* name) {
  const Napi::Value value = object.Get(name);
  if (!value.IsBoolean()) unexpected("a boolean", name, value);
  return value.As<Napi::Boolean>();
}

CalibratedGroup::Options to_options(Napi::Object object) {
  CalibratedGroup::Options options;
  options.hidden_size = to_integer(object.Get("hiddenSize"), "hiddenSize", 1, kMaxSize);
  options.intermediate_size = to_integer(object.Get("intermediateSize"), "intermediateSize", 1, kMaxSize);
  options.activation = parse_activation(object.Get("activation").ToString().Utf8Value());
  options.shared_gate_up = to_boolean(object, "sharedGateUp");
  options.refit = to_boolean(object, "refit");
  options.weigh_rows = to_boolean(object, "weighRows");
  options.refit_down = to_boolean(object, "refitDown");
  const Napi::Value shrinkage = object.Get("shrinkage");
  options.shrinkage = shrinkage.IsNumber() ? shrinkage.As<Napi::Number>().DoubleValue() : -1;
  if (!(options.shrinkage >= 0) || options.shrinkage > 1e15) unexpected("a number of tokens", "shrinkage", shrinkage);
  return options;
}

std::vector<int32_t> to_experts(Napi::Value value) {
  if (!value.IsArray()) unexpected("an array", "experts", value);
  const auto array = value.As<Napi::Array>();
  std::vector<int32_t> experts;
  for (uint32_t i = 0; i < array.Length(); ++i) {
    experts.push_back(static_cast<int32_t>(to_integer(array.Get(i), "experts", 0, kMaxSize)));
  }
  return experts;
}

ExpertMatrix to_matrix(const Args& args) {
  const std::string name = args.string(0, "operator");
  if (name == "gate") return ExpertMatrix::Gate;
  if (name == "up") return ExpertMatrix::Up;
  if (name == "down") return ExpertMatrix::Down;
  fail(ErrorCode::InvalidArgument, "Expected gate, up or down for operator but received \"", name, "\"");
}

CalibratedGroup::Expert to_expert(const Args& args) {
  return {args.tensor(1, "gate"), args.tensor(2, "up"), args.tensor(3, "down")};
}

Napi::Value to_array(Napi::Env env, const std::vector<double>& values) {
  Napi::Float64Array array = Napi::Float64Array::New(env, values.size());
  std::copy(values.begin(), values.end(), array.Data());
  return array;
}

Napi::Value to_object(Napi::Env env, const CalibratedGroup::Loss& loss) {
  Napi::Object object = Napi::Object::New(env);
  object.Set("lost", to_array(env, std::vector<double>(loss.lost.begin(), loss.lost.end())));
  object.Set("original", to_array(env, std::vector<double>(loss.original.begin(), loss.original.end())));
  object.Set("lostOutput", loss.lost_output);
  return object;
}

}  // namespace

Napi::Function CalibratedGroupObject::define(Napi::Env env) {
  return DefineClass(env, "CalibratedGroup",
                     {InstanceMethod<&CalibratedGroupObject::observe>("observe"),
                      InstanceMethod<&CalibratedGroupObject::spectrum>("spectrum"),
                      InstanceMethod<&CalibratedGroupObject::solve>("solve"),
                      InstanceMethod<&CalibratedGroupObject::begin_alternation>("beginAlternation"),
                      InstanceMethod<&CalibratedGroupObject::add_to_alternation>("addToAlternation"),
                      InstanceMethod<&CalibratedGroupObject::end_alternation>("endAlternation"),
                      InstanceMethod<&CalibratedGroupObject::project>("project"),
                      InstanceMethod<&CalibratedGroupObject::dispose>("dispose")});
}

Napi::Object CalibratedGroupObject::make(Napi::Env env, Device& device, Napi::Object options) {
  auto lazy = std::make_shared<Lazy>();
  lazy->options = to_options(options);
  lazy->x = to_tensor(options.Get("x"), "x");
  lazy->routing = {to_tensor(options.Get("ids"), "ids"), to_tensor(options.Get("weights"), "weights")};
  lazy->experts = to_experts(options.Get("experts"));
  lazy->backend = &device.backend();
  Napi::Object object = Module::of(env).calibrated_group_constructor.New({});
  CalibratedGroupObject* self = Unwrap(object);
  self->device_ = &device;
  self->group_ = std::move(lazy);
  return object;
}

CalibratedGroupObject::CalibratedGroupObject(const Napi::CallbackInfo& info) : ObjectWrap(info) {
  info.This().As<Napi::Object>().TypeTag(&kCalibratedGroupTag);
}

std::shared_ptr<CalibratedGroupObject::Lazy> CalibratedGroupObject::alive() const {
  if (!group_) fail(ErrorCode::Disposed, "The factorization was disposed");
  return group_;
}

Napi::Value CalibratedGroupObject::observe(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    const Args args(info);
    const auto run = [lazy = alive(), index = args.integer(0, "index", 0, kMaxSize), expert = to_expert(args)] {
      lazy->group().observe(index, expert);
      return static_cast<double>(lazy->group().tokens(index));
    };
    return Module::of(info.Env()).compute(info.Env(), *device_, run, to_number);
  });
}

Napi::Value CalibratedGroupObject::spectrum(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    const auto run = [lazy = alive(), matrix = to_matrix(Args(info))] { return lazy->group().spectrum(matrix); };
    return Module::of(info.Env()).compute(info.Env(), *device_, run, to_array);
  });
}

Napi::Value CalibratedGroupObject::solve(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    const Args args(info);
    const auto run = [lazy = alive(), matrix = to_matrix(args), b = args.tensor(1, "b")] {
      return lazy->group().solve(matrix, b);
    };
    return Module::of(info.Env()).compute(info.Env(), *device_, run, to_array);
  });
}

Napi::Value CalibratedGroupObject::begin_alternation(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    const auto run = [lazy = alive(), matrix = to_matrix(Args(info))] { lazy->group().begin_alternation(matrix); };
    return Module::of(info.Env()).submit(info.Env(), *device_, run);
  });
}

Napi::Value CalibratedGroupObject::add_to_alternation(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    const Args args(info);
    const auto run = [lazy = alive(), matrix = to_matrix(args), index = args.integer(1, "index", 0, kMaxSize),
                      w = args.tensor(2, "w")] { lazy->group().add_to_alternation(matrix, index, w); };
    return Module::of(info.Env()).submit(info.Env(), *device_, run);
  });
}

Napi::Value CalibratedGroupObject::end_alternation(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    const Args args(info);
    const auto run = [lazy = alive(), matrix = to_matrix(args), b = args.tensor(1, "b")] {
      lazy->group().end_alternation(matrix, b);
    };
    return Module::of(info.Env()).submit(info.Env(), *device_, run);
  });
}

Napi::Value CalibratedGroupObject::project(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    const Args args(info);
    const auto factor = [&](size_t index, const char* name) {
      return info[index].IsUndefined() ? Tensor() : args.tensor(index, name);
    };
    const CalibratedGroup::Factors factors{factor(4, "gate"), factor(5, "up"), factor(6, "down")};
    const auto run = [lazy = alive(), index = args.integer(0, "index", 0, kMaxSize), expert = to_expert(args),
                      factors] { return lazy->group().project(index, expert, factors); };
    return Module::of(info.Env()).compute(info.Env(), *device_, run, to_object);
  });
}

void CalibratedGroupObject::dispose(const Napi::CallbackInfo&) { group_.reset(); }

}  // namespace molae::addon
