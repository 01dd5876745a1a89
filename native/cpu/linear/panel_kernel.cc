#include "cpu/linear/panel_kernel.h"

#include <algorithm>

#include "cpu/simd/vectors.h"
#include "cpu/system/instruction_sets.h"

namespace molae::cpu {
namespace {

constexpr int64_t kLineBytes = 64;

// Cols columns of a panel of V vectors of rows: all sums stay in registers, an input is loaded once for all columns
// and a weight once for all lanes.
template <int Lanes, int V, int Cols>
MOLAE_INLINE void multiply(const PanelProduct& p, int64_t col) {
  using Floats = typename Vectors<Lanes>::Floats;
  constexpr int kWidth = Lanes * V;
  Floats sums[Cols][V];
#pragma GCC unroll 32
  for (int j = 0; j < Cols; ++j) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) sums[j][v] = Floats{};
  }
  const float* weights[Cols];
  for (int j = 0; j < Cols; ++j) weights[j] = p.weights + (col + j) * p.weight_stride;
  const float* inputs = p.inputs;
  const auto step = [&](int64_t k) __attribute__((always_inline)) {
    Floats in[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) load(in[v], inputs + k * kWidth + v * Lanes);
#pragma GCC unroll 32
    for (int j = 0; j < Cols; ++j) {
      const float weight = weights[j][k];
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) sums[j][v] += in[v] * weight;
    }
  };
  int64_t k = 0;
  if (p.next) {
    const int64_t lines = Cols * ((p.next_bytes + kLineBytes - 1) / kLineBytes);
    const int64_t steps = std::max<int64_t>(1, p.inner / lines);
    const std::byte* row = p.next + col * p.next_stride;
    for (int j = 0; j < Cols; ++j, row += p.next_stride) {
      for (int64_t fetched = 0; fetched < p.next_bytes && k + steps <= p.inner; fetched += kLineBytes) {
        __builtin_prefetch(row + fetched, 0, 3);
        for (const int64_t end = k + steps; k < end; ++k) step(k);
      }
    }
  }
  for (; k < p.inner; ++k) step(k);

  float* out = p.sums + col * kWidth;
#pragma GCC unroll 32
  for (int j = 0; j < Cols; ++j) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      float* to = out + j * kWidth + v * Lanes;
      if (!p.first) {
        Floats before;
        load(before, to);
        sums[j][v] += before;
      }
      store(to, sums[j][v]);
    }
  }
}

// All columns: as many as fit into the registers at a time, what is left in smaller groups.
template <int Lanes, int V, int Cols>
MOLAE_INLINE void multiply_from(const PanelProduct& p, int64_t col) {
  for (; col + Cols <= p.cols; col += Cols) multiply<Lanes, V, Cols>(p, col);
  if constexpr (Cols > 1) multiply_from<Lanes, V, Cols / 2>(p, col);
}

// `cols` of the three widths: sums take up to 12 of AVX2's 16 registers and 24 of AVX-512's 32. Of more
// than 10 columns the compiler keeps the pointers in memory, which took an eighth of AVX-512's speed. `few` is half a
// vector: measured on a Xeon, where as many rows one by one take a third (1 row) to nine tenths of a vector's time.
#define MOLAE_PANEL_KERNEL(name, lanes, unit, few, cols1, cols2, cols3, attributes)         \
  attributes void name##_1(const PanelProduct& p) { multiply_from<lanes, 1, cols1>(p, 0); } \
  attributes void name##_2(const PanelProduct& p) { multiply_from<lanes, 2, cols2>(p, 0); } \
  attributes void name##_3(const PanelProduct& p) { multiply_from<lanes, 3, cols3>(p, 0); } \
  constexpr PanelKernel name = {lanes, unit, few, {{cols1, name##_1}, {cols2, name##_2}, {cols3, name##_3}}};

MOLAE_PANEL_KERNEL(kPlain, 8, 4, 0, 4, 2, 1, MOLAE_PLAIN)
#if defined(__x86_64__)
MOLAE_PANEL_KERNEL(kAvx2, 8, 12, 4, 12, 6, 4, MOLAE_AVX2)
MOLAE_PANEL_KERNEL(kAvx512, 16, 8, 8, 8, 8, 8, MOLAE_AVX512)
#endif

}  // namespace

const PanelKernel& panel_kernel() {
  static const PanelKernel& kernel = MOLAE_BEST_OF(kPlain, kAvx2, kAvx512);
  return kernel;
}

}  // namespace molae::cpu
