#include <algorithm>
#include <array>
#include <cmath>

#include "core/error.h"
#include "native/tensors.h"

// Matrix products and decompositions.
namespace molae::test {
namespace {

struct ProductCase {
  Gemm problem;
  Values wanted, scale;
  double relative;
};

enum class Transposed { ByChance, OnlyB };

ProductCase product_case(Context& context, DType dtype, DType c_dtype, int64_t m, int64_t n, int64_t k,
                         double alpha = 1, double beta = 0, Transposed transposed = Transposed::ByChance) {
  ProductCase result;
  const bool ta = transposed == Transposed::ByChance && context.chance(0.5);
  const bool tb = transposed == Transposed::OnlyB || context.chance(0.5);
  Values a = random_values(context, m * k), b = random_values(context, k * n), c = random_values(context, m * n);
  const Tensor left = make_tensor(context, dtype, ta ? Shape{k, m} : Shape{m, k}, a);
  const Tensor right = make_tensor(context, dtype, tb ? Shape{n, k} : Shape{k, n}, b);
  const Tensor out = beta == 0 ? poisoned(context, c_dtype, {m, n}) : make_tensor(context, c_dtype, {m, n}, c);
  result.problem = {left, right, out, ta, tb, alpha, beta};
  result.wanted = reference_product(a, ta, b, tb, m, n, k);
  result.scale = product_scale(a, ta, b, tb, m, n, k);
  for (size_t i = 0; i < c.size(); ++i) {
    const double added = beta == 0 ? 0 : beta * c[i];
    result.wanted[i] = alpha * result.wanted[i] + added;
    result.scale[i] = std::hypot(alpha * result.scale[i], added);
  }
  result.relative = is_half(dtype) && c_dtype == DType::F32 ? tolerance_of_half_sums(context) : tolerance(c_dtype);
  return result;
}

void expect_product(Context& context, const ProductCase& product) {
  const Gemm& p = product.problem;
  expect_close(read(context.backend, p.c), product.wanted, product.scale, product.relative,
               std::string(dtype_name(p.a.dtype())) + " to " + std::string(dtype_name(p.c.dtype())) + " " +
                   shape_name(p.a.shape()) + (p.transpose_a ? "^T" : "") + " " + shape_name(p.b.shape()) +
                   (p.transpose_b ? "^T" : ""));
}

DType random_result(Context& context, DType dtype) {
  return is_half(dtype) && context.chance(0.5) ? DType::F32 : dtype;
}

MOLAE_TEST("linalg: products of all dtypes and shapes", Device) {
  const int64_t sizes[] = {0, 1, 2, 3, 7, 16, 33, 64, 100, 129};
  const auto size = [&] { return sizes[context.integer(0, std::size(sizes) - 1)]; };
  for (const DType dtype : kFloats) {
    for (int round = 0; round < 40; ++round) {
      const double alphas[] = {1, -1, 0.5}, betas[] = {0, 1, -0.5};
      const ProductCase product = product_case(context, dtype, random_result(context, dtype), size(), size(), size(),
                                               alphas[context.integer(0, 2)], betas[context.integer(0, 2)]);
      context.backend.gemm({&product.problem, 1});
      expect_product(context, product);
    }
  }
}

// As in a layer: rows times weights, few and many, that go through more than one tile and piece of the inner size.
MOLAE_TEST("linalg: products of rows and weights", Device) {
  for (const DType dtype : kFloats) {
    std::vector<ProductCase> cases;
    std::vector<Gemm> problems;
    for (const int64_t m : {1, 5, 40, 129, 256, 300}) {
      cases.push_back(product_case(context, dtype, random_result(context, dtype), m, context.integer(1, 1200),
                                   context.integer(1, 900), 1, 0, Transposed::OnlyB));
      problems.push_back(cases.back().problem);
    }
    context.backend.gemm(problems);
    for (const ProductCase& product : cases) expect_product(context, product);
  }
}

MOLAE_TEST("linalg: f32 products are not TF32", Device) {
  const ProductCase product = product_case(context, DType::F32, DType::F32, 256, 256, 300);
  context.backend.gemm({&product.problem, 1});
  expect_close(read(context.backend, product.problem.c), product.wanted, 2e-6, "f32");
}

MOLAE_TEST("linalg: many products in one call", Device) {
  for (const bool equal_shapes : {true, false}) {
    for (const DType dtype : kFloats) {
      std::vector<ProductCase> cases;
      std::vector<Gemm> problems;
      for (int i = 0; i < 13; ++i) {
        const int64_t m = equal_shapes ? 40 : context.integer(0, 50), n = equal_shapes ? 24 : context.integer(0, 50);
        cases.push_back(product_case(context, dtype, random_result(context, dtype), m, n, equal_shapes ? 56 : i));
        problems.push_back(cases.back().problem);
      }
      context.backend.gemm(problems);
      for (const ProductCase& product : cases) expect_product(context, product);
    }
  }
  context.backend.gemm({});
}

MOLAE_TEST("linalg: products of halves, of which not all are widened at a time", Device) {
  for (const DType dtype : {DType::BF16, DType::F16}) {
    std::vector<ProductCase> cases;
    std::vector<Gemm> problems;
    for (const auto& [m, n, k] : {std::array{1500, 2, 1500}, {1300, 3, 1300}, {3, 2, 5}, {2300, 2, 2000}}) {
      cases.push_back(product_case(context, dtype, random_result(context, dtype), m, n, k));
      problems.push_back(cases.back().problem);
    }
    context.backend.gemm(problems);
    for (const ProductCase& product : cases) expect_product(context, product);
  }
}

MOLAE_TEST("linalg: products of views that are not aligned", Device) {
  for (const DType dtype : kFloats) {
    Values a = random_values(context, 9 * 7), b = random_values(context, 7 * 5);
    const Tensor left = make_tensor(context, dtype, {9, 7}, a), right = make_tensor(context, dtype, {7, 5}, b);
    const Tensor out = poisoned(context, dtype, {10, 5});
    const Gemm problem{left.row_range(1, 9), right, out.row_range(1, 9), false, false, 1, 0};
    context.backend.gemm({&problem, 1});
    const Values wanted = reference_product({a.begin() + 7, a.end()}, false, b, false, 8, 5, 7);
    const Values actual = read(context.backend, out);
    expect_close({actual.begin() + 5, actual.begin() + 45}, wanted, tolerance(dtype), "a view");
    expect(std::isnan(actual[0]) && std::isnan(actual[45]), "rows beside the view were written");
  }
}

// u s vt = a, orthonormal u and vt, descending s.
void check_svd_of(Context& context, DType dtype, int64_t p, int64_t q, int64_t rank) {
  const int64_t k = std::min(p, q);
  Values x = random_values(context, p * rank), y = random_values(context, rank * q);
  Values values = reference_product(x, false, y, false, p, q, rank);
  const Tensor a = make_tensor(context, dtype, {p, q}, values);
  const Tensor u = poisoned(context, dtype, {p, k}), s = poisoned(context, dtype, {k}),
               vt = poisoned(context, dtype, {k, q});
  context.backend.svd(a, u, s, vt);
  const std::string what = std::string("svd ") + std::string(dtype_name(dtype)) + " " + shape_name({p, q});
  const double relative = dtype == DType::F64 ? 1e-11 : 2e-5;
  Values left = read(context.backend, u);
  const Values right = read(context.backend, vt), singular = read(context.backend, s);
  expect(std::is_sorted(singular.rbegin(), singular.rend()) && (k == 0 || singular[k - 1] >= 0), what, ": order");
  expect(read(context.backend, a) == values, what, ": a was changed");
  Values identity(k * k, 0);
  for (int64_t i = 0; i < k; ++i) identity[i * k + i] = 1;
  expect_close(reference_product(left, true, left, false, k, k, p), identity, relative, what + " u");
  expect_close(reference_product(right, false, right, true, k, k, q), identity, relative, what + " vt");
  for (int64_t i = 0; i < p * k; ++i) left[i] *= singular[i % k];
  expect_close(reference_product(left, false, right, false, p, q, k), values, relative, what + " product");
}

MOLAE_TEST("linalg: svd", Device) {
  for (const DType dtype : {DType::F32, DType::F64}) {
    for (const auto& [p, q] : {std::pair{1, 1},
                               {5, 3},
                               {3, 5},
                               {64, 64},
                               {1, 9},
                               {9, 1},
                               {40, 100},
                               {100, 40},
                               {150, 70},
                               {70, 150},
                               {130, 130},
                               {0, 4},
                               {4, 0}}) {
      check_svd_of(context, dtype, p, q, std::min(p, q));
    }
    check_svd_of(context, dtype, 90, 80, 11);
    check_svd_of(context, dtype, 30, 50, 4);
  }
}

// Sizes at which the GPU takes another routine, too slow for the CPU's share of CI.
MOLAE_TEST("linalg: svd of large matrices", Device) {
  if (context.backend.host_memory()) return;
  check_svd_of(context, DType::F32, 1100, 1030, 1030);
  check_svd_of(context, DType::F64, 1030, 1100, 1030);
  check_svd_of(context, DType::F64, 1100, 1030, 200);
}

// a v = lambda v; all eigenvalues descending; only the lower triangle is read.
void check_eigh_of(Context& context, DType dtype, int64_t n, int64_t top) {
  const Values x = random_values(context, n * (n + 3));
  Values values = reference_product(x, false, x, true, n, n, n + 3);
  Values stored = values;
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = i + 1; j < n; ++j) stored[i * n + j] = 1e6;
  }
  const Tensor a = make_tensor(context, dtype, {n, n}, stored);
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < n; ++j) values[i * n + j] = stored[std::max(i, j) * n + std::min(i, j)];
  }
  const Tensor eigenvalues = poisoned(context, dtype, {n}), vectors = poisoned(context, dtype, {top, n});
  context.backend.eigh(a, eigenvalues, vectors);
  const std::string what = std::string("eigh ") + std::string(dtype_name(dtype)) + " " + shape_name({top, n});
  const double relative = dtype == DType::F64 ? 1e-11 : 1e-4;
  const Values lambda = read(context.backend, eigenvalues), v = read(context.backend, vectors);
  expect(std::is_sorted(lambda.rbegin(), lambda.rend()), what, ": order");
  double trace = 0, sum = 0;
  for (int64_t i = 0; i < n; ++i) trace += values[i * n + i];
  for (const double value : lambda) sum += value;
  expect(std::abs(trace - sum) <= relative * trace, what, ": trace ", trace, ", sum ", sum);
  Values scaled = v;
  for (int64_t i = 0; i < top * n; ++i) scaled[i] *= lambda[i / n];
  expect_close(reference_product(v, false, values, false, top, n, n), scaled, relative, what + " pairs");
  Values identity(top * top, 0);
  for (int64_t i = 0; i < top; ++i) identity[i * top + i] = 1;
  expect_close(reference_product(v, false, v, true, top, top, n), identity, relative, what + " vectors");
}

MOLAE_TEST("linalg: eigh", Device) {
  for (const DType dtype : {DType::F32, DType::F64}) {
    for (const auto& [n, top] : {std::pair{1, 1},
                                 {1, 0},
                                 {2, 1},
                                 {2, 2},
                                 {3, 2},
                                 {17, 17},
                                 {60, 5},
                                 {64, 64},
                                 {65, 1},
                                 {129, 40},
                                 {200, 0},
                                 {370, 360},
                                 {700, 130},
                                 {0, 0}}) {
      check_eigh_of(context, dtype, n, top);
    }
  }
}

MOLAE_TEST("linalg: decompositions refuse NaN", Device) {
  Values values(16, NAN);
  const Tensor a = make_tensor(context, DType::F32, {4, 4}, values);
  const Tensor s = poisoned(context, DType::F32, {4}), u = poisoned(context, DType::F32, {4, 4});
  const Tensor vt = poisoned(context, DType::F32, {4, 4});
  expect_error(ErrorCode::NonFinite, "svd", [&] { context.backend.svd(a, u, s, vt); });
  expect_error(ErrorCode::NonFinite, "eigh", [&] { context.backend.eigh(a, s, vt); });
}

MOLAE_TEST("linalg: solve of a positive definite system", Device) {
  for (const DType dtype : {DType::F32, DType::F64}) {
    for (const auto& [r, cols] : {std::pair{1, 1}, {5, 3}, {64, 200}, {97, 33}, {150, 190}}) {
      const Values x = random_values(context, r * 3 * r);
      Values spd = reference_product(x, false, x, true, r, r, 3 * r);
      const Tensor a = make_tensor(context, dtype, {r, r}, spd);
      Values solution = random_values(context, r * cols);
      Values product = reference_product(spd, false, solution, false, r, cols, r);
      const Tensor rhs = make_tensor(context, dtype, {r, cols}, product);
      context.backend.solve_spd(a, rhs);
      expect_close(read(context.backend, rhs), solution, dtype == DType::F64 ? 1e-10 : 1e-3, "solution");
    }
  }
  Values indefinite = {1, 0, 0, 0, -1, 0, 0, 0, 1}, ones(3, 1);
  const Tensor a = make_tensor(context, DType::F64, {3, 3}, indefinite),
               rhs = make_tensor(context, DType::F64, {3, 1}, ones);
  expect_error(ErrorCode::NoConvergence, "an indefinite matrix", [&] { context.backend.solve_spd(a, rhs); });
}

}  // namespace
}  // namespace molae::test
