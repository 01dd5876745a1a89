#include "addon/module.h"

#include <utility>

#include "addon/errors.h"

namespace molae::addon {

bool Completions::begin() {
  std::lock_guard lock(mutex_);
  if (closed_) return false;
  ++running_;
  return true;
}

void Completions::end(uint64_t ticket, bool begun) {
  std::lock_guard lock(mutex_);
  if (begun && --running_ == 0) idle_.notify_all();
  if (closed_) return;
  done_.push_back(ticket);
  napi_call_threadsafe_function(wake_, nullptr, napi_tsfn_nonblocking);
}

void Completions::open(napi_threadsafe_function wake) { wake_ = wake; }

void Completions::expect(size_t tickets) {
  taken_.reserve(tickets);
  std::lock_guard lock(mutex_);
  done_.reserve(tickets);
}

void Completions::close() {
  std::unique_lock lock(mutex_);
  closed_ = true;
  idle_.wait(lock, [&] { return running_ == 0; });
}

const std::vector<uint64_t>& Completions::take() {
  taken_.clear();
  std::lock_guard lock(mutex_);
  done_.swap(taken_);
  return taken_;
}

Module& Module::of(Napi::Env env) { return *env.GetInstanceData<Module>(); }

void Module::install(Napi::Env env) {
  auto* module = new Module;
  env.SetInstanceData<Module>(module);
  napi_value name = Napi::String::New(env, "molae");
  const napi_status status = napi_create_threadsafe_function(env, nullptr, nullptr, name, 0, 1, nullptr, nullptr,
                                                             module, on_wake, &module->wake_);
  if (status != napi_ok) throw Napi::Error::New(env, "Cannot create a thread-safe function");
  napi_unref_threadsafe_function(env, module->wake_);  // only pending work keeps the process alive
  module->completions_->open(module->wake_);
  napi_add_env_cleanup_hook(env, on_cleanup, module);
}

Napi::Promise Module::submit(Napi::Env env, Device& device, std::function<void()> run,
                             std::shared_ptr<Cancellation> cancellation) {
  return queue(env, device, {std::move(run), std::move(cancellation), nullptr},
               [](Napi::Env e) { return e.Undefined(); });
}

Napi::Promise Module::queue(Napi::Env env, Device& device, Work queued, Finish finish) {
  const auto work = std::make_shared<Work>(std::move(queued));
  const uint64_t ticket = next_ticket_++;
  const auto deferred = Napi::Promise::Deferred::New(env);
  try {
    pending_.emplace(ticket, Pending{deferred, work, std::move(finish)});
    completions_->expect(pending_.size());
    device.queue().push(job(device, work, ticket));
  } catch (...) {  // no memory: the call throws, and nobody has the promise
    pending_.erase(ticket);
    deferred.Resolve(env.Undefined());
    throw;
  }
  if (pending_.size() == 1) napi_ref_threadsafe_function(env, wake_);
  return deferred.Promise();
}

std::function<void()> Module::job(Device& device, std::shared_ptr<Work> work, uint64_t ticket) const {
  return [&device, completions = completions_, work = std::move(work), ticket] {
    const bool begun = completions->begin();
    if (begun) {
      try {
        if (work->cancellation) work->cancellation->check();
        device.rethrow_failure();
        work->run();
      } catch (...) {
        work->error = std::current_exception();
      }
    }
    work->run = nullptr;  // what it kept alive may go now
    completions->end(ticket, begun);
  };
}

void Module::on_wake(napi_env env, napi_value, void* context, void*) {
  if (env == nullptr) return;  // the environment is going
  static_cast<Module*>(context)->settle(env);
}

void Module::settle(Napi::Env env) {
  const Napi::HandleScope scope(env);
  // By index: to resolve a promise with an object is to read its `then`, which may be a getter of the user's that
  // queues more work, and then these tickets move.
  const std::vector<uint64_t>& done = completions_->take();
  for (size_t i = 0; i < done.size(); ++i) {
    const auto found = pending_.find(done[i]);
    const Pending pending = std::move(found->second);
    pending_.erase(found);
    if (pending_.empty()) napi_unref_threadsafe_function(env, wake_);
    try {
      settle(env, pending);
    } catch (const Napi::Error&) {
      // The environment is being terminated: nothing can be made in it any more, and nobody is left to tell.
    }
  }
}

void Module::settle(Napi::Env env, const Pending& pending) {
  if (pending.work->error) {
    pending.deferred.Reject(to_js(env, pending.work->error).Value());
    return;
  }
  Napi::Value result;
  try {
    result = guarded(env, [&] { return pending.finish(env); });
  } catch (const Napi::Error& error) {
    pending.deferred.Reject(error.Value());
    return;
  }
  pending.deferred.Resolve(result);
}

void Module::on_cleanup(void* data) {
  auto* module = static_cast<Module*>(data);
  for (auto& [ticket, pending] : module->pending_) {
    if (pending.work->cancellation) pending.work->cancellation->cancel();
  }
  module->completions_->close();
  module->pending_.clear();
}

}  // namespace molae::addon
