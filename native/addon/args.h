#pragma once

#include <cstdint>
#include <limits>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "addon/node_api.h"
#include "core/cancellation.h"
#include "core/tensor/tensor.h"

namespace molae::addon {

// Sizes, counts and indices of what there are several of: a product of two fits 64 bits.
constexpr int64_t kMaxSize = std::numeric_limits<int32_t>::max();
// Rows and dimensions of tensors: the last of the integers that numbers of JavaScript all hold.
constexpr int64_t kMaxSafeInteger = (int64_t{1} << 53) - 1;

// The fields of an object, checked one by one: "Expected a tensor for sharedExpert.gate but received 3 of type number".
class Fields {
 public:
  // prefix: what messages put before the name of a field, "sharedExpert." or nothing.
  explicit Fields(Napi::Object object, std::string prefix = "") : object_(object), prefix_(std::move(prefix)) {}

  Napi::Value value(const char* name) const { return object_.Get(name); }
  bool is_undefined(const char* name) const { return value(name).IsUndefined(); }
  std::string text(const char* name) const;  // of anything: for a word whose parser says which ones it knows
  bool boolean(const char* name) const;
  double number(const char* name) const;
  int64_t integer(const char* name, int64_t smallest) const;  // kMaxSize at most
  std::string string(const char* name) const;
  Tensor tensor(const char* name) const;
  Tensor optional_tensor(const char* name) const;  // no tensor where the field is undefined
  std::vector<Tensor> tensors(const char* name) const;
  Fields fields(const char* name) const;  // of the object that is the field

 private:
  std::string full(const char* name) const { return prefix_ + name; }

  Napi::Object object_;
  std::string prefix_;
};

// The arguments of a call, checked one by one: "Expected a tensor for a but received 3 of type number".
class Args {
 public:
  explicit Args(const Napi::CallbackInfo& info) : info_(info) {}

  Tensor tensor(size_t index, const char* name) const;
  Tensor optional_tensor(size_t index, const char* name) const;  // no tensor where the argument is undefined
  double number(size_t index, const char* name) const;
  int64_t integer(size_t index, const char* name, int64_t smallest, int64_t largest) const;
  std::string string(size_t index, const char* name) const;
  Shape shape(size_t index, const char* name) const;
  Napi::Array array(size_t index, const char* name) const;
  std::vector<double> doubles(size_t index, const char* name) const;  // of a Float64Array
  Fields fields(size_t index, const char* name) const;
  std::shared_ptr<Cancellation> cancellation(size_t index) const;  // a new one where the argument is absent

 private:
  Napi::Value at(size_t index) const { return info_[index]; }

  const Napi::CallbackInfo& info_;
};

// Reads one value with the checks of Args and Fields.
Tensor to_tensor(Napi::Value value, const std::string& name);
int64_t to_integer(Napi::Value value, const std::string& name, int64_t smallest, int64_t largest);
double to_double(Napi::Value value, const std::string& name);
std::string to_string(Napi::Value value, const std::string& name);
std::vector<int32_t> to_indices(Napi::Value value, const std::string& name);  // of experts
std::vector<Tensor> to_tensors(Napi::Value value, const std::string& name);

// The bytes of a typed array. They belong to JavaScript: copy before returning to it.
struct Bytes {
  uint8_t* data;
  size_t size;
};
Bytes to_bytes(Napi::Value value, const std::string& name);

[[noreturn]] void unexpected(const std::string& wanted, const std::string& name, Napi::Value received);

}  // namespace molae::addon
