#include "cpu/layer/forward_schedule.h"

#include <algorithm>
#include <numeric>
#include <utility>

namespace molae::cpu {
namespace {

// Rows of an expert, on average. With more, experts are bound by arithmetic, too.
constexpr int64_t kMostRowsInWaves = 8;
constexpr int64_t kMostWaves = 16;  // of more groups, several share one

}  // namespace

ForwardSchedule::ForwardSchedule(const TileShape& shape, std::span<const int32_t> group_of, int64_t num_groups,
                                 bool latent_down)
    : group_of_(group_of.begin(), group_of.end()),
      experts_(group_of.size()),
      num_groups_(num_groups),
      latent_down_(latent_down),
      stages_{TileList(shape), TileList(shape), TileList(shape), TileList(shape), TileList(shape)},
      queue_(2 + 3 * std::min(num_groups, kMostWaves) + num_experts()) {
  std::iota(experts_.begin(), experts_.end(), 0);
  std::ranges::sort(experts_, {}, [&](int32_t expert) { return std::pair(group_of_[expert], expert); });
}

void ForwardSchedule::begin(int64_t rows) {
  const bool in_waves = rows <= kMostRowsInWaves * num_experts();
  num_waves_ = in_waves ? static_cast<int32_t>(std::min(num_groups_, kMostWaves)) : 1;
  for (TileList& tiles : stages_) tiles.clear();
}

int ForwardSchedule::arrange(int threads) {
  int useful = 1;
  for (TileList& tiles : stages_) useful = std::max(useful, tiles.cut(threads));
  appended_.fill(0);
  queue_.clear();
  auto& [latent_inputs, experts, outputs] = lanes_;
  for (int32_t step = 0; step < num_waves_ + 2; ++step) {
    for (auto& lane : lanes_) lane.clear();
    append(Stage::LatentInputs, step, latent_inputs);
    append(Stage::Hidden, step, experts);
    append(Stage::ExpertOutputs, step, experts);
    append(Stage::LatentOutputs, step, experts);
    append(Stage::Outputs, step, outputs);
    queue_.add_mixed(lanes_);
  }
  return useful;
}

// The tiles of one step; those of the steps before are appended already.
void ForwardSchedule::append(Stage stage, int32_t step, std::vector<QueuedTile>& lane) {
  const TileList& tiles = stages_[static_cast<size_t>(stage)];
  int64_t& next = appended_[static_cast<size_t>(stage)];
  for (; next < tiles.size(); ++next) {
    const int32_t wave = wave_of(stage, tiles[next].problem);
    if (step_of(stage, wave) != step) return;
    lane.push_back(queued(stage, wave, tiles[next]));
  }
}

// A wave's latent inputs, experts and outputs come in steps that follow each other, but that outputs wait for one step
// more, and all but the last wave's for the last step of experts at most: no latent inputs go with that one.
int32_t ForwardSchedule::step_of(Stage stage, int32_t wave) const {
  if (stage == Stage::LatentInputs) return wave;
  if (stage != Stage::Outputs) return wave + 1;
  return wave + 1 == num_waves_ ? num_waves_ + 1 : std::min(wave + 3, num_waves_);
}

int32_t ForwardSchedule::wave_of_group(int64_t group) const {
  return static_cast<int32_t>(((group + 1) * num_waves_ - 1) / num_groups_);
}

int32_t ForwardSchedule::wave_of(Stage stage, int32_t problem) const {
  switch (stage) {
    case Stage::LatentInputs:
      return wave_of_group(problem % num_groups_);
    case Stage::Hidden:
    case Stage::ExpertOutputs:
      return problem == num_experts() ? num_waves_ - 1 : wave_of_group(group_of_[problem]);
    case Stage::LatentOutputs:
      return wave_of_group(problem);
    case Stage::Outputs:
      return problem;
  }
  return 0;
}

QueuedTile ForwardSchedule::queued(Stage stage, int32_t wave, const Tile& tile) const {
  const int32_t last = num_waves_ - 1;
  switch (stage) {
    case Stage::LatentInputs:
      return {tile, stage, start(), latent_inputs_done(wave)};
    case Stage::Hidden:
      if (tile.problem == num_experts()) return {tile, stage, start(), ready_for_outputs(last)};
      return {tile, stage, latent_inputs_done(wave), hidden_done(tile.problem)};
    case Stage::ExpertOutputs:
      return {tile, stage, hidden_done(tile.problem),
              latent_down_ ? expert_outputs_done(wave) : ready_for_outputs(last)};
    case Stage::LatentOutputs:
      return {tile, stage, expert_outputs_done(wave), ready_for_outputs(wave)};
    case Stage::Outputs:
      break;
  }
  // Each wave adds to the outputs of the one before.
  return {tile, stage, ready_for_outputs(wave), ready_for_outputs(wave + 1)};
}

}  // namespace molae::cpu
