#include "native/calibration_problem.h"

#include <algorithm>
#include <cmath>

namespace molae::test {
namespace {

constexpr double kMomentRidge = 1e-4;  // of the diagonal's mean, as the group adds it to C

double activation_at(double x) { return x / (1 + std::exp(-x)); }
double slope_at(double x) {
  const double sigmoid = 1 / (1 + std::exp(-x));
  return sigmoid * (1 + x * (1 - sigmoid));
}

}  // namespace

Values product(const Values& a, bool transpose_a, const Values& b, bool transpose_b, int64_t m, int64_t n, int64_t k) {
  return reference_product(a, transpose_a, b, transpose_b, m, n, k);
}

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

double weighed(const Values& e, const Values& d, const Values& c) {
  const Values ec = product(e, false, c, false, kIntermediate, kHidden, kHidden);
  double sum = 0;
  for (int64_t i = 0; i < kIntermediate * kHidden; ++i) sum += d[i / kHidden] * e[i] * ec[i];
  return sum;
}

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

Problem::Problem(Context& context, const Setup& setup)
    : backend(context.backend), members(setup.group), count(setup.tokens) {
  make_inputs(context, setup.spread);
  make_routing(context, setup);
  for (const int32_t expert : members) experts.push_back(make_expert(context, setup, expert));
  sum_moments();
}

CalibratedGroup Problem::open(CalibratedGroup::Options options) const {
  options.hidden_size = kHidden;
  options.intermediate_size = kIntermediate;
  CalibratedGroup group(backend, options, inputs, routing, members);
  for (size_t i = 0; i < experts.size(); ++i) group.observe(i, experts[i].tensors);
  return group;
}

Values Problem::shrunk_moment(const ReferenceExpert& expert, double shrinkage) const {
  const double shared = expert.tokens == 0 ? 1 : shrinkage / (shrinkage + static_cast<double>(expert.tokens));
  Values moment(kHidden * kHidden);
  for (size_t i = 0; i < moment.size(); ++i) {
    moment[i] = shared * shared_moment[i] / mass;
    if (shared < 1) moment[i] += (1 - shared) * expert.moment[i] / expert.mass;
  }
  return moment;
}

double Problem::shared_loss(ExpertMatrix which, const Values& b) const {
  double sum = 0;
  for (const ReferenceExpert& expert : experts) {
    const Values a = best_factors(expert.matrix(which), b, shared_moment);
    sum += expert.mass / mass * loss_of(expert.matrix(which), a, b, expert.row_weights(which), shared_moment);
  }
  return sum;
}

Values Problem::routed_output(const std::vector<Values>& downs) const {
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

void Problem::make_inputs(Context& context, double spread) {
  Values mixing = random_values(context, kHidden * kHidden, 0.1);
  for (int64_t i = 0; i < kHidden; ++i) mixing[i * (kHidden + 1)] += 1;
  for (int64_t i = 0; i < kHidden; ++i) {
    const double scale = std::pow(10.0, -spread * static_cast<double>(i) / kHidden);
    for (int64_t j = 0; j < kHidden; ++j) mixing[i * kHidden + j] *= scale;
  }
  x = product(random_values(context, count * kHidden), false, mixing, false, count, kHidden, kHidden);
  inputs = make_tensor(context, DType::F32, {count, kHidden}, x);
}

void Problem::make_routing(Context& context, const Setup& setup) {
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

ReferenceExpert Problem::make_expert(Context& context, const Setup& setup, int32_t number) {
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

void Problem::observe(ReferenceExpert& expert, int32_t number) const {
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

void Problem::sum_moments() {
  shared_moment.assign(kHidden * kHidden, 0);
  for (const ReferenceExpert& expert : experts) {
    mass += expert.mass;
    for (size_t i = 0; i < shared_moment.size(); ++i) shared_moment[i] += expert.moment[i];
  }
  for (int64_t i = 0; i < kHidden; ++i) shared_moment[i * (kHidden + 1)] += kMomentRidge * mass / kHidden;
  mass *= 1 + kMomentRidge;
}

void expect_near(double actual, double wanted, double relative, const std::string& what) {
  expect(std::abs(actual - wanted) <= relative * std::abs(wanted), what, ": ", actual, ", wanted ", wanted);
}

Converted convert(Context& context, const Problem& problem, const CalibratedGroup::Options& options, int64_t r,
                  int alternations, DType down_dtype) {
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

}  // namespace molae::test
