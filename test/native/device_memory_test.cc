#include <thread>

#include "core/error.h"
#include "native/tensors.h"

// Memory: what is allocated is given back, what does not fit is refused, and the device works on.
namespace molae::test {
namespace {

void expect_working(Context& context) {
  Values values = random_values(context, 1000);
  const Tensor tensor = make_tensor(context, DType::F32, {1000}, values);
  expect(read(context.backend, tensor) == values, "the device does not work any more");
}

MOLAE_TEST("memory: usage follows the tensors, trim gives back the rest", Device) {
  Backend& backend = context.backend;
  backend.trim();
  const MemoryUsage before = backend.memory_usage();
  {
    const Tensor a = empty(backend, DType::F32, {1000});
    const Tensor b = empty(backend, DType::F64, {3, 77});
    expect_equal(backend.memory_usage().tensors, before.tensors + a.bytes() + b.bytes(), "tensors");
    expect(backend.memory_usage().peak >= before.tensors + a.bytes() + b.bytes(), "peak");
    Values values = random_values(context, 200 * 200);
    const Tensor x = make_tensor(context, DType::F64, {200, 200}, values);
    backend.squared_norm(x);
  }
  expect_equal(backend.memory_usage().tensors, before.tensors, "tensors afterwards");
  backend.trim();
  expect_equal(backend.memory_usage().workspaces, before.workspaces, "workspaces after trim");
}

MOLAE_TEST("memory: repeated operations hold no more", Device) {
  Backend& backend = context.backend;
  Values values = random_values(context, 150 * 90);
  const Tensor a = make_tensor(context, DType::F32, {150, 90}, values);
  const auto step = [&] {
    const Tensor c = poisoned(context, DType::F32, {150, 150});
    const Gemm problem{a, a, c, false, true, 1, 0};
    backend.gemm({&problem, 1});
    backend.squared_norm(c);
    backend.find_non_finite(c);
  };
  step();
  backend.synchronize();
  const MemoryUsage before = backend.memory_usage();
  for (int i = 0; i < 50; ++i) step();
  const MemoryUsage after = backend.memory_usage();
  expect_equal(after.tensors, before.tensors, "tensors");
  expect_equal(after.workspaces, before.workspaces, "workspaces");
}

MOLAE_TEST("memory: too much at once is OutOfMemory", Device) {
  for (const size_t bytes : {size_t{1} << 50, size_t{1} << 62}) {
    expect_error(ErrorCode::OutOfMemory, "an absurd allocation", [&] { context.backend.allocate(bytes); });
  }
  expect_working(context);
}

// Not on the CPU, where the system would kill somebody before memory runs out.
MOLAE_TEST("memory: a full GPU refuses and recovers", Device) {
  Backend& backend = context.backend;
  if (backend.host_memory()) return;
  const size_t before = backend.memory_usage().tensors;
  {
    std::vector<std::shared_ptr<Buffer>> held;
    const size_t piece = backend.info().memory_bytes / 16;
    expect_error(ErrorCode::OutOfMemory, "filling the GPU", [&] {
      for (int i = 0; i < 32; ++i) held.push_back(backend.allocate(piece));
    });
    expect(held.size() >= 4, "only ", held.size(), " sixteenths of the GPU could be had");
    held.pop_back();
    expect_working(context);
  }
  expect_equal(backend.memory_usage().tensors, before, "tensors");
  // Kept blocks make room for one of another size.
  const auto large = backend.allocate(backend.info().memory_bytes / 4);
  expect_working(context);
}

MOLAE_TEST("memory: allocation from several threads", Device) {
  Backend& backend = context.backend;
  const size_t before = backend.memory_usage().tensors;
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&backend, t] {
      std::vector<std::shared_ptr<Buffer>> held;
      for (int i = 0; i < 200; ++i) {
        held.push_back(backend.allocate(static_cast<size_t>(1 + (i * 7919 + t) % 100000)));
        if (i % 3 == 0) held.erase(held.begin());
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  expect_equal(backend.memory_usage().tensors, before, "tensors");
}

}  // namespace
}  // namespace molae::test
