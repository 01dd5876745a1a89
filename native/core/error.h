#pragma once

#include <exception>
#include <sstream>
#include <string>
#include <string_view>
#include <utility>

namespace molae {

// The codes of MolaeError in lib/errors.ts that native code can raise.
enum class ErrorCode {
  InvalidArgument,
  ShapeMismatch,
  DTypeMismatch,
  DeviceMismatch,
  Disposed,
  NonFinite,
  OutOfMemory,
  NoConvergence,
  DeviceUnavailable,
  Aborted,
  Internal,
};

const char* code_name(ErrorCode code);

// The one exception of the native side. The addon turns it into a JavaScript error with the same code.
class Error : public std::exception {
 public:
  Error(ErrorCode code, std::string message) : code_(code), message_(std::move(message)) {}
  ErrorCode code() const { return code_; }
  const char* what() const noexcept override { return message_.c_str(); }

 private:
  ErrorCode code_;
  std::string message_;
};

// A name from outside, for a message: not more of it than fits.
inline std::string quoted(std::string_view name) {
  return '"' + std::string(name.substr(0, 80)) + (name.size() > 80 ? "...\"" : "\"");
}

// Throws an Error whose message is all the parts written one after the other.
template <class... Parts>
[[noreturn]] void fail(ErrorCode code, const Parts&... parts) {
  std::ostringstream message;
  (message << ... << parts);
  throw Error(code, message.str());
}

}  // namespace molae
