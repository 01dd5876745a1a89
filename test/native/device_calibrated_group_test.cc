#include <cmath>
#include <limits>
#include <utility>

#include "core/factorization/products.h"
#include "core/factorization/shared_basis.h"
#include "native/calibration_problem.h"

// Calibrated factorization of small groups, against the definitions of its objectives in f64 and against chance.
namespace molae::test {
namespace {

constexpr int64_t kTries = 200;

double tail(const std::vector<double>& spectrum, int64_t r) {
  double sum = 0;
  for (size_t i = r; i < spectrum.size(); ++i) sum += spectrum[i];
  return sum;
}

MOLAE_TEST("calibrated group: bases of gate and up lose the tail of their spectra, and random ones more", Device) {
  if (!context.backend.calibration_steps()) return;
  // Alone, an expert has fewer rows than columns.
  for (const auto& [members, r] : std::vector<std::pair<std::vector<int32_t>, int64_t>>{
           {{1, 2, 5}, 1}, {{1, 2, 5}, 5}, {{1, 2, 5}, 11}, {{2}, 1}, {{2}, 5}}) {
    Setup setup;
    setup.group = members;
    const Problem problem(context, setup);
    CalibratedGroup::Options options;
    options.refit = false;
    const Converted converted = convert(context, problem, options, r);
    for (const ExpertMatrix which : kInputMatrices) {
      const auto& spectrum = converted.spectra[which == ExpertMatrix::Gate ? 0 : 1];
      const double wanted = tail(spectrum, r);
      const double best = problem.shared_loss(which, read(context.backend, converted.basis(which)));
      const double whole = tail(spectrum, 0);  // f32 sums know no less
      const auto expect_tail = [&](double loss, const char* what) {
        expect(std::abs(loss - wanted) <= 1e-4 * wanted + 1e-6 * whole, what, ": ", loss, ", wanted ", wanted);
      };
      expect_tail(best, "loss of the basis");
      double stored = 0;
      const Values b = read(context.backend, converted.basis(which));
      for (size_t i = 0; i < problem.experts.size(); ++i) {
        const ReferenceExpert& expert = problem.experts[i];
        stored += expert.mass / problem.mass *
                  loss_of(expert.matrix(which), read(context.backend, converted.factor(which, i)), b,
                          expert.row_weights(which), problem.shared_moment);
      }
      expect_tail(stored, "loss of the basis with its factors");
      for (int attempt = 0; attempt < kTries; ++attempt) {
        const double other = problem.shared_loss(which, random_values(context, r * kHidden));
        expect(other >= best - 1e-6 * whole, "a random basis loses ", other, ", less than ", best);
      }
      // Nor does one near it.
      for (int attempt = 0; attempt < kTries; ++attempt) {
        Values near = b;
        for (double& value : near) value += 0.01 * context.normal();
        const double other = problem.shared_loss(which, near);
        expect(other >= best - 1e-6 * whole, "a basis nearby loses ", other, ", less than ", best);
      }
    }
  }
}

MOLAE_TEST("calibrated group: one basis for gate and up loses the tail of the joint spectrum", Device) {
  if (!context.backend.calibration_steps()) return;
  const Problem problem(context, {});
  CalibratedGroup::Options options;
  options.shared_gate_up = true;
  const Converted converted = convert(context, problem, options, 5);
  const Values b = read(context.backend, converted.gate_basis);
  expect_near(problem.shared_loss(ExpertMatrix::Gate, b) + problem.shared_loss(ExpertMatrix::Up, b),
              tail(converted.spectra[0], 5), 1e-4, "loss of the shared basis");
}

MOLAE_TEST("calibrated group: refitted factors are the best for each expert's own shrunk moment", Device) {
  if (!context.backend.calibration_steps()) return;
  // With few tokens factors are fitted token by token, with more of them by their moment.
  for (const auto& [shrinkage, tokens] :
       std::vector<std::pair<double, int64_t>>{{0.0, 60}, {12.0, 60}, {12.0, 18}, {1e4, 60}, {1e4, 18}}) {
    Setup setup;
    setup.tokens = tokens;
    const Problem problem(context, setup);
    CalibratedGroup::Options options;
    options.shrinkage = shrinkage;
    const Converted refitted = convert(context, problem, options, 5);
    options.refit = false;
    const Converted plain = convert(context, problem, options, 5);
    for (const ExpertMatrix which : kInputMatrices) {
      const Values b = read(context.backend, refitted.basis(which));
      expect_close(read(context.backend, plain.basis(which)), b, 1e-6, "the same basis");
      for (size_t i = 0; i < problem.experts.size(); ++i) {
        const ReferenceExpert& expert = problem.experts[i];
        const Values moment = problem.shrunk_moment(expert, shrinkage);
        const auto loss = [&](const Values& a) {
          return loss_of(expert.matrix(which), a, b, expert.row_weights(which), moment);
        };
        const double best = loss(best_factors(expert.matrix(which), b, moment));
        const double own = loss(read(context.backend, refitted.factor(which, i)));
        const double unrefitted = loss(read(context.backend, plain.factor(which, i)));
        expect(own <= unrefitted * (1 + 1e-6), "refitted ", own, ", not refitted ", unrefitted);
        expect_near(own, best, 1e-5, "loss of refitted factors");
      }
    }
  }
}

void expect_best_output_basis(Context& context, const Problem& problem, int64_t r) {
  std::vector<Values> downs;
  for (const ReferenceExpert& expert : problem.experts) downs.push_back(expert.down);
  const Values y = problem.routed_output(downs);
  Values moment = product(y, true, y, false, kHidden, kHidden, kTokens);
  const auto residual = [&](const Values& u) {  // of y less its projection to the columns of u
    const Values coordinates = product(u, true, y, true, r, kTokens, kHidden);
    const Values fitted = solved(product(u, true, u, false, r, r, kHidden), coordinates, r, kTokens);
    double sum = 0;
    for (const double value : without(y, product(fitted, true, u, true, kTokens, kHidden, r))) sum += value * value;
    return sum;
  };
  const Tensor values = poisoned(context, DType::F64, {kHidden});
  context.backend.eigh(make_tensor(context, DType::F64, {kHidden, kHidden}, moment), values,
                       empty(context.backend, DType::F64, {0, kHidden}));
  const Values eigenvalues = read(context.backend, values);
  const Converted converted = convert(context, problem, {}, r, 0, DType::F64);
  const Values u = read(context.backend, converted.down_basis);
  std::vector<Values> latent;
  for (const CalibratedGroup::Factors& factors : converted.factors) {
    latent.push_back(product(u, false, read(context.backend, factors.down), false, kHidden, kIntermediate, r));
  }
  double lost = 0;
  for (const double value : without(y, problem.routed_output(latent))) lost += value * value;
  const double wanted = tail(eigenvalues, r);
  expect_near(lost, wanted, 1e-6, "residual of the routed output");
  // Hidden values are f32: eigenvalues are off by their rounding errors, which are relative to the largest.
  const double spectrum_tail = tail(converted.spectra[2], r);
  expect(std::abs(spectrum_tail - wanted) <= 1e-6 * tail(eigenvalues, 0),
         "tail of the spectrum of down: ", spectrum_tail, ", wanted ", wanted, " of ", tail(eigenvalues, 0));
  for (int attempt = 0; attempt < kTries; ++attempt) {
    const double other = residual(random_values(context, kHidden * r));
    expect(other >= lost * (1 - 1e-6), "a random subspace loses ", other, ", less than ", lost);
  }
}

MOLAE_TEST("calibrated group: down loses the tail of the routed output's moment, random subspaces more", Device) {
  if (!context.backend.calibration_steps()) return;
  for (const auto& [members, r] : std::vector<std::pair<std::vector<int32_t>, int64_t>>{
           {{0, 1, 2}, 1}, {{0, 1, 2}, 5}, {{0, 1, 2}, 9}, {{1}, 1}, {{1}, 5}}) {
    Setup setup;
    setup.experts = kMembers;
    setup.group = members;
    expect_best_output_basis(context, Problem(context, setup), r);
  }
}

void expect_finite(Context& context, const Converted& converted) {
  for (const Tensor& basis : {converted.gate_basis, converted.up_basis, converted.down_basis}) {
    expect_equal(context.backend.find_non_finite(basis), -1, "a basis that is not finite");
  }
  for (const CalibratedGroup::Factors& factors : converted.factors) {
    for (const Tensor& a : {factors.gate, factors.up, factors.down}) {
      expect_equal(context.backend.find_non_finite(a), -1, "factors that are not finite");
    }
  }
  for (const CalibratedGroup::Loss& loss : converted.losses) {
    for (int i = 0; i < 3; ++i) expect(std::isfinite(loss.lost[i]) && std::isfinite(loss.original[i]), "loss");
    expect(std::isfinite(loss.lost_output), "loss of the output");
  }
}

MOLAE_TEST("calibrated group: an expert alone with fewer directions than asked for gets all of them", Device) {
  if (!context.backend.calibration_steps()) return;
  Setup setup;
  setup.group = {2};
  setup.planted_rank = 2;
  setup.down_rank = 2;
  const Problem problem(context, setup);
  for (const int64_t r : {2, 3, 5, 7, 9}) {  // up to m its own rows would do, beyond it they are too few
    const Converted converted = convert(context, problem, {}, r);
    expect_finite(context, converted);
    const CalibratedGroup::Loss& loss = converted.losses[0];
    for (int i = 0; i < 3; ++i) expect(loss.lost[i] <= 1e-8 * loss.original[i], "loss of operator ", i, " at rank ", r);
  }
}

MOLAE_TEST("calibrated group: an expert without tokens gets finite factors, those for the group's inputs", Device) {
  if (!context.backend.calibration_steps()) return;
  Setup setup;
  setup.unused = {2};
  const Problem problem(context, setup);
  for (const bool refit_down : {false, true}) {
    for (const int alternations : {0, 2}) {
      CalibratedGroup::Options options;
      options.shrinkage = 12;
      options.refit_down = refit_down;
      const Converted converted = convert(context, problem, options, 5, alternations);
      expect_finite(context, converted);
      for (const ExpertMatrix which : kInputMatrices) {
        const Values b = read(context.backend, converted.basis(which));
        expect_close(read(context.backend, converted.factor(which, 1)),
                     best_factors(problem.experts[1].matrix(which), b, problem.shared_moment), 1e-4,
                     "factors of the unused expert");
      }
    }
  }
}

MOLAE_TEST("calibrated group: a group without tokens is factorized by its weights alone", Device) {
  if (!context.backend.calibration_steps()) return;
  Setup setup;
  setup.unused = setup.group;
  const Problem problem(context, setup);
  const int64_t r = 5;
  for (const int alternations : {0, 2}) {
    const Converted converted = convert(context, problem, {}, r, alternations);
    expect_finite(context, converted);
    for (const ExpertMatrix which : {ExpertMatrix::Gate, ExpertMatrix::Up, ExpertMatrix::Down}) {
      const bool is_down = which == ExpertMatrix::Down;
      SharedBasis::Options options;
      options.side = is_down ? SharedSide::Output : SharedSide::Input;
      options.shared_size = kHidden;
      SharedBasis basis(context.backend, options);
      const auto matrix = [&](size_t i) {
        return is_down ? problem.experts[i].tensors.down : problem.experts[i].tensor(which);
      };
      for (size_t i = 0; i < problem.experts.size(); ++i) basis.add(matrix(i));
      const BasisReport report =
          basis.solve(poisoned(context, DType::F32, is_down ? Shape{kHidden, r} : Shape{r, kHidden}));
      double residual = 0;
      for (size_t i = 0; i < problem.experts.size(); ++i) {
        residual += is_down ? context.backend.squared_residual(matrix(i), converted.down_basis,
                                                               converted.factors[i].down, DType::F64)
                            : context.backend.squared_residual(matrix(i), converted.factor(which, i),
                                                               converted.basis(which), DType::F64);
      }
      expect_near(std::sqrt(residual / report.squared_norm), report.optimal_relative_error, 1e-5, "error of weights");
    }
  }
}

MOLAE_TEST("calibrated group: inputs that are all zero leave bases and factors finite", Device) {
  if (!context.backend.calibration_steps()) return;
  Problem problem(context, {});
  problem.inputs = zeros(context.backend, DType::F32, problem.inputs.shape());
  for (const bool refit : {false, true}) {
    CalibratedGroup::Options options;
    options.refit_down = refit;
    expect_finite(context, convert(context, problem, options, 5));
  }
}

// U A of every expert, which does not depend on the signs of U.
std::vector<Values> latent_downs(const Problem& problem, const Converted& converted, int64_t r) {
  const Values u = read(problem.backend, converted.down_basis);
  std::vector<Values> downs;
  for (const CalibratedGroup::Factors& factors : converted.factors) {
    downs.push_back(product(u, false, read(problem.backend, factors.down), false, kHidden, kIntermediate, r));
  }
  return downs;
}

MOLAE_TEST("calibrated group: every token twice, under twice the shrinkage, is the same refitted down", Device) {
  if (!context.backend.calibration_steps()) return;
  const int64_t r = 5;
  const Problem problem(context, {});
  Problem twice = problem;
  twice.x.insert(twice.x.end(), problem.x.begin(), problem.x.end());
  twice.ids.insert(twice.ids.end(), problem.ids.begin(), problem.ids.end());
  twice.weights.insert(twice.weights.end(), problem.weights.begin(), problem.weights.end());
  twice.inputs = make_tensor(context, DType::F32, {2 * kTokens, kHidden}, twice.x);
  twice.routing = {make_ints(context, {2 * kTokens, kTopK}, twice.ids),
                   make_tensor(context, DType::F32, {2 * kTokens, kTopK}, twice.weights)};
  CalibratedGroup::Options options;
  options.refit_down = true;
  options.shrinkage = 12;
  const std::vector<Values> once = latent_downs(problem, convert(context, problem, options, r), r);
  options.shrinkage = 24;
  const std::vector<Values> doubled = latent_downs(twice, convert(context, twice, options, r), r);
  for (size_t i = 0; i < once.size(); ++i) expect_close(doubled[i], once[i], 1e-4, "down of an expert");
}

void expect_reproduced(const Problem& problem, const Converted& converted, ExpertMatrix which, bool as_matrices) {
  const Values b = read(problem.backend, converted.basis(which));
  const int64_t r = static_cast<int64_t>(b.size()) / kHidden;
  double lost = 0, whole = 0;
  for (size_t i = 0; i < problem.experts.size(); ++i) {
    const ReferenceExpert& expert = problem.experts[i];
    const Values& w = expert.matrix(which);
    const Values a = read(problem.backend, converted.factor(which, i));
    lost += loss_of(w, a, b, expert.row_weights(which), problem.shared_moment);
    whole += weighed(w, expert.row_weights(which), problem.shared_moment);
    if (!as_matrices) continue;
    expect_close(product(a, false, b, false, kIntermediate, kHidden, r), w, 1e-3, "planted expert");
  }
  expect(lost <= 1e-6 * whole, "planted experts lose ", std::sqrt(lost / whole), " of what they compute");
}

// What is computed on the inputs is reproduced whatever they are; the matrices themselves where inputs reach every
// direction: of those that only the ridge of C stands for (one ten-thousandth of it), f32 knows two digits.
MOLAE_TEST("calibrated group: experts of a joint row space are reproduced whatever the moments", Device) {
  if (!context.backend.calibration_steps()) return;
  const int64_t r = 5;
  for (const int64_t rank : {1, 4, 5}) {
    for (const double spread : {0.0, 1.0, 2.0}) {
      for (const int64_t tokens : {int64_t{7}, kTokens}) {
        for (const double shrinkage : {1.0, 12.0, 1e4}) {
          for (const int alternations : {0, 2}) {
            Setup setup;
            setup.planted_rank = rank;
            setup.spread = spread;
            setup.tokens = tokens;
            const Problem problem(context, setup);
            CalibratedGroup::Options options;
            options.shrinkage = shrinkage;
            const Converted converted = convert(context, problem, options, r, alternations);
            for (const ExpertMatrix which : kInputMatrices) {
              expect_reproduced(problem, converted, which, spread <= 1 && tokens == kTokens);
            }
          }
        }
      }
    }
  }
}

// Of what is written, all memory must be there.
MOLAE_TEST("calibrated group: factors of another latent size than their basis are refused", Device) {
  if (!context.backend.calibration_steps()) return;
  const int64_t r = 5;
  const Problem problem(context, {});
  CalibratedGroup group = problem.open({});
  for (int64_t i = 0; i < kMembers; ++i) group.observe(i, problem.experts[i].tensors);
  group.solve(ExpertMatrix::Gate, poisoned(context, DType::F32, {r, kHidden}));
  group.solve(ExpertMatrix::Up, poisoned(context, DType::F32, {r, kHidden}));
  group.solve(ExpertMatrix::Down, poisoned(context, DType::F32, {kHidden, r}));
  const auto floats = [&](const Shape& shape) { return poisoned(context, DType::F32, shape); };
  const Tensor input = floats({kIntermediate, r}), output = floats({r, kIntermediate});
  for (const Shape& shape : {Shape{}, Shape{1, 1}, Shape{kIntermediate, r + 1}, Shape{r + 1, kIntermediate}}) {
    for (const CalibratedGroup::Factors& factors : {CalibratedGroup::Factors{floats(shape), input, output},
                                                    {input, floats(shape), output},
                                                    {input, input, floats(shape)}}) {
      expect_error(ErrorCode::ShapeMismatch, "factors of shape " + shape_name(shape),
                   [&] { group.project(0, problem.experts[0].tensors, factors); });
    }
  }
  group.project(0, problem.experts[0].tensors, {input, input, output});
}

MOLAE_TEST("calibrated group: an expert is in it once, and may have any number", Device) {
  if (!context.backend.calibration_steps()) return;
  const Problem problem(context, {});
  CalibratedGroup::Options options;
  options.hidden_size = kHidden;
  options.intermediate_size = kIntermediate;
  const auto open = [&](std::vector<int32_t> experts) {
    return CalibratedGroup(context.backend, options, problem.inputs, problem.routing, std::move(experts));
  };
  expect_error(ErrorCode::InvalidArgument, "an expert twice", [&] { open({1, 2, 1}); });
  expect_error(ErrorCode::InvalidArgument, "a negative expert", [&] { open({1, -2}); });
  const CalibratedGroup group = open({1, std::numeric_limits<int32_t>::max()});
  expect_equal(group.tokens(0), problem.experts[0].tokens, "tokens of expert 1");
  expect_equal(group.tokens(1), 0, "tokens of an expert that the layer has not");
}

}  // namespace
}  // namespace molae::test
