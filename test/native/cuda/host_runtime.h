#pragma once

#include <cstring>
#include <functional>
#include <memory>
#include <new>
#include <stdexcept>
#include <utility>
#include <vector>

#include "core/error.h"
#include "cuda/config/launch_choice.h"
#include "cuda/config/mma_tiles.h"
#include "cuda/config/tile_choice.h"
#include "cuda/logic/combine.h"
#include "cuda/logic/host_block.h"
#include "cuda/logic/layer_chain.h"
#include "cuda/logic/overlap.h"
#include "cuda/logic/sort.h"
#include "cuda/logic/streamed_gemm.h"
#include "native/cuda/hopper_on_host.h"
#include "native/harness.h"

// The CUDA backend's kernels on the host: the same bodies, grids and arrays, one thread after the other, or one warp
// where it works together (cuda/logic/host_warp.h). Hopper's tiles run on a model of the hardware (hopper_model.h).
namespace molae::test {

// Exactly as large as asked for, so that a sanitizer sees every overrun, and full of NaN and -1, so that a read of what
// was never written shows.
class HostMemory {
 public:
  HostMemory() = default;
  explicit HostMemory(size_t bytes) : data_(static_cast<char*>(::operator new(bytes, kAlignment)), Delete()) {
    std::memset(data_.get(), 0xff, bytes);
  }
  template <class T = void>
  T* as() const {
    return reinterpret_cast<T*>(data_.get());
  }

 private:
  static constexpr std::align_val_t kAlignment{256};
  struct Delete {
    void operator()(char* data) const { ::operator delete(data, kAlignment); }
  };
  std::unique_ptr<char, Delete> data_;
};

// What a kernel calls where it waits for the one before it (kernels/chained_launch.cuh), in every block.
using AfterPrevious = std::function<void()>;
inline const AfterPrevious kNothingBefore = [] {};

inline void sort_on_host(const cuda::RoutingPlan& plan) {
  const auto chunks = static_cast<int>(cuda::ceil_div(plan.tokens, cuda::kSortTokens));
  if (chunks == 0) return;
  const auto shared = std::make_unique<cuda::PlanShared>();
  if (chunks == 1) return cuda::sort_chunk(cuda::HostBlock(0, cuda::kScanThreads), plan, *shared);
  for (int c = 0; c < chunks; ++c) cuda::count_chunk(cuda::HostBlock(c, cuda::kSortThreads), plan);
  cuda::plan_rows(cuda::HostBlock(0, cuda::kScanThreads), plan, *shared);
  for (int c = 0; c < chunks; ++c) cuda::scatter_chunk(cuda::HostBlock(c, cuda::kSortThreads), plan);
}

// Calls body(x, y, z) for the blocks of a grid, the last z first: no result may depend on their order.
template <class Body>
void each_block(int64_t x_blocks, int64_t y_blocks, int64_t z_blocks, Body body) {
  for (int64_t z = z_blocks - 1; z >= 0; --z) {
    for (int64_t y = 0; y < y_blocks; ++y) {
      for (int64_t x = 0; x < x_blocks; ++x) body(x, y, z);
    }
  }
}

template <class Math>
void gemm_on_host(const cuda::GroupedGemms<typename Math::In>& args, const AfterPrevious& after_previous) {
  const auto shared = std::make_unique<cuda::GemmShared<Math>>();
  if (args.row_tiles == 0 || args.max_columns == 0) return;
  each_block(args.row_tiles * cuda::column_blocks<Math>(args), 1, args.count, [&](int64_t x, int64_t, int64_t z) {
    const cuda::HostBlock block(static_cast<int>(x), Math::kThreads);
    const cuda::TileIndex at = cuda::tile_index<Math>(args, static_cast<int>(x));
    std::memset(static_cast<void*>(shared.get()), 0xff, sizeof *shared);
    cuda::prefetch_weights<Math>(block, at, args.products[z]);
    after_previous();
    if (args.dual) {
      cuda::grouped_gemm_tile<Math, true>(block, at, args.products[z], *shared);
    } else {
      cuda::grouped_gemm_tile<Math, false>(block, at, args.products[z], *shared);
    }
  });
}

template <class In>
void gemm_on_host(cuda::GemmTile tile, const cuda::GroupedGemms<In>& args, const AfterPrevious& after_previous) {
  using namespace cuda;
  if constexpr (sizeof(In) == 2) {
    switch (tile) {
      case GemmTile::Small:
        return gemm_on_host<SmallTile<In>>(args, after_previous);
      case GemmTile::Medium:
        return gemm_on_host<MediumTile<In>>(args, after_previous);
      case GemmTile::Large:
        return gemm_on_host<LargeTile<In>>(args, after_previous);
      default:
        throw std::logic_error("A tile that halves have no kernel for");
    }
  } else {
    gemm_on_host<SimtTile<In>>(args, after_previous);
  }
}

template <class Body>
void each_stream_block(int64_t row_tiles, int64_t column_blocks, int64_t products, int32_t splits, Body body) {
  each_block(row_tiles, column_blocks, products * splits,
             [&](int64_t x, int64_t y, int64_t z) { body(cuda::stream_index(x, y, z, splits)); });
}

template <class In, bool kDual>
void stream_on_host(const cuda::StreamedGemm<In>& args, cuda::ThreadOrder order, const AfterPrevious& after_previous) {
  using namespace cuda;
  const auto shared = std::make_unique<StreamShared<In, kDual>>();
  each_stream_block(args.row_tiles, ceil_div(args.max_columns, kStreamColumns), args.count, args.splits,
                    [&](const StreamIndex& at) {
                      std::memset(static_cast<void*>(shared.get()), 0xff, sizeof *shared);
                      const HostBlock block(0, kStreamThreads, order);
                      prefetch_weights<In, kDual>(block, at, args);
                      after_previous();
                      streamed_gemm_block<In, kDual>(block, at, args, *shared);
                    });
}

template <class In>
void stream_on_host(const cuda::StreamedGemm<In>& args, cuda::ThreadOrder order = cuda::ThreadOrder::Forwards,
                    const AfterPrevious& after_previous = kNothingBefore) {
  return args.dual ? stream_on_host<In, true>(args, order, after_previous)
                   : stream_on_host<In, false>(args, order, after_previous);
}

template <class In>
void join_on_host(const cuda::JoinSplits<In>& args) {
  using namespace cuda;
  each_stream_block(
      args.row_tiles, ceil_div(args.max_columns, kJoinThreads), args.count, 1, [&](const StreamIndex& at) {
        const HostBlock block(0, kJoinThreads);
        return args.dual ? join_splits<In, true>(block, at, args) : join_splits<In, false>(block, at, args);
      });
}

template <class In>
void combine_on_host(const cuda::OutputCombine<In>& args) {
  const int64_t blocks = args.plan.tokens * cuda::output_blocks_per_token(args.hidden_size);
  for (int64_t i = 0; i < blocks; ++i) {
    cuda::combine_output(cuda::HostBlock(static_cast<int>(i), cuda::kOutputThreads), args);
  }
}

// The graphs of a HostRuntime, and what became of them.
struct HostGraphs {
  int captured = 0, launched = 0;
  int overlapped = 0;  // kernels that began before the one before them
  bool fail = false;   // the next captures
};

// What LayerChain runs on. With `graphs` it launches as MOLAE_CUDA_LAUNCH=graph does: a captured launch is a closure
// that has the kernel's arguments, as a node of a graph has them. Kernels of a graph that may overlap do: every other
// one begins before the one before it, which runs where the later one waits for it.
class HostRuntime {
 public:
  using Memory = HostMemory;
  struct Kernel {
    std::function<void(const AfterPrevious&)> run;
    bool overlaps;  // with the one before it
  };
  using Graph = std::vector<Kernel>;

  static constexpr int kHopperBlocks = 3;

  explicit HostRuntime(unsigned long long* error, cuda::TileRequest tiles = {cuda::TileFamily::Mma, {}},
                       uint64_t seed = 0, int multiprocessors = 8, HostGraphs* graphs = nullptr)
      : error_(error), tiles_(tiles), seed_(seed), multiprocessors_(multiprocessors), graphs_(graphs) {}

  void begin() {}
  Memory memory(size_t bytes) {
    expect(!capturing_, "memory was asked for while a graph was captured");
    return Memory(bytes);
  }
  Memory upload(const void* data, size_t bytes) {
    Memory to = memory(bytes);
    if (bytes > 0) std::memcpy(to.as(), data, bytes);
    return to;
  }
  unsigned long long* error_record() { return error_; }
  cuda::TileRequest tiles() const { return tiles_; }
  Memory weight_maps(const std::vector<cuda::hopper::WeightMapArguments>& arguments) {
    std::vector<cuda::WeightMap> maps;
    for (const auto& of_one : arguments) maps.push_back(encode_on_host(of_one));
    return upload(maps.data(), maps.size() * sizeof(cuda::WeightMap));
  }

  cuda::LaunchMode launch_mode() const { return graphs_ ? cuda::LaunchMode::Graph : cuda::LaunchMode::Stream; }
  template <class Queue>
  Graph capture(Queue queue) {
    if (graphs_->fail) fail(ErrorCode::Internal, "A capture fails, as the test wants it");
    Graph graph;
    capturing_ = &graph;
    overlap_ = cuda::Overlap(true);
    queue();
    capturing_ = nullptr;
    ++graphs_->captured;
    return graph;
  }
  void launch(const Graph& graph) {
    size_t next = 0;
    while (next < graph.size()) {
      const bool pair = next + 1 < graph.size() && graph[next + 1].overlaps && (next + graphs_->launched) % 2 == 0;
      pair ? run_overlapped(graph[next], graph[next + 1]) : graph[next].run(kNothingBefore);
      next += pair ? 2 : 1;
    }
    ++graphs_->launched;
  }
  void copy(void* to, const void* from, size_t bytes) {
    expect(!capturing_, "arguments were copied while a graph was captured");
    if (bytes > 0) std::memcpy(to, from, bytes);
  }

  void sort_rows(const cuda::RoutingPlan& plan) {
    if (plan.tokens == 0) return;
    submit([=] { sort_on_host(plan); });
    overlap_.sorted();
  }
  void convert(DType from_dtype, const void* from, DType to_dtype, void* to, int64_t count) {
    if (count == 0) return;
    submit([=] {
      for (int64_t i = 0; i < count; ++i) {
        if (from_dtype == DType::F64) {
          cuda::store_as(to_dtype, to, i, static_cast<const double*>(from)[i]);
        } else {
          cuda::store_as(to_dtype, to, i, cuda::load_as<float>(from_dtype, from, i));
        }
      }
    });
  }
  template <class In>
  void grouped_gemm(cuda::GemmTile tile, const cuda::GroupedGemms<In>& args) {
    if (args.row_tiles == 0 || args.max_columns == 0) return;
    submit_chained([=, seed = ++seed_](const AfterPrevious& after_previous) {
      if constexpr (is_half(cuda::DTypeOf<In>::value)) {
        if (cuda::tile_family(tile) == cuda::TileFamily::Hopper) {
          for (int i = 0; i < args.count; ++i) {
            hopper_gemm_on_host<In>(tile, {args.products[i], args.row_tiles, args.max_columns, args.dual},
                                    kHopperBlocks, seed + i, after_previous);
          }
          return;
        }
      }
      gemm_on_host(tile, args, after_previous);
    });
  }
  int multiprocessors() const { return multiprocessors_; }
  template <class In>
  void streamed_gemm(const cuda::StreamedGemm<In>& args) {
    if (args.row_tiles == 0 || args.max_columns == 0) return;
    submit_chained([=](const AfterPrevious& after_previous) {
      stream_on_host(args, cuda::ThreadOrder::Forwards, after_previous);
    });
  }
  template <class In>
  void join_splits(const cuda::JoinSplits<In>& args) {
    if (args.row_tiles == 0 || args.max_columns == 0) return;
    submit_waiting([=] { join_on_host(args); });
  }
  template <class In>
  void combine_latent(const cuda::LatentCombine<In>& args, int64_t latent_rows) {
    if (latent_rows == 0) return;
    submit_waiting([=] {
      for (int64_t row = 0; row < latent_rows; ++row) {
        cuda::combine_latent_row(cuda::HostBlock(static_cast<int>(row), cuda::kCombineThreads), args);
      }
    });
  }
  template <class In>
  void combine_output(const cuda::OutputCombine<In>& args) {
    if (args.plan.tokens == 0 || args.hidden_size == 0) return;
    submit_waiting([=] { combine_on_host(args); });
  }
  template <class In>
  void shared_expert_scale(const cuda::SharedScale<In>& args, int64_t tokens) {
    if (tokens == 0) return;
    submit_waiting([=] {
      cuda::ScaleShared<In> shared;
      for (int64_t t = 0; t < tokens; ++t) {
        cuda::shared_expert_scale(cuda::HostBlock(static_cast<int>(t), cuda::kScaleThreads), args, shared);
      }
    });
  }

 private:
  void run_overlapped(const Kernel& first, const Kernel& second) {
    bool ran = false;
    second.run([&] {
      if (std::exchange(ran, true)) return;
      first.run(kNothingBefore);
    });
    expect(ran, "a kernel that did not wait for the one before it");
    ++graphs_->overlapped;
  }

  void queue(bool overlaps, std::function<void(const AfterPrevious&)> run) {
    if (!capturing_) return run(kNothingBefore);
    capturing_->push_back({std::move(run), overlaps});
  }
  template <class Body>
  void submit(Body body) {
    queue(false, [=](const AfterPrevious&) { body(); });
  }
  template <class Body>
  void submit_chained(Body body) {
    queue(overlap_.next(), body);
  }
  // Kernels that wait first of all.
  template <class Body>
  void submit_waiting(Body body) {
    submit_chained([=](const AfterPrevious& after_previous) {
      after_previous();
      body();
    });
  }

  unsigned long long* error_;
  cuda::TileRequest tiles_;
  uint64_t seed_;
  int multiprocessors_;
  HostGraphs* graphs_;
  Graph* capturing_ = nullptr;
  cuda::Overlap overlap_{false};
};

}  // namespace molae::test
