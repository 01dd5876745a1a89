#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "cpu/cpu_backend.h"
#include "cpu/linalg/divide_and_conquer.h"
#include "native/tensors.h"

// Divide and conquer on its own: matrices of which much, little or all is deflated.
namespace molae::test {
namespace {

using namespace cpu;

// A symmetric tridiagonal matrix.
struct Tridiagonal {
  Values d, e;

  double largest() const {
    double value = 0;
    for (const Values& part : {d, e}) {
      for (const double x : part) value = std::max(value, std::abs(x));
    }
    return value;
  }
  // T v
  Values times(const double* v) const {
    Values product(d.size());
    for (size_t i = 0; i < d.size(); ++i) {
      product[i] = d[i] * v[i];
      if (i > 0) product[i] += e[i - 1] * v[i - 1];
      if (i < e.size()) product[i] += e[i] * v[i + 1];
    }
    return product;
  }
};

using Make = Tridiagonal (*)(Context&, int64_t);

Tridiagonal random_matrix(Context& context, int64_t n) {
  return {random_values(context, n), random_values(context, n - 1)};
}
// Eigenvalues 2 - 2 cos(pi i / (n + 1)): all coupled.
Tridiagonal second_difference(Context&, int64_t n) { return {Values(n, 2), Values(n - 1, -1)}; }
// What Householder's reflections make of a Gram matrix of random rows: a flat spectrum.
Tridiagonal flat(Context& context, int64_t n) {
  Tridiagonal t{Values(n, 1), random_values(context, n - 1, 0.25)};
  for (double& x : t.d) x += 0.01 * context.integer(-9, 9);
  return t;
}
// Two copies of every eigenvalue but for the last digits (Wilkinson).
Tridiagonal close_pairs(Context&, int64_t n) {
  Tridiagonal t{Values(n), Values(n - 1, 1)};
  for (int64_t i = 0; i < n; ++i) t.d[i] = std::abs(static_cast<double>(i) - static_cast<double>(n - 1) / 2);
  return t;
}
// A few values many times each.
Tridiagonal repeated(Context& context, int64_t n) {
  Tridiagonal t{Values(n), Values(n - 1, 0)};
  for (double& x : t.d) x = context.integer(-1, 2);
  for (double& x : t.e) x = context.chance(0.3) ? 0.5 : 0;
  return t;
}
// Elements from 1 to 1e-12: most of it is below what rounding leaves of the rest.
Tridiagonal graded(Context& context, int64_t n) {
  Tridiagonal t = random_matrix(context, n);
  for (int64_t i = 0; i < n; ++i) t.d[i] *= std::pow(10, -12.0 * static_cast<double>(i) / static_cast<double>(n));
  for (int64_t i = 0; i + 1 < n; ++i) t.e[i] *= std::pow(10, -12.0 * static_cast<double>(i) / static_cast<double>(n));
  return t;
}
// What couples the parts is as small as rounding.
Tridiagonal barely_coupled(Context& context, int64_t n) {
  Tridiagonal t = random_matrix(context, n);
  for (double& x : t.e) x *= 1e-15;
  return t;
}
Tridiagonal identity(Context&, int64_t n) { return {Values(n, 1), Values(n - 1, 0)}; }
Tridiagonal zero(Context&, int64_t n) { return {Values(n, 0), Values(n - 1, 0)}; }

template <class Real>
void check(const Tridiagonal& matrix, int64_t top, int threads) {
  const int64_t n = static_cast<int64_t>(matrix.d.size());
  std::vector<Real> d(matrix.d.begin(), matrix.d.end()), e(matrix.e.begin(), matrix.e.end());
  const Tridiagonal stored{{d.begin(), d.end()}, {e.begin(), e.end()}};
  const Real poison = std::numeric_limits<Real>::quiet_NaN();
  std::vector<Real> values(n, poison), rows(top * n, poison);
  Workspace workspace(std::make_shared<HostMemory>());
  tridiagonal_eigenvectors<Real>({threads, workspace}, n, top, d.data(), e.data(), values.data(), rows.data());

  const Values v(rows.begin(), rows.end());
  const double rounding = 8 * std::numeric_limits<Real>::epsilon() * std::sqrt(static_cast<double>(n));
  const double scale = stored.largest();
  const std::string what = "n " + std::to_string(n) + ", top " + std::to_string(top);
  expect(std::is_sorted(values.rbegin(), values.rend()), what, ": order");
  long double trace = 0, sum = 0;  // the rounding of hundreds of sums would be as large as the bound
  for (int64_t i = 0; i < n; ++i) {
    trace += stored.d[i];
    sum += values[i];
  }
  expect(std::abs(trace - sum) <= rounding * scale * std::sqrt(static_cast<double>(n)), what, ": trace ", trace,
         ", sum ", sum);
  for (int64_t i = 0; i < top; ++i) {
    const Values product = stored.times(&v[i * n]);
    for (int64_t j = 0; j < n; ++j) {
      const double error = std::abs(product[j] - values[i] * v[i * n + j]);
      expect(error <= rounding * scale, what, ": pair ", i, " is off by ", error);
    }
  }
  const Values overlaps = reference_product(v, false, v, true, top, top, n);
  for (int64_t i = 0; i < top * top; ++i) {
    const double error = std::abs(overlaps[i] - (i % (top + 1) == 0 ? 1 : 0));
    expect(error <= rounding, what, ": overlap of ", i / top, " and ", i % top, " is off by ", error);
  }
}

void check_all(Context& context, Make make, double scale = 1) {
  for (const int64_t n : {1, 2, 3, 5, 31, 64, 65, 130, 257, 300, 515}) {
    Tridiagonal matrix = make(context, n);
    for (Values* part : {&matrix.d, &matrix.e}) {
      for (double& x : *part) x *= scale;
    }
    for (const int64_t top : {int64_t{1}, (n + 2) / 3, n}) {
      const int threads = static_cast<int>(context.integer(1, 3));
      check<double>(matrix, top, threads);
      check<float>(matrix, top, threads);
    }
  }
}

MOLAE_TEST("eigenvectors: random tridiagonal matrices", Logic) { check_all(context, random_matrix); }
MOLAE_TEST("eigenvectors: a second difference", Logic) { check_all(context, second_difference); }
MOLAE_TEST("eigenvectors: a flat spectrum", Logic) { check_all(context, flat); }
MOLAE_TEST("eigenvectors: pairs of close eigenvalues", Logic) { check_all(context, close_pairs); }
MOLAE_TEST("eigenvectors: repeated eigenvalues", Logic) { check_all(context, repeated); }
MOLAE_TEST("eigenvectors: a graded matrix", Logic) { check_all(context, graded); }
MOLAE_TEST("eigenvectors: parts that are barely coupled", Logic) { check_all(context, barely_coupled); }
MOLAE_TEST("eigenvectors: multiples of one and zero", Logic) {
  check_all(context, identity);
  check_all(context, zero);
}
MOLAE_TEST("eigenvectors: tiny and huge elements", Logic) {
  for (const double scale : {1e-30, 1e30}) {
    check_all(context, random_matrix, scale);
    check_all(context, repeated, scale);
  }
}

// Of a symmetric matrix whose largest eigenvalues do not fit the dtype, against those of the same matrix, smaller.
template <class Real>
void check_largest(Context& context, DType dtype, int64_t n, int64_t top) {
  constexpr double kSmaller = 0x1p-40;
  const auto backend = make_cpu_backend(2);
  constexpr double kMost = std::numeric_limits<Real>::max();
  const double size = kMost * (2 / std::sqrt(static_cast<double>(n)));
  std::vector<Real> a(n * n), smaller(n * n);
  for (int64_t i = 0; i < n * n; ++i) {
    const double value = std::clamp(context.normal(), -2.0, 2.0);
    a[i] = static_cast<Real>(value * size);
    smaller[i] = static_cast<Real>(value * size * kSmaller);
  }
  const auto solve = [&](const std::vector<Real>& matrix) {
    const Tensor given = empty(*backend, dtype, {n, n}), values = empty(*backend, dtype, {n});
    const Tensor vectors = empty(*backend, dtype, {top, n});
    backend->upload(matrix.data(), given);
    backend->eigh(given, values, vectors);
    return std::pair{read(*backend, values), read(*backend, vectors)};
  };
  const auto [values, vectors] = solve(a);
  const auto [wanted_values, wanted_vectors] = solve(smaller);
  const double rounding = 100 * std::numeric_limits<Real>::epsilon();
  const std::string what = std::string(dtype_name(dtype)) + ", n " + std::to_string(n) + ", top " + std::to_string(top);
  for (int64_t i = 0; i < n; ++i) {
    const double value = values[i] * kSmaller, wanted = wanted_values[i];
    if (std::abs(std::abs(wanted) / (kMost * kSmaller) - 1) < 1e-3) continue;  // may or may not fit
    const bool fits = std::abs(wanted) < kMost * kSmaller;
    const bool right = fits ? std::abs(value - wanted) <= rounding * std::abs(wanted_values[0])
                            : std::isinf(value) && std::signbit(value) == std::signbit(wanted);
    expect(right, what, ": value ", i, " is ", value, ", wanted ", wanted);
  }
  expect_close(vectors, wanted_vectors, 1e-3, what);
}

MOLAE_TEST("eigenvectors: eigenvalues beyond the dtype are infinite, and spoil no others", Logic) {
  for (const int64_t n : {20, 150, 600}) {
    for (const int64_t top : {0, 1}) {
      check_largest<float>(context, DType::F32, n, top);
      check_largest<double>(context, DType::F64, n, top);
    }
  }
}

}  // namespace
}  // namespace molae::test
