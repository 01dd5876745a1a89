#pragma once

#include "addon/node_api.h"
#include "core/device/device.h"

// The operations of a decoder, as methods of a device: each takes tensors that the caller made, and returns a promise.
namespace molae::addon::decoder {

Napi::Value gather_rows(const Napi::CallbackInfo& info, Device& device);  // (table, ids, out)
Napi::Value linear(const Napi::CallbackInfo& info, Device& device);       // (x, weight, bias | undefined, out)
Napi::Value rms_norm(const Napi::CallbackInfo& info, Device& device);     // (x, weight, eps, out)
Napi::Value rotary(const Napi::CallbackInfo& info, Device& device);       // (x, positions, frequencies, spec)
Napi::Value attention(const Napi::CallbackInfo& info, Device& device);    // (q, keys, values, sequences, spec, out)
Napi::Value copy_head_columns(const Napi::CallbackInfo& info, Device& device);      // (from, to, columns)
Napi::Value add(const Napi::CallbackInfo& info, Device& device);                    // (from, to)
Napi::Value cross_entropy(const Napi::CallbackInfo& info, Device& device);          // (logits, targets, losses)
Napi::Value compare_distributions(const Napi::CallbackInfo& info, Device& device);  // (p, q, divergences, agreements)

}  // namespace molae::addon::decoder
