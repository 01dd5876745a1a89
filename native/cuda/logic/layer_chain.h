#pragma once

#include <algorithm>
#include <utility>
#include <vector>

#include "core/backend.h"
#include "core/checked.h"
#include "core/error.h"
#include "cuda/config/launch_choice.h"
#include "cuda/config/tile_choice.h"
#include "cuda/logic/chunk_graphs.h"
#include "cuda/logic/combine.h"
#include "cuda/logic/grouped_gemm.h"
#include "cuda/logic/hopper/weight_map.h"
#include "cuda/logic/products.h"
#include "cuda/logic/routing_plan.h"
#include "cuda/logic/workspace.h"

// The forward pass of a layer of dense or latent experts, as a chain of kernels on one stream:
//   0. sort             pairs by (expert, token) and (group, token), tile maps: on the GPU
//   1. latent inputs    z[g] = x B_g^T               per distinct (token, group), for gate and for up
//   2. hidden           h = act(gate) * up           per (token, expert)
//   3. expert outputs   e = h W_down^T or h A_down^T  per (token, expert)
//   4. latent outputs   d[t, g] = sum_i w[t, i] e    in the latent space
//   5. group outputs    p[t, g] = B_down[g] d[t, g]
//   6. outputs          y[t] = sum_g p[t, g], or the weighted sum of e itself; + the shared expert
// No count comes back to the host: arrays and grids have the sizes of the worst routing, and blocks without work return
// at once. Between two runs of one shape nothing changes but the contents of the arguments, so that a chunk can be
// captured in a graph (chunk_graphs.h).
//
// Numbers: where all weights are bf16 (or all f16) the tensor cores multiply; x, z, h and d are rounded to that format,
// sums are f32. Otherwise products and sums are f32 (f64 in f64 layers), and weights are widened as they are read.
namespace molae::cuda {

// Workspaces of a chunk of tokens stay below this.
inline constexpr size_t kChunkBytes = size_t{2} << 30;

inline std::vector<Tensor> all_matrices(const ExpertLayer& layer) {
  std::vector<Tensor> matrices;
  for (const ExpertOperator* op : {&layer.gate, &layer.up, &layer.down}) {
    matrices.insert(matrices.end(), op->per_expert.begin(), op->per_expert.end());
    matrices.insert(matrices.end(), op->shared.begin(), op->shared.end());
  }
  if (layer.shared_expert) {
    matrices.insert(matrices.end(), {layer.shared_expert->gate, layer.shared_expert->up, layer.shared_expert->down});
  }
  return matrices;
}

// What a layer computes in: the one dtype of all its matrices, or F32 for a mix.
inline DType common_dtype(const ExpertLayer& layer) {
  const DType dtype = layer.gate.per_expert[0].dtype();
  const std::vector<Tensor> matrices = all_matrices(layer);
  const bool same = std::all_of(matrices.begin(), matrices.end(), [&](const Tensor& m) { return m.dtype() == dtype; });
  return same ? dtype : DType::F32;
}

// Whether the copy engine can read all matrices of a layer: then Hopper's tiles can multiply them.
inline bool has_weight_maps(const ExpertLayer& layer) {
  const std::vector<Tensor> matrices = all_matrices(layer);
  return is_half(common_dtype(layer)) && std::all_of(matrices.begin(), matrices.end(), [](const Tensor& m) {
           return hopper::has_weight_map(m.dtype(), m.data(), m.rows(), m.cols());
         });
}

// One operator's matrices as a table on the GPU.
template <class Runtime>
struct Table {
  typename Runtime::Memory weights;  // Weight[]
  typename Runtime::Memory maps;     // WeightMap[], where Hopper's tiles are to multiply them
  int64_t max_rows = 0, max_inner = 0;

  template <class In>
  Operand<In> times(const In* input, int64_t stride, const int32_t* gather) const {
    return {{input, stride, gather, weights.template as<const Weight>(), maps.template as<const WeightMap>()},
            max_rows,
            max_inner};
  }
};

template <class Runtime>
Table<Runtime> make_table(Runtime& runtime, const std::vector<Tensor>& matrices, bool mapped) {
  Table<Runtime> table;
  std::vector<Weight> weights;
  for (const Tensor& matrix : matrices) {
    if (matrix.rows() > kMaxCount || matrix.cols() > kMaxCount) {
      fail(ErrorCode::InvalidArgument, "A matrix of shape ", shape_name(matrix.shape()), " is too large for the GPU");
    }
    weights.push_back(
        {matrix.data(), static_cast<int32_t>(matrix.rows()), static_cast<int32_t>(matrix.cols()), matrix.dtype()});
    table.max_rows = std::max(table.max_rows, matrix.rows());
    table.max_inner = std::max(table.max_inner, matrix.cols());
  }
  table.weights = runtime.upload(weights.data(), weights.size() * sizeof(Weight));
  if (!mapped) return table;
  std::vector<hopper::WeightMapArguments> maps;
  for (const Tensor& m : matrices) {
    maps.push_back(hopper::weight_map_arguments(m.dtype(), m.data(), m.rows(), m.cols()));
  }
  table.maps = runtime.weight_maps(maps);
  return table;
}

template <class Runtime>
typename Runtime::Memory upload_ints(Runtime& runtime, const std::vector<int32_t>& values) {
  return runtime.upload(values.data(), values.size() * sizeof(int32_t));
}

template <class Runtime>
struct OperatorTables {
  OperatorTables(Runtime& runtime, const ExpertOperator& op, bool mapped)
      : per_expert(make_table(runtime, op.per_expert, mapped)),
        shared(make_table(runtime, op.shared, mapped)),
        latent(op.latent()) {}

  Table<Runtime> per_expert, shared;
  bool latent;
};

// Runtime: memory and launches. On the GPU it is api/layer_forward.cc's; the tests have one that runs the kernels'
// bodies on the host.
template <class In, class Runtime>
class LayerChain final : public LayerForward {
 public:
  using Wide = Sum<In>;
  using Memory = typename Runtime::Memory;
  using Operator = OperatorTables<Runtime>;

  LayerChain(Runtime runtime, ExpertLayer layer)
      : runtime_(std::move(runtime)),
        layer_(std::move(layer)),
        mapped_(wants_hopper(runtime_.tiles()) && has_weight_maps(layer_)),
        gate_(runtime_, layer_.gate, mapped_),
        up_(runtime_, layer_.up, mapped_),
        down_(runtime_, layer_.down, mapped_),
        group_of_(upload_ints(runtime_, layer_.group_of_expert())),
        down_ranks_(upload_ints(runtime_, ranks_of_down())),
        groups_(static_cast<int32_t>(std::max<size_t>(1, layer_.groups.size()))) {
    if (!layer_.shared_expert) return;
    shared_gate_ = make_table(runtime_, {layer_.shared_expert->gate}, mapped_);
    shared_up_ = make_table(runtime_, {layer_.shared_expert->up}, mapped_);
    shared_down_ = make_table(runtime_, {layer_.shared_expert->down}, mapped_);
  }

  void run(const Tensor& x, const Routing& routing, const Tensor& y, const Cancellation& cancel) override {
    runtime_.begin();
    const int64_t tokens = x.rows();
    const int64_t chunk = tokens_per_chunk(routing.ids.cols());
    for (int64_t begin = 0; begin < tokens; begin += chunk) {
      cancel.check();
      const int64_t end = std::min(tokens, begin + chunk);
      const Tensor ids = routing.ids.row_range(begin, end);
      run_chunk({{end - begin, ids.cols(), x.dtype()},
                 x.row_range(begin, end).data(),
                 ids.as<const int32_t>(),
                 routing.weights.row_range(begin, end).as<const float>(),
                 y.row_range(begin, end).data(),
                 begin});
    }
  }

 private:
  using Arrays = Workspace<Runtime>;

  std::vector<int32_t> ranks_of_down() const {
    std::vector<int32_t> ranks;
    for (const Tensor& w : layer_.down.per_expert) ranks.push_back(static_cast<int32_t>(w.rows()));
    return ranks;
  }

  int64_t experts() const { return layer_.num_experts(); }
  int64_t hidden_stride() const { return rounded_up(layer_.hidden_size); }

  int64_t tokens_per_chunk(int64_t top_k) const {
    const int64_t pairs = std::max<int64_t>(top_k, 1);
    size_t bytes = static_cast<size_t>(layer_.hidden_size) * (2 * sizeof(In) + sizeof(Wide));
    bytes += pairs * rounded_up(layer_.intermediate_size) * sizeof(In);
    bytes += pairs * rounded_up(down_.per_expert.max_rows) * sizeof(Wide);
    if (gate_.latent) bytes += pairs * rounded_up(gate_.shared.max_rows) * sizeof(In);
    if (up_.latent) bytes += pairs * rounded_up(up_.shared.max_rows) * sizeof(In);
    if (down_.latent)
      bytes += pairs * (hidden_stride() * sizeof(Wide) + rounded_up(down_.per_expert.max_rows) * sizeof(In));
    if (layer_.shared_expert) bytes += shared_gate_.max_rows * sizeof(In) + hidden_stride() * sizeof(Wide);
    const int64_t largest =
        std::min<int64_t>(kMaxCount / pairs, kMaxCount / std::max<int64_t>(1, hidden_stride() / 64));
    return std::clamp<int64_t>(static_cast<int64_t>(kChunkBytes / bytes), 64, std::max<int64_t>(64, largest));
  }

  template <class T>
  T* array(Arrays& arrays, int64_t count) {
    return arrays.template array<T>(runtime_, count);
  }

  TileMap tile_map(Arrays& arrays, GemmTile tile, int64_t rows, int64_t problems) {
    const int32_t height = tile_rows(tile);
    const int64_t capacity = tile_bound(rows, problems, height);
    return {array<RowTile>(arrays, capacity), static_cast<int32_t>(capacity), height};
  }

  RoutingPlan make_plan(Arrays& arrays, const LayerChunk& chunk, const LayerTiles& tiles) {
    const auto [tokens, top_k, dtype] = chunk.shape;
    const int64_t pairs = tokens * top_k;
    const int64_t latent_rows = latent_row_bound(tokens, top_k, groups_);
    const int64_t chunks = ceil_div(tokens, kSortTokens);
    RoutingPlan plan{};
    plan.ids = chunk.ids;
    plan.group_of = group_of_.template as<const int32_t>();
    plan.tokens = static_cast<int32_t>(tokens);
    plan.top_k = static_cast<int32_t>(top_k);
    plan.experts = static_cast<int32_t>(experts());
    plan.groups = groups_;
    plan.first_token = chunk.first_token;
    plan.chunk_experts = array<int32_t>(arrays, chunks * experts());
    plan.chunk_groups = array<int32_t>(arrays, chunks * groups_);
    plan.expert_begin = array<int32_t>(arrays, experts() + 1);
    plan.group_begin = array<int32_t>(arrays, groups_ + 1);
    plan.row_token = array<int32_t>(arrays, pairs);
    plan.row_latent = array<int32_t>(arrays, pairs);
    plan.row_of_slot = array<int32_t>(arrays, pairs);
    plan.slot_group = array<int32_t>(arrays, pairs);
    plan.slot_latent = array<int32_t>(arrays, pairs);
    plan.latent_token = array<int32_t>(arrays, latent_rows);
    plan.expert_tiles = tile_map(arrays, tiles.experts, pairs, experts());
    plan.group_tiles = tile_map(arrays, tiles.groups, latent_rows, groups_);
    plan.token_tiles = tile_map(arrays, tiles.tokens, tokens, 1);
    plan.error = runtime_.error_record();
    return plan;
  }

  // A graph has the name of its first token, too: only the first chunks of calls run as graphs. A later one of few
  // tokens is the rest of a call of very many.
  void run_chunk(const LayerChunk& chunk) {
    const bool small = chunk.first_token == 0 && chunk.shape.tokens <= kGraphTokens;
    if (runtime_.launch_mode() == LaunchMode::Graph && small) {
      return graphs_.run(runtime_, layer_.hidden_size, chunk,
                         [this](Arrays& arrays, const LayerChunk& fixed) { queue_chunk(arrays, fixed); });
    }
    Arrays arrays;
    queue_chunk(arrays, chunk);
  }

  void queue_chunk(Arrays& arrays, const LayerChunk& chunk) {
    const auto [tokens, top_k, dtype] = chunk.shape;
    const LayerTiles tiles = choose_tiles(DTypeOf<In>::value, {tokens, top_k, experts(), groups_}, tile_request(chunk));
    const RoutingPlan plan = make_plan(arrays, chunk, tiles);
    runtime_.sort_rows(plan);

    const ProductRows expert_rows = product_rows(tiles.experts, plan.expert_tiles, tokens * top_k);
    const ProductRows group_rows =
        product_rows(tiles.groups, plan.group_tiles, latent_row_bound(tokens, top_k, groups_));
    const ProductRows token_rows = product_rows(tiles.tokens, plan.token_tiles, tokens);
    Products<In, Runtime> products(runtime_, arrays, layer_.activation);
    const In* input = this->input(arrays, chunk);
    const auto [gate, up] = expert_inputs(products, group_rows, input, plan);
    const Rounded<In> hidden = products.gated(expert_rows, gate, up);
    const SplitSums<In> expert_out =
        products.summed(expert_rows, down_.per_expert.times(hidden.data, hidden.stride, nullptr));

    OutputCombine<In> combine{};
    combine.plan = plan;
    combine.weights = chunk.weights;
    combine.latent = down_.latent;
    combine.parts =
        down_.latent ? group_outputs(arrays, products, group_rows, expert_out, combine.weights, plan) : expert_out;
    combine.hidden_size = static_cast<int32_t>(layer_.hidden_size);
    combine.dtype = dtype;
    combine.y = chunk.y;
    if (layer_.shared_expert) shared_expert(arrays, products, token_rows, *layer_.shared_expert, input, combine);
    runtime_.combine_output(combine);
  }

  static ProductRows product_rows(GemmTile tile, const TileMap& map, int64_t count) {
    return {tile, map.tiles, map.capacity, count};
  }

  const In* input(Arrays& arrays, const LayerChunk& chunk) {
    const DType dtype = chunk.shape.dtype;
    if (dtype == DTypeOf<In>::value) return static_cast<const In*>(chunk.x);
    const int64_t count = chunk.shape.tokens * layer_.hidden_size;
    In* converted = array<In>(arrays, count);
    runtime_.convert(dtype, chunk.x, DTypeOf<In>::value, converted, count);
    return converted;
  }

  // What the experts' gate and up matrices multiply: the token itself, or (stage 1) its latent rows.
  std::pair<Operand<In>, Operand<In>> expert_inputs(Products<In, Runtime>& products, const ProductRows& group_rows,
                                                    const In* x, const RoutingPlan& plan) {
    std::vector<Operand<In>> bases;
    const auto basis_of = [&](const Operator& op) {
      if (op.latent) bases.push_back(op.shared.times(x, layer_.hidden_size, plan.latent_token));
    };
    basis_of(gate_);
    if (!layer_.shares_gate_up_basis()) basis_of(up_);
    const std::vector<Rounded<In>> z = products.rounded(group_rows, bases);

    const auto input_of = [&](const Operator& op, size_t index) {
      if (!op.latent) return op.per_expert.times(x, layer_.hidden_size, plan.row_token);
      return op.per_expert.times(z[index].data, z[index].stride, plan.row_latent);
    };
    return {input_of(gate_, 0), input_of(up_, z.size() - 1)};
  }

  // Stages 4 and 5.
  SplitSums<In> group_outputs(Arrays& arrays, Products<In, Runtime>& products, const ProductRows& group_rows,
                              const SplitSums<In>& expert_out, const float* weights, const RoutingPlan& plan) {
    const int64_t stride = expert_out.stride;
    In* latent = array<In>(arrays, group_rows.count * stride);
    runtime_.combine_latent(
        LatentCombine<In>{plan, weights, expert_out, down_ranks_.template as<const int32_t>(), latent, stride},
        group_rows.count);
    return products.summed(group_rows, down_.shared.times(latent, stride, nullptr));
  }

  void shared_expert(Arrays& arrays, Products<In, Runtime>& products, const ProductRows& rows,
                     const SharedExpert& shared, const In* x, OutputCombine<In>& combine) {
    const Rounded<In> hidden = products.gated(rows, shared_gate_.times(x, layer_.hidden_size, nullptr),
                                              shared_up_.times(x, layer_.hidden_size, nullptr));
    combine.shared_out = products.summed(rows, shared_down_.times(hidden.data, hidden.stride, nullptr));
    if (!shared.gate_logit) return;
    Wide* scale = array<Wide>(arrays, rows.count);
    runtime_.shared_expert_scale(SharedScale<In>{x, static_cast<int32_t>(layer_.hidden_size),
                                                 shared.gate_logit->dtype(), shared.gate_logit->data(), scale},
                                 rows.count);
    combine.shared_scale = scale;
  }

  // Hopper's tiles where they were asked for and can read this layer and x; else the other ones.
  TileRequest tile_request(const LayerChunk& chunk) {
    const TileRequest asked = runtime_.tiles();
    if (!is_half(DTypeOf<In>::value) || !wants_hopper(asked) || choose_stream(chunk.shape.tokens, asked)) return asked;
    if (mapped_ && (chunk.shape.dtype != DTypeOf<In>::value || aligned16(chunk.x))) return asked;
    if (!asked.exact) return {TileFamily::Mma, {}};
    fail(ErrorCode::InvalidArgument,
         "The Hopper tile that was asked for needs 16-byte aligned rows, but this layer has ", layer_.hidden_size,
         " by ", layer_.intermediate_size, " experts");
  }

  Runtime runtime_;
  ExpertLayer layer_;  // keeps the weights alive
  bool mapped_;        // all matrices have weight maps
  Operator gate_, up_, down_;
  Memory group_of_;    // [experts]
  Memory down_ranks_;  // [experts] rows of each down matrix
  int32_t groups_;
  Table<Runtime> shared_gate_, shared_up_, shared_down_;
  ChunkGraphs<Runtime> graphs_;
};

}  // namespace molae::cuda
