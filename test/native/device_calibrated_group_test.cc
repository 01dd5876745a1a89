#include <algorithm>
#include <array>
#include <limits>
#include <optional>

#include "core/calibrated_group.h"
#include "core/error.h"
#include "core/shared_basis.h"
#include "native/tensors.h"

// Calibrated factorization of small groups, against the definitions of its objectives in f64 and against chance.
namespace molae::test {
namespace {

constexpr int64_t kHidden = 12, kIntermediate = 7, kMembers = 3, kTokens = 60, kTopK = 2, kTries = 200;
constexpr double kMomentRidge = 1e-4;  // of the diagonal's mean, as the group adds it to C
constexpr ExpertMatrix kInputMatrices[] = {ExpertMatrix::Gate, ExpertMatrix::Up};

Values product(const Values& a, bool transpose_a, const Values& b, bool transpose_b, int64_t m, int64_t n, int64_t k) {
  return reference_product(a, transpose_a, b, transpose_b, m, n, k);
}

// Solves spd X = rhs, spd [r, r], rhs [r, n], by elimination.
Values solved(Values spd, Values rhs, int64_t r, int64_t n) {
  for (int64_t p = 0; p < r; ++p) {
    for (int64_t i = 0; i < r; ++i) {
      if (i == p) continue;
      const double factor = spd[i * r + p] / spd[p * r + p];
      for (int64_t j = p; j < r; ++j) spd[i * r + j] -= factor * spd[p * r + j];
      for (int64_t j = 0; j < n; ++j) rhs[i * n + j] -= factor * rhs[p * n + j];
    }
  }
  for (int64_t i = 0; i < r * n; ++i) rhs[i] /= spd[i / n * (r + 1)];
  return rhs;
}

Values without(Values w, const Values& part) {
  for (size_t i = 0; i < w.size(); ++i) w[i] -= part[i];
  return w;
}

// tr(D E C Eᵀ), E [m, n]
double weighed(const Values& e, const Values& d, const Values& c) {
  const Values ec = product(e, false, c, false, kIntermediate, kHidden, kHidden);
  double sum = 0;
  for (int64_t i = 0; i < kIntermediate * kHidden; ++i) sum += d[i / kHidden] * e[i] * ec[i];
  return sum;
}

// A = W C Bᵀ (B C Bᵀ)⁻¹ [m, r]
Values best_factors(const Values& w, const Values& b, const Values& c) {
  const int64_t r = static_cast<int64_t>(b.size()) / kHidden;
  const Values cross = product(b, false, c, false, r, kHidden, kHidden);
  const Values normal = product(cross, false, b, true, r, r, kHidden);
  const Values a = solved(normal, product(cross, false, w, true, r, kIntermediate, kHidden), r, kIntermediate);
  Values transposed(a.size());
  for (int64_t i = 0; i < r; ++i) {
    for (int64_t j = 0; j < kIntermediate; ++j) transposed[j * r + i] = a[i * kIntermediate + j];
  }
  return transposed;
}

double loss_of(const Values& w, const Values& a, const Values& b, const Values& d, const Values& c) {
  const int64_t r = static_cast<int64_t>(b.size()) / kHidden;
  return weighed(without(w, product(a, false, b, false, kIntermediate, kHidden, r)), d, c);
}

double activation_at(double x) { return x / (1 + std::exp(-x)); }
double slope_at(double x) {
  const double sigmoid = 1 / (1 + std::exp(-x));
  return sigmoid * (1 + x * (1 - sigmoid));
}

// The matrices of an expert, and what its definitions say of it.
struct ReferenceExpert {
  Values gate, up, down;
  Values moment;                    // C_i
  double mass = 0;                  // c_i
  int64_t tokens = 0;               // t
  Values gate_weights, up_weights;  // D_i
  CalibratedGroup::Expert tensors;

  const Values& matrix(ExpertMatrix which) const { return which == ExpertMatrix::Gate ? gate : up; }
  const Values& row_weights(ExpertMatrix which) const {
    return which == ExpertMatrix::Gate ? gate_weights : up_weights;
  }
  const Tensor& tensor(ExpertMatrix which) const { return which == ExpertMatrix::Gate ? tensors.gate : tensors.up; }
};

struct Setup {
  int64_t experts = 2 * kMembers;       // of the layer
  std::vector<int32_t> group{1, 2, 5};  // those of the group
  std::vector<int32_t> unused;          // experts that no token reaches
  int64_t planted_rank = 0;             // of the joint row space of gate, and of up; 0: none
  int64_t down_rank = 0;                // of each W_down; 0: full
  int64_t tokens = kTokens;
  double spread = 1;  // powers of ten between the sizes of inputs' directions
};

// A layer's inputs and routing, and a group of its experts.
struct Problem {
  Problem(Context& context, const Setup& setup) : backend(context.backend), members(setup.group), count(setup.tokens) {
    make_inputs(context, setup.spread);
    make_routing(context, setup);
    for (const int32_t expert : members) experts.push_back(make_expert(context, setup, expert));
    sum_moments();
  }

  CalibratedGroup open(CalibratedGroup::Options options) const {
    options.hidden_size = kHidden;
    options.intermediate_size = kIntermediate;
    CalibratedGroup group(backend, options, inputs, routing, members);
    for (size_t i = 0; i < experts.size(); ++i) group.observe(i, experts[i].tensors);
    return group;
  }

  // C~_i
  Values shrunk_moment(const ReferenceExpert& expert, double shrinkage) const {
    const double shared = expert.tokens == 0 ? 1 : shrinkage / (shrinkage + static_cast<double>(expert.tokens));
    Values moment(kHidden * kHidden);
    for (size_t i = 0; i < moment.size(); ++i) {
      moment[i] = shared * shared_moment[i] / mass;
      if (shared < 1) moment[i] += (1 - shared) * expert.moment[i] / expert.mass;
    }
    return moment;
  }

  // Of B with the best factors for the group's inputs.
  double shared_loss(ExpertMatrix which, const Values& b) const {
    double sum = 0;
    for (const ReferenceExpert& expert : experts) {
      const Values a = best_factors(expert.matrix(which), b, shared_moment);
      sum += expert.mass / mass * loss_of(expert.matrix(which), a, b, expert.row_weights(which), shared_moment);
    }
    return sum;
  }

  // The routed output of the group [T, n], with these W_down (U A_i where converted).
  Values routed_output(const std::vector<Values>& downs) const {
    Values y(count * kHidden);
    for (size_t i = 0; i < experts.size(); ++i) {
      for (int64_t slot = 0; slot < count * kTopK; ++slot) {
        if (ids[slot] != members[i]) continue;
        const int64_t token = slot / kTopK;
        const Values row(x.begin() + token * kHidden, x.begin() + (token + 1) * kHidden);
        const Values g = product(row, false, experts[i].gate, true, 1, kIntermediate, kHidden);
        const Values u = product(row, false, experts[i].up, true, 1, kIntermediate, kHidden);
        for (int64_t o = 0; o < kHidden; ++o) {
          for (int64_t j = 0; j < kIntermediate; ++j) {
            y[token * kHidden + o] += weights[slot] * downs[i][o * kIntermediate + j] * activation_at(g[j]) * u[j];
          }
        }
      }
    }
    return y;
  }

  Backend& backend;
  std::vector<int32_t> members;
  int64_t count;
  Values x, weights;
  std::vector<int32_t> ids;
  Tensor inputs;
  Routing routing;
  std::vector<ReferenceExpert> experts;
  Values shared_moment;  // C, its ridge included
  double mass = 0;       // tr C

 private:
  void make_inputs(Context& context, double spread) {
    Values mixing = random_values(context, kHidden * kHidden, 0.1);
    for (int64_t i = 0; i < kHidden; ++i) mixing[i * (kHidden + 1)] += 1;
    for (int64_t i = 0; i < kHidden; ++i) {
      const double scale = std::pow(10.0, -spread * static_cast<double>(i) / kHidden);
      for (int64_t j = 0; j < kHidden; ++j) mixing[i * kHidden + j] *= scale;
    }
    x = product(random_values(context, count * kHidden), false, mixing, false, count, kHidden, kHidden);
    inputs = make_tensor(context, DType::F32, {count, kHidden}, x);
  }

  void make_routing(Context& context, const Setup& setup) {
    std::vector<int32_t> used;
    for (int32_t expert = 0; expert < setup.experts; ++expert) {
      if (std::find(setup.unused.begin(), setup.unused.end(), expert) == setup.unused.end()) used.push_back(expert);
    }
    for (int64_t token = 0; token < count; ++token) {
      std::shuffle(used.begin(), used.end(), context.random);
      ids.insert(ids.end(), used.begin(), used.begin() + kTopK);
    }
    weights = random_values(context, ids.size());
    for (double& weight : weights) weight = 0.1 + std::abs(weight);
    routing = {make_ints(context, {count, kTopK}, ids), make_tensor(context, DType::F32, {count, kTopK}, weights)};
  }

  ReferenceExpert make_expert(Context& context, const Setup& setup, int32_t number) {
    ReferenceExpert expert;
    const auto planted = [&](Values& space) {
      const int64_t rank = setup.planted_rank;
      if (rank == 0) return random_values(context, kIntermediate * kHidden);
      if (space.empty()) space = random_values(context, rank * kHidden);
      return product(random_values(context, kIntermediate * rank), false, space, false, kIntermediate, kHidden, rank);
    };
    expert.gate = planted(gate_space_);
    expert.up = planted(up_space_);
    expert.down = random_values(context, kHidden * kIntermediate);
    if (const int64_t rank = setup.down_rank) {
      expert.down = product(random_values(context, kHidden * rank), false, random_values(context, rank * kIntermediate),
                            false, kHidden, kIntermediate, rank);
    }
    expert.tensors.gate = make_tensor(context, DType::F32, {kIntermediate, kHidden}, expert.gate);
    expert.tensors.up = make_tensor(context, DType::F32, {kIntermediate, kHidden}, expert.up);
    expert.tensors.down = make_tensor(context, DType::F32, {kHidden, kIntermediate}, expert.down);
    observe(expert, number);
    return expert;
  }

  void observe(ReferenceExpert& expert, int32_t number) const {
    expert.moment.assign(kHidden * kHidden, 0);
    Values by_gate(kIntermediate), by_up(kIntermediate);
    double squared_weights = 0;
    for (int64_t slot = 0; slot < count * kTopK; ++slot) {
      if (ids[slot] != number) continue;
      ++expert.tokens;
      const double square = weights[slot] * weights[slot];
      squared_weights += square;
      const Values row(x.begin() + slot / kTopK * kHidden, x.begin() + (slot / kTopK + 1) * kHidden);
      for (int64_t i = 0; i < kHidden * kHidden; ++i) {
        expert.moment[i] += square * row[i / kHidden] * row[i % kHidden];
      }
      const Values g = product(row, false, expert.gate, true, 1, kIntermediate, kHidden);
      const Values u = product(row, false, expert.up, true, 1, kIntermediate, kHidden);
      for (int64_t j = 0; j < kIntermediate; ++j) {
        by_gate[j] += square * std::pow(slope_at(g[j]) * u[j], 2);
        by_up[j] += square * std::pow(activation_at(g[j]), 2);
      }
    }
    for (int64_t i = 0; i < kHidden; ++i) expert.mass += expert.moment[i * (kHidden + 1)];
    expert.gate_weights = expert.up_weights = Values(kIntermediate, 1);
    if (expert.tokens == 0) return;
    for (int64_t j = 0; j < kIntermediate; ++j) {
      double norm = 0;
      for (int64_t i = 0; i < kHidden; ++i) norm += std::pow(expert.down[i * kIntermediate + j], 2);
      expert.gate_weights[j] = by_gate[j] / squared_weights * norm;
      expert.up_weights[j] = by_up[j] / squared_weights * norm;
    }
  }

  void sum_moments() {
    shared_moment.assign(kHidden * kHidden, 0);
    for (const ReferenceExpert& expert : experts) {
      mass += expert.mass;
      for (size_t i = 0; i < shared_moment.size(); ++i) shared_moment[i] += expert.moment[i];
    }
    for (int64_t i = 0; i < kHidden; ++i) shared_moment[i * (kHidden + 1)] += kMomentRidge * mass / kHidden;
    mass *= 1 + kMomentRidge;
  }

  Values gate_space_, up_space_;
};

double tail(const std::vector<double>& spectrum, int64_t r) {
  double sum = 0;
  for (size_t i = r; i < spectrum.size(); ++i) sum += spectrum[i];
  return sum;
}

void expect_near(double actual, double wanted, double relative, const std::string& what) {
  expect(std::abs(actual - wanted) <= relative * std::abs(wanted), what, ": ", actual, ", wanted ", wanted);
}

// One group solved for, and its factors.
struct Converted {
  Tensor gate_basis, up_basis, down_basis;
  std::array<std::vector<double>, 3> spectra;
  std::vector<CalibratedGroup::Factors> factors;
  std::vector<CalibratedGroup::Loss> losses;

  const Tensor& basis(ExpertMatrix which) const { return which == ExpertMatrix::Gate ? gate_basis : up_basis; }
  Tensor factor(ExpertMatrix which, size_t expert) const {
    return which == ExpertMatrix::Gate ? factors[expert].gate : factors[expert].up;
  }
};

Converted convert(Context& context, const Problem& problem, const CalibratedGroup::Options& options, int64_t r,
                  int alternations = 0, DType down_dtype = DType::F32) {
  CalibratedGroup group = problem.open(options);
  Converted result;
  result.gate_basis = poisoned(context, DType::F32, {r, kHidden});
  result.up_basis = options.shared_gate_up ? result.gate_basis : poisoned(context, DType::F32, {r, kHidden});
  result.down_basis = poisoned(context, down_dtype, {kHidden, r});
  result.spectra[0] = group.solve(ExpertMatrix::Gate, result.gate_basis);
  if (!options.shared_gate_up) result.spectra[1] = group.solve(ExpertMatrix::Up, result.up_basis);
  result.spectra[2] = group.solve(ExpertMatrix::Down, result.down_basis);
  for (int i = 0; i < alternations; ++i) {
    for (const ExpertMatrix which : kInputMatrices) group.begin_alternation(which);
    for (size_t index = 0; index < problem.experts.size(); ++index) {
      for (const ExpertMatrix which : kInputMatrices) {
        group.add_to_alternation(which, index, problem.experts[index].tensor(which));
      }
    }
    for (const ExpertMatrix which : kInputMatrices) group.end_alternation(which, result.basis(which));
  }
  for (size_t index = 0; index < problem.experts.size(); ++index) {
    const CalibratedGroup::Factors factors{poisoned(context, DType::F32, {kIntermediate, r}),
                                           poisoned(context, DType::F32, {kIntermediate, r}),
                                           poisoned(context, down_dtype, {r, kIntermediate})};
    result.losses.push_back(group.project(index, problem.experts[index].tensors, factors));
    result.factors.push_back(factors);
  }
  return result;
}

// sum_i c_i tr(D_i (W_i - A_i B) C~_i (W_i - A_i B)ᵀ) of what was stored
double shrunk_loss(const Problem& problem, const Converted& converted, ExpertMatrix which, double shrinkage) {
  const Values b = read(problem.backend, converted.basis(which));
  double sum = 0;
  for (size_t i = 0; i < problem.experts.size(); ++i) {
    const ReferenceExpert& expert = problem.experts[i];
    sum += expert.mass * loss_of(expert.matrix(which), read(problem.backend, converted.factor(which, i)), b,
                                 expert.row_weights(which), problem.shrunk_moment(expert, shrinkage));
  }
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
  expect_near(tail(converted.spectra[2], r), wanted, 1e-5, "tail of the spectrum of down");
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
        residual +=
            is_down ? context.backend.squared_residual(matrix(i), converted.down_basis, converted.factors[i].down)
                    : context.backend.squared_residual(matrix(i), converted.factor(which, i), converted.basis(which));
      }
      expect_near(std::sqrt(residual / report.squared_norm), report.optimal_relative_error, 1e-5, "error of weights");
    }
  }
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

MOLAE_TEST("calibrated group: fitting factors, then bases and factors in turn, never loses more", Device) {
  if (!context.backend.calibration_steps()) return;
  for (const double shrinkage : {0.0, 1.0, 12.0, 1e4}) {
    const Problem problem(context, {});
    CalibratedGroup::Options options;
    options.shrinkage = shrinkage;
    options.refit = false;
    const Converted unrefitted = convert(context, problem, options, 5);
    options.refit = true;
    std::array<double, 2> before{};
    for (size_t i = 0; i < 2; ++i) before[i] = shrunk_loss(problem, unrefitted, kInputMatrices[i], shrinkage);
    const std::array<double, 2> start = before;
    for (const int alternations : {0, 1, 2, 3}) {
      const Converted converted = convert(context, problem, options, 5, alternations);
      for (size_t i = 0; i < 2; ++i) {
        const double after = shrunk_loss(problem, converted, kInputMatrices[i], shrinkage);
        expect(after <= before[i] * (1 + 1e-5), alternations, " alternations lose ", after, ", more than ", before[i],
               ", with a shrinkage of ", shrinkage);
        before[i] = after;
      }
    }
    // Experts with inputs of their own leave something to gain.
    for (size_t i = 0; i < 2 && shrinkage < 100; ++i) {
      expect(before[i] < 0.99 * start[i], "three alternations lose ", before[i], " of ", start[i]);
    }
  }
}

MOLAE_TEST("calibrated group: one alternation solves for the best basis of the factors given", Device) {
  if (!context.backend.calibration_steps()) return;
  const double shrinkage = 12;
  const int64_t r = 4;
  const Problem problem(context, {});
  CalibratedGroup::Options options;
  options.shrinkage = shrinkage;
  const Converted before = convert(context, problem, options, r), after = convert(context, problem, options, r, 1);
  for (const ExpertMatrix which : kInputMatrices) {
    // The normal equations written out: the sum of Kronecker products of c_i A_iᵀ D_i A_i and C~_i.
    const int64_t size = r * kHidden;
    Values normal(size * size), rhs(size);
    for (size_t i = 0; i < problem.experts.size(); ++i) {
      const ReferenceExpert& expert = problem.experts[i];
      const Values a = read(context.backend, before.factor(which, i));
      const Values moment = problem.shrunk_moment(expert, shrinkage);
      Values weighted = a;
      for (size_t j = 0; j < a.size(); ++j) weighted[j] *= expert.mass * expert.row_weights(which)[j / r];
      const Values left = product(weighted, true, a, false, r, r, kIntermediate);
      const Values target = product(product(weighted, true, expert.matrix(which), false, r, kHidden, kIntermediate),
                                    false, moment, false, r, kHidden, kHidden);
      for (int64_t p = 0; p < size; ++p) {
        rhs[p] += target[p];
        for (int64_t q = 0; q < size; ++q) {
          normal[p * size + q] += left[p / kHidden * r + q / kHidden] * moment[p % kHidden * kHidden + q % kHidden];
        }
      }
    }
    const Values best = solved(normal, rhs, size, 1);
    // The basis is stored with orthonormal rows: its span is what counts.
    const Values b = read(context.backend, after.basis(which));
    const Values coordinates = product(best, false, b, true, r, r, kHidden);
    const auto loss = [&](const Values& basis) {
      double sum = 0;
      for (size_t i = 0; i < problem.experts.size(); ++i) {
        const ReferenceExpert& expert = problem.experts[i];
        sum += expert.mass * loss_of(expert.matrix(which), read(context.backend, before.factor(which, i)), basis,
                                     expert.row_weights(which), problem.shrunk_moment(expert, shrinkage));
      }
      return sum;
    };
    const double least = loss(best), old = loss(read(context.backend, before.basis(which)));
    const double reached = loss(product(coordinates, false, b, false, r, kHidden, r));
    expect(least < old * 0.999, "there is something to gain: ", least, " of ", old);
    expect(reached - least <= 0.01 * (old - least), "reached ", reached, ", from ", old, ", the best is ", least);
  }
}

MOLAE_TEST("calibrated group: alternations out of order are refused", Device) {
  if (!context.backend.calibration_steps()) return;
  const Problem problem(context, {});
  const Tensor b = poisoned(context, DType::F32, {5, kHidden});
  const Tensor w = problem.experts[0].tensors.gate;
  CalibratedGroup group = problem.open({});
  const auto refused = [](const char* what, const std::function<void()>& body) {
    expect_error(ErrorCode::InvalidArgument, what, body);
  };
  refused("before the basis", [&] { group.begin_alternation(ExpertMatrix::Gate); });
  group.solve(ExpertMatrix::Gate, b);
  refused("of down", [&] { group.begin_alternation(ExpertMatrix::Down); });
  refused("not begun", [&] { group.add_to_alternation(ExpertMatrix::Gate, 0, w); });
  group.begin_alternation(ExpertMatrix::Gate);
  refused("of an expert that is not there", [&] { group.add_to_alternation(ExpertMatrix::Gate, kMembers, w); });
  group.add_to_alternation(ExpertMatrix::Gate, 0, w);
  refused("with experts missing", [&] { group.end_alternation(ExpertMatrix::Gate, b); });
  CalibratedGroup::Options shared;
  shared.shared_gate_up = true;
  CalibratedGroup joint = problem.open(shared);
  joint.solve(ExpertMatrix::Gate, poisoned(context, DType::F32, {5, kHidden}));
  refused("of a shared basis", [&] { joint.begin_alternation(ExpertMatrix::Gate); });
}

}  // namespace
}  // namespace molae::test
