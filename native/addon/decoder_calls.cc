#include "addon/decoder_calls.h"

#include <string>
#include <vector>

#include "addon/args.h"
#include "addon/errors.h"
#include "addon/module.h"
#include "core/decoder.h"

namespace molae::addon::decoder {
namespace {

constexpr int64_t kMaxSize = int64_t{1} << 31;

Decoder& decoder_of(Device& device) {
  Decoder* decoder = device.backend().decoder();
  if (!decoder) {
    fail(ErrorCode::DeviceUnavailable, "The ", device.backend().info().kind, " backend cannot run whole models");
  }
  return *decoder;
}

int64_t field(Napi::Object object, const char* name, int64_t smallest) {
  return to_integer(object.Get(name), name, smallest, kMaxSize);
}

float number_field(Napi::Object object, const char* name) {
  const Napi::Value value = object.Get(name);
  if (!value.IsNumber()) unexpected("a number", name, value);
  return value.As<Napi::Number>().FloatValue();
}

RotarySpec to_rotary_spec(Napi::Object object) {
  RotarySpec spec;
  spec.heads = field(object, "heads", 1);
  spec.head_size = field(object, "headSize", 1);
  spec.offset = field(object, "offset", 0);
  spec.pairs = object.Get("neighbours").ToBoolean() ? RotaryPairs::Neighbours : RotaryPairs::Halves;
  spec.magnitude = number_field(object, "magnitude");
  return spec;
}

AttentionSpec to_attention_spec(Napi::Object object) {
  AttentionSpec spec;
  spec.heads = field(object, "heads", 1);
  spec.kv_heads = field(object, "kvHeads", 1);
  spec.head_size = field(object, "headSize", 1);
  spec.value_size = field(object, "valueSize", 1);
  spec.window = field(object, "window", 0);
  spec.scale = number_field(object, "scale");
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

}  // namespace

Napi::Value gather_rows(const Napi::CallbackInfo& info, Device& device) {
  const Args args(info);
  Decoder& decoder = decoder_of(device);
  const Tensor table = args.tensor(0, "table");
  const Tensor ids = args.tensor(1, "ids");
  const Tensor out = args.tensor(2, "out");
  check_gather_rows(table, ids, out, &device.backend());
  return Module::of(info.Env()).submit(info.Env(), device, [&decoder, table, ids, out] {
    decoder.gather_rows(table, ids, out);
  });
}

Napi::Value linear(const Napi::CallbackInfo& info, Device& device) {
  const Args args(info);
  Decoder& decoder = decoder_of(device);
  const Tensor x = args.tensor(0, "x");
  const Tensor weight = args.tensor(1, "weight");
  const Tensor bias = info[2].IsUndefined() ? Tensor() : args.tensor(2, "bias");
  const Tensor out = args.tensor(3, "out");
  check_linear(x, weight, bias, out, &device.backend());
  return Module::of(info.Env()).submit(info.Env(), device, [&decoder, x, weight, bias, out] {
    decoder.linear(x, weight, bias, out);
  });
}

Napi::Value rms_norm(const Napi::CallbackInfo& info, Device& device) {
  const Args args(info);
  Decoder& decoder = decoder_of(device);
  const Tensor x = args.tensor(0, "x");
  const Tensor weight = args.tensor(1, "weight");
  const auto eps = static_cast<float>(args.number(2, "eps"));
  const Tensor out = args.tensor(3, "out");
  check_rms_norm(x, weight, out, &device.backend());
  return Module::of(info.Env()).submit(info.Env(), device, [&decoder, x, weight, eps, out] {
    decoder.rms_norm(x, weight, eps, out);
  });
}

Napi::Value rotary(const Napi::CallbackInfo& info, Device& device) {
  const Args args(info);
  Decoder& decoder = decoder_of(device);
  const Tensor x = args.tensor(0, "x");
  const Tensor positions = args.tensor(1, "positions");
  const Tensor frequencies = args.tensor(2, "frequencies");
  const RotarySpec spec = to_rotary_spec(args.object(3, "spec"));
  check_rotary(x, positions, frequencies, spec, &device.backend());
  return Module::of(info.Env()).submit(info.Env(), device, [&decoder, x, positions, frequencies, spec] {
    decoder.rotary(x, positions, frequencies, spec);
  });
}

Napi::Value attention(const Napi::CallbackInfo& info, Device& device) {
  const Args args(info);
  Decoder& decoder = decoder_of(device);
  const Tensor q = args.tensor(0, "q");
  const Tensor keys = args.tensor(1, "keys");
  const Tensor values = args.tensor(2, "values");
  const std::vector<Sequence> sequences = to_sequences(args.array(3, "sequences"));
  const AttentionSpec spec = to_attention_spec(args.object(4, "spec"));
  const Tensor out = args.tensor(5, "out");
  check_attention(q, keys, values, sequences, spec, out, &device.backend());
  return Module::of(info.Env()).submit(info.Env(), device, [&decoder, q, keys, values, sequences, spec, out] {
    decoder.attention(q, keys, values, sequences, spec, out);
  });
}

Napi::Value copy_head_columns(const Napi::CallbackInfo& info, Device& device) {
  const Args args(info);
  Decoder& decoder = decoder_of(device);
  const Tensor from = args.tensor(0, "from");
  const Tensor to = args.tensor(1, "to");
  const Napi::Object object = args.object(2, "columns");
  const HeadColumns columns{field(object, "heads", 1), field(object, "fromHeads", 1), field(object, "fromOffset", 0),
                            field(object, "toOffset", 0), field(object, "width", 1)};
  check_copy_head_columns(from, to, columns, &device.backend());
  return Module::of(info.Env()).submit(info.Env(), device, [&decoder, from, to, columns] {
    decoder.copy_head_columns(from, to, columns);
  });
}

Napi::Value add(const Napi::CallbackInfo& info, Device& device) {
  const Args args(info);
  Decoder& decoder = decoder_of(device);
  const Tensor from = args.tensor(0, "from");
  const Tensor to = args.tensor(1, "to");
  check_add(from, to, &device.backend());
  return Module::of(info.Env()).submit(info.Env(), device, [&decoder, from, to] { decoder.add(from, to); });
}

Napi::Value cross_entropy(const Napi::CallbackInfo& info, Device& device) {
  const Args args(info);
  Decoder& decoder = decoder_of(device);
  const Tensor logits = args.tensor(0, "logits");
  const Tensor targets = args.tensor(1, "targets");
  const Tensor losses = args.tensor(2, "losses");
  check_cross_entropy(logits, targets, losses, &device.backend());
  return Module::of(info.Env()).submit(info.Env(), device, [&decoder, logits, targets, losses] {
    decoder.cross_entropy(logits, targets, losses);
  });
}

Napi::Value compare_distributions(const Napi::CallbackInfo& info, Device& device) {
  const Args args(info);
  Decoder& decoder = decoder_of(device);
  const Tensor p = args.tensor(0, "p");
  const Tensor q = args.tensor(1, "q");
  const Tensor divergences = args.tensor(2, "divergences");
  const Tensor agreements = args.tensor(3, "agreements");
  check_compare_distributions(p, q, divergences, agreements, &device.backend());
  return Module::of(info.Env()).submit(info.Env(), device, [&decoder, p, q, divergences, agreements] {
    decoder.compare_distributions(p, q, divergences, agreements);
  });
}

}  // namespace molae::addon::decoder
