#include <new>

#include "core/error.h"
#include "core/factorization/shared_basis.h"
#include "cpu/cpu_backend.h"
#include "native/failing_allocator.h"
#include "native/layers.h"

// Every allocation of an operation fails once, and then that one and all after it: each time the operation ends with
// OutOfMemory, nothing is left behind, and the device does the same work right afterwards.
namespace molae::test {
namespace {

using Work = std::function<Values(Backend&)>;

// False where the work ran out of memory.
bool completes(const Work& work, Backend& backend, Allocations kind, int64_t index, bool lasting, bool& failed_one) {
  fail_allocation(kind, index, lasting);
  try {
    work(backend);
    failed_one = stop_failing();
    return true;
  } catch (const Error& error) {
    failed_one = stop_failing();
    if (error.code() != ErrorCode::OutOfMemory) throw;
  } catch (const std::bad_alloc&) {  // the addon makes an OutOfMemory of it, too
    failed_one = stop_failing();
  } catch (...) {
    stop_failing();
    throw;
  }
  return false;
}

// How many allocations were made to fail.
int64_t fail_each(const Work& work, Allocations kind, bool lasting) {
  Values wanted;
  for (int warm = 0; warm < 2; ++warm) wanted = work(*make_cpu_backend(2));
  const int64_t live = live_blocks();
  for (int64_t index = 0;; ++index) {
    bool failed_one = false;
    {
      const auto backend = make_cpu_backend(2);
      const bool completed = completes(work, *backend, kind, index, lasting, failed_one);
      // A large block is asked for again, once freed ones have been given back.
      const bool may_recover = kind == Allocations::Mappings && !lasting;
      if (failed_one && !may_recover) expect(!completed, "allocation ", index, " failed, and nobody noticed");
      expect_equal(backend->memory_usage().tensors, size_t{0}, "bytes of tensors after allocation ", index, " failed");
      expect(work(*backend) == wanted, "wrong results after allocation ", index, " failed");
    }
    expect_equal(live_blocks(), live, "blocks alive after allocation ", index, " failed");
    if (!failed_one) return index;
  }
}

void fail_everywhere(const Work& work, Allocations kind, int64_t fewest) {
  for (const bool lasting : {false, true}) {
    const int64_t count = fail_each(work, kind, lasting);
    expect(count >= fewest, "only ", count, " allocations failed: the test reaches too little");
  }
}

Routing upload(Context& context, const RandomRouting& routing) {
  Values weights(routing.weights.begin(), routing.weights.end());
  return {make_ints(context, {routing.tokens, routing.top_k}, routing.ids),
          make_tensor(context, DType::F32, {routing.tokens, routing.top_k}, weights)};
}

// Makes, prepares and runs a layer.
Work forward(const LayerOptions& options, int64_t tokens, uint64_t seed) {
  return [=](Backend& backend) {
    Context context{backend, std::mt19937_64(seed)};
    const RandomRouting routing = random_routing(context, tokens, options.experts, 2);
    const RandomLayer random = random_layer(context, options, routing.groups);
    Values x = random_values(context, tokens * options.hidden_size);
    const Tensor input = make_tensor(context, DType::BF16, {tokens, options.hidden_size}, x);
    const Tensor y = poisoned(context, DType::BF16, input.shape());
    const auto layer = backend.prepare(random.layer);
    layer->run(input, upload(context, routing), y, Cancellation());
    return read(backend, y);
  };
}

// Factorizes a group of experts: basis, factors, errors.
Work factorization(const SharedBasis::Options& options, int experts, int64_t width, uint64_t seed) {
  return [=](Backend& backend) {
    Context context{backend, std::mt19937_64(seed)};
    SharedBasis basis(backend, options);
    const bool input = options.side == SharedSide::Input;
    const int64_t size = options.shared_size, rank = width / 2;
    std::vector<Tensor> given;
    for (int i = 0; i < experts; ++i) {
      Values values = random_values(context, size * width);
      given.push_back(make_tensor(context, DType::F32, input ? Shape{width, size} : Shape{size, width}, values));
      basis.add(given.back());
    }
    const Tensor b = empty(backend, DType::F32, input ? Shape{rank, size} : Shape{size, rank});
    const BasisReport report = basis.solve(b);
    Values results{report.optimal_relative_error, report.control_relative_error.value_or(0)};
    for (const Tensor& w : given) {
      const Tensor a = empty(backend, DType::F32, input ? Shape{width, rank} : Shape{rank, width});
      results.push_back(basis.project(w, a));
    }
    return results;
  };
}

LayerOptions small_layer() { return {12, 8, 3, {DType::BF16}, {true, true, true}, false, 8, true, Activation::Silu}; }

MOLAE_TEST("out of memory: at every allocation of a forward", Logic) {
  LayerOptions options = small_layer();
  fail_everywhere(forward(options, 5, context.random()), Allocations::Heap, 50);
  for (bool& latent : options.latent) latent = false;
  fail_everywhere(forward(options, 5, context.random()), Allocations::Heap, 50);
}

MOLAE_TEST("out of memory: at every allocation of a factorization", Logic) {
  for (const Solver solver : {Solver::Gram, Solver::Svd}) {
    for (const SharedSide side : {SharedSide::Input, SharedSide::Output}) {
      fail_everywhere(factorization({side, 12, solver, 3, uint64_t{7}}, 3, 6, context.random()), Allocations::Heap, 50);
    }
  }
}

#ifndef MOLAE_SANITIZED  // which maps nothing
MOLAE_TEST("out of memory: at every large block of a forward and a factorization", Logic) {
  LayerOptions options{520, 512, 2, {DType::F32}, {true, false, true}, false, 0, false, Activation::Silu};
  fail_everywhere(forward(options, 300, context.random()), Allocations::Mappings, 3);
  fail_everywhere(factorization({SharedSide::Input, 370, Solver::Gram, 0, {}}, 1, 720, context.random()),
                  Allocations::Mappings, 3);
}
#endif

}  // namespace
}  // namespace molae::test
