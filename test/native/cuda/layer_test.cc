#include <cstring>

#include "core/error.h"
#include "native/cuda/host_runtime.h"
#include "native/harness.h"
#include "native/layers.h"

// The GPU's whole forward pass on the host: its chain of kernels, their indexing, bounds, buffering and epilogues,
// against plain f64 loops. The tensors are the CPU backend's.
namespace molae::test {
namespace {

constexpr cuda::TileRequest kMmaTiles{cuda::TileFamily::Mma, {}};
constexpr cuda::TileRequest kHopperTiles{cuda::TileFamily::Hopper, {}};

std::unique_ptr<LayerForward> chain_of(const ExpertLayer& layer, unsigned long long* error,
                                       const cuda::TileRequest& tiles = kMmaTiles, int multiprocessors = 8,
                                       HostGraphs* graphs = nullptr) {
  using namespace cuda;
  const HostRuntime runtime(error, tiles, 0, multiprocessors, graphs);
  switch (common_dtype(layer)) {
    case DType::F64:
      return std::make_unique<LayerChain<double, HostRuntime>>(runtime, layer);
    case DType::BF16:
      return std::make_unique<LayerChain<BF16, HostRuntime>>(runtime, layer);
    case DType::F16:
      return std::make_unique<LayerChain<F16, HostRuntime>>(runtime, layer);
    default:
      return std::make_unique<LayerChain<float, HostRuntime>>(runtime, layer);
  }
}

void check(Context& context, const LayerOptions& options, const RandomRouting& routing, DType x_dtype,
           const cuda::TileRequest& tiles = kMmaTiles, int multiprocessors = 8) {
  RandomLayer random = random_layer(context, options, routing.groups);
  check_layer(random.layer, &context.backend);
  Values x = random_values(context, routing.tokens * options.hidden_size);
  const Tensor input = make_tensor(context, x_dtype, {routing.tokens, options.hidden_size}, x);
  Values weights(routing.weights.begin(), routing.weights.end());
  const Routing given{make_ints(context, {routing.tokens, routing.top_k}, routing.ids),
                      make_tensor(context, DType::F32, {routing.tokens, routing.top_k}, weights)};
  const Tensor y = poisoned(context, x_dtype, input.shape());
  unsigned long long error = cuda::kNoError;
  chain_of(random.layer, &error, tiles, multiprocessors)->run(input, given, y, Cancellation());
  expect_equal(error, cuda::kNoError, "error record");
  // Half-precision chains round what goes from stage to stage, up to four times: in a layer of a few elements that adds
  // up.
  const double relative = 2 * std::max(tolerance(cuda::common_dtype(random.layer)), tolerance(x_dtype));
  expect_close(read(context.backend, y), reference_forward(random, x, routing), forward_scale(random, x, routing),
               relative, "y");
}

std::vector<DType> random_dtypes(Context& context) {
  switch (context.integer(0, 5)) {
    case 0:
      return {DType::F64};
    case 1:
      return {DType::F32};
    case 2:
      return {DType::F16};
    case 3:
      return {DType::F32, DType::F16, DType::BF16};
    default:
      return {DType::BF16};
  }
}

LayerOptions random_options(Context& context, int64_t experts) {
  LayerOptions options{};
  // Multiples of 8 go through 16-byte loads, others through the element by element ones.
  const int64_t unit = context.chance(0.5) ? 8 : 1;
  options.hidden_size = unit * context.integer(1, 200 / unit);
  options.intermediate_size = unit * context.integer(1, 150 / unit);
  options.experts = experts;
  options.dtypes = random_dtypes(context);
  for (bool& latent : options.latent) latent = context.chance(0.7);
  options.shared_basis = options.latent[0] && options.latent[1] && context.chance(0.3);
  options.shared_size = context.chance(0.4) ? unit * context.integer(1, 100 / unit) : 0;
  options.shared_gate = context.chance(0.5);
  options.activation = static_cast<Activation>(context.integer(0, 3));
  return options;
}

MOLAE_TEST("logic: forward of random layers", Logic) {
  for (int round = 0; round < 60; ++round) {
    const RandomRouting routing = random_routing(context, 40, 12);
    const LayerOptions options = random_options(context, routing.experts);
    const DType x_dtype = options.dtypes[0] == DType::F64 ? DType::F64 : kFloats[context.integer(0, 3)];
    check(context, options, routing, x_dtype);
  }
}

MOLAE_TEST("logic: forward with bases of gate and up that begin at one place", Logic) {
  for (int round = 0; round < 4; ++round) {
    const RandomRouting routing = random_routing(context, 12, 6, 2);
    LayerOptions options{48, 40, 6, {round % 2 == 0 ? DType::F32 : DType::BF16}};
    options.nested_bases = true;
    check(context, options, routing, DType::F32);
  }
}

MOLAE_TEST("logic: forward with medium and large tiles", Logic) {
  for (const int64_t tokens : {150, 300}) {  // rows an expert: 75 and 150
    const RandomRouting routing = random_routing(context, tokens, 4, 2);
    LayerOptions options = random_options(context, 4);
    options.dtypes = {context.chance(0.5) ? DType::BF16 : DType::F16};
    options.hidden_size = 72;
    options.intermediate_size = 40;
    check(context, options, routing, options.dtypes[0]);
  }
}

// Sizes at which the inner dimensions of some stages are cut, and of some they are not: a card of few multiprocessors
// has blocks enough.
MOLAE_TEST("logic: forward of one to four tokens, streamed in parts", Logic) {
  for (int round = 0; round < 6; ++round) {
    const RandomRouting routing = random_routing(context, context.integer(1, 4), context.integer(2, 9), 2);
    LayerOptions options = random_options(context, routing.experts);
    options.hidden_size = context.integer(40, 260) * (context.chance(0.7) ? 8 : 7);
    options.intermediate_size = context.integer(30, 160) * (context.chance(0.7) ? 8 : 7);
    options.rank_unit = context.chance(0.7) ? 8 : 1;
    if (round < 2) {  // z of gate and of up side by side
      options.latent[0] = options.latent[1] = true;
      options.shared_basis = false;
      options.hidden_size = 8 * context.integer(130, 260);
    }
    const DType x_dtype = options.dtypes[0] == DType::F64 ? DType::F64 : kFloats[context.integer(0, 3)];
    check(context, options, routing, x_dtype, kMmaTiles, round < 4 ? 2000 : 20);
  }
}

MOLAE_TEST("logic: forward with the streaming kernel of more tokens than it is for", Logic) {
  for (int round = 0; round < 12; ++round) {
    const RandomRouting routing = random_routing(context, 40, 12);
    const LayerOptions options = random_options(context, routing.experts);
    const DType x_dtype = options.dtypes[0] == DType::F64 ? DType::F64 : kFloats[context.integer(0, 3)];
    check(context, options, routing, x_dtype, {cuda::TileFamily::Stream, cuda::GemmTile::Stream});
  }
}

// On the model of the hardware: hopper_model.h.
MOLAE_TEST("logic: forward with every Hopper tile", Logic) {
  for (const cuda::GemmTile tile : cuda::kGemmTiles) {
    if (cuda::tile_family(tile) != cuda::TileFamily::Hopper) continue;
    for (const DType dtype : {DType::BF16, DType::F16}) {
      const RandomRouting routing = random_routing(context, context.integer(1, 2 * cuda::tile_rows(tile)), 4, 2);
      LayerOptions options = random_options(context, 4);
      options.dtypes = {dtype};
      options.hidden_size = 8 * context.integer(1, 25);
      options.intermediate_size = 8 * context.integer(1, 20);
      options.shared_size = context.chance(0.5) ? 8 * context.integer(1, 10) : 0;
      options.rank_unit = 8;
      check(context, options, routing, context.chance(0.5) ? dtype : DType::F32, {cuda::TileFamily::Hopper, tile});
    }
  }
}

MOLAE_TEST("logic: forward with Hopper tiles by size, and without where the copy engine cannot read", Logic) {
  for (int round = 0; round < 12; ++round) {
    const RandomRouting routing = random_routing(context, 90, 8);
    LayerOptions options = random_options(context, routing.experts);
    options.dtypes = {context.chance(0.5) ? DType::BF16 : DType::F16};
    check(context, options, routing, options.dtypes[0], kHopperTiles);
  }
  LayerOptions options = random_options(context, 2);
  options.dtypes = {DType::BF16};
  options.hidden_size = 33;
  const cuda::TileRequest only{cuda::TileFamily::Hopper, cuda::GemmTile::Hopper64};
  expect_error(ErrorCode::InvalidArgument, "a Hopper tile for rows of 33",
               [&] { check(context, options, random_routing(context, 5, 2, 1), DType::BF16, only); });
}

void regroup(RandomRouting& routing, int64_t groups) {
  routing.groups.assign(groups, {});
  for (int64_t i = 0; i < routing.experts; ++i) {
    routing.groups[i % groups].push_back(static_cast<int32_t>(i));
    routing.group_of[i] = static_cast<int32_t>(i % groups);
  }
}

// As many tokens as make the tiles of experts, of groups and of the shared expert different ones, from one group to a
// group for each expert.
MOLAE_TEST("logic: forward with tiles of their own for experts, groups and the shared expert", Logic) {
  int different = 0;
  for (const cuda::TileRequest& tiles : {kMmaTiles, kHopperTiles}) {
    for (const int64_t groups : {1, 2, 4, 8, 16}) {
      RandomRouting routing = random_routing(context, context.integer(30, 110), 16, context.integer(1, 4));
      regroup(routing, groups);
      LayerOptions options = random_options(context, 16);
      options.dtypes = {context.chance(0.5) ? DType::BF16 : DType::F16};
      options.hidden_size = 8 * context.integer(1, 25);
      options.intermediate_size = 8 * context.integer(1, 18);
      options.shared_size = 8 * context.integer(1, 10);
      options.rank_unit = 8;
      check(context, options, routing, options.dtypes[0], tiles);
      const cuda::LayerTiles chosen =
          cuda::choose_tiles(options.dtypes[0], {routing.tokens, routing.top_k, 16, groups}, tiles);
      different += chosen.experts != chosen.groups && chosen.experts != chosen.tokens;
    }
  }
  expect(different > 0, "one tile for all");
}

// --- Graphs

// A layer with graphs and without, called with the same arguments, which are new ones every time and gone afterwards.
class GraphPair {
 public:
  GraphPair(Context& context, const LayerOptions& options, const RandomRouting& groups, const cuda::TileRequest& tiles)
      : context_(context), options_(options), groups_(groups), random_(random_layer(context, options, groups.groups)) {
    check_layer(random_.layer, &context.backend);
    with_ = chain_of(random_.layer, &error_, tiles, 2000, &graphs_);
    without_ = chain_of(random_.layer, &error_, tiles, 2000);
  }

  void call(int64_t tokens, int64_t top_k, DType dtype) {
    RandomRouting routing = random_routing(context_, tokens, options_.experts, top_k);
    Values weights(routing.weights.begin(), routing.weights.end());
    Values x = random_values(context_, tokens * options_.hidden_size);
    const Tensor input = make_tensor(context_, dtype, {tokens, options_.hidden_size}, x);
    const Routing given{make_ints(context_, {tokens, top_k}, routing.ids),
                        make_tensor(context_, DType::F32, {tokens, top_k}, weights)};
    const Tensor y = poisoned(context_, dtype, input.shape()), wanted = poisoned(context_, dtype, input.shape());
    with_->run(input, given, y, Cancellation());
    without_->run(input, given, wanted, Cancellation());
    expect_equal(error_, cuda::kNoError, "error record");
    expect(std::memcmp(y.data(), wanted.data(), y.bytes()) == 0, tokens, " tokens: a graph gave other bits");
    routing.group_of = groups_.group_of;
    expect_close(read(context_.backend, y), reference_forward(random_, x, routing), forward_scale(random_, x, routing),
                 2 * std::max(tolerance(cuda::common_dtype(random_.layer)), tolerance(dtype)), "y");
  }

  HostGraphs& graphs() { return graphs_; }

 private:
  Context& context_;
  LayerOptions options_;
  RandomRouting groups_;
  RandomLayer random_;
  unsigned long long error_ = cuda::kNoError;
  HostGraphs graphs_;
  std::unique_ptr<LayerForward> with_, without_;
};

// Every kernel of a graph that may begin before the one before it does so in every other launch: what it reads before
// it waits is then from the call before.
MOLAE_TEST("logic: a layer's graphs give the bits of plain launches, whatever the arguments and where they are",
           Logic) {
  for (int round = 0; round < 12; ++round) {
    const RandomRouting groups = random_routing(context, 1, context.integer(3, 9), 1);
    const LayerOptions options = random_options(context, groups.experts);
    GraphPair pair(context, options, groups, round % 3 == 0 ? kHopperTiles : kMmaTiles);
    const DType dtype = options.dtypes[0] == DType::F64 ? DType::F64 : kFloats[context.integer(0, 3)];
    const int64_t first = context.integer(1, cuda::kGraphTokens), second = context.integer(1, 4);
    for (int call = 0; call < 4; ++call) {
      pair.call(first, 2, dtype);
      pair.call(second, 3, dtype);
    }
    expect_equal(pair.graphs().captured, 2, "one graph for each shape");
    expect_equal(pair.graphs().launched, 6, "all calls but the first of a shape");
    expect(pair.graphs().overlapped >= 6, "no kernels that began before others had ended");
    pair.call(cuda::kGraphTokens + 1, 2, dtype);
    pair.call(cuda::kGraphTokens + 1, 2, dtype);
    expect_equal(pair.graphs().launched, 6, "none for many tokens");
  }
}

MOLAE_TEST("logic: a layer keeps the graphs of the shapes that it had last", Logic) {
  const RandomRouting groups = random_routing(context, 1, 5, 1);
  LayerOptions options = random_options(context, 5);
  options.dtypes = {DType::BF16};
  GraphPair pair(context, options, groups, kMmaTiles);
  const auto call_twice = [&](int64_t tokens) {
    pair.call(tokens, 2, DType::BF16);
    pair.call(tokens, 2, DType::BF16);
  };
  for (int64_t tokens = 1; tokens <= cuda::kGraphShapes; ++tokens) call_twice(tokens);
  expect_equal(pair.graphs().captured, cuda::kGraphShapes, "a graph for each shape");
  pair.call(1, 2, DType::BF16);
  call_twice(cuda::kGraphShapes + 1);  // in the place of 2 tokens
  const int launched = pair.graphs().launched;
  pair.call(1, 2, DType::BF16);
  expect_equal(pair.graphs().launched, launched + 1, "1 token has its graph still");
  expect_equal(pair.graphs().captured, cuda::kGraphShapes + 1, "and no new one");
  call_twice(2);
  expect_equal(pair.graphs().captured, cuda::kGraphShapes + 2, "2 tokens have a new one");
  pair.call(2, 2, DType::F32);
  pair.call(2, 1, DType::BF16);
  expect_equal(pair.graphs().captured, cuda::kGraphShapes + 2, "another dtype and another top_k are other shapes");
}

MOLAE_TEST("logic: a capture that fails is an error every time, and plain calls and later captures are right", Logic) {
  const RandomRouting groups = random_routing(context, 1, 5, 1);
  LayerOptions options = random_options(context, 5);
  options.dtypes = {DType::F32};
  GraphPair pair(context, options, groups, kMmaTiles);
  pair.call(3, 2, DType::F32);
  pair.graphs().fail = true;
  for (int i = 0; i < 3; ++i) {
    expect_error(ErrorCode::Internal, "a capture that fails", [&] { pair.call(3, 2, DType::F32); });
  }
  pair.call(cuda::kGraphTokens + 1, 2, DType::F32);
  pair.graphs().fail = false;
  for (int i = 0; i < 3; ++i) pair.call(3, 2, DType::F32);
  expect_equal(pair.graphs().captured, 1, "captured once");
}

// By the tile's name, so that 16 tokens take every one of them.
MOLAE_TEST("logic: graphs with every tile give the bits of plain launches", Logic) {
  for (const cuda::GemmTile tile : cuda::kGemmTiles) {
    if (tile == cuda::GemmTile::Simt) continue;  // f32 layers take it above
    const RandomRouting groups = random_routing(context, 1, context.integer(5, 8), 1);
    LayerOptions options = random_options(context, groups.experts);
    options.latent[0] = options.latent[1] = false;
    options.shared_basis = false;
    options.dtypes = {context.chance(0.5) ? DType::BF16 : DType::F16};
    options.hidden_size = 8 * context.integer(10, 20);
    options.intermediate_size = 8 * context.integer(10, 16);
    options.shared_size = 8 * context.integer(1, 10);
    options.rank_unit = 8;
    GraphPair pair(context, options, groups, {cuda::tile_family(tile), tile});
    for (int call = 0; call < 2; ++call) pair.call(cuda::kGraphTokens, 2, options.dtypes[0]);
    for (int call = 0; call < 6; ++call)
      pair.call(1, 2, options.dtypes[0]);  // the first expert is another one every time
    expect(pair.graphs().overlapped >= 3, "no kernels that began before others had ended");
  }
}

MOLAE_TEST("logic: the kernel behind a sort begins when the sort has ended", Logic) {
  cuda::Overlap none(false), overlap(true);
  overlap.sorted();
  none.sorted();
  expect(!overlap.next(), "behind the sort");
  expect(overlap.next() && overlap.next(), "those after it");
  expect(!none.next() && !none.next(), "not in a stream");
}

MOLAE_TEST("logic: how layers are to be launched", Logic) {
  expect(cuda::parse_launch_mode("") == cuda::kDefaultLaunch, "the default");
  expect(cuda::parse_launch_mode("stream") == cuda::LaunchMode::Stream, "stream");
  expect(cuda::parse_launch_mode("graph") == cuda::LaunchMode::Graph, "graph");
  for (const char* text : {"graphs", "Graph", "1"}) {
    expect_error(ErrorCode::InvalidArgument, text, [&] { cuda::parse_launch_mode(text); });
  }
}

// -0 where there is nothing to add would be wrong, and NaN from an unused array worse.
MOLAE_TEST("logic: forward of tokens without experts is zero", Logic) {
  RandomRouting routing = random_routing(context, 5, 3, 1);
  LayerOptions options = random_options(context, 3);
  options.shared_size = 0;
  const RandomLayer random = random_layer(context, options, routing.groups);
  const Tensor x = poisoned(context, DType::F32, {5, options.hidden_size});
  const Routing none{make_ints(context, {5, 0}, {}), empty(context.backend, DType::F32, {5, 0})};
  const Tensor y = poisoned(context, DType::F32, x.shape());
  unsigned long long error = cuda::kNoError;
  chain_of(random.layer, &error)->run(x, none, y, Cancellation());
  for (const double value : read(context.backend, y)) expect_equal(value, 0.0, "y");
}

}  // namespace
}  // namespace molae::test
