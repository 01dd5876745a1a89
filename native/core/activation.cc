#include "core/activation.h"

#include "core/error.h"

namespace molae {

Activation parse_activation(std::string_view name) {
  if (name == "silu") return Activation::Silu;
  if (name == "gelu") return Activation::Gelu;
  if (name == "gelu_tanh") return Activation::GeluTanh;
  if (name == "relu2") return Activation::Relu2;
  fail(ErrorCode::InvalidArgument, "Expected silu, gelu, gelu_tanh or relu2 for activation but received \"", name,
       "\"");
}

}  // namespace molae
