#pragma once

#include <tuple>
#include <utility>

#include "addon/args.h"
#include "addon/errors.h"
#include "addon/module.h"
#include "core/device/device.h"

// Operations of a device, each declared as its arguments, its check and what it calls. Checks are thrown by the call
// itself; the operation runs on the device's queue, and the call returns a promise of nothing.
namespace molae::addon {

// What reads one argument of an operation: takes the index of the next argument, and advances it.
inline auto tensor(const char* name) {
  return [name](const Args& args, size_t& next) { return args.tensor(next++, name); };
}

// No tensor where the argument is undefined.
inline auto optional_tensor(const char* name) {
  return [name](const Args& args, size_t& next) { return args.optional_tensor(next++, name); };
}

inline auto number(const char* name) {
  return [name](const Args& args, size_t& next) { return static_cast<float>(args.number(next++, name)); };
}

// The fields of an object, or an array, as what `convert` makes of them.
template <class Convert>
auto object(const char* name, Convert convert) {
  return [name, convert](const Args& args, size_t& next) { return convert(args.fields(next++, name)); };
}

template <class Convert>
auto array(const char* name, Convert convert) {
  return [name, convert](const Args& args, size_t& next) { return convert(args.array(next++, name)); };
}

// Reads the arguments in the order of the readers, throws what `check` finds wrong with them, and queues
// (target.*method)(arguments...).
template <auto method, auto check, class Target, class... Readers>
Napi::Value queue_operation(const Napi::CallbackInfo& info, Device& device, Target& target, const Readers&... readers) {
  const Args args(info);
  size_t next = 0;
  auto values = std::tuple{readers(args, next)...};  // braces: from left to right
  std::apply([&](const auto&... value) { check(value..., &device.backend()); }, values);
  return Module::of(info.Env()).submit(info.Env(), device, [&target, values = std::move(values)] {
    std::apply([&](const auto&... value) { (target.*method)(value...); }, values);
  });
}

}  // namespace molae::addon
