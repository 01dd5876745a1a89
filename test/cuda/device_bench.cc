#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "core/device/device.h"
#include "core/error.h"
#include "core/factorization/shared_basis.h"
#include "core/tensor/half.h"

// Times a device against its own ceilings: molae_device_bench [--device cuda|cpu] [--tiles mma|hopper|small]
// [--launch stream|graph] [--cells few|all] [--smoke]. JSON on stdout.
//
// Medians of host-clock times over calls that are queued together and waited for once, so that a call's time is the
// device's where the device is the slower one. Data is random normal; weights of several layers take turns, so that
// caches do not hold them. With --tiles the layers take that family of tiles (MOLAE_CUDA_TILES), and hopper times
// nothing but layers: kernels that hang take no other result with them. small: layers of 1 and 4 tokens alone, by the
// tile that they had before there was a streaming kernel. With --launch graph (MOLAE_CUDA_LAUNCH), layers of 1 to 16
// tokens alone. --cells all: one more, which scripts/gpu-check.sh has no time for.
namespace {

using namespace molae;
using Clock = std::chrono::steady_clock;

struct Options {
  std::string device = "cuda";
  std::string tiles;
  std::string launch = "stream";
  std::string cells = "few";
  bool smoke = false;
};

class Bench {
 public:
  Bench(Backend& backend, const Options& options)
      : backend_(backend),
        tiles_(options.tiles),
        launch_(options.launch),
        all_cells_(options.cells == "all"),
        smoke_(options.smoke) {}

  // Returns how many rows could not be had; a layer that the device's memory does not hold is none of them.
  int run() {
    std::printf("{\"device\": \"%s\", \"library\": \"%s\", \"memoryBytes\": %zu, \"results\": [", name(), library(),
                backend_.info().memory_bytes);
    const int64_t most_tokens = tiles_ == "small" ? 4 : smoke_ || launch_ == "graph" ? 16 : 16384;
    const bool only_layers = tiles_ == "small" || tiles_ == "hopper" || launch_ == "graph";
    if (!only_layers) {
      copy_bandwidth();
      for (const DType dtype : {DType::BF16, DType::F32}) dense_product(dtype);
    }
    for (const Cell& cell : kCells) {
      if (cell.only_all && !all_cells_) continue;
      for (const int64_t tokens : {1, 4, 16, 64, 512, 4096, 16384}) {
        if (tokens > most_tokens) continue;
        layer(cell, tokens, false);
        layer(cell, tokens, true);
      }
      if (smoke_) break;
    }
    if (!only_layers) factorization();
    std::printf("\n]}\n");
    return failures_;
  }

 private:
  struct Cell {
    const char* name;
    int64_t n, m, experts, top_k, group_size, rank;
    bool only_all;
  };
  static constexpr Cell kCells[] = {{"qwen1.5-moe k15 r704", 2048, 1408, 60, 4, 15, 704, false},
                                    {"olmoe k8 r512", 2048, 1024, 64, 8, 8, 512, false},
                                    {"qwen3-30b-a3b k16 r384", 2048, 768, 128, 8, 16, 384, false},
                                    {"deepseek-v3/4 k32 r1024", 7168, 2048, 64, 8, 32, 1024, false},
                                    {"deepseek-v2-lite k16 r704", 2048, 1408, 64, 6, 16, 704, true}};

  const char* name() { return (name_ = backend_.info().name).c_str(); }
  const char* library() { return (library_ = backend_.info().library).c_str(); }

  // One random block, uploaded once and copied: filling gigabytes on the host would take longer than the bench.
  Tensor random(DType dtype, Shape shape, double scale) {
    constexpr int64_t kBlock = 1 << 20;
    const Tensor tensor = empty(backend_, dtype, std::move(shape));
    std::vector<float> values(std::min<int64_t>(kBlock, tensor.elements()));
    std::normal_distribution<float> normal;
    for (float& value : values) value = static_cast<float>(scale) * normal(engine_);
    const Tensor wide = empty(backend_, DType::F32, {static_cast<int64_t>(values.size())});
    backend_.upload(values.data(), wide);
    const Tensor flat = tensor.reshape({static_cast<int64_t>(tensor.elements())});
    for (int64_t begin = 0; begin < flat.dim(0); begin += kBlock) {
      const int64_t end = std::min(flat.dim(0), begin + kBlock);
      backend_.copy(wide.row_range(0, end - begin), flat.row_range(begin, end));
    }
    return tensor;
  }

  // Full of NaN: what a layer does not write shows.
  Tensor poisoned(Shape shape) {
    const Tensor tensor = empty(backend_, DType::BF16, std::move(shape));
    const std::vector<uint16_t> values(tensor.elements(), 0x7fc0);
    backend_.upload(values.data(), tensor);
    return tensor;
  }

  // Median milliseconds of one call. Calls take `turns` different ways, one after the other: each of them is taken
  // three times before anything is timed, so that workspaces have grown and graphs have been captured.
  double time(const std::function<void()>& call, int turns = 1) {
    const auto seconds_of = [&](int calls) {
      const auto start = Clock::now();
      for (int i = 0; i < calls; ++i) call();
      backend_.synchronize();
      return std::chrono::duration<double>(Clock::now() - start).count();
    };
    const int batch = 3 * turns;
    seconds_of(batch);
    const double once = std::max(seconds_of(batch) / batch, 1e-7);
    const int together = std::clamp(static_cast<int>(0.01 / once), 1, 200);
    const int repeats = smoke_ ? 2 : std::clamp(static_cast<int>(0.5 / (together * once)), 3, 15);
    std::vector<double> times;
    for (int i = 0; i < repeats; ++i) times.push_back(1e3 * seconds_of(together) / together);
    std::sort(times.begin(), times.end());
    return times[times.size() / 2];
  }

  void row(const std::string& what, const char* dtype, int64_t tokens, double ms, double flops, double bytes) {
    std::printf(
        "%s\n  {\"name\": \"%s\", \"dtype\": \"%s\", \"tiles\": \"%s\", \"launch\": \"%s\", \"tokens\": %lld, "
        "\"medianMs\": %.5f, "
        "\"gflops\": %.1f, \"gbps\": %.1f}",
        first_ ? "" : ",", what.c_str(), dtype, tiles_.c_str(), launch_.c_str(), static_cast<long long>(tokens), ms,
        flops / ms * 1e-6, bytes / ms * 1e-6);
    std::fflush(stdout);
    first_ = false;
  }

  void copy_bandwidth() {
    const int64_t count = smoke_ ? 1 << 20 : int64_t{1} << 29;
    const Tensor from = random(DType::BF16, {count}, 1), to = empty(backend_, DType::BF16, {count});
    row("device copy", "bf16", 0, time([&] { backend_.copy(from, to); }), 0, 4.0 * static_cast<double>(count));
  }

  void dense_product(DType dtype) {
    const int64_t n = smoke_ ? 256 : 8192;
    const Tensor a = random(dtype, {n, n}, 1), b = random(dtype, {n, n}, 1), c = empty(backend_, dtype, {n, n});
    const Gemm problem{a, b, c, false, true, 1, 0};
    const double ms = time([&] { backend_.gemm({&problem, 1}); });
    row("dense product " + std::to_string(n), dtype_name(dtype).data(), 0, ms, 2.0 * n * n * n,
        3.0 * n * n * static_cast<double>(item_size(dtype)));
  }

  Routing uniform_routing(int64_t tokens, const Cell& cell) {
    const Tensor logits = random(DType::F32, {tokens, cell.experts}, 1);
    const Routing routing{empty(backend_, DType::I32, {tokens, cell.top_k}),
                          empty(backend_, DType::F32, {tokens, cell.top_k})};
    RouterSpec spec;
    spec.top_k = cell.top_k;
    spec.renormalize = true;
    backend_.route(logits, spec, routing);
    return routing;
  }

  ExpertLayer make_layer(const Cell& cell, bool latent) {
    ExpertLayer layer;
    layer.hidden_size = cell.n;
    layer.intermediate_size = cell.m;
    const int64_t groups = cell.experts / cell.group_size;
    const auto matrices = [&](int64_t count, int64_t rows, int64_t cols) {
      const Tensor all = random(DType::BF16, {count, rows, cols}, 1 / std::sqrt(static_cast<double>(cols)));
      std::vector<Tensor> parts;
      for (int64_t i = 0; i < count; ++i) parts.push_back(all.slice(i));
      return parts;
    };
    if (!latent) {
      layer.gate.per_expert = matrices(cell.experts, cell.m, cell.n);
      layer.up.per_expert = matrices(cell.experts, cell.m, cell.n);
      layer.down.per_expert = matrices(cell.experts, cell.n, cell.m);
      return layer;
    }
    layer.groups.resize(groups);
    for (int64_t i = 0; i < cell.experts; ++i) layer.groups[i / cell.group_size].push_back(static_cast<int32_t>(i));
    layer.gate = {matrices(cell.experts, cell.m, cell.rank), matrices(groups, cell.rank, cell.n)};
    layer.up = {matrices(cell.experts, cell.m, cell.rank), matrices(groups, cell.rank, cell.n)};
    layer.down = {matrices(cell.experts, cell.rank, cell.m), matrices(groups, cell.n, cell.rank)};
    return layer;
  }

  // What a routing meets.
  struct Met {
    int64_t experts, groups, token_groups;  // token_groups: distinct (token, group)
  };
  Met count_met(const Routing& routing, const Cell& cell) {
    std::vector<int32_t> ids(routing.ids.elements());
    backend_.download(routing.ids, ids.data());
    std::set<int64_t> experts, groups, token_groups;
    for (size_t slot = 0; slot < ids.size(); ++slot) {
      const int64_t group = ids[slot] / cell.group_size, token = static_cast<int64_t>(slot) / cell.top_k;
      experts.insert(ids[slot]);
      groups.insert(group);
      token_groups.insert(token * cell.experts + group);
    }
    return {static_cast<int64_t>(experts.size()), static_cast<int64_t>(groups.size()),
            static_cast<int64_t>(token_groups.size())};
  }

  // Useful FLOPs, of this routing.
  static double layer_flops(const Cell& cell, int64_t tokens, bool latent, const Met& met) {
    const int64_t pairs = tokens * cell.top_k;
    if (!latent) return 6.0 * pairs * cell.m * cell.n;
    return 6.0 * cell.rank * static_cast<double>(cell.n * met.token_groups + cell.m * pairs);
  }

  // Bytes of the weights that this routing touches, in 16 bits.
  static double layer_bytes(const Cell& cell, bool latent, const Met& met) {
    if (!latent) return 2 * 3.0 * cell.m * cell.n * met.experts;
    return 2 * 3.0 * cell.rank * static_cast<double>(cell.m * met.experts + cell.n * met.groups);
  }

  void layer(const Cell& cell, int64_t tokens, bool latent) {
    try {
      std::vector<std::unique_ptr<LayerForward>> layers;
      const int copies = smoke_ || tokens > 64 ? 1 : 3;
      for (int i = 0; i < copies; ++i) layers.push_back(backend_.prepare(make_layer(cell, latent)));
      const Tensor x = random(DType::BF16, {tokens, cell.n}, 1), y = poisoned({tokens, cell.n});
      const Routing routing = uniform_routing(tokens, cell);
      const Cancellation never;
      size_t turn = 0;
      const Met met = count_met(routing, cell);
      const double ms = time([&] { layers[turn++ % layers.size()]->run(x, routing, y, never); }, copies);
      const int64_t bad = backend_.find_non_finite(y);
      if (bad >= 0) fail(ErrorCode::NonFinite, "the output is not finite at ", bad);
      row(std::string(latent ? "latent " : "dense ") + cell.name, "bf16", tokens, ms,
          layer_flops(cell, tokens, latent, met), layer_bytes(cell, latent, met));
    } catch (const Error& error) {
      std::fprintf(stderr, "%s, %lld tokens: %s\n", cell.name, static_cast<long long>(tokens), error.what());
      if (error.code() != ErrorCode::OutOfMemory) ++failures_;
    }
  }

  // One operator of one group of Qwen1.5-MoE: all experts added, the basis found, all experts projected. The median of
  // three times, fewer of a slow one, after one in which libraries and kernels are loaded.
  void factorization() {
    const int64_t n = smoke_ ? 64 : 2048, m = smoke_ ? 48 : 1408, r = smoke_ ? 16 : 704, experts = smoke_ ? 2 : 15;
    for (const Solver solver : {Solver::Gram, Solver::Svd}) {
      const Tensor all = random(DType::BF16, {experts, m, n}, 1);
      const Tensor b = empty(backend_, DType::BF16, {r, n}), a = empty(backend_, DType::BF16, {m, r});
      SharedBasis::Options options;
      options.shared_size = n;
      options.solver = solver;
      std::vector<double> times;
      const auto deadline = Clock::now() + std::chrono::seconds(5);
      for (int run = 0; run < 4 && (times.empty() || Clock::now() < deadline); ++run) {
        const auto start = Clock::now();
        SharedBasis basis(backend_, options);
        for (int64_t i = 0; i < experts; ++i) basis.add(all.slice(i));
        basis.solve(b);
        for (int64_t i = 0; i < experts; ++i) basis.project(all.slice(i), a);
        backend_.synchronize();
        if (run > 0) times.push_back(std::chrono::duration<double, std::milli>(Clock::now() - start).count());
      }
      std::sort(times.begin(), times.end());
      row(std::string("factorization ") + (solver == Solver::Gram ? "gram" : "svd"), "bf16", 0, times[times.size() / 2],
          0, 0);
    }
  }

  Backend& backend_;
  std::string tiles_, launch_;
  bool all_cells_, smoke_;
  bool first_ = true;
  int failures_ = 0;
  std::mt19937 engine_{1};
  std::string name_, library_;
};

}  // namespace

int main(int count, char** words) {
  Options options;
  for (int i = 1; i < count; ++i) {
    const std::string word = words[i];
    if (word == "--smoke") {
      options.smoke = true;
    } else if (word == "--device" && i + 1 < count) {
      options.device = words[++i];
    } else if (word == "--tiles" && i + 1 < count) {
      options.tiles = words[++i];
      setenv("MOLAE_CUDA_TILES", options.tiles.c_str(), 1);
    } else if (word == "--launch" && i + 1 < count) {
      options.launch = words[++i];
      setenv("MOLAE_CUDA_LAUNCH", options.launch.c_str(), 1);
    } else if (word == "--cells" && i + 1 < count) {
      options.cells = words[++i];
    } else {
      std::fprintf(stderr,
                   "usage: %s [--device cuda|cpu] [--tiles mma|hopper|small] [--launch stream|graph] "
                   "[--cells few|all] [--smoke]\n",
                   words[0]);
      return 2;
    }
  }
  try {
    Device& device = open_device(options.device, 0, 0);
    int failures = 0;
    device.queue().run_inline([&] { failures = Bench(device.backend(), options).run(); });
    return failures > 0 ? 1 : 0;
  } catch (const Error& error) {
    std::fprintf(stderr, "%s: %s\n", code_name(error.code()), error.what());
    return 1;
  }
}
