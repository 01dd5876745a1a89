#include <cstdlib>

#include "core/error.h"
#include "cpu/cpu_backend.h"
#include "native/failing_allocator.h"
#include "native/layers.h"

// What the CPU's forward pass promises beside its results.
namespace molae::test {
namespace {

MOLAE_TEST("cpu: operator new is counted", Logic) {
  const int64_t before_probe = heap_allocations();
  ::operator delete(::operator new(1));
  expect_equal(heap_allocations(), before_probe + 1, "counted allocations");
}

// Few and many tokens in turns, so that no call has the sizes of the one before.
MOLAE_TEST("cpu: repeated forwards of a layer allocate nothing", Logic) {
  const auto backend = make_cpu_backend(2);
  Context cpu{*backend, context.random};
  for (const bool latent : {false, true}) {
    for (const DType dtype : {DType::F32, DType::BF16, DType::F16, DType::F64}) {
      LayerOptions options{96, 72, 6, {dtype}, {latent, latent, latent}, false, 40, true, Activation::Silu};
      std::vector<RandomRouting> routings;
      for (const int64_t tokens : {1, 4, 300}) routings.push_back(random_routing(cpu, tokens, options.experts, 2));
      const RandomLayer random = random_layer(cpu, options, routings[0].groups);
      struct Call {
        Tensor x, y;
        Routing routing;
      };
      std::vector<Call> calls;
      const DType x_dtype = dtype == DType::F64 ? DType::F64 : DType::F32;
      for (RandomRouting& routing : routings) {
        Values x = random_values(cpu, routing.tokens * options.hidden_size);
        Values weights(routing.weights.begin(), routing.weights.end());
        const Shape shape{routing.tokens, options.hidden_size}, pairs{routing.tokens, routing.top_k};
        calls.push_back({make_tensor(cpu, x_dtype, shape, x),
                         poisoned(cpu, x_dtype, shape),
                         {make_ints(cpu, pairs, routing.ids), make_tensor(cpu, DType::F32, pairs, weights)}});
      }
      const auto forward = backend->prepare(random.layer);
      const Cancellation never;
      const auto packed = forward->packed(PackedInputs::F32, never);
      for (LayerForward* one : {forward.get(), packed.get()}) {
        if (!one) continue;
        const auto run_all = [&] {
          for (const Call& call : calls) one->run(call.x, call.routing, call.y, never);
        };
        run_all();
        const size_t workspaces = backend->memory_usage().workspaces;
        {
          const int64_t before = heap_allocations();
          for (int i = 0; i < 10; ++i) run_all();
          expect_equal(heap_allocations() - before, 0, one == packed.get() ? "packed " : "",
                       latent ? "latent " : "dense ", dtype_name(dtype), " allocations");
        }
        expect_equal(backend->memory_usage().workspaces, workspaces, "bytes of workspaces");
      }
    }
  }
}

// 9000 tokens are two chunks.
MOLAE_TEST("cpu: a bad routing is told by the number of its token in the call", Logic) {
  const auto backend = make_cpu_backend(2);
  Context cpu{*backend, context.random};
  const LayerOptions options{8, 8, 3, {DType::F32}, {false, false, false}};
  RandomRouting routing = random_routing(cpu, 9000, options.experts, 2);
  const auto forward = backend->prepare(random_layer(cpu, options, {}).layer);
  const Shape shape{routing.tokens, options.hidden_size}, pairs{routing.tokens, routing.top_k};
  const Tensor x = poisoned(cpu, DType::F32, shape), y = poisoned(cpu, DType::F32, shape);
  Values weights(routing.weights.begin(), routing.weights.end());
  const Tensor weight = make_tensor(cpu, DType::F32, pairs, weights);
  routing.ids[2 * 8900] = 1;
  for (const auto& [bad, wanted] :
       {std::pair{7, "Routing sends token 8900 to expert 7 of 3"}, {1, "Routing sends token 8900 to expert 1 twice"}}) {
    routing.ids[2 * 8900 + 1] = bad;
    std::string said;
    try {
      forward->run(x, {make_ints(cpu, pairs, routing.ids), weight}, y, Cancellation());
    } catch (const Error& error) {
      said = error.what();
    }
    expect_equal(said, wanted, "the error");
  }
}

}  // namespace
}  // namespace molae::test
