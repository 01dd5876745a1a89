#include "addon/device_object.h"

#include <memory>
#include <vector>

#include "addon/args.h"
#include "addon/basis_object.h"
#include "addon/calibrated_group_object.h"
#include "addon/decoder_calls.h"
#include "addon/errors.h"
#include "addon/layer_object.h"
#include "addon/module.h"
#include "addon/operation.h"
#include "addon/tensor_object.h"
#include "addon/type_tags.h"
#include "core/checks.h"
#include "core/error.h"

namespace molae::addon {
namespace {

Napi::Value to_js(Napi::Env env, const DeviceInfo& info) {
  Napi::Object object = Napi::Object::New(env);
  object.Set("kind", info.kind);
  object.Set("index", info.index);
  object.Set("name", info.name);
  object.Set("library", info.library);
  Napi::Array features = Napi::Array::New(env);
  for (const std::string& feature : info.features) features.Set(features.Length(), feature);
  object.Set("features", features);
  object.Set("threads", info.threads);
  object.Set("memoryBytes", static_cast<double>(info.memory_bytes));
  return object;
}

// (a, b, out, transposeA, transposeB, alpha, beta)
Gemm to_gemm(const Napi::CallbackInfo& info) {
  const Args args(info);
  Gemm problem;
  problem.a = args.tensor(0, "a");
  problem.b = args.tensor(1, "b");
  problem.c = args.tensor(2, "out");
  problem.transpose_a = info[3].ToBoolean();
  problem.transpose_b = info[4].ToBoolean();
  problem.alpha = args.number(5, "alpha");
  problem.beta = args.number(6, "beta");
  return problem;
}

// The product of each slice of three stacks.
std::vector<Gemm> slices_of(const Gemm& stack) {
  std::vector<Gemm> problems;
  problems.reserve(static_cast<size_t>(stack.c.dim(0)));
  for (int64_t i = 0; i < stack.c.dim(0); ++i) {
    problems.push_back({stack.a.slice(i), stack.b.slice(i), stack.c.slice(i), stack.transpose_a, stack.transpose_b,
                        stack.alpha, stack.beta});
  }
  return problems;
}

// a, b and out of each product, and as numbers its transposeA, transposeB, alpha and beta.
std::vector<Gemm> to_gemms(const Napi::Array& tensors, const std::vector<double>& settings, const Backend* owner) {
  const size_t count = settings.size() / 4;
  std::vector<Gemm> problems;
  problems.reserve(count);
  for (size_t i = 0; i < count; ++i) {
    const Napi::HandleScope scope(tensors.Env());
    const auto operand = [&, item = static_cast<uint32_t>(3 * i)](uint32_t offset, const char* name) {
      return to_tensor(tensors.Get(item + offset), name);
    };
    const double* setting = settings.data() + 4 * i;
    Gemm& problem = problems.emplace_back();
    problem.a = operand(0, "a");
    problem.b = operand(1, "b");
    problem.c = operand(2, "out");
    problem.transpose_a = setting[0] != 0;
    problem.transpose_b = setting[1] != 0;
    problem.alpha = setting[2];
    problem.beta = setting[3];
    try {
      check_gemm(problem, owner);
    } catch (const Error& error) {
      fail(error.code(), "problems[", i, "]: ", error.what());
    }
  }
  return problems;
}

RouterSpec to_router_spec(const Fields& fields) {
  RouterSpec spec;
  spec.scoring = parse_scoring(fields.string("scoring"));
  spec.top_k = fields.integer("topK", 1);
  spec.renormalize = fields.value("renormalize").ToBoolean();
  spec.scaling = static_cast<float>(fields.number("scalingFactor"));
  spec.num_groups = fields.integer("numGroups", 0);
  spec.chosen_groups = fields.integer("chosenGroups", 0);
  spec.group_score = parse_group_score(fields.string("groupScore"));
  spec.jitter = static_cast<float>(fields.number("jitter"));
  spec.correction_bias = fields.optional_tensor("correctionBias");
  return spec;
}

Routing to_routing(const Args& args, size_t& next) {
  Routing routing;
  routing.ids = args.tensor(next++, "ids");
  routing.weights = args.tensor(next++, "weights");
  return routing;
}

}  // namespace

Napi::Function DeviceObject::define(Napi::Env env) {
  return DefineClass(env, "Device",
                     {InstanceMethod<&DeviceObject::info>("info"),
                      InstanceMethod<&DeviceObject::memory_usage>("memoryUsage"),
                      InstanceMethod<&DeviceObject::empty>("empty"),
                      InstanceMethod<&DeviceObject::from_data>("fromData"),
                      InstanceMethod<&DeviceObject::copy>("copy"),
                      InstanceMethod<&DeviceObject::transpose>("transpose"),
                      InstanceMethod<&DeviceObject::gemm>("gemm"),
                      InstanceMethod<&DeviceObject::batched_gemm>("batchedGemm"),
                      InstanceMethod<&DeviceObject::grouped_gemm>("groupedGemm"),
                      InstanceMethod<&DeviceObject::svd>("svd"),
                      InstanceMethod<&DeviceObject::eigh>("eigh"),
                      InstanceMethod<&DeviceObject::route>("route"),
                      InstanceMethod<&DeviceObject::timestamp>("timestamp"),
                      InstanceMethod<&DeviceObject::synchronize>("synchronize"),
                      InstanceMethod<&DeviceObject::prepare_layer>("prepareLayer"),
                      InstanceMethod<&DeviceObject::shared_basis>("sharedBasis"),
                      InstanceMethod<&DeviceObject::calibrated_group>("calibratedGroup"),
                      InstanceMethod<&DeviceObject::decode<decoder::gather_rows>>("gatherRows"),
                      InstanceMethod<&DeviceObject::decode<decoder::linear>>("linear"),
                      InstanceMethod<&DeviceObject::decode<decoder::rms_norm>>("rmsNorm"),
                      InstanceMethod<&DeviceObject::decode<decoder::rotary>>("rotary"),
                      InstanceMethod<&DeviceObject::decode<decoder::attention>>("attention"),
                      InstanceMethod<&DeviceObject::decode<decoder::copy_head_columns>>("copyHeadColumns"),
                      InstanceMethod<&DeviceObject::decode<decoder::add>>("add"),
                      InstanceMethod<&DeviceObject::decode<decoder::cross_entropy>>("crossEntropy"),
                      InstanceMethod<&DeviceObject::decode<decoder::compare_distributions>>("compareDistributions"),
                      InstanceMethod<&DeviceObject::dispose>("dispose")});
}

Napi::Value DeviceObject::open(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    const Args args(info);
    Device& device = open_device(args.string(0, "kind"), static_cast<int>(args.integer(1, "index", 0, 1 << 20)),
                                 static_cast<int>(args.integer(2, "threads", 0, 1 << 20)));
    Napi::Object object = Module::of(info.Env()).device_constructor.New({});
    Unwrap(object)->device_ = &device;
    device.retain();
    return object;
  });
}

DeviceObject::DeviceObject(const Napi::CallbackInfo& info) : ObjectWrap(info) {
  info.This().As<Napi::Object>().TypeTag(&kDeviceTag);
}

void DeviceObject::Finalize(Napi::BasicEnv) {
  if (device_) device_->release();
}

Device& DeviceObject::alive() const {
  if (!device_) fail(ErrorCode::Disposed, "The device was disposed");
  return *device_;
}

template <auto method, auto check, class... Readers>
Napi::Value DeviceObject::queue(const Napi::CallbackInfo& info, const Readers&... readers) {
  return guarded(info.Env(), [&] {
    Device& device = alive();
    return queue_operation<method, check>(info, device, device.backend(), readers...);
  });
}

Napi::Value DeviceObject::info(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] { return to_js(info.Env(), alive().backend().info()); });
}

Napi::Value DeviceObject::memory_usage(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    const MemoryUsage usage = alive().backend().memory_usage();
    Napi::Object object = Napi::Object::New(info.Env());
    object.Set("tensors", static_cast<double>(usage.tensors));
    object.Set("workspaces", static_cast<double>(usage.workspaces));
    object.Set("peak", static_cast<double>(usage.peak));
    return object;
  });
}

Napi::Value DeviceObject::empty(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    const Args args(info);
    const DType dtype = parse_dtype(args.string(0, "dtype"));
    return TensorObject::make(info.Env(), alive(), molae::empty(alive().backend(), dtype, args.shape(1, "shape")));
  });
}

// The tensor owns a copy when this returns; on a device with its own memory the upload is queued before anything that
// could read it.
Napi::Value DeviceObject::from_data(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    const Args args(info);
    Device& device = alive();
    const DType dtype = parse_dtype(args.string(0, "dtype"));
    const Shape shape = args.shape(1, "shape");
    const Bytes bytes = to_bytes(info[2], "data");
    const size_t wanted = byte_count(dtype, shape);
    if (bytes.size != wanted) {
      fail(ErrorCode::ShapeMismatch, "A ", dtype_name(dtype), " tensor of shape ", shape_name(shape), " needs ", wanted,
           " bytes but data has ", bytes.size);
    }
    const Tensor tensor = molae::empty(device.backend(), dtype, shape);
    if (device.backend().host_memory()) {
      device.backend().upload(bytes.data, tensor);
    } else {
      auto staging = std::make_shared<std::vector<uint8_t>>(bytes.data, bytes.data + bytes.size);
      device.run_unawaited([&device, tensor, staging] { device.backend().upload(staging->data(), tensor); });
    }
    return TensorObject::make(info.Env(), device, tensor);
  });
}

Napi::Value DeviceObject::copy(const Napi::CallbackInfo& info) {
  return queue<&Backend::copy, &check_copy>(info, tensor("from"), tensor("to"));
}

Napi::Value DeviceObject::transpose(const Napi::CallbackInfo& info) {
  return queue<&Backend::transpose, &check_transpose>(info, tensor("from"), tensor("to"));
}

Napi::Value DeviceObject::gemm(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    const Gemm problem = to_gemm(info);
    check_gemm(problem, &alive().backend());
    return submit_products(info.Env(), {problem});
  });
}

Napi::Value DeviceObject::batched_gemm(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    const Gemm stack = to_gemm(info);
    check_batched_gemm(stack, &alive().backend());
    return submit_products(info.Env(), slices_of(stack));
  });
}

Napi::Value DeviceObject::grouped_gemm(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    const Args args(info);
    return submit_products(info.Env(),
                           to_gemms(args.array(0, "tensors"), args.doubles(1, "settings"), &alive().backend()));
  });
}

Napi::Value DeviceObject::submit_products(Napi::Env env, std::vector<Gemm> problems) {
  Device& device = alive();
  return Module::of(env).submit(env, device,
                                [&device, problems = std::move(problems)] { device.backend().gemm(problems); });
}

Napi::Value DeviceObject::svd(const Napi::CallbackInfo& info) {
  return queue<&Backend::svd, &check_svd>(info, tensor("a"), tensor("u"), tensor("s"), tensor("vt"));
}

Napi::Value DeviceObject::eigh(const Napi::CallbackInfo& info) {
  return queue<&Backend::eigh, &check_eigh>(info, tensor("a"), tensor("values"), tensor("vectors"));
}

Napi::Value DeviceObject::route(const Napi::CallbackInfo& info) {
  return queue<&Backend::route, &check_route>(info, tensor("logits"), object("spec", to_router_spec), to_routing);
}

Napi::Value DeviceObject::timestamp(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    Device& device = alive();
    const auto run = [&device] { return device.backend().timestamp(); };
    return Module::of(info.Env()).compute(info.Env(), device, run, to_number);
  });
}

Napi::Value DeviceObject::synchronize(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    Device& device = alive();
    const auto run = [&device] { device.backend().synchronize(); };
    return Module::of(info.Env()).submit(info.Env(), device, run);
  });
}

Napi::Value DeviceObject::prepare_layer(const Napi::CallbackInfo& info) {
  return guarded(info.Env(),
                 [&] { return LayerObject::make(info.Env(), alive(), Args(info).fields(0, "description")); });
}

Napi::Value DeviceObject::shared_basis(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] { return BasisObject::make(info.Env(), alive(), Args(info).fields(0, "options")); });
}

Napi::Value DeviceObject::calibrated_group(const Napi::CallbackInfo& info) {
  return guarded(info.Env(),
                 [&] { return CalibratedGroupObject::make(info.Env(), alive(), Args(info).fields(0, "options")); });
}

template <Napi::Value (*call)(const Napi::CallbackInfo&, Device&)>
Napi::Value DeviceObject::decode(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] { return call(info, alive()); });
}

void DeviceObject::dispose(const Napi::CallbackInfo&) {
  if (device_) device_->release();
  device_ = nullptr;
}

}  // namespace molae::addon
