#pragma once

#include <cmath>
#include <cstdint>
#include <functional>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "core/backend.h"

// A test runner of a few lines, so that the executable needs nothing but itself on a bare machine.
namespace molae::test {

struct Failure {
  std::string message;
};

// Thrown by a test that the device under test has no use for.
struct Skipped {
  std::string reason;
};

// What a test gets: random numbers that are new for every test and seed, and the device under test.
struct Context {
  Backend& backend;
  std::mt19937_64 random;

  int64_t integer(int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(random); }
  double normal() { return std::normal_distribution<double>()(random); }
  bool chance(double p) { return std::bernoulli_distribution(p)(random); }
};

// Logic tests run the kernels' bodies on the host, device tests the operations of a backend.
enum class Kind { Logic, Device };

struct Test {
  std::string name;
  Kind kind;
  std::function<void(Context&)> run;
};

std::vector<Test>& all_tests();

struct Registration {
  Registration(const char* name, Kind kind, std::function<void(Context&)> run) {
    all_tests().push_back({name, kind, std::move(run)});
  }
};

#define MOLAE_TEST_NAME2(a, b) a##b
#define MOLAE_TEST_NAME(a, b) MOLAE_TEST_NAME2(a, b)
#define MOLAE_TEST(name, kind)                                                                                         \
  static void MOLAE_TEST_NAME(test_, __LINE__)(::molae::test::Context & context);                                      \
  static const ::molae::test::Registration MOLAE_TEST_NAME(registration_, __LINE__)(name, ::molae::test::Kind::kind,   \
                                                                                    MOLAE_TEST_NAME(test_, __LINE__)); \
  static void MOLAE_TEST_NAME(test_, __LINE__)([[maybe_unused]] ::molae::test::Context & context)

template <class... Parts>
[[noreturn]] void failed(const Parts&... parts) {
  std::ostringstream message;
  (message << ... << parts);
  throw Failure{message.str()};
}

template <class... Parts>
void expect(bool condition, const Parts&... parts) {
  if (!condition) failed(parts...);
}

template <class A, class B, class... Parts>
void expect_equal(const A& actual, const B& wanted, const Parts&... parts) {
  if (!(actual == wanted)) failed(parts..., ": got ", actual, ", wanted ", wanted);
}

// That body() throws an Error of this code.
void expect_error(ErrorCode code, const std::string& what, const std::function<void()>& body);

}  // namespace molae::test
