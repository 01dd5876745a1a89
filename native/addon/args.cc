#include "addon/args.h"

#include <cmath>

#include "addon/cancellation_object.h"
#include "addon/tensor_object.h"
#include "core/error.h"

namespace molae::addon {
namespace {

constexpr size_t kMostShown = 80;  // of a value, in a message

std::string type_name(Napi::Value value) {
  switch (value.Type()) {
    case napi_undefined:
      return "undefined";
    case napi_null:
      return "null";
    case napi_boolean:
      return "boolean";
    case napi_number:
      return "number";
    case napi_string:
      return "string";
    case napi_symbol:
      return "symbol";
    case napi_function:
      return "function";
    case napi_bigint:
      return "bigint";
    default:
      return value.IsArray() ? "array" : "object";
  }
}

}  // namespace

void unexpected(const std::string& wanted, const std::string& name, Napi::Value received) {
  const bool scalar = received.IsNumber() || received.IsString() || received.IsBoolean();
  std::string shown = scalar ? received.ToString().Utf8Value() : "";
  if (shown.size() > kMostShown) shown = shown.substr(0, kMostShown) + "...";
  if (scalar) shown += " of type ";
  fail(ErrorCode::InvalidArgument, "Expected ", wanted, " for ", name, " but received ", shown, type_name(received));
}

Tensor to_tensor(Napi::Value value, const std::string& name) {
  const TensorObject* object = TensorObject::from(value);
  if (!object) unexpected("a tensor", name, value);
  if (!object->tensor()) fail(ErrorCode::Disposed, "The tensor ", name, " was disposed");
  return object->tensor();
}

int64_t to_integer(Napi::Value value, const std::string& name, int64_t smallest, int64_t largest) {
  const double number = value.IsNumber() ? value.As<Napi::Number>().DoubleValue() : std::nan("");
  if (!(number >= static_cast<double>(smallest) && number <= static_cast<double>(largest)) ||
      number != std::floor(number)) {
    unexpected("an integer from " + std::to_string(smallest) + " to " + std::to_string(largest), name, value);
  }
  return static_cast<int64_t>(number);
}

double to_double(Napi::Value value, const std::string& name) {
  if (!value.IsNumber()) unexpected("a number", name, value);
  return value.As<Napi::Number>().DoubleValue();
}

std::string to_string(Napi::Value value, const std::string& name) {
  if (!value.IsString()) unexpected("a string", name, value);
  return value.As<Napi::String>();
}

std::vector<int32_t> to_indices(Napi::Value value, const std::string& name) {
  if (!value.IsArray()) unexpected("an array of expert indices", name, value);
  const auto array = value.As<Napi::Array>();
  std::vector<int32_t> indices;
  for (uint32_t i = 0; i < array.Length(); ++i) {
    indices.push_back(static_cast<int32_t>(to_integer(array.Get(i), name, 0, kMaxSize)));
  }
  return indices;
}

std::vector<Tensor> to_tensors(Napi::Value value, const std::string& name) {
  if (!value.IsArray()) unexpected("an array of tensors", name, value);
  const auto array = value.As<Napi::Array>();
  std::vector<Tensor> tensors;
  for (uint32_t i = 0; i < array.Length(); ++i) {
    tensors.push_back(to_tensor(array.Get(i), name + "[" + std::to_string(i) + "]"));
  }
  return tensors;
}

Bytes to_bytes(Napi::Value value, const std::string& name) {
  if (value.IsTypedArray()) {
    const auto array = value.As<Napi::TypedArray>();
    void* data = nullptr;
    napi_value buffer;
    size_t offset = 0;
    napi_typedarray_type type;
    size_t length = 0;
    if (napi_get_typedarray_info(value.Env(), value, &type, &length, &data, &buffer, &offset) != napi_ok) {
      unexpected("a typed array", name, value);
    }
    return {static_cast<uint8_t*>(data), array.ByteLength()};
  }
  unexpected("a typed array", name, value);
}

std::string Fields::text(const char* name) const { return value(name).ToString().Utf8Value(); }

bool Fields::boolean(const char* name) const {
  const Napi::Value field = value(name);
  if (!field.IsBoolean()) unexpected("a boolean", full(name), field);
  return field.As<Napi::Boolean>();
}

double Fields::number(const char* name) const { return to_double(value(name), full(name)); }

int64_t Fields::integer(const char* name, int64_t smallest) const {
  return to_integer(value(name), full(name), smallest, kMaxSize);
}

std::string Fields::string(const char* name) const { return to_string(value(name), full(name)); }

Tensor Fields::tensor(const char* name) const { return to_tensor(value(name), full(name)); }

Tensor Fields::optional_tensor(const char* name) const { return is_undefined(name) ? Tensor() : tensor(name); }

std::vector<Tensor> Fields::tensors(const char* name) const { return to_tensors(value(name), full(name)); }

Fields Fields::fields(const char* name) const {
  const Napi::Value field = value(name);
  if (!field.IsObject()) unexpected("an object", full(name), field);
  return Fields(field.As<Napi::Object>(), full(name) + ".");
}

Tensor Args::tensor(size_t index, const char* name) const { return to_tensor(at(index), name); }

Tensor Args::optional_tensor(size_t index, const char* name) const {
  return at(index).IsUndefined() ? Tensor() : tensor(index, name);
}

double Args::number(size_t index, const char* name) const { return to_double(at(index), name); }

int64_t Args::integer(size_t index, const char* name, int64_t smallest, int64_t largest) const {
  return to_integer(at(index), name, smallest, largest);
}

std::string Args::string(size_t index, const char* name) const { return to_string(at(index), name); }

Shape Args::shape(size_t index, const char* name) const {
  const Napi::Array sizes = array(index, name);
  if (sizes.Length() > 8) fail(ErrorCode::InvalidArgument, "Expected at most 8 dimensions for ", name);
  Shape shape;
  for (uint32_t i = 0; i < sizes.Length(); ++i) {
    shape.push_back(to_integer(sizes.Get(i), std::string(name) + "[" + std::to_string(i) + "]", 0, kMaxSafeInteger));
  }
  return shape;
}

Napi::Array Args::array(size_t index, const char* name) const {
  if (!at(index).IsArray()) unexpected("an array", name, at(index));
  return at(index).As<Napi::Array>();
}

std::vector<double> Args::doubles(size_t index, const char* name) const {
  const Napi::Value value = at(index);
  if (!value.IsTypedArray() || value.As<Napi::TypedArray>().TypedArrayType() != napi_float64_array) {
    unexpected("a Float64Array", name, value);
  }
  const auto array = value.As<Napi::Float64Array>();
  return {array.Data(), array.Data() + array.ElementLength()};
}

Fields Args::fields(size_t index, const char* name) const {
  if (!at(index).IsObject()) unexpected("an object", name, at(index));
  return Fields(at(index).As<Napi::Object>());
}

std::shared_ptr<Cancellation> Args::cancellation(size_t index) const {
  if (at(index).IsUndefined() || at(index).IsNull()) return std::make_shared<Cancellation>();
  const CancellationObject* object = CancellationObject::from(at(index));
  if (!object) unexpected("a Cancellation", "cancellation", at(index));
  return object->cancellation();
}

}  // namespace molae::addon
