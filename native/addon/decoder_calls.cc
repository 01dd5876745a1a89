#include "addon/decoder_calls.h"

#include <string>
#include <vector>

#include "addon/operation.h"
#include "core/decoder.h"

namespace molae::addon::decoder {
namespace {

Decoder& decoder_of(Device& device) {
  Decoder* decoder = device.backend().decoder();
  if (!decoder) {
    fail(ErrorCode::DeviceUnavailable, "The ", device.backend().info().kind, " backend cannot run whole models");
  }
  return *decoder;
}

RotarySpec to_rotary_spec(const Fields& fields) {
  RotarySpec spec;
  spec.heads = fields.integer("heads", 1);
  spec.head_size = fields.integer("headSize", 1);
  spec.offset = fields.integer("offset", 0);
  spec.pairs = fields.value("neighbours").ToBoolean() ? RotaryPairs::Neighbours : RotaryPairs::Halves;
  spec.magnitude = static_cast<float>(fields.number("magnitude"));
  return spec;
}

AttentionSpec to_attention_spec(const Fields& fields) {
  AttentionSpec spec;
  spec.heads = fields.integer("heads", 1);
  spec.kv_heads = fields.integer("kvHeads", 1);
  spec.head_size = fields.integer("headSize", 1);
  spec.value_size = fields.integer("valueSize", 1);
  spec.window = fields.integer("window", 0);
  spec.scale = static_cast<float>(fields.number("scale"));
  return spec;
}

std::vector<Sequence> to_sequences(Napi::Array array) {
  std::vector<Sequence> sequences;
  for (uint32_t i = 0; i < array.Length(); ++i) {
    const Napi::Value item = array.Get(i);
    const std::string name = "sequences[" + std::to_string(i) + "]";
    if (!item.IsArray()) unexpected("[queryBegin, queryEnd, keyBegin, keyEnd]", name, item);
    const auto fields = item.As<Napi::Array>();
    const auto at = [&](uint32_t j) { return to_integer(fields.Get(j), name, 0, kMaxSize); };
    sequences.push_back({at(0), at(1), at(2), at(3)});
  }
  return sequences;
}

HeadColumns to_head_columns(const Fields& fields) {
  return {fields.integer("heads", 1), fields.integer("fromHeads", 1), fields.integer("fromOffset", 0),
          fields.integer("toOffset", 0), fields.integer("width", 1)};
}

template <auto method, auto check, class... Readers>
Napi::Value queue(const Napi::CallbackInfo& info, Device& device, const Readers&... readers) {
  return queue_operation<method, check>(info, device, decoder_of(device), readers...);
}

}  // namespace

Napi::Value gather_rows(const Napi::CallbackInfo& info, Device& device) {
  return queue<&Decoder::gather_rows, &check_gather_rows>(info, device, tensor("table"), tensor("ids"), tensor("out"));
}

Napi::Value linear(const Napi::CallbackInfo& info, Device& device) {
  return queue<&Decoder::linear, &check_linear>(info, device, tensor("x"), tensor("weight"), optional_tensor("bias"),
                                                tensor("out"));
}

Napi::Value rms_norm(const Napi::CallbackInfo& info, Device& device) {
  return queue<&Decoder::rms_norm, &check_rms_norm>(info, device, tensor("x"), tensor("weight"), number("eps"),
                                                    tensor("out"));
}

Napi::Value rotary(const Napi::CallbackInfo& info, Device& device) {
  return queue<&Decoder::rotary, &check_rotary>(info, device, tensor("x"), tensor("positions"), tensor("frequencies"),
                                                object("spec", to_rotary_spec));
}

Napi::Value attention(const Napi::CallbackInfo& info, Device& device) {
  return queue<&Decoder::attention, &check_attention>(info, device, tensor("q"), tensor("keys"), tensor("values"),
                                                      array("sequences", to_sequences),
                                                      object("spec", to_attention_spec), tensor("out"));
}

Napi::Value copy_head_columns(const Napi::CallbackInfo& info, Device& device) {
  return queue<&Decoder::copy_head_columns, &check_copy_head_columns>(info, device, tensor("from"), tensor("to"),
                                                                      object("columns", to_head_columns));
}

Napi::Value add(const Napi::CallbackInfo& info, Device& device) {
  return queue<&Decoder::add, &check_add>(info, device, tensor("from"), tensor("to"));
}

Napi::Value cross_entropy(const Napi::CallbackInfo& info, Device& device) {
  return queue<&Decoder::cross_entropy, &check_cross_entropy>(info, device, tensor("logits"), tensor("targets"),
                                                              tensor("losses"));
}

Napi::Value compare_distributions(const Napi::CallbackInfo& info, Device& device) {
  return queue<&Decoder::compare_distributions, &check_compare_distributions>(
      info, device, tensor("p"), tensor("q"), tensor("divergences"), tensor("agreements"));
}

}  // namespace molae::addon::decoder
