#include <algorithm>

#include "core/error.h"
#include "core/factorization/shared_basis.h"
#include "native/tensors.h"

// The steps of factorization, and factorization itself.
namespace molae::test {
namespace {

MOLAE_TEST("factor: Gram matrices", Device) {
  for (const DType dtype : kFloats) {
    for (const auto& [p, q] : {std::pair{1, 1}, {33, 20}, {20, 33}, {600, 40}, {40, 1100}, {0, 4}}) {
      for (const SharedSide side : {SharedSide::Input, SharedSide::Output}) {
        const bool input = side == SharedSide::Input;
        const int64_t n = input ? q : p;
        Values w = random_values(context, p * q);
        const Tensor tensor = make_tensor(context, dtype, {p, q}, w);
        Values start = random_values(context, n * n);
        const Tensor gram = make_tensor(context, DType::F64, {n, n}, start);
        context.backend.accumulate_gram(tensor, side, gram);
        context.backend.accumulate_gram(tensor, side, gram);
        const Values product =
            input ? reference_product(w, true, w, false, n, n, p) : reference_product(w, false, w, true, n, n, q);
        const Values actual = read(context.backend, gram);
        Values lower, wanted;
        for (int64_t i = 0; i < n; ++i) {
          for (int64_t j = 0; j <= i; ++j) {
            lower.push_back(actual[i * n + j]);
            wanted.push_back(start[i * n + j] + 2 * product[i * n + j]);
          }
        }
        // Terms on the diagonal have one sign, and so have their errors.
        expect_close(lower, wanted, is_half(dtype) ? 2 * tolerance_of_half_sums(context) : 1e-12,
                     std::string("gram ") + std::string(dtype_name(dtype)) + " " + shape_name({p, q}));
      }
    }
  }
}

MOLAE_TEST("factor: squared residuals", Device) {
  for (const DType dtype : kFloats) {
    for (const DType factors : kFloats) {
      for (const auto& [p, q, r] : {std::tuple{1, 1, 1}, {70, 50, 9}, {33, 200, 16}, {0, 3, 2}}) {
        Values w = random_values(context, p * q), a = random_values(context, p * r, 0.5),
               b = random_values(context, r * q, 0.5);
        const Tensor tensor = make_tensor(context, dtype, {p, q}, w);
        const Tensor left = make_tensor(context, factors, {p, r}, a), right = make_tensor(context, factors, {r, q}, b);
        const Values product = reference_product(a, false, b, false, p, q, r);
        double wanted = 0, size = 0;  // a difference is as exact as its terms are large
        for (size_t i = 0; i < w.size(); ++i) {
          wanted += (w[i] - product[i]) * (w[i] - product[i]);
          size += w[i] * w[i] + product[i] * product[i];
        }
        for (const DType compute : {DType::F32, DType::F64}) {
          const double actual = context.backend.squared_residual(tensor, left, right, compute);
          expect(std::abs(actual - wanted) <= (compute == DType::F32 ? 1e-5 : 1e-12) * (wanted + 0.1 * size),
                 "residual of ", dtype_name(dtype), " by ", dtype_name(factors), " in ", dtype_name(compute), ": ",
                 actual, ", wanted ", wanted);
        }
      }
    }
  }
}

// Experts that share a space of `rank` dimensions exactly.
std::vector<Tensor> planted_experts(Context& context, DType dtype, SharedSide side, int64_t m, int64_t n,
                                    int64_t rank) {
  const Values shared = random_values(context, rank * n);
  std::vector<Tensor> experts;
  for (int i = 0; i < 4; ++i) {
    const Values own = random_values(context, m * rank);
    Values w = side == SharedSide::Input ? reference_product(own, false, shared, false, m, n, rank)
                                         : reference_product(shared, true, own, true, n, m, rank);
    const Shape shape = side == SharedSide::Input ? Shape{m, n} : Shape{n, m};
    experts.push_back(make_tensor(context, dtype, shape, w));
  }
  return experts;
}

MOLAE_TEST("factor: planted spaces are found", Device) {
  for (const DType dtype : kFloats) {
    for (const SharedSide side : {SharedSide::Input, SharedSide::Output}) {
      for (const Solver solver : {Solver::Gram, Solver::Svd}) {
        const int64_t m = 40, n = 90, rank = 13;
        SharedBasis::Options options;
        options.side = side;
        options.shared_size = n;
        options.solver = solver;
        SharedBasis basis(context.backend, options);
        const auto experts = planted_experts(context, dtype, side, m, n, rank);
        for (const Tensor& expert : experts) basis.add(expert);
        const bool input = side == SharedSide::Input;
        const DType stored = is_half(dtype) ? DType::F32 : dtype;
        const Tensor b = poisoned(context, stored, input ? Shape{rank, n} : Shape{n, rank});
        const BasisReport report = basis.solve(b);
        double residual = 0;
        for (const Tensor& expert : experts) {
          const Tensor a = poisoned(context, stored, input ? Shape{m, rank} : Shape{rank, m});
          residual += basis.project(expert, a);
        }
        const double error = std::sqrt(residual / report.squared_norm);
        const double wanted = dtype == DType::F64 ? 1e-10 : dtype == DType::F32 ? 1e-6 : 1e-2;
        expect(error <= wanted, "error ", error, " of ", dtype_name(dtype), " is more than ", wanted);
        expect(error <= report.optimal_relative_error + wanted, "error ", error, " against ",
               report.optimal_relative_error);
        if (dtype == DType::F64) expect_equal(report.joint_dimension, rank, "joint dimension");
      }
    }
  }
}

// Experts whose singular values fall by `decay` each, after a first one `dominance` times as large, times `scale`.
std::vector<Tensor> decaying_experts(Context& context, SharedSide side, int64_t m, int64_t n, double decay,
                                     double dominance, double scale) {
  Values shared = random_values(context, n * n);
  double size = scale * dominance;
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < n; ++j) shared[i * n + j] *= size;
    size = i == 0 ? scale : size * decay;
  }
  std::vector<Tensor> experts;
  for (int i = 0; i < 4; ++i) {
    const Values own = random_values(context, m * n);
    const bool input = side == SharedSide::Input;
    Values w = input ? reference_product(own, false, shared, false, m, n, n)
                     : reference_product(shared, true, own, true, n, m, n);
    experts.push_back(make_tensor(context, DType::F32, input ? Shape{m, n} : Shape{n, m}, w));
  }
  return experts;
}

// f32 products are allowed only where their rounding cannot be seen in the error: on both sides of that bound, and
// where one direction outweighs all others.
MOLAE_TEST("factor: f32 experts reach the best error within 1e-6, and say so", Device) {
  const int64_t m = 50, n = 96;
  for (const auto& [decay, dominance, scale] : {std::tuple{1.0, 1.0, 1.0},
                                                {0.9, 1.0, 1.0},
                                                {0.7, 1.0, 1e-15},
                                                {1.0, 300.0, 1.0},
                                                {1.0, 1e4, 1e15},
                                                {0.8, 1e3, 1.0}}) {
    for (const SharedSide side : {SharedSide::Input, SharedSide::Output}) {
      const bool input = side == SharedSide::Input;
      const auto experts = decaying_experts(context, side, m, n, decay, dominance, scale);
      for (const int64_t r : {1, 8, 20, 40, 80, 95}) {
        SharedBasis::Options options;
        options.side = side;
        options.shared_size = n;
        SharedBasis basis(context.backend, options);
        for (const Tensor& expert : experts) basis.add(expert);
        const Tensor b = poisoned(context, DType::F32, input ? Shape{r, n} : Shape{n, r});
        const BasisReport report = basis.solve(b);
        double said = 0, reached = 0;
        for (const Tensor& expert : experts) {
          const Tensor a = poisoned(context, DType::F32, input ? Shape{m, r} : Shape{r, m});
          said += basis.project(expert, a);
          reached += context.backend.squared_residual(expert, input ? a : b, input ? b : a, DType::F64);
        }
        const double optimal = report.optimal_relative_error;
        const double error = std::sqrt(reached / report.squared_norm);
        // Products in f32 hide in errors above 1e-3. Below, they are in f64, and what storing A rounds is all there is.
        const bool hidden = optimal >= 1e-3;
        expect(std::abs(error - optimal) <= (hidden ? 1e-8 : 8e-8), "error ", error, " against ", optimal, " at r ", r);
        expect(std::abs(std::sqrt(said / report.squared_norm) - error) <= (hidden ? 1e-6 : 1e-9), "said ", said, " of ",
               reached);
      }
    }
  }
}

// What is said of experts, and the error that is reached.
struct Factorized {
  BasisReport report;
  double error;
};

Factorized factorize(Context& context, const SharedBasis::Options& options, const std::vector<Tensor>& experts,
                     DType dtype, int64_t r) {
  SharedBasis basis(context.backend, options);
  for (const Tensor& expert : experts) basis.add(expert);
  const bool input = options.side == SharedSide::Input;
  const int64_t n = options.shared_size;
  const BasisReport report = basis.solve(poisoned(context, dtype, input ? Shape{r, n} : Shape{n, r}));
  double residual = 0;
  for (const Tensor& expert : experts) {
    const Shape shape = input ? Shape{expert.rows(), r} : Shape{r, expert.cols()};
    residual += basis.project(expert, poisoned(context, dtype, shape));
  }
  return {report, report.squared_norm > 0 ? std::sqrt(residual / report.squared_norm) : 0};
}

// Four random experts, and what they are times powers of two.
class ScaledExperts {
 public:
  ScaledExperts(Context& context, DType dtype, SharedSide side, int64_t m, int64_t n)
      : context_(context), dtype_(dtype), shape_(side == SharedSide::Input ? Shape{m, n} : Shape{n, m}) {
    for (int i = 0; i < 4; ++i) {
      make_tensor(context_, dtype_, shape_, values_.emplace_back(random_values(context_, m * n)));
    }
  }

  std::vector<Tensor> times(double scale) const {
    std::vector<Tensor> experts;
    for (Values values : values_) {
      for (double& value : values) value *= scale;
      experts.push_back(make_tensor(context_, dtype_, shape_, values));
    }
    return experts;
  }

 private:
  Context& context_;
  DType dtype_;
  Shape shape_;
  std::vector<Values> values_;  // as stored
};

// Squares of bf16 leave the range of f32 at both ends, and products of halves are summed in f32.
MOLAE_TEST("factor: bf16 experts of any magnitude are told the same", Device) {
  const int64_t m = 30, n = 44, r = 20;
  for (const SharedSide side : {SharedSide::Input, SharedSide::Output}) {
    const ScaledExperts experts(context, DType::BF16, side, m, n);
    for (const int64_t rank : {0, 10}) {
      SharedBasis::Options options;
      options.side = side;
      options.shared_size = n;
      options.rank_reduction = rank;
      options.control_seed = 1;
      const Factorized wanted = factorize(context, options, experts.times(1), DType::F32, r);
      for (const double scale : {0x1p-110, 0x1p-79, 0x1p-73, 0x1p-45, 0x1p-20, 0x1p45, 0x1p55, 0x1p62, 0x1p110}) {
        const auto [report, error] = factorize(context, options, experts.times(scale), DType::F32, r);
        const BasisReport& one = wanted.report;
        expect(std::abs(report.squared_norm / (scale * scale) - one.squared_norm) <= 1e-12 * one.squared_norm,
               "squared norm at ", scale);
        expect(std::abs(report.optimal_relative_error - one.optimal_relative_error) <= 1e-6, "optimum at ", scale, ": ",
               report.optimal_relative_error, ", wanted ", one.optimal_relative_error);
        expect(std::abs(*report.control_relative_error - *one.control_relative_error) <= 1e-6, "control at ", scale);
        expect_equal(report.joint_dimension, one.joint_dimension, "joint dimension at ", scale);
        expect(std::abs(error - wanted.error) <= 1e-6, "error at ", scale, ": ", error, ", wanted ", wanted.error);
      }
    }
  }
}

// Squares of f64 may leave its own range: what they are then says nothing of the experts.
MOLAE_TEST("factor: f64 experts of which squares leave f64's range are refused, those of zeros are not", Device) {
  const int64_t m = 12, n = 20, r = 8;
  for (const Solver solver : {Solver::Gram, Solver::Svd}) {
    SharedBasis::Options options;
    options.shared_size = n;
    options.solver = solver;
    const ScaledExperts experts(context, DType::F64, options.side, m, n);
    const auto factorized = [&](double scale) {
      return factorize(context, options, experts.times(scale), DType::F64, r);
    };
    const Factorized wanted = factorized(1);
    for (const double scale : {0x1p-470, 0x1p-300, 0x1p300, 0x1p470}) {
      const auto [report, error] = factorized(scale);
      expect(std::abs(report.optimal_relative_error - wanted.report.optimal_relative_error) <= 1e-9, "optimum at ",
             scale);
      expect(std::abs(error - wanted.error) <= 1e-9, "error at ", scale);
      expect_equal(report.joint_dimension, wanted.report.joint_dimension, "joint dimension at ", scale);
    }
    for (const double scale : {0x1p-1000, 0x1p-560, 0x1p-500, 0x1p540, 0x1p1000}) {
      expect_error(ErrorCode::InvalidArgument, "times " + std::to_string(std::log2(scale)), [&] { factorized(scale); });
    }
    const auto [zeros, error] = factorized(0);
    expect_equal(zeros.joint_dimension, 0, "joint dimension of zeros");
    expect_equal(zeros.optimal_relative_error, 0.0, "optimum of zeros");
    expect_equal(error, 0.0, "error of zeros");
  }
}

// Of what is written, all memory must be there.
MOLAE_TEST("factor: bases and factors of other shapes are refused", Device) {
  const int64_t m = 6, n = 9, r = 4;
  for (const SharedSide side : {SharedSide::Input, SharedSide::Output}) {
    const bool input = side == SharedSide::Input;
    SharedBasis::Options options;
    options.side = side;
    options.shared_size = n;
    SharedBasis basis(context.backend, options);
    Values values = random_values(context, m * n);
    const Tensor w = make_tensor(context, DType::F32, input ? Shape{m, n} : Shape{n, m}, values);
    basis.add(w);
    for (const Shape& shape : {Shape{}, Shape{r}, Shape{r, n + 1}, Shape{n + 1, r}, Shape{1, r, n}}) {
      expect_error(ErrorCode::ShapeMismatch, "a basis of shape " + shape_name(shape),
                   [&] { basis.solve(poisoned(context, DType::F32, shape)); });
    }
    basis.solve(poisoned(context, DType::F32, input ? Shape{r, n} : Shape{n, r}));
    for (const Shape& shape : {Shape{}, Shape{1, 1}, Shape{m, r + 1}, Shape{r + 1, m}}) {
      for (const DType dtype : {DType::F32, DType::BF16}) {
        expect_error(ErrorCode::ShapeMismatch, "factors of shape " + shape_name(shape),
                     [&] { basis.project(w, poisoned(context, dtype, shape)); });
      }
    }
    basis.project(w, poisoned(context, DType::F32, input ? Shape{m, r} : Shape{r, m}));
  }
}

}  // namespace
}  // namespace molae::test
