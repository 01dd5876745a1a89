#include "addon/errors.h"

#include <system_error>

namespace molae::addon {
namespace {

Napi::Error make(Napi::Env env, ErrorCode code, const char* message) {
  Napi::Error error = Napi::Error::New(env, message);
  error.Set("code", Napi::String::New(env, code_name(code)));
  return error;
}

}  // namespace

Napi::Error to_js(Napi::Env env, std::exception_ptr error) {
  try {
    std::rethrow_exception(error);
  } catch (const Error& e) {
    return make(env, e.code(), e.what());
  } catch (const std::bad_alloc&) {
    return make(env, ErrorCode::OutOfMemory, "Out of memory");
  } catch (const std::system_error& e) {  // no more threads
    const bool exhausted = e.code() == std::errc::resource_unavailable_try_again;
    return make(env, exhausted ? ErrorCode::OutOfMemory : ErrorCode::Internal, e.what());
  } catch (const std::exception& e) {
    return make(env, ErrorCode::Internal, e.what());
  } catch (...) {
    return make(env, ErrorCode::Internal, "Unknown native error");
  }
}

}  // namespace molae::addon
