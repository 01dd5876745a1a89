#include <algorithm>
#include <atomic>
#include <cmath>
#include <vector>

#include "core/error.h"
#include "cpu/layer/forward_schedule.h"
#include "cpu/linear/linear_tile.h"
#include "native/routings.h"

// In which order the tiles of a forward pass come, and that none begins before what it needs is there.
namespace molae::test {
namespace {

using namespace cpu;

constexpr int64_t kHiddenSize = 500, kIntermediateSize = 300, kRank = 120;

// The products of a pass of one routing.
struct Pass {
  RandomRouting routing;
  bool latent_gate, latent_up, latent_down, shared_expert;

  int64_t groups() const { return static_cast<int64_t>(routing.groups.size()); }
  int64_t rows(int32_t expert) const { return std::ranges::count(routing.ids, expert); }
  int64_t latent_rows(int64_t group) const {
    int64_t rows = 0;
    for (const int32_t expert : routing.groups[group]) rows += this->rows(expert);
    return std::min(rows, routing.tokens);
  }
};

Pass random_pass(Context& context) {
  const int64_t experts = context.integer(1, 40);
  const int64_t top_k = context.integer(1, std::min<int64_t>(experts, 6));
  return {random_routing(context, context.integer(1, 120), experts, top_k), context.chance(0.7), context.chance(0.7),
          context.chance(0.7), context.chance(0.5)};
}

ForwardSchedule schedule_of(const Pass& pass) {
  return {tile_shape<PackedWeight>(), pass.routing.group_of, pass.groups(), pass.latent_down};
}

void add_products(ForwardSchedule& schedule, const Pass& pass) {
  const RandomRouting& routing = pass.routing;
  schedule.begin(routing.tokens * routing.top_k);
  for (int64_t g = 0; g < pass.groups(); ++g) {
    TileList& tiles = schedule.stage(Stage::LatentInputs);
    if (pass.latent_gate) tiles.add(static_cast<int32_t>(g), pass.latent_rows(g), kRank, kHiddenSize);
    if (pass.latent_up) tiles.add(static_cast<int32_t>(pass.groups() + g), pass.latent_rows(g), kRank, kHiddenSize);
    if (!pass.latent_down) continue;
    schedule.stage(Stage::LatentOutputs).add(static_cast<int32_t>(g), pass.latent_rows(g), kRank, routing.top_k);
  }
  for (const int32_t i : schedule.experts()) {
    schedule.stage(Stage::Hidden).add(i, pass.rows(i), kIntermediateSize, kRank);
    schedule.stage(Stage::ExpertOutputs).add(i, pass.rows(i), kRank, kIntermediateSize);
  }
  if (pass.shared_expert) {
    schedule.stage(Stage::Hidden)
        .add(static_cast<int32_t>(routing.experts), routing.tokens, kIntermediateSize, kHiddenSize);
  }
  for (int32_t wave = schedule.first_output(); wave < schedule.num_waves(); ++wave) {
    schedule.stage(Stage::Outputs).add(wave, routing.tokens, kHiddenSize, kRank);
  }
}

// Whether a tile reads what the other writes.
class Dependence {
 public:
  Dependence(const ForwardSchedule& schedule, const Pass& pass) : schedule_(schedule), pass_(pass) {}

  bool operator()(const QueuedTile& later, const QueuedTile& earlier) const {
    const int32_t reader = later.tile.problem, writer = earlier.tile.problem;
    switch (later.stage) {
      case Stage::LatentInputs:
        return false;
      case Stage::Hidden:
        return earlier.stage == Stage::LatentInputs && reader < pass_.routing.experts &&
               pass_.routing.group_of[reader] == writer % pass_.groups();
      case Stage::ExpertOutputs:
        return earlier.stage == Stage::Hidden && writer == reader;
      case Stage::LatentOutputs:
        return earlier.stage == Stage::ExpertOutputs && pass_.routing.group_of[writer] == reader;
      case Stage::Outputs:
        break;
    }
    switch (earlier.stage) {
      case Stage::Hidden:
        return writer == pass_.routing.experts && reader + 1 == schedule_.num_waves();
      case Stage::ExpertOutputs:
        return !pass_.latent_down;
      case Stage::LatentOutputs:
        return schedule_.group_begin(reader) <= writer && writer < schedule_.group_begin(reader + 1);
      case Stage::Outputs:
        return writer + 1 == reader;
      default:
        return false;
    }
  }

 private:
  const ForwardSchedule& schedule_;
  const Pass& pass_;
};

MOLAE_TEST("cpu schedule: every tile comes once, after all that it reads, and waits for it", Logic) {
  for (int round = 0; round < 60; ++round) {
    const Pass pass = random_pass(context);
    ForwardSchedule schedule = schedule_of(pass);
    for (int call = 0; call < 2; ++call) {  // nothing is left of the call before
      add_products(schedule, pass);
      schedule.arrange(static_cast<int>(context.integer(1, 16)));
    }
    const Dependence reads(schedule, pass);
    const auto tiles = schedule.queue().tiles();
    int64_t stage_tiles = 0;
    for (size_t stage = 0; stage < kStages; ++stage) stage_tiles += schedule.stage(static_cast<Stage>(stage)).size();
    expect_equal(static_cast<int64_t>(tiles.size()), stage_tiles, "tiles in the queue");
    for (size_t i = 0; i < tiles.size(); ++i) {
      for (size_t j = 0; j < tiles.size(); ++j) {
        const bool needed = reads(tiles[i], tiles[j]), awaited = tiles[j].feeds == tiles[i].needs;
        expect(!needed || awaited, "tile ", i, " reads what tile ", j, " writes, and does not wait for it");
        expect(!awaited || j < i, "tile ", i, " waits for tile ", j, ", which comes later");
      }
    }
  }
}

MOLAE_TEST("cpu schedule: where experts have few rows, other groups' shared products come between their tiles", Logic) {
  for (const auto& [tokens, overlaps] : {std::pair{16, true}, {400, false}}) {
    RandomRouting routing{tokens, 4, 16, {}, {}, {}, {}};
    for (int32_t i = 0; i < routing.experts; ++i) routing.group_of.push_back(i / 4);
    for (int32_t g = 0; g < 4; ++g) routing.groups.push_back({4 * g, 4 * g + 1, 4 * g + 2, 4 * g + 3});
    for (int64_t t = 0; t < tokens; ++t) {
      for (int64_t slot = 0; slot < 4; ++slot) routing.ids.push_back(static_cast<int32_t>((t + 5 * slot) % 16));
    }
    const Pass pass{routing, true, true, true, false};
    ForwardSchedule schedule = schedule_of(pass);
    add_products(schedule, pass);
    schedule.arrange(2);
    expect_equal(schedule.num_waves(), overlaps ? 4 : 1, "waves of ", tokens, " tokens");
    const auto tiles = schedule.queue().tiles();
    const auto is_experts = [](const QueuedTile& tile) {
      return tile.stage == Stage::Hidden || tile.stage == Stage::ExpertOutputs;
    };
    const auto first = std::ranges::find_if(tiles, is_experts);
    const auto last = std::find_if(tiles.rbegin(), tiles.rend(), is_experts).base();
    for (const Stage stage : {Stage::LatentInputs, Stage::Outputs}) {
      const auto between = std::count_if(first, last, [&](const QueuedTile& tile) { return tile.stage == stage; });
      const auto all = schedule.stage(stage).size();
      expect(overlaps ? 2 * between > all : between == 0, between, " of ", all, " tiles of stage ",
             static_cast<int>(stage), " between those of experts, ", tokens, " tokens");
    }
  }
}

// Tiles that each wait for one of a few gates, which those before them feed.
std::vector<QueuedTile> random_tiles(Context& context, int32_t gates) {
  std::vector<QueuedTile> tiles;
  int32_t closed = 1;  // gate 0 is always open; those from here on are not needed yet
  for (int64_t i = context.integer(0, 80); i > 0; --i) {
    if (closed + 1 < gates && context.chance(0.2)) ++closed;
    const auto needs = static_cast<int32_t>(context.integer(0, closed - 1));
    const auto feeds = static_cast<int32_t>(context.integer(closed, gates - 1));
    tiles.push_back({{static_cast<int32_t>(tiles.size()), 0, 1, 0, 1}, Stage::Hidden, needs, feeds});
  }
  return tiles;
}

MOLAE_TEST("cpu schedule: threads compute every tile once, when all that feed its gate are done", Logic) {
  constexpr int32_t kGates = 9;
  TileQueue queue(kGates);
  for (int round = 0; round < 300; ++round) {
    const std::vector<QueuedTile> lanes[] = {random_tiles(context, kGates)};
    queue.clear();
    queue.add_mixed(lanes);
    const auto tiles = queue.tiles();
    std::vector<std::atomic<int>> times(tiles.size());
    std::atomic<int> early{0};
    queue.run(4, [&](const QueuedTile& queued, int) {
      std::atomic<int> spins{0};  // some take longer than others
      while (spins.fetch_add(1) < queued.tile.problem * 37 % 500) {
      }
      for (const QueuedTile& other : tiles) {
        if (other.feeds == queued.needs && times[other.tile.problem].load() == 0) ++early;
      }
      ++times[queued.tile.problem];
    });
    expect_equal(early.load(), 0, "tiles that were computed before what they need");
    for (size_t i = 0; i < tiles.size(); ++i) expect_equal(times[i].load(), 1, "times that tile ", i, " was computed");
  }
}

MOLAE_TEST("cpu schedule: lanes are mixed evenly, each in its order", Logic) {
  TileQueue queue(2);
  std::vector<QueuedTile> lanes[4];
  const int64_t sizes[] = {0, 30, 10, 3};
  for (int32_t lane = 0; lane < 4; ++lane) {
    for (int64_t i = 0; i < sizes[lane]; ++i) lanes[lane].push_back({{lane, i, 1, 0, 1}, Stage::Hidden, 0, 1});
  }
  queue.clear();
  queue.add_mixed(lanes);
  const auto tiles = queue.tiles();
  expect_equal(tiles.size(), size_t{43}, "tiles");
  int64_t taken[4] = {};
  for (size_t i = 0; i < tiles.size(); ++i) {
    const Tile& tile = tiles[i].tile;
    expect_equal(tile.row, taken[tile.problem]++, "the next tile of lane ", tile.problem);
    for (int lane = 1; lane < 4; ++lane) {
      const double fair = static_cast<double>(sizes[lane]) * static_cast<double>(i + 1) / 43;
      expect(std::abs(static_cast<double>(taken[lane]) - fair) <= 1.5, taken[lane], " of lane ", lane, " after ", i);
    }
  }
}

MOLAE_TEST("cpu schedule: a failure ends a run, whoever waits, and the next one is whole", Logic) {
  constexpr int32_t kChain = 40;
  TileQueue queue(kChain + 1);
  std::vector<QueuedTile> chain[1];
  for (int32_t i = 0; i < kChain; ++i) chain[0].push_back({{i, 0, 1, 0, 1}, Stage::Hidden, i, i + 1});
  for (int round = 0; round < 100; ++round) {
    std::atomic<int> done{0};
    const auto run = [&](int failing) {
      done = 0;
      queue.clear();
      queue.add_mixed(chain);
      queue.run(3, [&](const QueuedTile& queued, int) {
        if (queued.tile.problem == failing) fail(ErrorCode::Internal, "tile ", failing);
        ++done;
      });
    };
    const int failing = round % kChain;
    expect_error(ErrorCode::Internal, "a failing tile", [&] { run(failing); });
    expect_equal(done.load(), failing, "tiles before the one that failed");
    run(-1);
    expect_equal(done.load(), kChain, "tiles of the next run");
  }
}

}  // namespace
}  // namespace molae::test
