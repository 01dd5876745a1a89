#include <memory>

#include "addon/args.h"
#include "addon/basis_object.h"
#include "addon/cancellation_object.h"
#include "addon/device_object.h"
#include "addon/errors.h"
#include "addon/layer_object.h"
#include "addon/module.h"
#include "addon/node_api.h"
#include "addon/tensor_object.h"
#include "cpu/ceilings.h"
#include "cpu/cpu_backend.h"

namespace molae::addon {
namespace {

// (threads, 0 for all) -> Promise<{ fmaGflops, sgemmGflops, readGBps }>. On the CPU device's queue: nothing else
// computes meanwhile.
Napi::Value measure_ceilings(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  return guarded(env, [&]() -> Napi::Value {
    const int threads = resolve_threads(static_cast<int>(Args(info).integer(0, "threads", 0, 1 << 20)));
    Device& device = open_device("cpu", 0, threads);
    auto measured = std::make_shared<cpu::Ceilings>();
    auto work = std::make_shared<Work>();
    work->run = [measured, threads] { *measured = cpu::measure_ceilings(threads); };
    return Module::of(env).submit(env, device, work, [measured](Napi::Env e) -> Napi::Value {
      Napi::Object object = Napi::Object::New(e);
      object.Set("fmaGflops", measured->fma_gflops);
      object.Set("sgemmGflops", measured->sgemm_gflops);
      object.Set("readGBps", measured->read_gbps);
      return object;
    });
  });
}

// The native surface; lib/native.ts is its typed description.
Napi::Object initialize(Napi::Env env, Napi::Object exports) {
  Module::install(env);
  Module& module = Module::of(env);
  module.tensor_constructor = Napi::Persistent(TensorObject::define(env));
  module.device_constructor = Napi::Persistent(DeviceObject::define(env));
  module.layer_constructor = Napi::Persistent(LayerObject::define(env));
  module.basis_constructor = Napi::Persistent(BasisObject::define(env));
  exports.Set("version", Napi::String::New(env, MOLAE_VERSION));
  exports.Set("Cancellation", CancellationObject::define(env));
  exports.Set("openDevice", Napi::Function::New(env, DeviceObject::open, "openDevice"));
  exports.Set("measureCeilings", Napi::Function::New(env, measure_ceilings, "measureCeilings"));
  return exports;
}

}  // namespace
}  // namespace molae::addon

static Napi::Object initialize(Napi::Env env, Napi::Object exports) { return molae::addon::initialize(env, exports); }
NODE_API_MODULE(molae, initialize)
