#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "core/error.h"
#include "native/layers.h"

// Every tile of the grouped product that a GPU has, each asked for by its name (MOLAE_CUDA_TILES), whatever tile a
// layer of that size would get otherwise. A tile that cannot take the layer is an error, so no other can stand in for
// it. And the two ways in which layers are launched (MOLAE_CUDA_LAUNCH), which must give the same bits.
namespace molae::test {
namespace {

// A variable of the environment, for a while.
class AskFor {
 public:
  AskFor(const char* variable, const std::string& value) : variable_(variable) {
    const char* before = std::getenv(variable);
    if (before) before_ = before;
    setenv(variable, value.c_str(), 1);
  }
  ~AskFor() {
    if (before_.empty()) {
      unsetenv(variable_);
    } else {
      setenv(variable_, before_.c_str(), 1);
    }
  }

 private:
  const char* variable_;
  std::string before_;
};

constexpr const char* kTiles = "MOLAE_CUDA_TILES";
constexpr const char* kLaunch = "MOLAE_CUDA_LAUNCH";

struct NamedTile {
  const char* name;
  int64_t rows;
};
constexpr NamedTile kMmaTiles[] = {{"small", 16}, {"medium", 64}, {"large", 128}};
constexpr NamedTile kHopperTiles[] = {
    {"hopper8", 8}, {"hopper16", 16}, {"hopper32", 32}, {"hopper64", 64}, {"hopper128", 128}};

void needs_cuda(Context& context) {
  if (context.backend.info().kind != "cuda") throw Skipped{"tiles are what a CUDA device has"};
}

bool has_hopper_tiles(Context& context) {
  const auto features = context.backend.info().features;
  return std::find(features.begin(), features.end(), "Hopper tiles") != features.end();
}

Routing upload(Context& context, const RandomRouting& routing) {
  Values weights(routing.weights.begin(), routing.weights.end());
  return {make_ints(context, {routing.tokens, routing.top_k}, routing.ids),
          make_tensor(context, DType::F32, {routing.tokens, routing.top_k}, weights)};
}

// Row by row: an element in the wrong place would not show in the norm of them all.
void expect_close_rows(const Values& actual, const Values& wanted, const Values& scale, int64_t rows, double relative,
                       const std::string& name) {
  const auto width = static_cast<int64_t>(wanted.size()) / rows;
  const auto row_of = [&](const Values& values, int64_t row) {
    return Values(values.begin() + row * width, values.begin() + (row + 1) * width);
  };
  for (int64_t row = 0; row < rows; ++row) {
    expect_close(row_of(actual, row), row_of(wanted, row), row_of(scale, row), relative,
                 name + ": row " + std::to_string(row));
  }
}

void check(Context& context, const std::string& name, const LayerOptions& options, const RandomRouting& routing) {
  const DType dtype = options.dtypes[0];
  const RandomLayer random = random_layer(context, options, routing.groups);
  Values x = random_values(context, routing.tokens * options.hidden_size);
  const Tensor input = make_tensor(context, dtype, {routing.tokens, options.hidden_size}, x);
  const Routing given = upload(context, routing);
  const AskFor asked(kTiles, name);
  const auto forward = context.backend.prepare(random.layer);
  const Values wanted = reference_forward(random, x, routing), scale = forward_scale(random, x, routing);
  Values first;
  for (int round = 0; round < 3; ++round) {  // an error that moves from run to run is a race
    const Tensor y = poisoned(context, dtype, input.shape());
    forward->run(input, given, y, Cancellation());
    const Values result = read(context.backend, y);
    if (round == 0) first = result;
    expect_close_rows(result, wanted, scale, routing.tokens, 2 * tolerance(dtype), name);
    expect(result == first, name, ": the same call gave another result");
  }
}

LayerOptions options_of(Context& context, DType dtype, int64_t hidden_size, int64_t intermediate_size) {
  LayerOptions options{};
  options.hidden_size = hidden_size;
  options.intermediate_size = intermediate_size;
  options.dtypes = {dtype};
  options.rank_unit = 8;
  options.activation = static_cast<Activation>(context.integer(0, 3));
  return options;
}

void check_tile(Context& context, const NamedTile& tile) {
  for (const DType dtype : {DType::BF16, DType::F16}) {
    for (const bool latent : {false, true}) {
      for (const bool shared_basis : {false, true}) {
        if (shared_basis && !latent) continue;
        // Some rows more and some fewer than the tile has, on average; experts that get none among them.
        const RandomRouting routing = random_routing(context, context.integer(1, 6 * tile.rows), 7, 2);
        LayerOptions options = options_of(context, dtype, 8 * context.integer(1, 40), 8 * context.integer(1, 40));
        options.experts = 7;
        for (bool& flag : options.latent) flag = latent;
        options.shared_basis = shared_basis;
        options.shared_size = context.chance(0.5) ? 8 * context.integer(1, 20) : 0;
        options.shared_gate = true;
        check(context, tile.name, options, routing);
      }
    }
  }
  // Many times around the ring, and more tiles than multiprocessors.
  const RandomRouting routing = random_routing(context, tile.rows + 5, 16, 2);
  LayerOptions options = options_of(context, DType::BF16, 1160, 712);
  options.experts = 16;
  for (bool& flag : options.latent) flag = false;
  check(context, tile.name, options, routing);
}

MOLAE_TEST("tiles: forward with every mma tile", Device) {
  needs_cuda(context);
  for (const NamedTile& tile : kMmaTiles) check_tile(context, tile);
}

MOLAE_TEST("tiles: forward of one to four tokens, streamed", Device) {
  needs_cuda(context);
  for (const DType dtype : kFloats) {
    for (int round = 0; round < 4; ++round) {
      // Few experts of long rows: the inner dimensions are cut. Odd sizes: elements, not vectors.
      const int64_t unit = round == 3 ? 1 : 8;
      const RandomRouting routing = random_routing(context, context.integer(1, 4), 5, 2);
      LayerOptions options = options_of(context, dtype, unit * context.integer(900 / unit, 1300 / unit),
                                        unit * context.integer(1, 700 / unit));
      options.rank_unit = unit;
      options.experts = 5;
      for (bool& flag : options.latent) flag = context.chance(0.7);
      options.shared_basis = options.latent[0] && options.latent[1] && context.chance(0.3);
      options.shared_size = context.chance(0.5) ? unit * context.integer(1, 100 / unit) : 0;
      options.shared_gate = true;
      check(context, "stream", options, routing);
    }
  }
}

MOLAE_TEST("tiles: forward with every Hopper tile", Device) {
  needs_cuda(context);
  if (!has_hopper_tiles(context)) throw Skipped{"needs compute capability 9.0"};
  for (const NamedTile& tile : kHopperTiles) check_tile(context, tile);
}

MOLAE_TEST("tiles: asking for what the GPU or the layer cannot have is an error", Device) {
  needs_cuda(context);
  const RandomRouting routing = random_routing(context, 9, 3, 2);
  LayerOptions options = options_of(context, DType::BF16, 24, 16);
  options.experts = 3;
  expect_error(ErrorCode::InvalidArgument, "no tile", [&] { check(context, "huge", options, routing); });
  if (has_hopper_tiles(context)) {
    options.hidden_size = 25;  // rows of 50 bytes: the copy engine wants multiples of 16
    options.rank_unit = 1;
    expect_error(ErrorCode::InvalidArgument, "odd rows", [&] { check(context, "hopper16", options, routing); });
    check(context, "hopper", options, routing);  // a family is a preference
  } else {
    expect_error(ErrorCode::InvalidArgument, "another GPU", [&] { check(context, "hopper", options, routing); });
  }
}

// --- Graphs (MOLAE_CUDA_LAUNCH)

std::unique_ptr<LayerForward> prepare_launched(Context& context, const ExpertLayer& layer, const char* mode) {
  const AskFor asked(kLaunch, mode);
  return context.backend.prepare(layer);
}

// The same calls of a layer with graphs and without: the first of a shape, the captured one and later ones, with other
// arguments elsewhere each time, shapes taking turns.
void check_graphs(Context& context, const LayerOptions& options, const RandomRouting& groups) {
  const RandomLayer random = random_layer(context, options, groups.groups);
  const auto plain = prepare_launched(context, random.layer, "stream");
  const auto graphs = prepare_launched(context, random.layer, "graph");
  const DType dtype = options.dtypes[0];
  std::vector<Tensor> kept;  // so that the next call's tensors are elsewhere
  const int64_t sizes[] = {1, context.integer(2, 4), context.integer(5, 16)};
  for (int call = 0; call < 12; ++call) {
    const int64_t tokens = sizes[call % 3];
    const RandomRouting routing = random_routing(context, tokens, options.experts, 2);
    Values x = random_values(context, tokens * options.hidden_size);
    const Tensor input = make_tensor(context, dtype, {tokens, options.hidden_size}, x);
    const Routing given = upload(context, routing);
    const Tensor wanted = poisoned(context, dtype, input.shape()), y = poisoned(context, dtype, input.shape());
    plain->run(input, given, wanted, Cancellation());
    graphs->run(input, given, y, Cancellation());
    expect(read(context.backend, y) == read(context.backend, wanted), "call ", call, " of ", tokens,
           " tokens: a graph gave other bits than plain launches");
    kept.insert(kept.end(), {input, given.ids, given.weights, y});
  }
}

MOLAE_TEST("graphs: layers give the bits of plain launches", Device) {
  needs_cuda(context);
  for (const DType dtype : kFloats) {
    for (const bool latent : {true, false}) {
      const RandomRouting groups = random_routing(context, 1, 6, 2);
      LayerOptions options = options_of(context, dtype, 8 * context.integer(1, 150), 8 * context.integer(1, 60));
      options.experts = 6;
      for (bool& flag : options.latent) flag = latent;
      options.shared_size = context.chance(0.5) ? 8 * context.integer(1, 20) : 0;
      options.shared_gate = true;
      check_graphs(context, options, groups);
    }
  }
}

MOLAE_TEST("graphs: layers of every Hopper tile give the bits of plain launches", Device) {
  needs_cuda(context);
  if (!has_hopper_tiles(context)) throw Skipped{"needs compute capability 9.0"};
  for (const NamedTile& tile : kHopperTiles) {
    const AskFor asked(kTiles, tile.name);
    const RandomRouting groups = random_routing(context, 1, 6, 2);
    const DType dtype = context.chance(0.5) ? DType::BF16 : DType::F16;
    LayerOptions options = options_of(context, dtype, 8 * context.integer(1, 150), 8 * context.integer(1, 60));
    options.experts = 6;
    for (bool& flag : options.latent) flag = context.chance(0.5);
    options.shared_size = 8 * context.integer(1, 20);
    check_graphs(context, options, groups);
  }
}

MOLAE_TEST("graphs: a bad routing is reported from a graph as from plain launches", Device) {
  needs_cuda(context);
  const RandomRouting groups = random_routing(context, 1, 4, 1);
  LayerOptions options = options_of(context, DType::BF16, 64, 32);
  options.experts = 4;
  const RandomLayer random = random_layer(context, options, groups.groups);
  const auto forward = prepare_launched(context, random.layer, "graph");
  Values x = random_values(context, 2 * 64);
  const Tensor input = make_tensor(context, DType::BF16, {2, 64}, x), y = poisoned(context, DType::BF16, {2, 64});
  const Tensor weights = poisoned(context, DType::F32, {2, 1});
  const Routing good{make_ints(context, {2, 1}, {0, 3}), weights}, bad{make_ints(context, {2, 1}, {0, 4}), weights};
  for (int call = 0; call < 4; ++call) {
    forward->run(input, good, y, Cancellation());
    context.backend.synchronize();
    expect_error(ErrorCode::InvalidArgument, "expert 4 of 4", [&] {
      forward->run(input, bad, y, Cancellation());
      context.backend.synchronize();
    });
  }
}

MOLAE_TEST("graphs: asking for another way to launch is an error", Device) {
  needs_cuda(context);
  const RandomRouting groups = random_routing(context, 1, 3, 1);
  LayerOptions options = options_of(context, DType::F32, 16, 16);
  options.experts = 3;
  const RandomLayer random = random_layer(context, options, groups.groups);
  expect_error(ErrorCode::InvalidArgument, "no way", [&] { prepare_launched(context, random.layer, "graphs"); });
}

}  // namespace
}  // namespace molae::test
