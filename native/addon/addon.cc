#include "addon/basis_object.h"
#include "addon/cancellation_object.h"
#include "addon/device_object.h"
#include "addon/layer_object.h"
#include "addon/module.h"
#include "addon/node_api.h"
#include "addon/tensor_object.h"

namespace molae::addon {
namespace {

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
  return exports;
}

}  // namespace
}  // namespace molae::addon

static Napi::Object initialize(Napi::Env env, Napi::Object exports) {
  return molae::addon::initialize(env, exports);
}
NODE_API_MODULE(molae, initialize)
