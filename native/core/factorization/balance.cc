#include "core/factorization/balance.h"

#include <algorithm>
#include <cmath>

#include "core/factorization/products.h"

namespace molae {
namespace {

// Directions that are worth nothing must stay directions.
constexpr double kLeast = 1e-6;

}  // namespace

void balance(Backend& backend, const Tensor& rows, const std::vector<double>& spectrum) {
  if (spectrum.empty() || spectrum[0] <= 0) return;
  std::vector<double> values = downloaded(backend, rows);
  const int64_t n = rows.cols();
  for (int64_t i = 0; i < rows.rows(); ++i) {
    const double worth = i < static_cast<int64_t>(spectrum.size()) ? spectrum[i] / spectrum[0] : 0;
    const double scale = std::pow(std::max(worth, kLeast), 0.25);
    for (int64_t j = 0; j < n; ++j) values[i * n + j] *= scale;
  }
  backend.upload(values.data(), rows);
}

}  // namespace molae
