#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "addon/node_api.h"
#include "core/cancellation.h"
#include "core/tensor/tensor.h"

namespace molae::addon {

// The arguments of a call, checked one by one: "Expected a tensor for a but received 3 of type number".
class Args {
 public:
  explicit Args(const Napi::CallbackInfo& info) : info_(info) {}

  Tensor tensor(size_t index, const char* name) const;
  bool is_undefined(size_t index) const { return at(index).IsUndefined(); }
  bool boolean(size_t index, const char* name) const;
  double number(size_t index, const char* name) const;
  int64_t integer(size_t index, const char* name, int64_t smallest, int64_t largest) const;
  std::string string(size_t index, const char* name) const;
  Shape shape(size_t index, const char* name) const;
  Napi::Array array(size_t index, const char* name) const;
  Napi::Object object(size_t index, const char* name) const;
  std::shared_ptr<Cancellation> cancellation(size_t index) const;  // a new one where the argument is absent

 private:
  Napi::Value at(size_t index) const { return info_[index]; }

  const Napi::CallbackInfo& info_;
};

// Reads one value with the checks of Args.
Tensor to_tensor(Napi::Value value, const std::string& name);
int64_t to_integer(Napi::Value value, const std::string& name, int64_t smallest, int64_t largest);
std::vector<Tensor> to_tensors(Napi::Value value, const std::string& name);

// The bytes of a typed array. They belong to JavaScript: copy before returning to it.
struct Bytes {
  uint8_t* data;
  size_t size;
};
Bytes to_bytes(Napi::Value value, const std::string& name);

[[noreturn]] void unexpected(const std::string& wanted, const std::string& name, Napi::Value received);

}  // namespace molae::addon
