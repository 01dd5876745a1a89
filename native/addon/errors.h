#pragma once

#include <exception>
#include <new>
#include <utility>

#include "addon/node_api.h"
#include "core/error.h"

namespace molae::addon {

// A JavaScript Error with the code and message of whatever was thrown.
Napi::Error to_js(Napi::Env env, std::exception_ptr error);

// Runs `body`, and throws what it throws as a JavaScript error.
template <class Body>
auto guarded(Napi::Env env, Body&& body) {
  try {
    return std::forward<Body>(body)();
  } catch (const Napi::Error&) {
    throw;
  } catch (...) {
    throw to_js(env, std::current_exception());
  }
}

}  // namespace molae::addon
