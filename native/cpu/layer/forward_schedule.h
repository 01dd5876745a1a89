#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "cpu/layer/tile_queue.h"

namespace molae::cpu {

// In which order the tiles of a forward pass are computed, and what each waits for.
//
// With some 16 tokens latent inputs and outputs are bound by arithmetic, as all tokens of a group multiply one matrix,
// and experts, of a few rows each, by memory. So groups are then taken in waves, and while threads are at the experts
// of one wave, others are at the latent inputs of the next and the outputs of those before: both limits are met at the
// same time.
class ForwardSchedule {
 public:
  // group_of[i]: the group of expert i, all zeros where experts are dense. latent_down: outputs are sums over groups.
  ForwardSchedule(const TileShape& shape, std::span<const int32_t> group_of, int64_t num_groups, bool latent_down);

  // A pass of so many (token, expert) pairs, without any tiles yet.
  void begin(int64_t rows);

  int32_t num_waves() const { return num_waves_; }
  // Outputs are a product for each wave where they are sums over groups, or one that goes with the last wave.
  int32_t first_output() const { return latent_down_ ? 0 : num_waves_ - 1; }
  int64_t group_begin(int32_t wave) const { return num_groups_ * wave / num_waves_; }
  // All experts, those of a wave one after the other.
  std::span<const int32_t> experts() const { return experts_; }

  // The products of a stage, to be added wave after wave. Problems are called
  //   LatentInputs   g for the gate matrix of group g, G + g for its up matrix
  //   Hidden         i for expert i, N for the shared expert, which belongs to the last wave
  //   ExpertOutputs  i for expert i
  //   LatentOutputs  g for group g
  //   Outputs        the wave
  TileList& stage(Stage stage) { return stages_[static_cast<size_t>(stage)]; }

  // Cuts all products into tiles for up to `threads`, puts them in order, and says for how many threads.
  int arrange(int threads);

  TileQueue& queue() { return queue_; }

 private:
  int64_t num_experts() const { return static_cast<int64_t>(group_of_.size()); }
  int32_t wave_of(Stage stage, int32_t problem) const;
  int32_t wave_of_group(int64_t group) const;
  int32_t step_of(Stage stage, int32_t wave) const;
  void append(Stage stage, int32_t step, std::vector<QueuedTile>& lane);
  QueuedTile queued(Stage stage, int32_t wave, const Tile& tile) const;

  // Gates, one after the other.
  int32_t start() const { return 0; }
  int32_t latent_inputs_done(int32_t wave) const { return 1 + wave; }
  int32_t expert_outputs_done(int32_t wave) const { return latent_inputs_done(num_waves_) + wave; }
  int32_t ready_for_outputs(int32_t wave) const { return expert_outputs_done(num_waves_) + wave; }
  int32_t hidden_done(int32_t expert) const { return ready_for_outputs(num_waves_) + 1 + expert; }

  std::vector<int32_t> group_of_;
  std::vector<int32_t> experts_;
  int64_t num_groups_;
  bool latent_down_;
  int32_t num_waves_ = 1;
  std::array<TileList, kStages> stages_;
  std::array<int64_t, kStages> appended_{};
  std::array<std::vector<QueuedTile>, 3> lanes_;
  TileQueue queue_;
};

}  // namespace molae::cpu
