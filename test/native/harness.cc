#include "native/harness.h"

#include "core/error.h"

namespace molae::test {

std::vector<Test>& all_tests() {
  static std::vector<Test> tests;
  return tests;
}

void expect_error(ErrorCode code, const std::string& what, const std::function<void()>& body) {
  try {
    body();
  } catch (const Error& error) {
    expect(error.code() == code, what, ": expected ", code_name(code), " but got ", code_name(error.code()), ": ",
           error.what());
    return;
  }
  failed(what, ": expected ", code_name(code), " but nothing was thrown");
}

}  // namespace molae::test
