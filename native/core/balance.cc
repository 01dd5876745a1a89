#include "core/balance.h"

#include <algorithm>
#include <cmath>

#include "core/products.h"

namespace molae {
namespace {

// Directions that are worth nothing must stay directions.
constexpr double kLeast = 1e-6;

}  // namespace

void balance(Backend& backend, const Tensor& rows, const std::vector<double>& spectrum) {
  const int64_t r = rows.rows();
  if (spectrum.empty() || spectrum[0] <= 0) return;
  std::vector<double> scales(r * r, 0);
  for (int64_t i = 0; i < r; ++i) {
    const double worth = i < static_cast<int64_t>(spectrum.size()) ? spectrum[i] / spectrum[0] : 0;
    scales[i * (r + 1)] = std::pow(std::max(worth, kLeast), 0.25);
  }
  const Tensor diagonal = uploaded(backend, DType::F64, scales).reshape({r, r});
  backend.copy(product(backend, diagonal, false, rows, false), rows);
}

}  // namespace molae
