#include "addon/basis_object.h"

#include "addon/args.h"
#include "addon/errors.h"
#include "addon/module.h"
#include "addon/type_tags.h"

namespace molae::addon {
namespace {

SharedSide to_side(Napi::Value value) {
  const std::string name = value.IsString() ? value.As<Napi::String>().Utf8Value() : "";
  if (name == "input") return SharedSide::Input;
  if (name == "output") return SharedSide::Output;
  unexpected("input or output", "side", value);
}

SharedBasis::Options to_options(const Fields& fields) {
  SharedBasis::Options options;
  options.side = to_side(fields.value("side"));
  options.shared_size = fields.integer("sharedSize", 1);
  options.solver = parse_solver(fields.text("solver"));
  options.rank_reduction = fields.integer("rankReduction", 0);
  if (!fields.is_undefined("controlSeed")) options.control_seed = fields.integer("controlSeed", 0);
  return options;
}

Napi::Value to_object(Napi::Env env, const BasisReport& report) {
  Napi::Object object = Napi::Object::New(env);
  object.Set("squaredNorm", report.squared_norm);
  object.Set("optimalRelativeError", report.optimal_relative_error);
  object.Set("jointDimension", static_cast<double>(report.joint_dimension));
  object.Set("tolerance", report.tolerance);
  if (report.control_relative_error) object.Set("controlRelativeError", *report.control_relative_error);
  return object;
}

}  // namespace

Napi::Function BasisObject::define(Napi::Env env) {
  return DefineClass(
      env, "SharedBasis",
      {InstanceMethod<&BasisObject::add>("add"), InstanceMethod<&BasisObject::solve>("solve"),
       InstanceMethod<&BasisObject::project>("project"), InstanceMethod<&BasisObject::dispose>("dispose")});
}

Napi::Object BasisObject::make(Napi::Env env, Device& device, const Fields& options) {
  auto basis = std::make_shared<SharedBasis>(device.backend(), to_options(options));
  Napi::Object object = Module::of(env).basis_constructor.New({});
  BasisObject* self = Unwrap(object);
  self->device_ = &device;
  self->basis_ = std::move(basis);
  return object;
}

BasisObject::BasisObject(const Napi::CallbackInfo& info) : ObjectWrap(info) {
  info.This().As<Napi::Object>().TypeTag(&kBasisTag);
}

std::shared_ptr<SharedBasis> BasisObject::alive() const {
  if (!basis_) fail(ErrorCode::Disposed, "The factorization was disposed");
  return basis_;
}

Napi::Value BasisObject::add(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    const auto run = [basis = alive(), w = Args(info).tensor(0, "w")] { basis->add(w); };
    return Module::of(info.Env()).submit(info.Env(), *device_, run);
  });
}

Napi::Value BasisObject::solve(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    const auto run = [basis = alive(), b = Args(info).tensor(0, "b")] { return basis->solve(b); };
    return Module::of(info.Env()).compute(info.Env(), *device_, run, to_object);
  });
}

Napi::Value BasisObject::project(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    const Args args(info);
    const auto run = [basis = alive(), w = args.tensor(0, "w"), a = args.tensor(1, "a")] {
      return basis->project(w, a);
    };
    return Module::of(info.Env()).compute(info.Env(), *device_, run, to_number);
  });
}

void BasisObject::dispose(const Napi::CallbackInfo&) { basis_.reset(); }

}  // namespace molae::addon
