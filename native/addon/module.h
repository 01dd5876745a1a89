#pragma once

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <type_traits>
#include <unordered_map>
#include <utility>
#include <vector>

#include "addon/node_api.h"
#include "core/cancellation.h"
#include "core/device/device.h"

namespace molae::addon {

// Native work of one asynchronous call. Made on the JavaScript thread, run on a device's queue.
struct Work {
  std::function<void()> run;  // what it returns it leaves where `finish` finds it
  std::shared_ptr<Cancellation> cancellation;
  std::exception_ptr error;
};

// What queue threads know of an environment: where to say that work is done. Outlives the environment.
class Completions {
 public:
  // False where the environment is going: the work is not to start.
  bool begin();
  // Says that the work with this ticket is done, or was skipped.
  void end(uint64_t ticket, bool begun);

  void open(napi_threadsafe_function wake);
  // Room for so many tickets: end(), which has nobody to complain to, allocates nothing.
  void expect(size_t tickets);
  // After this nothing reaches the environment any more; waits for the work that is running.
  void close();
  const std::vector<uint64_t>& take();  // valid until the next call

 private:
  std::mutex mutex_;
  std::condition_variable idle_;
  napi_threadsafe_function wake_ = nullptr;
  bool closed_ = false;
  int running_ = 0;
  std::vector<uint64_t> done_;
  std::vector<uint64_t> taken_;  // of the JavaScript thread
};

// What makes a number of JavaScript of a result.
inline Napi::Value to_number(Napi::Env env, double value) { return Napi::Number::New(env, value); }

// All state of one environment (the main thread, or a worker_thread). Destruction, in order: the cleanup hook closes
// the completions, cancels what waits and waits for what runs; then Node deletes the wrapped objects; then this.
class Module {
 public:
  static Module& of(Napi::Env env);
  static void install(Napi::Env env);

  // Queues work whose results go to its arguments: a promise of nothing, or of its error.
  Napi::Promise submit(Napi::Env env, Device& device, std::function<void()> run,
                       std::shared_ptr<Cancellation> cancellation = nullptr);
  // Queues work with a result: the promise gets what `to_js(env, result)` makes of it on the JavaScript thread, or the
  // error of either.
  template <class Compute, class ToJs>
  Napi::Promise compute(Napi::Env env, Device& device, Compute compute, ToJs to_js,
                        std::shared_ptr<Cancellation> cancellation = nullptr) {
    auto result = std::make_shared<std::optional<std::invoke_result_t<const Compute&>>>();
    return queue(
        env, device,
        {[result, compute = std::move(compute)] { result->emplace(compute()); }, std::move(cancellation), nullptr},
        [result, to_js = std::move(to_js)](Napi::Env e) -> Napi::Value { return to_js(e, **result); });
  }

  Napi::FunctionReference tensor_constructor;
  Napi::FunctionReference device_constructor;
  Napi::FunctionReference layer_constructor;
  Napi::FunctionReference basis_constructor;
  Napi::FunctionReference calibrated_group_constructor;

 private:
  using Finish = std::function<Napi::Value(Napi::Env)>;

  struct Pending {
    Napi::Promise::Deferred deferred;
    std::shared_ptr<Work> work;
    Finish finish;
  };

  // The promise gets what `finish` returns, or the error of either.
  Napi::Promise queue(Napi::Env env, Device& device, Work work, Finish finish);
  std::function<void()> job(Device& device, std::shared_ptr<Work> work, uint64_t ticket) const;
  static void on_wake(napi_env env, napi_value callback, void* context, void* data);
  static void on_cleanup(void* module);
  void settle(Napi::Env env);
  static void settle(Napi::Env env, const Pending& pending);

  std::shared_ptr<Completions> completions_ = std::make_shared<Completions>();
  napi_threadsafe_function wake_ = nullptr;
  uint64_t next_ticket_ = 0;
  std::unordered_map<uint64_t, Pending> pending_;
};

}  // namespace molae::addon
