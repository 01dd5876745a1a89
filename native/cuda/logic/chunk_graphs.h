#pragma once

#include <list>
#include <optional>
#include <utility>

#include "core/tensor/dtype.h"
#include "cuda/config/launch_choice.h"
#include "cuda/logic/workspace.h"

namespace molae::cuda {

// All that the kernels, grids and arrays of a chunk depend on, for one layer.
struct ChunkShape {
  int64_t tokens, top_k;
  DType dtype;  // of x and y

  bool operator==(const ChunkShape&) const = default;
};

// The arguments of a chunk.
struct LayerChunk {
  ChunkShape shape;
  const void* x;         // [tokens, hidden_size]
  const int32_t* ids;    // [tokens, top_k]
  const float* weights;  // [tokens, top_k]
  void* y;               // [tokens, hidden_size]
  int64_t first_token;   // of the call's
};

// Graphs of a layer's chunks, one for each shape, the last few of them. A graph has the addresses that its kernels were
// captured with. So it works on arguments and arrays of its own, which stay where they are: x and the routing are
// copied there before it runs, and y from there afterwards. The arrays between are the same ones every time.
//
// The first chunk of a shape runs as ever. That loads its kernels and allocates its arrays, neither of which may happen
// during a capture; and a shape that does not come back is not worth a graph. The second one is captured. Where that
// fails, the call fails, and so does the next one: who asked for graphs is not given something else without a word.
template <class Runtime>
class ChunkGraphs {
 public:
  // run_chunk(Workspace&, const LayerChunk&) queues a chunk's kernels.
  template <class RunChunk>
  void run(Runtime& runtime, int64_t hidden_size, const LayerChunk& chunk, RunChunk run_chunk) {
    Entry& entry = find(chunk.shape);
    try {
      run_entry(runtime, hidden_size, chunk, run_chunk, entry);
    } catch (...) {
      if (!entry.ran) entries_.pop_front();  // some of its arrays may be missing
      throw;
    }
  }

 private:
  struct Entry {
    ChunkShape shape;
    Workspace<Runtime> arrays;
    bool ran = false;
    std::optional<typename Runtime::Graph> graph;
  };

  // The entry of a shape, new where there is none; the first from now on.
  Entry& find(const ChunkShape& shape) {
    for (auto at = entries_.begin(); at != entries_.end(); ++at) {
      if (!(at->shape == shape)) continue;
      entries_.splice(entries_.begin(), entries_, at);
      return entries_.front();
    }
    if (entries_.size() == kGraphShapes) entries_.pop_back();
    entries_.emplace_front();
    entries_.front().shape = shape;
    return entries_.front();
  }

  template <class RunChunk>
  void run_entry(Runtime& runtime, int64_t hidden_size, const LayerChunk& chunk, RunChunk& run_chunk, Entry& entry) {
    const ChunkShape& shape = chunk.shape;
    const int64_t row_bytes = hidden_size * static_cast<int64_t>(item_size(shape.dtype));
    const int64_t pairs = shape.tokens * shape.top_k;
    entry.arrays.rewind();
    auto* x = entry.arrays.template array<char>(runtime, shape.tokens * row_bytes);
    auto* ids = entry.arrays.template array<int32_t>(runtime, pairs);
    auto* weights = entry.arrays.template array<float>(runtime, pairs);
    auto* y = entry.arrays.template array<char>(runtime, shape.tokens * row_bytes);

    runtime.copy(x, chunk.x, shape.tokens * row_bytes);
    runtime.copy(ids, chunk.ids, pairs * sizeof(int32_t));
    runtime.copy(weights, chunk.weights, pairs * sizeof(float));
    const auto launch = [&] { run_chunk(entry.arrays, LayerChunk{shape, x, ids, weights, y, chunk.first_token}); };
    if (!entry.ran) {
      launch();
      entry.ran = true;
    } else {
      if (!entry.graph) entry.graph = runtime.capture(launch);
      runtime.launch(*entry.graph);
    }
    runtime.copy(chunk.y, y, shape.tokens * row_bytes);
  }

  std::list<Entry> entries_;  // the one that was used last comes first
};

}  // namespace molae::cuda
