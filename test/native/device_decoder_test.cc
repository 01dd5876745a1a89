#include "core/error.h"
#include "native/decoder_cases.h"

// The decoder of the device under test.
namespace molae::test {
namespace {

Decoder& decoder_of(Context& context) {
  Decoder* decoder = context.backend.decoder();
  expect(decoder != nullptr, "the backend has no decoder");
  return *decoder;
}

MOLAE_TEST("decoder: gather rows", Device) { check_gather_rows(context, decoder_of(context)); }
MOLAE_TEST("decoder: linear", Device) { check_linear(context, decoder_of(context)); }
MOLAE_TEST("decoder: rms norm", Device) { check_rms_norm(context, decoder_of(context)); }
MOLAE_TEST("decoder: rotary", Device) { check_rotary(context, decoder_of(context)); }
MOLAE_TEST("decoder: attention", Device) { check_attention(context, decoder_of(context)); }
MOLAE_TEST("decoder: copy head columns", Device) { check_copy_head_columns(context, decoder_of(context)); }
MOLAE_TEST("decoder: add", Device) { check_add(context, decoder_of(context)); }
MOLAE_TEST("decoder: cross entropy", Device) { check_cross_entropy(context, decoder_of(context)); }
MOLAE_TEST("decoder: compare distributions", Device) { check_compare_distributions(context, decoder_of(context)); }

MOLAE_TEST("decoder: bad input is an error that names its row, and the device works on", Device) {
  check_bad_input(context, decoder_of(context), [&](ErrorCode code, int64_t row, const std::function<void()>& call) {
    try {
      call();
      context.backend.synchronize();
    } catch (const Error& error) {
      expect(error.code() == code, "code: ", error.what());
      const std::string text = error.what();
      const bool named = text.find(" " + std::to_string(row) + " ") != std::string::npos;
      expect(named, "the message does not name row ", row, ": ", text);
      context.backend.synchronize();  // reported once
      return;
    }
    failed("nothing was thrown for row ", row);
  });
}

// Their largest element is looked for.
MOLAE_TEST("decoder: rows without logits have no distribution to compare", Device) {
  const Tensor none = poisoned(context, DType::F32, {3, 0});
  const Tensor divergences = poisoned(context, DType::F64, {3}), agreements = poisoned(context, DType::I32, {3});
  expect_error(ErrorCode::ShapeMismatch, "no logits",
               [&] { molae::check_compare_distributions(none, none, divergences, agreements, &context.backend); });
}

}  // namespace
}  // namespace molae::test
