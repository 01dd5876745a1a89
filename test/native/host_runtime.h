#pragma once

#include <cstring>
#include <functional>
#include <memory>
#include <new>
#include <utility>
#include <vector>

#include "core/error.h"
#include "cuda/config/launch_choice.h"
#include "cuda/config/tile_choice.h"
#include "cuda/logic/combine.h"
#include "cuda/logic/host_block.h"
#include "cuda/logic/layer_chain.h"
#include "cuda/logic/simt_math.h"
#include "cuda/logic/sort.h"
#include "cuda/logic/streamed_gemm.h"
#include "native/harness.h"
#include "native/hopper_on_host.h"

// The CUDA backend's kernels on the host: the same bodies, grids and arrays, one thread after the other. Only what
// multiplies a tile differs where the GPU has tensor cores: SimtMath takes their place, with the same tile shapes,
// stages and loads. Hopper's tiles run on a model of the hardware (hopper_model.h).
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

inline void sort_on_host(const cuda::RoutingPlan& plan) {
  const auto chunks = static_cast<int>(cuda::ceil_div(plan.tokens, cuda::kSortTokens));
  if (chunks == 0) return;
  const auto shared = std::make_unique<cuda::PlanShared>();
  if (chunks == 1) return cuda::sort_chunk(cuda::HostBlock(0, cuda::kScanThreads), plan, *shared);
  for (int c = 0; c < chunks; ++c) cuda::count_chunk(cuda::HostBlock(c, cuda::kSortThreads), plan);
  cuda::plan_rows(cuda::HostBlock(0, cuda::kScanThreads), plan, *shared);
  for (int c = 0; c < chunks; ++c) cuda::scatter_chunk(cuda::HostBlock(c, cuda::kSortThreads), plan);
}

template <class Math>
void gemm_on_host(bool dual, const cuda::GroupedGemm<typename Math::In>& args, int64_t row_tiles, int64_t max_cols) {
  const auto shared = std::make_unique<cuda::GemmShared<Math>>();
  for (int64_t x = 0; x < row_tiles; ++x) {
    for (int64_t y = 0; y < cuda::ceil_div(max_cols, Math::kCols); ++y) {
      const cuda::HostBlock block(static_cast<int>(x), Math::kThreads);
      std::memset(static_cast<void*>(shared.get()), 0xff, sizeof *shared);
      if (dual) {
        cuda::grouped_gemm_tile<Math, true>(block, static_cast<int>(x), static_cast<int>(y), args, *shared);
      } else {
        cuda::grouped_gemm_tile<Math, false>(block, static_cast<int>(x), static_cast<int>(y), args, *shared);
      }
    }
  }
}

// The shapes of kernels/grouped_gemm.cuh.
template <class In>
void gemm_on_host(cuda::GemmTile tile, bool dual, const cuda::GroupedGemm<In>& args, int64_t row_tiles,
                  int64_t max_cols) {
  using namespace cuda;
  switch (tile) {
    case GemmTile::Small:
      return gemm_on_host<SimtMath<In, 16, 64, 64, 4, true>>(dual, args, row_tiles, max_cols);
    case GemmTile::Medium:
      return gemm_on_host<SimtMath<In, 64, 128, 32, 3, true>>(dual, args, row_tiles, max_cols);
    case GemmTile::Large:
      return gemm_on_host<SimtMath<In, 128, 128, 32, 3, true>>(dual, args, row_tiles, max_cols);
    default:
      return gemm_on_host<SimtMath<In, 64, 64, 16, 2, false>>(dual, args, row_tiles, max_cols);
  }
}

// Calls body(index) for the blocks of a grid, the last splits first: no result may depend on their order.
template <class Body>
void each_stream_block(int64_t row_tiles, int64_t column_blocks, int64_t products, int32_t splits, Body body) {
  for (int64_t z = products * splits - 1; z >= 0; --z) {
    for (int64_t y = 0; y < column_blocks; ++y) {
      for (int64_t x = 0; x < row_tiles; ++x) body(cuda::stream_index(x, y, z, splits));
    }
  }
}

template <class In, bool kDual>
void stream_on_host(const cuda::StreamedGemm<In>& args, cuda::ThreadOrder order) {
  using namespace cuda;
  const auto shared = std::make_unique<StreamShared<In, kDual>>();
  each_stream_block(args.row_tiles, ceil_div(args.max_columns, kStreamColumns), args.count, args.splits,
                    [&](const StreamIndex& at) {
                      std::memset(static_cast<void*>(shared.get()), 0xff, sizeof *shared);
                      const HostBlock block(0, kStreamThreads, order);
                      prefetch_weights<In, kDual>(block, at, args);
                      streamed_gemm_block<In, kDual>(block, at, args, *shared);
                    });
}

template <class In>
void stream_on_host(const cuda::StreamedGemm<In>& args, cuda::ThreadOrder order = cuda::ThreadOrder::Forwards) {
  return args.dual ? stream_on_host<In, true>(args, order) : stream_on_host<In, false>(args, order);
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

// The graphs of a HostRuntime, and what became of them.
struct HostGraphs {
  int captured = 0, launched = 0;
  bool fail = false;  // the next captures
};

// What LayerChain runs on. With `graphs` it launches as MOLAE_CUDA_LAUNCH=graph does: a captured launch is a closure
// that has the kernel's arguments, as a node of a graph has them.
class HostRuntime {
 public:
  using Memory = HostMemory;
  using Graph = std::vector<std::function<void()>>;

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
    queue();
    capturing_ = nullptr;
    ++graphs_->captured;
    return graph;
  }
  void launch(const Graph& graph) {
    for (const auto& kernel : graph) kernel();
    ++graphs_->launched;
  }
  void copy(void* to, const void* from, size_t bytes) {
    expect(!capturing_, "arguments were copied while a graph was captured");
    if (bytes > 0) std::memcpy(to, from, bytes);
  }

  void sort_rows(const cuda::RoutingPlan& plan) {
    submit([=] { sort_on_host(plan); });
  }
  void convert(DType from_dtype, const void* from, DType to_dtype, void* to, int64_t count) {
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
  void grouped_gemm(cuda::GemmTile tile, bool dual, const cuda::GroupedGemm<In>& args, int64_t row_tiles,
                    int64_t max_cols) {
    submit([=, seed = seed_] {
      if constexpr (is_half(cuda::DTypeOf<In>::value)) {
        if (cuda::tile_family(tile) == cuda::TileFamily::Hopper) {
          return hopper_gemm_on_host<In>(tile, {args, row_tiles, max_cols, dual}, kHopperBlocks, seed);
        }
      }
      gemm_on_host(tile, dual, args, row_tiles, max_cols);
    });
  }
  int multiprocessors() const { return multiprocessors_; }
  template <class In>
  void streamed_gemm(const cuda::StreamedGemm<In>& args) {
    submit([=] { stream_on_host(args); });
  }
  template <class In>
  void join_splits(const cuda::JoinSplits<In>& args) {
    submit([=] { join_on_host(args); });
  }
  template <class In>
  void combine_latent(const cuda::LatentCombine<In>& args, int64_t latent_rows) {
    submit([=] {
      for (int64_t row = 0; row < latent_rows; ++row) {
        cuda::combine_latent_row(cuda::HostBlock(static_cast<int>(row), cuda::kCombineThreads), args);
      }
    });
  }
  template <class In>
  void combine_output(const cuda::OutputCombine<In>& args) {
    submit([=] {
      const int64_t blocks = args.plan.tokens * cuda::ceil_div(args.hidden_size, cuda::kCombineThreads);
      for (int64_t i = 0; i < blocks; ++i) {
        cuda::combine_output(cuda::HostBlock(static_cast<int>(i), cuda::kCombineThreads), args);
      }
    });
  }
  template <class In>
  void shared_expert_scale(const cuda::SharedScale<In>& args, int64_t tokens) {
    submit([=] {
      cuda::ScaleShared<In> shared;
      for (int64_t t = 0; t < tokens; ++t) {
        cuda::shared_expert_scale(cuda::HostBlock(static_cast<int>(t), cuda::kScaleThreads), args, shared);
      }
    });
  }

 private:
  template <class Launch>
  void submit(Launch launch) {
    if (!capturing_) return launch();
    capturing_->push_back(std::move(launch));
  }

  unsigned long long* error_;
  cuda::TileRequest tiles_;
  uint64_t seed_;
  int multiprocessors_;
  HostGraphs* graphs_;
  Graph* capturing_ = nullptr;
};

}  // namespace molae::test
