#include "addon/calibrated_group_object.h"

#include <algorithm>
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

CalibratedGroup::Options to_options(const Fields& fields) {
  CalibratedGroup::Options options;
  options.hidden_size = fields.integer("hiddenSize", 1);
  options.intermediate_size = fields.integer("intermediateSize", 1);
  options.activation = parse_activation(fields.text("activation"));
  options.shared_gate_up = fields.boolean("sharedGateUp");
  options.refit = fields.boolean("refit");
  options.weigh_rows = fields.boolean("weighRows");
  options.refit_down = fields.boolean("refitDown");
  const Napi::Value shrinkage = fields.value("shrinkage");
  options.shrinkage = shrinkage.IsNumber() ? shrinkage.As<Napi::Number>().DoubleValue() : -1;
  if (!(options.shrinkage >= 0) || options.shrinkage > 1e15) unexpected("a number of tokens", "shrinkage", shrinkage);
  return options;
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

Napi::Object CalibratedGroupObject::make(Napi::Env env, Device& device, const Fields& options) {
  auto lazy = std::make_shared<Lazy>();
  lazy->options = to_options(options);
  lazy->x = options.tensor("x");
  lazy->routing = {options.tensor("ids"), options.tensor("weights")};
  lazy->experts = to_indices(options.value("experts"), "experts");
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
    const CalibratedGroup::Factors factors{args.optional_tensor(4, "gate"), args.optional_tensor(5, "up"),
                                           args.optional_tensor(6, "down")};
    const auto run = [lazy = alive(), index = args.integer(0, "index", 0, kMaxSize), expert = to_expert(args),
                      factors] { return lazy->group().project(index, expert, factors); };
    return Module::of(info.Env()).compute(info.Env(), *device_, run, to_object);
  });
}

void CalibratedGroupObject::dispose(const Napi::CallbackInfo&) { group_.reset(); }

}  // namespace molae::addon
