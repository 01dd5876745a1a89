#include "core/device/guarded_backend.h"

#include <cstdio>

#include "core/error.h"
#include "cpu/cpu_backend.h"
#include "native/decoder_cases.h"

// The proxy around a backend in a library of its own, here around a CPU backend: what it passes on and how failures
// come out.
namespace molae::test {
namespace {

bool invoke(void (*body)(void*), void* context, PluginFailure* failure) {
  try {
    body(context);
    return true;
  } catch (const Error& error) {
    failure->code = static_cast<int32_t>(error.code());
    std::snprintf(failure->message, sizeof failure->message, "guarded: %s", error.what());
    return false;
  }
}

const BackendPlugin kPlugin{
    kBackendAbi,
    sizeof(BackendPlugin),
    "",
    nullptr,
    [](int32_t, const Backend*, void (*)(), PluginFailure*) { return make_cpu_backend(2).release(); },
    invoke,
    [](Backend* backend) { delete backend; }};

MOLAE_TEST("logic: a guarded backend's decoder computes what the one inside does", Logic) {
  const auto backend = make_guarded_backend(kPlugin, 0, nullptr);
  Context guarded{*backend, context.random};
  Decoder* decoder = backend->decoder();
  expect(decoder != nullptr, "no decoder");
  for (const auto cases : {check_gather_rows, check_linear, check_rms_norm, check_rotary, check_attention,
                           check_copy_head_columns, check_add, check_cross_entropy, check_compare_distributions}) {
    cases(guarded, *decoder);
  }
}

MOLAE_TEST("logic: failures of a guarded backend's decoder come through its library's handler", Logic) {
  const auto backend = make_guarded_backend(kPlugin, 0, nullptr);
  Context guarded{*backend, context.random};
  check_bad_input(guarded, *backend->decoder(), [](ErrorCode code, int64_t, const std::function<void()>& call) {
    try {
      call();
    } catch (const Error& error) {
      expect(error.code() == code, error.what());
      expect(std::string(error.what()).starts_with("guarded: "), "not handled in the library: ", error.what());
      return;
    }
    failed("nothing was thrown");
  });
}

}  // namespace
}  // namespace molae::test
