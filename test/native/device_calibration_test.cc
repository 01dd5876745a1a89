#include <algorithm>
#include <array>

#include "core/error.h"
#include "native/tensors.h"

// What calibrated factorization asks of a device, against plain loops in f64.
namespace molae::test {
namespace {

constexpr DType kActivationFloats[] = {DType::F32, DType::F16, DType::BF16};

Values lower_triangle(const Values& square, int64_t n) {
  Values lower;
  for (int64_t i = 0; i < n; ++i) lower.insert(lower.end(), square.begin() + i * n, square.begin() + i * n + i + 1);
  return lower;
}

// NaN above the diagonal: what is not to be read shows.
Values poisoned_above(Values square, int64_t n) {
  for (int64_t i = 0; i < n; ++i) std::fill(square.begin() + i * n + i + 1, square.begin() + (i + 1) * n, NAN);
  return square;
}

Values random_triangle(Context& context, int64_t n) {
  Values l(n * n);
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < i; ++j) l[i * n + j] = context.normal() / std::sqrt(static_cast<double>(n));
    l[i * n + i] = 1 + std::abs(context.normal());
  }
  return l;
}

double activate_plainly(Activation activation, double x) {
  switch (activation) {
    case Activation::Silu:
      return x / (1 + std::exp(-x));
    case Activation::Gelu:
      return x / 2 * std::erfc(-x / std::sqrt(2.0));
    case Activation::GeluTanh:
      return x / 2 * (1 + std::tanh(std::sqrt(2 / std::acos(-1.0)) * (x + 0.044715 * x * x * x)));
    case Activation::Relu2:
      return std::max(x, 0.0) * std::max(x, 0.0);
  }
  return NAN;
}

MOLAE_TEST("calibration: moments of inputs, weighted and not", Device) {
  CalibrationSteps* steps = context.backend.calibration_steps();
  if (!steps) return;
  for (const DType dtype : kActivationFloats) {
    for (const auto& [t, n] : {std::pair{1, 1}, {33, 20}, {600, 41}, {5003, 3}, {0, 4}}) {
      for (const bool weighted : {false, true}) {
        Values x = random_values(context, t * n), s = random_values(context, t), start = random_values(context, n * n);
        for (double& value : start) value = std::abs(value);  // squares do not cancel it
        const Tensor inputs = make_tensor(context, dtype, {t, n}, x);
        const Tensor scales = weighted ? make_tensor(context, DType::F32, {t}, s) : Tensor();
        const Tensor moment = make_tensor(context, DType::F64, {n, n}, start);
        steps->accumulate_moment(inputs, scales, moment);
        Values wanted = start;
        for (int64_t row = 0; row < t; ++row) {
          const double scale = weighted ? s[row] * s[row] : 1;
          for (int64_t i = 0; i < n; ++i) {
            for (int64_t j = 0; j <= i; ++j) wanted[i * n + j] += scale * x[row * n + i] * x[row * n + j];
          }
        }
        expect_close(lower_triangle(read(context.backend, moment), n), lower_triangle(wanted, n), 2e-6,
                     std::string("moment ") + std::string(dtype_name(dtype)) + " " + shape_name({t, n}));
      }
    }
  }
}

MOLAE_TEST("calibration: rows gathered by number, repeated ones too, scaled and not", Device) {
  CalibrationSteps* steps = context.backend.calibration_steps();
  if (!steps) return;
  for (const auto& [tokens, n, t] : {std::tuple{1, 1, 1}, {7, 5, 19}, {70, 131, 33}, {4, 3, 0}}) {
    for (const bool scaled : {false, true}) {
      Values x = random_values(context, tokens * n), s = random_values(context, t);
      std::vector<int32_t> rows(t);
      for (int32_t& row : rows) row = static_cast<int32_t>(context.integer(0, tokens - 1));
      const Tensor out = poisoned(context, DType::F32, {t, n});
      const Tensor from = make_tensor(context, DType::F32, {tokens, n}, x);
      const Tensor scales = make_tensor(context, DType::F32, {t}, s);
      steps->gather_rows(from, make_ints(context, {t}, rows), scaled ? scales : Tensor(), out);
      Values wanted;
      for (int64_t i = 0; i < t; ++i) {
        for (int64_t j = 0; j < n; ++j) wanted.push_back((scaled ? s[i] : 1) * x[rows[i] * n + j]);
      }
      expect_close(read(context.backend, out), wanted, 1e-7, "gathered rows");
    }
  }
}

MOLAE_TEST("calibration: rows are added to those named, all others stay", Device) {
  CalibrationSteps* steps = context.backend.calibration_steps();
  if (!steps) return;
  for (const auto& [tokens, n, t] : {std::tuple{1, 1, 1}, {9, 5, 4}, {70, 131, 33}, {4, 3, 0}}) {
    Values from = random_values(context, t * n), wanted = random_values(context, tokens * n);
    std::vector<int32_t> rows(tokens);
    for (int32_t i = 0; i < tokens; ++i) rows[i] = i;
    std::shuffle(rows.begin(), rows.end(), context.random);
    rows.resize(t);
    const Tensor to = make_tensor(context, DType::F32, {tokens, n}, wanted);
    steps->scatter_add_rows(make_tensor(context, DType::F32, {t, n}, from), make_ints(context, {t}, rows), to);
    for (int64_t i = 0; i < t; ++i) {
      for (int64_t j = 0; j < n; ++j) wanted[rows[i] * n + j] += from[i * n + j];
    }
    expect_close(read(context.backend, to), wanted, 1e-7, "scattered rows");
  }
}

MOLAE_TEST("calibration: hidden elements, and slopes as finite differences see them", Device) {
  CalibrationSteps* steps = context.backend.calibration_steps();
  if (!steps) return;
  constexpr double kStep = 1e-6;
  for (const Activation activation : {Activation::Silu, Activation::Gelu, Activation::GeluTanh, Activation::Relu2}) {
    const auto act = [&](double x) { return activate_plainly(activation, x); };
    for (const auto& [t, m] : {std::pair{1, 1}, {9, 70}, {5, 64}, {130, 65}, {0, 3}}) {
      Values g = random_values(context, t * m, 2), u = random_values(context, t * m), s = random_values(context, t);
      Values by_gate = random_values(context, m), by_up = random_values(context, m);
      for (Values* slopes : {&by_gate, &by_up}) {
        for (double& slope : *slopes) slope = 1 + std::abs(slope);  // what is added to
      }
      const Tensor gate = make_tensor(context, DType::F32, {t, m}, g), up = make_tensor(context, DType::F32, {t, m}, u);
      const Tensor scales = make_tensor(context, DType::F32, {t}, s);
      const Tensor hidden = poisoned(context, DType::F32, {t, m});
      const Tensor gate_slopes = make_tensor(context, DType::F64, {m}, by_gate);
      const Tensor up_slopes = make_tensor(context, DType::F64, {m}, by_up);
      steps->expert_hidden(gate, up, scales, activation, hidden, gate_slopes, up_slopes);
      Values wanted(t * m);
      for (int64_t i = 0; i < t * m; ++i) {
        const double scale = s[i / m];
        wanted[i] = scale * act(g[i]) * u[i];
        const double gate_slope = scale * u[i] * (act(g[i] + kStep) - act(g[i] - kStep)) / (2 * kStep);
        const double up_slope = scale * act(g[i]);  // linear in up
        by_gate[i % m] += gate_slope * gate_slope;
        by_up[i % m] += up_slope * up_slope;
      }
      const Values actual = read(context.backend, hidden);
      for (int64_t i = 0; i < t * m; ++i) {  // in the tail of an activation its terms cancel: they set the scale
        const double terms = std::abs(s[i / m] * u[i]) * (std::abs(g[i]) + g[i] * g[i]);
        expect(std::abs(actual[i] - wanted[i]) <= 1e-6 * terms, "hidden element ", actual[i], ", wanted ", wanted[i]);
      }
      expect_close(read(context.backend, gate_slopes), by_gate, 2e-6, "slopes of gate");
      expect_close(read(context.backend, up_slopes), by_up, 2e-6, "slopes of up");
    }
  }
}

MOLAE_TEST("calibration: norms of columns", Device) {
  CalibrationSteps* steps = context.backend.calibration_steps();
  if (!steps) return;
  for (const DType dtype : kFloats) {
    for (const auto& [n, m] : {std::pair{1, 1}, {33, 20}, {5, 131}, {0, 4}}) {
      Values w = random_values(context, n * m), wanted(m);
      const Tensor norms = poisoned(context, DType::F64, {m});
      steps->column_norms(make_tensor(context, dtype, {n, m}, w), norms);
      for (int64_t i = 0; i < n * m; ++i) wanted[i % m] += w[i] * w[i];
      expect_close(read(context.backend, norms), wanted, 1e-12, "column norms");
    }
  }
}

MOLAE_TEST("calibration: weighted distances with every argument there or not", Device) {
  CalibrationSteps* steps = context.backend.calibration_steps();
  if (!steps) return;
  for (const auto& [t, m] : {std::pair{1, 1}, {33, 20}, {5, 131}, {0, 4}}) {
    Values a = random_values(context, t * m), b = random_values(context, t * m), s = random_values(context, t),
           weights = random_values(context, m);
    for (double& weight : weights) weight *= weight;
    const Tensor left = make_tensor(context, DType::F32, {t, m}, a),
                 right = make_tensor(context, DType::F32, {t, m}, b);
    const Tensor scales = make_tensor(context, DType::F32, {t}, s),
                 columns = make_tensor(context, DType::F64, {m}, weights);
    for (const bool with_b : {false, true}) {
      for (const bool scaled : {false, true}) {
        for (const bool weighted : {false, true}) {
          double wanted = 0;
          for (int64_t i = 0; i < t * m; ++i) {
            const double difference = a[i] - (with_b ? b[i] : 0);
            wanted += (scaled ? s[i / m] * s[i / m] : 1) * (weighted ? weights[i % m] : 1) * difference * difference;
          }
          const double actual = steps->weighted_distance(left, with_b ? right : Tensor(), scaled ? scales : Tensor(),
                                                         weighted ? columns : Tensor());
          expect(std::abs(actual - wanted) <= 1e-12 * wanted, "distance ", actual, ", wanted ", wanted);
        }
      }
    }
  }
}

MOLAE_TEST("calibration: diagonals are summed and moved", Device) {
  CalibrationSteps* steps = context.backend.calibration_steps();
  if (!steps) return;
  for (const int64_t n : {1, 7, 130, 0}) {
    Values wanted = random_values(context, n * n);
    const Tensor a = make_tensor(context, DType::F64, {n, n}, wanted);
    steps->add_to_diagonal(a, 0.75);
    double trace = 0;
    for (int64_t i = 0; i < n; ++i) trace += wanted[i * (n + 1)] += 0.75;
    expect_close(read(context.backend, a), wanted, 1e-15, "moved diagonal");
    expect(std::abs(steps->trace(a) - trace) <= 1e-12 * (std::abs(trace) + 1), "trace ", steps->trace(a), ", wanted ",
           trace);
  }
}

MOLAE_TEST("calibration: Cholesky factors multiply to the matrix whose lower triangle was given", Device) {
  CalibrationSteps* steps = context.backend.calibration_steps();
  if (!steps) return;
  for (const int64_t n : {1, 17, 130, 0}) {
    const Values triangle = random_triangle(context, n);
    const Values spd = reference_product(triangle, false, triangle, true, n, n, n);
    Values lower = poisoned_above(spd, n);
    const Tensor a = make_tensor(context, DType::F64, {n, n}, lower);
    steps->cholesky(a);
    expect_close(read(context.backend, a), triangle, 1e-10, "Cholesky factor");
  }
}

MOLAE_TEST("calibration: Cholesky refuses matrices that are not positive definite", Device) {
  CalibrationSteps* steps = context.backend.calibration_steps();
  if (!steps) return;
  for (const int64_t n : {1, 17, 130}) {
    Values indefinite(n * n);
    for (int64_t i = 0; i < n; ++i) indefinite[i * (n + 1)] = i == n - 1 ? -1 : 1;
    const Tensor a = make_tensor(context, DType::F64, {n, n}, indefinite);
    expect_error(ErrorCode::NoConvergence, "Cholesky of an indefinite matrix", [&] { steps->cholesky(a); });
  }
}

MOLAE_TEST("calibration: congruences with a triangle", Device) {
  CalibrationSteps* steps = context.backend.calibration_steps();
  if (!steps) return;
  for (const int64_t n : {1, 17, 130, 0}) {
    Values l = random_triangle(context, n);
    const Values half = random_values(context, n * n);
    const Values symmetric = reference_product(half, false, half, true, n, n, n);
    const Values wanted =
        reference_product(l, true, reference_product(symmetric, false, l, false, n, n, n), false, n, n, n);
    Values lower = poisoned_above(symmetric, n);
    const Tensor s = make_tensor(context, DType::F64, {n, n}, lower);
    steps->congruence(make_tensor(context, DType::F64, {n, n}, l), s);
    expect_close(lower_triangle(read(context.backend, s), n), lower_triangle(wanted, n), 1e-12, "congruence");
  }
}

MOLAE_TEST("calibration: triangles are divided by from the right and from the left", Device) {
  CalibrationSteps* steps = context.backend.calibration_steps();
  if (!steps) return;
  for (const auto& [r, n] : {std::pair<int64_t, int64_t>{1, 1}, {5, 17}, {17, 5}, {33, 130}, {0, 4}, {4, 0}}) {
    Values x = random_values(context, r * n), right = random_triangle(context, n), left = random_triangle(context, r);
    const Tensor quotient = make_tensor(context, DType::F64, {r, n}, x);
    steps->divide_by_triangle(quotient, make_tensor(context, DType::F64, {n, n}, right));
    expect_close(reference_product(read(context.backend, quotient), false, right, false, r, n, n), x, 1e-12, "x L⁻¹ L");
    const Tensor solution = make_tensor(context, DType::F64, {r, n}, x);
    steps->solve_triangle(make_tensor(context, DType::F64, {r, r}, left), solution);
    expect_close(reference_product(left, false, read(context.backend, solution), false, r, n, r), x, 1e-12, "L L⁻¹ x");
  }
}

}  // namespace
}  // namespace molae::test
