#include "addon/args.h"
#include "addon/basis_object.h"
#include "addon/calibrated_group_object.h"
#include "addon/cancellation_object.h"
#include "addon/device_object.h"
#include "addon/errors.h"
#include "addon/layer_object.h"
#include "addon/module.h"
#include "addon/node_api.h"
#include "addon/tensor_object.h"
#include "core/device/backend_library.h"
#include "core/tensor/fp8.h"
#include "cpu/system/ceilings.h"
#include "cpu/system/processor.h"

namespace molae::addon {
namespace {

Napi::Value to_object(Napi::Env env, const cpu::Ceilings& measured) {
  Napi::Object object = Napi::Object::New(env);
  object.Set("fmaGflops", measured.fma_gflops);
  object.Set("sgemmGflops", measured.sgemm_gflops);
  object.Set("readGBps", measured.read_gbps);
  return object;
}

// (threads, 0 for all) -> Promise<{ fmaGflops, sgemmGflops, readGBps }>. On the CPU device's queue: nothing else
// computes meanwhile.
Napi::Value measure_ceilings(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  return guarded(env, [&]() -> Napi::Value {
    const int threads = resolve_threads(static_cast<int>(Args(info).integer(0, "threads", 0, 1 << 20)));
    Device& device = open_device("cpu", 0, threads);
    const auto run = [threads] { return cpu::measure_ceilings(threads); };
    return Module::of(env).compute(env, device, run, to_object);
  });
}

// (kind) -> { available, reason, details: [key, value][] }: what a backend in a library of its own finds on this
// machine.
Napi::Value probe(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  return guarded(env, [&]() -> Napi::Value {
    const BackendProbe found = probe_backend(Args(info).string(0, "kind"));
    Napi::Array details = Napi::Array::New(env);
    for (const auto& [key, value] : found.details) {
      Napi::Array detail = Napi::Array::New(env, 2);
      detail.Set(0u, key);
      detail.Set(1u, value);
      details.Set(details.Length(), detail);
    }
    Napi::Object object = Napi::Object::New(env);
    object.Set("available", found.available);
    object.Set("reason", found.reason);
    object.Set("details", details);
    return object;
  });
}

// (bytes, firstRow, rows, cols, scales, blockRows, blockCols): see core/tensor/fp8.h. On the calling thread, for a few
// rows at a time: the bytes belong to JavaScript, which must not get at them meanwhile.
Napi::Value expand_e4m3(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    const Args args(info);
    const Bytes bytes = to_bytes(info[0], "bytes");
    const Bytes scales = to_bytes(info[4], "scales");
    if (reinterpret_cast<uintptr_t>(scales.data) % alignof(float) != 0) unexpected("a Float32Array", "scales", info[4]);
    expand_e4m3_rows({bytes.data, bytes.size}, args.integer(1, "firstRow", 0, kMaxSize),
                     args.integer(2, "rows", 0, kMaxSize), args.integer(3, "cols", 0, kMaxSize),
                     {{reinterpret_cast<const float*>(scales.data), scales.size / sizeof(float)},
                      args.integer(5, "blockRows", 1, kMaxSize),
                      args.integer(6, "blockCols", 1, kMaxSize)});
    return info.Env().Undefined();
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
  module.calibrated_group_constructor = Napi::Persistent(CalibratedGroupObject::define(env));
  exports.Set("version", Napi::String::New(env, MOLAE_VERSION));
  exports.Set("Cancellation", CancellationObject::define(env));
  exports.Set("openDevice", Napi::Function::New(env, DeviceObject::open, "openDevice"));
  exports.Set("probeBackend", Napi::Function::New(env, probe, "probeBackend"));
  exports.Set("expandE4m3", Napi::Function::New(env, expand_e4m3, "expandE4m3"));
  exports.Set("measureCeilings", Napi::Function::New(env, measure_ceilings, "measureCeilings"));
  return exports;
}

}  // namespace
}  // namespace molae::addon

static Napi::Object initialize(Napi::Env env, Napi::Object exports) { return molae::addon::initialize(env, exports); }
NODE_API_MODULE(molae, initialize)
