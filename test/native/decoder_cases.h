#pragma once

#include "core/decoder.h"
#include "native/tensors.h"

// A decoder's operations on random input against plain f64 loops: of a backend's own decoder (device_decoder_test.cc),
// and of the CUDA backend's on the host (cuda/decoder_test.cc). Tensors are the context's device's.
namespace molae::test {

void check_gather_rows(Context& context, Decoder& decoder);
void check_linear(Context& context, Decoder& decoder);
void check_rms_norm(Context& context, Decoder& decoder);
void check_rotary(Context& context, Decoder& decoder);
void check_attention(Context& context, Decoder& decoder);
void check_copy_head_columns(Context& context, Decoder& decoder);
void check_add(Context& context, Decoder& decoder);
void check_cross_entropy(Context& context, Decoder& decoder);
void check_compare_distributions(Context& context, Decoder& decoder);

// What is wrong with its input: `expect_failure` is told what the call must fail with, and with which row.
using ExpectFailure = std::function<void(ErrorCode, int64_t row, const std::function<void()>& call)>;
void check_bad_input(Context& context, Decoder& decoder, const ExpectFailure& expect_failure);

}  // namespace molae::test
