#include "cpu/layer/experts_forward.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "core/checked.h"
#include "cpu/layer/forward_schedule.h"
#include "cpu/layer/layer_weights.h"
#include "cpu/linear/linear_tile.h"
#include "cpu/simd/convert.h"
#include "cpu/simd/multiversion.h"
#include "cpu/simd/vectors.h"
#include "cpu/system/compute_pool.h"

// The forward pass of a layer of dense or latent experts, as stages of tiles over sorted tokens:
//   1. latent inputs   z[g] = x B_g^T             once per distinct (token, group), for gate and for up
//   2. hidden          h = act(gate) * up          per (token, expert), and for the shared expert
//   3. expert outputs  e = h W_down^T or h A_down^T  per (token, expert)
//   4. latent outputs  d[t, g] = sum_i w[t, i] e   in the latent space
//   5. outputs         y[t] = sum_g B_down[g] d[t, g], or the weighted sum of e itself; + the shared expert
// Their tiles lie in one queue (forward_schedule.h). Every sum has a fixed order, so results do not depend on the
// number of threads. Everything is kept from call to call: a steady state allocates nothing.
namespace molae::cpu {
namespace {

enum ForwardSlot : size_t {
  kInput = kForwardFirst,
  kLatentGate,
  kLatentUp,
  kHidden,
  kExpertOut,
  kLatentOut,
  kOutput,
  kSharedHidden,
  kSharedScale,
  kTileScratch,
};

// Workspaces of a chunk of tokens stay below this.
constexpr size_t kChunkBytes = size_t{256} << 20;

// Sums of less than this many elements are not worth waking other threads for.
constexpr int64_t kInlineElements = 1 << 15;

template <class Real>
MOLAE_INLINE void add_scaled_to(Real* sum, const Real* values, int64_t count, Real scale) {
  for (int64_t j = 0; j < count; ++j) sum[j] += scale * values[j];
}

// sum += scale * values
MOLAE_MULTIVERSION void add_scaled(float* sum, const float* values, int64_t count, float scale) {
  add_scaled_to(sum, values, count, scale);
}

MOLAE_MULTIVERSION void add_scaled(double* sum, const double* values, int64_t count, double scale) {
  add_scaled_to(sum, values, count, scale);
}

// Weight: how weights are kept, a Tensor or a PackedWeight.
template <class Real, class Weight>
class CpuLayerForward : public LayerForward {
 public:
  CpuLayerForward(Context context, LayerWeights<Weight> layer)
      : context_(context),
        layer_(std::move(layer)),
        num_groups_(std::max<int64_t>(1, layer_.num_groups)),
        schedule_(tile_shape<Weight>(), layer_.group_of, num_groups_, layer_.down.latent()) {
    largest_inner_ = std::max(layer_.hidden_size, layer_.intermediate_size);
    for (const OperatorWeights<Weight>* op : {&layer_.gate, &layer_.up, &layer_.down}) {
      for (const Weight& b : op->shared) largest_inner_ = std::max({largest_inner_, b.rows(), b.cols()});
    }
    if (layer_.shared_expert) largest_inner_ = std::max(largest_inner_, layer_.shared_expert->gate.rows());
  }

  void run(const Tensor& x, const Routing& routing, const Tensor& y, const Cancellation& cancel) override {
    const int64_t tokens = x.rows();
    top_k_ = routing.ids.cols();
    const int64_t most = tokens_per_chunk();
    const int64_t chunks = ceil_divide(tokens, most);
    for (int64_t i = 0; i < chunks; ++i) {
      const int64_t begin = tokens * i / chunks;
      first_token_ = begin;
      tokens_ = tokens * (i + 1) / chunks - begin;
      ids_ = routing.ids.as<const int32_t>() + begin * top_k_;
      weights_ = routing.weights.as<const float>() + begin * top_k_;
      run_chunk(x.dtype(), elements_of(x, begin), y.dtype(), elements_of(y, begin), cancel);
    }
  }

 protected:
  const Context& context() const { return context_; }
  const LayerWeights<Weight>& layer() const { return layer_; }

 private:
  static constexpr DType kReal = sizeof(Real) == 4 ? DType::F32 : DType::F64;

  std::byte* elements_of(const Tensor& tensor, int64_t row) const {
    return tensor.as<std::byte>() + row * layer_.hidden_size * static_cast<int64_t>(item_size(tensor.dtype()));
  }

  int64_t tokens_per_chunk() const {
    const int64_t down_width = layer_.down.latent() ? 2 * largest_rank(layer_.down, 1) : layer_.hidden_size;
    int64_t width = layer_.intermediate_size + down_width;
    if (layer_.gate.latent()) width += 2 * largest_rank(layer_.gate, 0);
    const size_t token_bytes = (width * std::max<int64_t>(top_k_, 1) + 2 * layer_.hidden_size) * sizeof(Real);
    return std::clamp<int64_t>(kChunkBytes / token_bytes, 64, 8192);
  }

  static int64_t largest_rank(const OperatorWeights<Weight>& op, size_t axis) {
    int64_t largest = 0;
    for (const Weight& b : op.shared) largest = std::max(largest, b.dim(axis));
    return largest;
  }

  void run_chunk(DType x_dtype, const void* x, DType y_dtype, void* y, const Cancellation& cancel) {
    const int64_t elements = tokens_ * layer_.hidden_size;
    sorted_.sort({ids_, static_cast<size_t>(tokens_ * top_k_)}, tokens_, top_k_, layer_.group_of, num_groups_,
                 first_token_);
    x_ = input(x_dtype, x);
    y_ = kReal == y_dtype ? static_cast<Real*>(y) : get(kOutput, elements);
    scratch_stride_ = tile_scratch<Real, Weight>(largest_inner_) + kTileRows * stride(kTileCols);
    scratch_ = get(kTileScratch, scratch_stride_ * context_.threads);

    schedule_.begin(tokens_ * top_k_);
    add_latent_inputs();
    add_hidden();
    add_expert_outputs();
    if (layer_.down.latent()) add_latent_outputs();
    add_outputs();
    const int threads = schedule_.arrange(context_.threads);
    schedule_.queue().run(threads, [&](const QueuedTile& queued, int participant) {
      cancel.check();
      compute(queued.stage, queued.tile, scratch_ + scratch_stride_ * participant);
    });
    if (kReal != y_dtype) convert_elements(kReal, y_, y_dtype, y, elements);
  }

  // The rows that gate or up matrices of latent experts multiply: those of all groups, group after group, `begin[g]`
  // the first element of group g.
  struct Latent {
    const OperatorWeights<Weight>* op = nullptr;
    Real* data = nullptr;
    std::vector<int64_t> begin;
  };

  // How far apart rows lie that products read.
  static int64_t stride(int64_t size) { return row_stride<Weight>(size); }

  // The rows of x as products read them.
  const Real* input(DType dtype, const void* x) {
    const int64_t size = layer_.hidden_size;
    if (dtype == kReal && stride(size) == size) return static_cast<const Real*>(x);
    Real* rows = get(kInput, tokens_ * stride(size));
    const int threads = tokens_ * size < kInlineElements ? 1 : context_.threads;
    const auto row_bytes = size * static_cast<int64_t>(item_size(dtype));
    ComputePool::instance().parallel_for(threads, tokens_, [&](int64_t token, int) {
      widen_elements(dtype, static_cast<const std::byte*>(x) + token * row_bytes, rows + token * stride(size), size);
    });
    return rows;
  }

  void compute(Stage stage, const Tile& tile, Real* scratch) {
    switch (stage) {
      case Stage::LatentInputs:
        return latent_inputs(tile, scratch);
      case Stage::Hidden:
        return hidden(tile, scratch);
      case Stage::ExpertOutputs:
        return expert_outputs(tile, scratch);
      case Stage::LatentOutputs:
        return latent_outputs(tile);
      case Stage::Outputs:
        return outputs(tile, scratch);
    }
  }

  // Stage 1, gate and up in one.
  void add_latent_inputs() {
    const bool gate = layer_.gate.latent(), up = layer_.up.latent() && !layer_.shares_basis;
    if (gate) place_latent(latent_gate_, layer_.gate, kLatentGate);
    if (up) place_latent(latent_up_, layer_.up, kLatentUp);
    for (int64_t g = 0; g < num_groups_; ++g) {
      if (gate) add_latent_input(g, g, layer_.gate);
      if (up) add_latent_input(num_groups_ + g, g, layer_.up);
    }
  }

  void place_latent(Latent& latent, const OperatorWeights<Weight>& op, size_t slot) {
    latent.op = &op;
    latent_begins(op, 0, latent.begin);
    latent.data = get(slot, latent.begin.back());
  }

  void add_latent_input(int64_t problem, int64_t g, const OperatorWeights<Weight>& op) {
    schedule_.stage(Stage::LatentInputs)
        .add(static_cast<int32_t>(problem), latent_rows(g), op.shared[g].rows(), layer_.hidden_size);
  }

  void latent_inputs(const Tile& tile, Real* scratch) {
    const Latent& latent = tile.problem < num_groups_ ? latent_gate_ : latent_up_;
    const int64_t g = tile.problem % num_groups_;
    const Weight& b = latent.op->shared[g];
    const int64_t rank_stride = stride(b.rows());
    const int32_t* tokens = sorted_.latent_token.data() + sorted_.group_begin[g] + tile.row;
    linear_tile<Real>(Rows<Real>{x_, stride(layer_.hidden_size), tokens}, tile.rows, b, tile.col, tile.cols,
                      latent.data + latent.begin[g] + tile.row * rank_stride + tile.col, rank_stride, scratch);
  }

  // Stage 2. The problem after those of the experts is the shared expert.
  void add_hidden() {
    const int64_t m = layer_.intermediate_size;
    const int64_t experts = layer_.num_experts();
    hidden_begin_.assign(experts + 1, 0);
    for (int64_t i = 0; i < experts; ++i) {
      hidden_begin_[i + 1] = hidden_begin_[i] + hidden_elements<Real, Weight>(expert_rows(i), m);
    }
    hidden_ = get(kHidden, hidden_begin_.back());
    TileList& tiles = schedule_.stage(Stage::Hidden);
    for (const int32_t i : schedule_.experts()) tiles.add(i, expert_rows(i), m, layer_.gate.per_expert[i].cols());
    if (layer_.shared_expert) add_shared_hidden(*layer_.shared_expert, tiles);
  }

  void hidden(const Tile& tile, Real* scratch) {
    if (tile.problem == layer_.num_experts()) return shared_hidden(*layer_.shared_expert, tile, scratch);
    const int64_t row = sorted_.expert_begin[tile.problem] + tile.row;
    const Latent& latent_up = layer_.shares_basis ? latent_gate_ : latent_up_;
    gated_tile<Real, Weight>(expert_input(layer_.gate, latent_gate_, tile.problem, row),
                             expert_input(layer_.up, latent_up, tile.problem, row), layer_.activation, tile.rows,
                             tile.col, tile.cols, hidden_of(tile), scratch);
  }

  // Those of the rows of a tile of an expert.
  Hidden<Real> hidden_of(const Tile& tile) const {
    const int64_t m_stride = stride(layer_.intermediate_size);
    return {hidden_ + hidden_begin_[tile.problem] + tile.row * m_stride, m_stride};
  }

  // What one expert's gate or up matrix multiplies, from a row of the sorted routing on.
  GatedSide<Real, Weight> expert_input(const OperatorWeights<Weight>& op, const Latent& latent, int32_t expert,
                                       int64_t row) const {
    const Weight& weight = op.per_expert[expert];
    if (!op.latent()) return {{x_, stride(layer_.hidden_size), sorted_.row_token.data() + row}, weight};
    const Real* rows = latent.data + latent.begin[layer_.group_of[expert]];
    return {{rows, stride(weight.cols()), sorted_.row_latent.data() + row}, weight};
  }

  // Stage 3. The outputs of expert i begin at out_begin_[i], rows as far apart as those that products read: what
  // kernels write must not meet in a cache's sets either.
  void add_expert_outputs() {
    const int64_t experts = layer_.num_experts();
    out_begin_.assign(experts + 1, 0);
    for (int64_t i = 0; i < experts; ++i) {
      out_begin_[i + 1] = out_begin_[i] + expert_rows(i) * stride(layer_.down.per_expert[i].rows());
    }
    expert_out_ = get(kExpertOut, out_begin_.back());
    TileList& tiles = schedule_.stage(Stage::ExpertOutputs);
    for (const int32_t i : schedule_.experts()) {
      tiles.add(i, expert_rows(i), layer_.down.per_expert[i].rows(), layer_.intermediate_size);
    }
  }

  void expert_outputs(const Tile& tile, Real* scratch) {
    const Weight& weight = layer_.down.per_expert[tile.problem];
    const int64_t out_stride = stride(weight.rows());
    linear_tile<Real>(hidden_of(tile), tile.rows, weight, tile.col, tile.cols,
                      expert_out_ + out_begin_[tile.problem] + tile.row * out_stride + tile.col, out_stride, scratch);
  }

  // The outputs of one (token, slot) pair.
  const Real* slot_output(int64_t slot) const {
    const int32_t expert = ids_[slot];
    const int64_t row = sorted_.row_of_slot[slot] - sorted_.expert_begin[expert];
    return expert_out_ + out_begin_[expert] + row * stride(layer_.down.per_expert[expert].rows());
  }

  // Stage 4: d of the tokens that fall into a group.
  void add_latent_outputs() {
    latent_begins(layer_.down, 1, latent_out_begin_);
    latent_out_ = get(kLatentOut, latent_out_begin_.back());
    TileList& tiles = schedule_.stage(Stage::LatentOutputs);
    for (int64_t g = 0; g < num_groups_; ++g) {
      tiles.add(static_cast<int32_t>(g), latent_rows(g), layer_.down.shared[g].cols(), top_k_);
    }
  }

  void latent_outputs(const Tile& tile) {
    const int64_t rank_stride = stride(layer_.down.shared[tile.problem].cols());
    Real* d = latent_out_ + latent_out_begin_[tile.problem] + tile.row * rank_stride + tile.col;
    const int32_t* tokens = sorted_.latent_token.data() + sorted_.group_begin[tile.problem] + tile.row;
    for (int64_t i = 0; i < tile.rows; ++i, d += rank_stride) {
      std::fill(d, d + tile.cols, Real(0));
      for (int64_t slot = tokens[i] * top_k_; slot < (tokens[i] + 1) * top_k_; ++slot) {
        if (layer_.group_of[ids_[slot]] != tile.problem) continue;
        add_scaled(d, slot_output(slot) + tile.col, tile.cols, weights_[slot]);
      }
    }
  }

  // Stage 5: a tile is a block of tokens by a block of the hidden size.
  void add_outputs() {
    TileList& tiles = schedule_.stage(Stage::Outputs);
    for (int32_t wave = schedule_.first_output(); wave < schedule_.num_waves(); ++wave) {
      tiles.add(wave, tokens_, layer_.hidden_size, output_products());
    }
  }

  void outputs(const Tile& tile, Real* scratch) {
    if (tile.problem == schedule_.first_output()) {
      for (int64_t i = 0; i < tile.rows; ++i) {
        Real* y = y_ + (tile.row + i) * layer_.hidden_size + tile.col;
        std::fill(y, y + tile.cols, Real(0));
      }
    }
    if (layer_.down.latent()) {
      const int64_t end = schedule_.group_begin(tile.problem + 1);
      for (int64_t g = schedule_.group_begin(tile.problem); g < end; ++g) add_group_output(g, tile, scratch);
    } else {
      add_slot_outputs(tile);
    }
    if (layer_.shared_expert && tile.problem + 1 == schedule_.num_waves()) {
      add_shared_output(*layer_.shared_expert, tile, scratch);
    }
  }

  // Multiplications for one element of y, about.
  int64_t output_products() const {
    int64_t products = top_k_;
    if (layer_.down.latent()) products += largest_rank(layer_.down, 1);
    if (layer_.shared_expert) products += layer_.shared_expert->gate.rows();
    return products;
  }

  void add_group_output(int64_t g, const Tile& tile, Real* scratch) {
    const auto tokens = sorted_.latent_token.begin();
    const auto begin = tokens + sorted_.group_begin[g];
    const auto end = tokens + sorted_.group_begin[g + 1];
    const auto first = std::lower_bound(begin, end, tile.row);
    const auto last = std::lower_bound(first, end, tile.row + tile.rows);
    const Weight& b = layer_.down.shared[g];
    Real* product = scratch + tile_scratch<Real, Weight>(largest_inner_);
    const int64_t rank_stride = stride(b.cols());
    const Rows<Real> rows{latent_out_ + latent_out_begin_[g] + (first - begin) * rank_stride, rank_stride};
    for_linear_tile(rows, last - first, b, tile.col, tile.cols, product, scratch, [&](int64_t row, const Real* values) {
      add_scaled(y_ + first[row] * layer_.hidden_size + tile.col, values, tile.cols, Real(1));
    });
  }

  void add_slot_outputs(const Tile& tile) {
    for (int64_t token = tile.row; token < tile.row + tile.rows; ++token) {
      Real* y = y_ + token * layer_.hidden_size + tile.col;
      for (int64_t slot = token * top_k_; slot < (token + 1) * top_k_; ++slot) {
        add_scaled(y, slot_output(slot) + tile.col, tile.cols, weights_[slot]);
      }
    }
  }

  // The shared expert's hidden values and, where it has a gate, how much it counts for each token.
  void add_shared_hidden(const SharedWeights<Weight>& shared, TileList& tiles) {
    const int64_t width = shared.gate.rows();
    shared_hidden_ = get(kSharedHidden, hidden_elements<Real, Weight>(tokens_, width));
    shared_scale_ = get(kSharedScale, tokens_);
    tiles.add(static_cast<int32_t>(layer_.num_experts()), tokens_, width, layer_.hidden_size);
  }

  void shared_hidden(const SharedWeights<Weight>& shared, const Tile& tile, Real* scratch) {
    const int64_t width = shared.gate.rows();
    const int64_t x_stride = stride(layer_.hidden_size);
    const Rows<Real> rows{x_ + tile.row * x_stride, x_stride};
    gated_tile<Real, Weight>({rows, shared.gate}, {rows, shared.up}, layer_.activation, tile.rows, tile.col, tile.cols,
                             {shared_hidden_ + tile.row * stride(width), stride(width)}, scratch);
    if (tile.col != 0) return;
    Real* scale = shared_scale_ + tile.row;
    if (!shared.gate_logit) {
      std::fill(scale, scale + tile.rows, Real(1));
      return;
    }
    linear_tile<Real>(rows, tile.rows, *shared.gate_logit, 0, 1, scale, 1, scratch);
    for (int64_t i = 0; i < tile.rows; ++i) scale[i] = Real(1) / (Real(1) + std::exp(-scale[i]));
  }

  void add_shared_output(const SharedWeights<Weight>& shared, const Tile& tile, Real* scratch) {
    const int64_t width = shared.gate.rows();
    Real* product = scratch + tile_scratch<Real, Weight>(largest_inner_);
    const Hidden<Real> rows{shared_hidden_ + tile.row * stride(width), stride(width)};
    for_linear_tile(rows, tile.rows, shared.down, tile.col, tile.cols, product, scratch,
                    [&](int64_t row, const Real* values) {
                      const int64_t token = tile.row + row;
                      add_scaled(y_ + token * layer_.hidden_size + tile.col, values, tile.cols, shared_scale_[token]);
                    });
  }

  int64_t expert_rows(int64_t i) const { return sorted_.expert_begin[i + 1] - sorted_.expert_begin[i]; }
  int64_t latent_rows(int64_t g) const { return sorted_.group_begin[g + 1] - sorted_.group_begin[g]; }

  // First element of each group's latent rows; the rank is the size of the shared matrices along `axis`.
  void latent_begins(const OperatorWeights<Weight>& op, size_t axis, std::vector<int64_t>& begin) const {
    begin.assign(num_groups_ + 1, 0);
    for (int64_t g = 0; g < num_groups_; ++g) begin[g + 1] = begin[g] + latent_rows(g) * stride(op.shared[g].dim(axis));
  }

  Real* get(size_t slot, int64_t count) { return context_.workspace.get<Real>(slot, count); }

  Context context_;
  LayerWeights<Weight> layer_;
  int64_t num_groups_;
  ForwardSchedule schedule_;
  int64_t largest_inner_ = 0;

  // The chunk at hand.
  int64_t first_token_ = 0;
  int64_t tokens_ = 0;
  int64_t top_k_ = 0;
  const float* weights_ = nullptr;
  const int32_t* ids_ = nullptr;
  SortedRouting sorted_;
  const Real* x_ = nullptr;
  Real* y_ = nullptr;
  Latent latent_gate_;
  Latent latent_up_;
  Real* hidden_ = nullptr;
  std::vector<int64_t> hidden_begin_;
  Real* expert_out_ = nullptr;
  std::vector<int64_t> out_begin_;
  Real* latent_out_ = nullptr;
  std::vector<int64_t> latent_out_begin_;
  Real* shared_hidden_ = nullptr;
  Real* shared_scale_ = nullptr;
  Real* scratch_ = nullptr;
  int64_t scratch_stride_ = 0;
};

// A copy of the weights of its own.
class PackedForward final : public CpuLayerForward<float, PackedWeight> {
 public:
  PackedForward(Context context, LayerWeights<PackedWeight> layer, PackedInputs inputs)
      : CpuLayerForward(context, std::move(layer)), inputs_(inputs) {}

  std::unique_ptr<LayerForward> packed(PackedInputs inputs, const Cancellation&) const override {
    if (inputs == inputs_) return nullptr;
    check_inputs(layer(), inputs);
    return std::make_unique<PackedForward>(context(), with_inputs(layer(), inputs), inputs);
  }

  size_t packed_bytes() const override { return cpu::packed_bytes(layer()); }

 private:
  PackedInputs inputs_;
};

// Weights as they came.
template <class Real>
class UnpackedForward final : public CpuLayerForward<Real, Tensor> {
 public:
  UnpackedForward(Backend& backend, Context context, const ExpertLayer& layer)
      : CpuLayerForward<Real, Tensor>(context, weights_of(layer)), backend_(backend) {}

  std::unique_ptr<LayerForward> packed(PackedInputs inputs, const Cancellation& cancel) const override {
    check_inputs(this->layer(), inputs);
    if (!can_pack(this->layer())) return nullptr;
    auto weights = pack(backend_, this->context().threads, this->layer(), inputs, cancel);
    return std::make_unique<PackedForward>(this->context(), std::move(weights), inputs);
  }

 private:
  Backend& backend_;
};

}  // namespace

std::unique_ptr<LayerForward> make_layer_forward(Backend& backend, Context context, const ExpertLayer& layer) {
  if (layer.gate.per_expert[0].dtype() == DType::F64) {
    return std::make_unique<UnpackedForward<double>>(backend, context, layer);
  }
  return std::make_unique<UnpackedForward<float>>(backend, context, layer);
}

}  // namespace molae::cpu
