#include <algorithm>
#include <limits>
#include <string>
#include <vector>

#include "native/cuda/hopper_model.h"
#include "native/cuda/random_product.h"

// That the model of the hardware finds what the tests of Hopper's tiles use it for. Each of these warpgroups leaves out
// one thing that logic/hopper/grouped_gemm.h asks for, or does it at another time: the model must not let that pass.
namespace molae::test {
namespace {

using cuda::hopper::Barrier;

// --- Consumers

struct WithoutFence : HopperGroup {
  using HopperGroup::HopperGroup;
  void fence_async() const {}
};

struct WithoutWaitForStage : HopperGroup {
  using HopperGroup::HopperGroup;
  void wait(Barrier&, uint32_t) const {}
};

// For the phase before the one that it needs.
struct WaitingForOtherPhase : HopperGroup {
  using HopperGroup::HopperGroup;
  void wait(Barrier& barrier, uint32_t parity) const { HopperGroup::wait(barrier, 1 - parity); }
};

struct KeepingStages : HopperGroup {
  using HopperGroup::HopperGroup;
  void arrive_by_warp(Barrier&) const {}
};

struct ReturningStagesTwice : HopperGroup {
  using HopperGroup::HopperGroup;
  void arrive_by_warp(Barrier& barrier) const {
    HopperGroup::arrive_by_warp(barrier);
    HopperGroup::arrive_by_warp(barrier);
  }
};

// While the tensor cores may be reading them.
struct ReturningStagesEarly : HopperGroup {
  using HopperGroup::HopperGroup;
  template <int kPending, class Sums>
  void await_products(Sums& sums) const {
    if constexpr (kPending == 0) HopperGroup::await_products<0>(sums);
  }
};

struct WithoutWaitForProducts : HopperGroup {
  using HopperGroup::HopperGroup;
  template <int kPending, class Sums>
  void await_products(Sums&) const {}
};

// --- Either

struct WithoutWaitForPrevious : HopperGroup {
  using HopperGroup::HopperGroup;
  void after_previous() const {}
};

// --- Producers

struct WithoutMapFence : HopperGroup {
  using HopperGroup::HopperGroup;
  void acquire_map(const cuda::WeightMap*) const {}
};

struct WithoutWaitForConsumers : HopperGroup {
  using HopperGroup::HopperGroup;
  void wait(Barrier&, uint32_t) const {}
};

struct WithoutArrivalOfTokens : HopperGroup {
  using HopperGroup::HopperGroup;
  void arrive_after_copies(Barrier&) const {}
};

// As a plain arrival, which does not wait for copies, would.
struct ArrivingBeforeTokens : HopperGroup {
  ArrivingBeforeTokens(HopperBlock& block, int index) : HopperGroup(block, index), block(block) {
    block.initialize(nowhere, std::numeric_limits<int>::max());
  }
  void arrive_after_copies(Barrier& barrier) const {
    block.arrive(barrier, 0);
    HopperGroup::arrive_after_copies(nowhere);
  }

  HopperBlock& block;
  mutable Barrier nowhere{};
};

struct ArrivingTwice : HopperGroup {
  using HopperGroup::HopperGroup;
  void arrive_after_copies(Barrier& barrier) const {
    HopperGroup::arrive_after_copies(barrier);
    HopperGroup::arrive_after_copies(barrier);
  }
};

struct WithoutExpectedBytes : HopperGroup {
  using HopperGroup::HopperGroup;
  void arrive_expecting(Barrier& barrier, int) const { HopperGroup::arrive_expecting(barrier, 0); }
};

struct ExpectingOneBox : HopperGroup {
  using HopperGroup::HopperGroup;
  void arrive_expecting(Barrier& barrier, int) const {
    HopperGroup::arrive_expecting(barrier, cuda::hopper::kBoxBytes);
  }
};

// What goes wrong, in the words of the model and of the product's check.
using Symptoms = std::vector<std::string>;
const std::string kDeadlock = "all threads wait for each other", kWrong = "wanted",
                  kUnfenced = "the tensor cores read what no fence has shown them",
                  kTooManyArrivals = "more arrivals than a phase has", kNoMap = "a tensor map without its fence",
                  kTokensAhead = "tokens were read before the wait", kProductAhead = "a product before the wait";
// Of stages that are read before they are written, or the other way round: who comes first is chance.
const Symptoms kRace{kUnfenced, kWrong, kTooManyArrivals, kDeadlock};

// What is wrong with a random product; nothing, mostly, where it is too small for the fault to matter.
template <class Shape, class Producer, class Consumer>
std::string symptom(Context& context) {
  constexpr cuda::GemmTile kTile = Shape::kSwapped ? cuda::GemmTile::Hopper16 : cuda::GemmTile::Hopper128;
  const bool dual = context.chance(0.5);
  RandomProduct<typename Shape::In> product(context, kTile, dual, dual);
  try {
    run_on_model<Shape, Producer, Consumer>(product.args(), 1, context.random(), [] {});
    product.check("a product");
  } catch (const Failure& failure) {
    return failure.message;
  }
  return {};
}

template <class Shape, class Producer, class Consumer>
void expect_shown(Context& context, const std::string& what, const Symptoms& foreseen) {
  std::string found;
  for (int product = 0; product < 200 && found.empty(); ++product) {
    found = symptom<Shape, Producer, Consumer>(context);
  }
  expect(!found.empty(), "the model lets pass ", what);
  const bool known = std::any_of(foreseen.begin(), foreseen.end(),
                                 [&](const std::string& one) { return found.find(one) != std::string::npos; });
  expect(known, what, " failed otherwise: ", found);
}

using Swapped = cuda::hopper::SwappedTile<cuda::BF16, 16>;
using Wide = cuda::hopper::WideTile<cuda::BF16>;

template <class Consumer>
void expect_consumers_shown(Context& context, const std::string& what, const Symptoms& foreseen) {
  expect_shown<Swapped, HopperGroup, Consumer>(context, "consumers " + what, foreseen);
}
template <class Producer, class Shape = Swapped>
void expect_producer_shown(Context& context, const std::string& what, const Symptoms& foreseen) {
  expect_shown<Shape, Producer, HopperGroup>(context, "a producer " + what, foreseen);
}

MOLAE_TEST("hopper: the model shows consumers that leave out a wait, a fence or an arrival", Logic) {
  expect_consumers_shown<WithoutFence>(context, "without their fence", {kUnfenced});
  expect_consumers_shown<WithoutWaitForStage>(context, "that do not wait for a stage", kRace);
  expect_consumers_shown<WaitingForOtherPhase>(context, "that wait for the phase before", kRace);
  expect_consumers_shown<KeepingStages>(context, "that keep their stages", {kDeadlock});
  expect_consumers_shown<ReturningStagesTwice>(context, "that return a stage twice", kRace);
  expect_consumers_shown<ReturningStagesEarly>(context, "that return a stage while it is read", kRace);
  expect_consumers_shown<WithoutWaitForProducts>(context, "that do not wait for their products", kRace);
  expect_consumers_shown<WithoutWaitForPrevious>(context, "that are ahead of the kernel before", {kProductAhead});
}

MOLAE_TEST("hopper: the model shows a producer that leaves out a wait, a fence, an arrival or its bytes", Logic) {
  expect_producer_shown<WithoutMapFence>(context, "without the fence of its maps", {kNoMap});
  expect_producer_shown<WithoutWaitForConsumers>(context, "that does not wait for consumers", kRace);
  expect_producer_shown<WithoutArrivalOfTokens>(context, "whose tokens do not arrive", {kDeadlock});
  expect_producer_shown<ArrivingBeforeTokens>(context, "that arrives before its tokens", kRace);
  expect_producer_shown<ArrivingTwice>(context, "that arrives twice", kRace);
  expect_producer_shown<WithoutExpectedBytes>(context, "that expects no bytes", kRace);
  expect_producer_shown<ExpectingOneBox, Wide>(context, "that expects one box of two", kRace);
  expect_producer_shown<WithoutWaitForPrevious>(context, "that is ahead of the kernel before", {kTokensAhead});
}

}  // namespace
}  // namespace molae::test
