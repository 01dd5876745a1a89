#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "cpu/linear/tile_list.h"
#include "cpu/system/compute_pool.h"

namespace molae::cpu {

// The steps of a layer's forward pass, as experts_forward.cc has them.
enum class Stage : uint8_t { LatentInputs, Hidden, ExpertOutputs, LatentOutputs, Outputs };
constexpr size_t kStages = 5;

// Open once all that feed it are done.
class Gate {
 public:
  void reset() { left_.store(0, std::memory_order_relaxed); }
  void await_one_more() { left_.fetch_add(1, std::memory_order_relaxed); }
  void one_is_done();
  void open();
  void wait() const;

 private:
  std::atomic<int32_t> left_{0};
};

// A tile of a stage: it is computed once the gate `needs` is open, and then feeds another one.
struct QueuedTile {
  Tile tile;
  Stage stage;
  int32_t needs, feeds;
};

// Tiles of several stages in one queue, from which threads take one after the other: what the next stage needs is done
// when its turn comes, and nobody waits for the last tile of the one before. What feeds a gate must lie before what
// needs it; so the first tile that is not done waits for none, and somebody is at it. Keeps its memory.
class TileQueue {
 public:
  explicit TileQueue(int64_t gates) : gates_(gates) {}

  void clear();
  // Appends the tiles of several lanes, each in its order, mixed so that all lanes end together.
  void add_mixed(std::span<const std::vector<QueuedTile>> lanes);

  std::span<const QueuedTile> tiles() const { return tiles_; }

  // Calls body(queued, participant) for every tile, once, from up to `threads` threads. After an exception the rest is
  // left out, and the first one is thrown.
  template <class Body>
  void run(int threads, Body body) {
    failed_.store(false, std::memory_order_relaxed);
    ComputePool::instance().parallel_for(threads, static_cast<int64_t>(tiles_.size()), [&](int64_t i, int participant) {
      const QueuedTile& queued = tiles_[i];
      gates_[queued.needs].wait();
      if (failed_.load(std::memory_order_relaxed)) return;
      try {
        body(queued, participant);
      } catch (...) {
        give_up();
        throw;
      }
      gates_[queued.feeds].one_is_done();
    });
  }

 private:
  void give_up();

  std::vector<QueuedTile> tiles_;
  std::vector<Gate> gates_;
  std::vector<size_t> taken_;  // of each lane that is being mixed
  std::atomic<bool> failed_{false};
};

}  // namespace molae::cpu
