#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "core/device/device.h"
#include "core/error.h"
#include "native/harness.h"

// The native tests: molae_native_tests [--device cpu|cuda] [--filter text] [--exclude text]... [--seed number] [--list]
// Exit 0: all passed (or there is no GPU and none is required), 1: some failed, 2: wrong usage.
namespace {

using namespace molae;
using namespace molae::test;

struct Options {
  std::string device = "cpu";
  std::string filter;
  std::vector<std::string> excluded;
  uint64_t seed = 0;
  bool list = false;
};

bool parse(int count, char** words, Options& options) {
  for (int i = 1; i < count; ++i) {
    const std::string word = words[i];
    const char* value = i + 1 < count ? words[i + 1] : nullptr;
    if (word == "--list") {
      options.list = true;
      continue;
    }
    if (!value) return false;
    ++i;
    if (word == "--device") {
      options.device = value;
    } else if (word == "--filter") {
      options.filter = value;
    } else if (word == "--exclude") {
      options.excluded.push_back(value);
    } else if (word == "--seed") {
      options.seed = std::strtoull(value, nullptr, 10);
    } else {
      return false;
    }
  }
  return true;
}

Device* open(const std::string& kind) {
  try {
    return &open_device(kind, 0, 0);
  } catch (const Error& error) {
    if (error.code() != ErrorCode::DeviceUnavailable) throw;
    const char* required = std::getenv("MOLAE_REQUIRE_GPU");
    const bool fatal = kind == "cpu" || (required && std::strcmp(required, "1") == 0);
    std::printf("%s: no %s device: %s\n", fatal ? "FAILED" : "skipped", kind.c_str(), error.what());
    if (fatal) std::exit(1);
    return nullptr;
  }
}

bool contains_any(const std::string& name, const std::vector<std::string>& parts) {
  return std::any_of(parts.begin(), parts.end(),
                     [&](const std::string& part) { return name.find(part) != std::string::npos; });
}

enum class Outcome { Passed, Failed, Skipped };

Outcome run(const Test& test, Backend& backend, uint64_t seed) {
  const auto start = std::chrono::steady_clock::now();
  std::string problem;
  try {
    // The name is part of the seed: tests do not share their numbers.
    Context context{backend, std::mt19937_64(seed ^ std::hash<std::string>()(test.name))};
    test.run(context);
  } catch (const Skipped& skipped) {
    std::printf("skipped %s: %s\n", test.name.c_str(), skipped.reason.c_str());
    return Outcome::Skipped;
  } catch (const Failure& failure) {
    problem = failure.message;
  } catch (const Error& error) {
    problem = std::string(code_name(error.code())) + ": " + error.what();
  } catch (const std::exception& error) {
    problem = error.what();
  }
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  std::printf("%s %s (%.2f s)%s%s\n", problem.empty() ? "ok    " : "FAILED", test.name.c_str(), seconds,
              problem.empty() ? "" : ": ", problem.c_str());
  std::fflush(stdout);
  return problem.empty() ? Outcome::Passed : Outcome::Failed;
}

}  // namespace

int main(int count, char** words) {
  Options options;
  options.seed = std::random_device()();
  if (!parse(count, words, options)) {
    std::fprintf(stderr, "usage: %s [--device cpu|cuda] [--filter text] [--exclude text]... [--seed number] [--list]\n",
                 words[0]);
    return 2;
  }
  if (options.list) {
    for (const Test& test : all_tests()) std::printf("%s\n", test.name.c_str());
    return 0;
  }
  Device* device = open(options.device);
  if (!device) return 0;
  std::printf("device %s (%s), seed %llu\n", device->backend().info().name.c_str(),
              device->backend().info().library.c_str(), static_cast<unsigned long long>(options.seed));
  int passed = 0, failures = 0;
  for (const Test& test : all_tests()) {
    if (test.name.find(options.filter) == std::string::npos) continue;
    if (contains_any(test.name, options.excluded)) continue;
    // Logic tests need the CPU backend, whatever device is asked for; once is enough.
    if (test.kind == Kind::Logic && options.device != "cpu") continue;
    Outcome outcome = Outcome::Failed;
    device->queue().run_inline([&] { outcome = run(test, device->backend(), options.seed); });
    if (outcome != Outcome::Skipped) (outcome == Outcome::Passed ? passed : failures)++;
  }
  std::printf("%d passed, %d failed on %s (--seed %llu)\n", passed, failures, options.device.c_str(),
              static_cast<unsigned long long>(options.seed));
  return failures == 0 && passed > 0 ? 0 : 1;
}
