#include "core/error.h"
#include "native/cuda/host_decoder.h"
#include "native/decoder_cases.h"

// The CUDA backend's decoder on the host.
namespace molae::test {
namespace {

struct HostDecoder {
  explicit HostDecoder(cuda::ThreadOrder order = cuda::ThreadOrder::Forwards)
      : decoder(HostDecoderRuntime(&error, order)) {}

  unsigned long long error = cuda::kNoError;
  cuda::KernelDecoder<HostDecoderRuntime> decoder;
};

// In both orders of threads; that nothing is reported either.
void check(Context& context, void (*cases)(Context&, Decoder&)) {
  for (const auto order : {cuda::ThreadOrder::Forwards, cuda::ThreadOrder::Backwards}) {
    HostDecoder host(order);
    cases(context, host.decoder);
    expect_equal(host.error, cuda::kNoError, "error record");
  }
}

MOLAE_TEST("logic: decoder: gather rows", Logic) { check(context, check_gather_rows); }
MOLAE_TEST("logic: decoder: linear", Logic) { check(context, check_linear); }
MOLAE_TEST("logic: decoder: rms norm", Logic) { check(context, check_rms_norm); }
MOLAE_TEST("logic: decoder: rotary", Logic) { check(context, check_rotary); }
MOLAE_TEST("logic: decoder: attention", Logic) { check(context, check_attention); }
MOLAE_TEST("logic: decoder: copy head columns", Logic) { check(context, check_copy_head_columns); }
MOLAE_TEST("logic: decoder: add", Logic) { check(context, check_add); }
MOLAE_TEST("logic: decoder: cross entropy", Logic) { check(context, check_cross_entropy); }
MOLAE_TEST("logic: decoder: compare distributions", Logic) { check(context, check_compare_distributions); }

MOLAE_TEST("logic: decoder: bad input leaves a record of its row, and finite input none", Logic) {
  HostDecoder host;
  check_bad_input(context, host.decoder, [&](ErrorCode code, int64_t row, const std::function<void()>& call) {
    expect_equal(host.error, cuda::kNoError, "error record before");
    call();
    expect(host.error != cuda::kNoError, "nothing was reported for row ", row);
    const cuda::DecodedError error = cuda::decode_error(host.error);
    expect_equal(error.token, row, "row");
    const bool finite = error.kind != cuda::InputError::RowNotFinite;
    expect_equal(finite, code == ErrorCode::InvalidArgument, "kind");
    host.error = cuda::kNoError;
  });
  expect_equal(host.error, cuda::kNoError, "error record");
}

// What linear() does to x where the weights are bf16.
MOLAE_TEST("logic: decoder: splitting keeps 16 bits, infinity and NaN", Logic) {
  for (int round = 0; round < 20000; ++round) {
    const auto value = std::bit_cast<float>(static_cast<uint32_t>(context.random()));
    cuda::BF16 high, low;
    const cuda::SplitInTwo split{&value, &high, &low, 1};
    cuda::NoShared none;
    split.run(cuda::HostBlock(0, cuda::SplitInTwo::kThreads), none);
    const float sum = cuda::to_float(high) + cuda::to_float(low);
    if (std::isnan(value)) {
      expect(std::isnan(sum), "NaN became ", sum);
    } else if (!std::isfinite(value)) {
      expect_equal(sum, value, "infinity");
    } else if (std::abs(value) < 3e38f) {
      // 2^-133 is the smallest bf16: what is below it is lost.
      expect(std::abs(sum - value) <= 0x1p-17f * std::abs(value) + 0x1p-134f, value, " became ", sum);
    }
  }
}

}  // namespace
}  // namespace molae::test
