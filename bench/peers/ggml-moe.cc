// MoE layers with the same weights through ggml_mul_mat_id, as llama.cpp runs them, as a TurnProcess. ggml.ts writes
// the data, and says what the arguments are. The prototypes are ggml's C API, declared here because the npm package has
// libraries but no headers.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

struct InitParams {
  size_t mem_size;
  void* mem_buffer;
  bool no_alloc;
};
struct Context;
struct Tensor;
struct Graph;
using Handle = void*;

extern "C" {
Context* ggml_init(InitParams);
Tensor* ggml_new_tensor_3d(Context*, int, int64_t, int64_t, int64_t);
Tensor* ggml_new_tensor_2d(Context*, int, int64_t, int64_t);
Tensor* ggml_mul_mat_id(Context*, Tensor*, Tensor*, Tensor*);
Tensor* ggml_swiglu_split(Context*, Tensor*, Tensor*);
Tensor* ggml_mul(Context*, Tensor*, Tensor*);
Tensor* ggml_add(Context*, Tensor*, Tensor*);
Tensor* ggml_view_2d(Context*, Tensor*, int64_t, int64_t, size_t, size_t);
Graph* ggml_new_graph(Context*);
void ggml_build_forward_expand(Graph*, Tensor*);
void ggml_backend_load_all_from_path(const char*);
Handle ggml_backend_init_by_type(int, const char*);
Handle ggml_backend_alloc_ctx_tensors(Context*, Handle);
void ggml_backend_tensor_set(Tensor*, const void*, size_t, size_t);
void ggml_backend_tensor_get(const Tensor*, void*, size_t, size_t);
int ggml_backend_graph_compute(Handle, Graph*);
Handle ggml_backend_get_device(Handle);
Handle ggml_backend_dev_backend_reg(Handle);
void* ggml_backend_reg_get_proc_address(Handle, const char*);
size_t ggml_quantize_chunk(int, const float*, void*, int64_t, int64_t, int64_t, const float*);
}

constexpr int kF32 = 0;
constexpr int kI32 = 26;
constexpr int kBF16 = 30;

template <class T>
std::vector<T> read_file(const std::string& path) {
  FILE* file = std::fopen(path.c_str(), "rb");
  if (!file) std::exit((std::fprintf(stderr, "cannot read %s\n", path.c_str()), 1));
  std::fseek(file, 0, SEEK_END);
  std::vector<T> data(std::ftell(file) / sizeof(T));
  std::rewind(file);
  if (std::fread(data.data(), sizeof(T), data.size(), file) != data.size()) std::exit(1);
  std::fclose(file);
  return data;
}

struct Layer {
  Tensor *gate, *up, *down;
  Tensor* y = nullptr;
  Graph* graph;
};

int main(int, char** argv) {
  const std::string version = argv[1], folder = argv[2];
  const bool bf16 = std::string(argv[4]) == "bf16";
  const int64_t n = atoll(argv[5]), m = atoll(argv[6]), experts = atoll(argv[7]), top_k = atoll(argv[8]);
  const int64_t tokens = atoll(argv[9]), threads = atoll(argv[10]);
  const size_t count = atoll(argv[11]);
  const int64_t pool_length = atoll(argv[12]), pool_stride = atoll(argv[13]);

  ggml_backend_load_all_from_path(argv[3]);
  Handle backend = ggml_backend_init_by_type(0, nullptr);
  if (!backend) return std::fprintf(stderr, "ggml has no CPU backend here\n"), 1;
  const Handle registry = ggml_backend_dev_backend_reg(ggml_backend_get_device(backend));
  reinterpret_cast<void (*)(Handle, int)>(ggml_backend_reg_get_proc_address(registry, "ggml_backend_set_n_threads"))(
      backend, static_cast<int>(threads));

  const int type = bf16 ? kBF16 : kF32;
  Context* context = ggml_init({64 << 20, nullptr, true});
  Tensor* x = ggml_new_tensor_3d(context, kF32, n, 1, tokens);
  Tensor* ids = ggml_new_tensor_2d(context, kI32, top_k, tokens);
  Tensor* weights = ggml_new_tensor_3d(context, kF32, 1, top_k, tokens);
  std::vector<Layer> layers(count);
  for (Layer& layer : layers) {
    layer.gate = ggml_new_tensor_3d(context, type, n, m, experts);
    layer.up = ggml_new_tensor_3d(context, type, n, m, experts);
    layer.down = ggml_new_tensor_3d(context, type, m, n, experts);
    Tensor* gates = ggml_mul_mat_id(context, layer.gate, x, ids);
    Tensor* hidden = ggml_swiglu_split(context, gates, ggml_mul_mat_id(context, layer.up, x, ids));
    Tensor* outputs = ggml_mul(context, ggml_mul_mat_id(context, layer.down, hidden, ids), weights);
    for (int64_t k = 0; k < top_k; ++k) {
      Tensor* slot = ggml_view_2d(context, outputs, n, tokens, n * top_k * 4, k * n * 4);
      layer.y = layer.y ? ggml_add(context, layer.y, slot) : slot;
    }
    layer.graph = ggml_new_graph(context);
    ggml_build_forward_expand(layer.graph, layer.y);
  }
  ggml_backend_alloc_ctx_tensors(context, backend);

  // As in support/data.ts: a matrix is the pool from seed * stride on, cyclically.
  const auto fill = [&](Tensor* tensor, const std::vector<float>& pool, int operation, int64_t width) {
    std::vector<float> matrix(n * m);
    std::vector<char> rounded(n * m * 2);
    for (int64_t expert = 0; expert < experts; ++expert) {
      int64_t from = (3 * expert + operation) * pool_stride % pool_length;
      for (float& value : matrix) {
        value = pool[from];
        if (++from == pool_length) from = 0;
      }
      if (bf16) {
        ggml_quantize_chunk(type, matrix.data(), rounded.data(), 0, n * m / width, width, nullptr);
        ggml_backend_tensor_set(tensor, rounded.data(), expert * n * m * 2, n * m * 2);
      } else {
        ggml_backend_tensor_set(tensor, matrix.data(), expert * n * m * 4, n * m * 4);
      }
    }
  };
  const auto pool_n = read_file<float>(folder + "/pool-n");
  const auto pool_m = read_file<float>(folder + "/pool-m");
  for (const Layer& layer : layers) {
    fill(layer.gate, pool_n, 1, n);
    fill(layer.up, pool_n, 2, n);
    fill(layer.down, pool_m, 3, m);
  }
  const auto put = [&](Tensor* tensor, const std::string& name) {
    const auto data = read_file<char>(folder + "/" + name);
    ggml_backend_tensor_set(tensor, data.data(), 0, data.size());
  };
  put(x, "x");
  put(ids, "ids");
  put(weights, "weights");

  const auto wanted = read_file<float>(folder + "/wanted");
  std::vector<float> got(n);
  for (const Layer& layer : layers) {
    if (ggml_backend_graph_compute(backend, layer.graph) != 0) return std::fprintf(stderr, "ggml failed\n"), 1;
    double difference = 0, norm = 0;
    for (size_t row = 0; row < wanted.size() / n; ++row) {
      ggml_backend_tensor_get(layer.y, got.data(), (row == 0 ? 0 : tokens - 1) * n * 4, n * 4);
      for (int64_t j = 0; j < n; ++j) {
        difference += std::pow(got[j] - wanted[row * n + j], 2);
        norm += std::pow(wanted[row * n + j], 2);
      }
    }
    const double error = std::sqrt(difference / norm);
    if (!(error <= (bf16 ? 2e-2 : 1e-4))) return std::fprintf(stderr, "wrong result: relative error %g\n", error), 1;
  }

  using Clock = std::chrono::steady_clock;
  std::printf("{\"version\":\"%s\"}\n", version.c_str());
  std::fflush(stdout);
  for (int c; (c = std::getchar()) != EOF;) {
    if (c != '\n') continue;
    const auto begin = Clock::now();
    for (const Layer& layer : layers) ggml_backend_graph_compute(backend, layer.graph);
    std::printf("{\"ms\":%.6f}\n", std::chrono::duration<double, std::milli>(Clock::now() - begin).count());
    std::fflush(stdout);
  }
}
