#include "core/factorization/calibrated_group.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <unordered_map>
#include <utility>

#include "core/checks.h"
#include "core/error.h"
#include "core/expect.h"
#include "core/factorization/balance.h"
#include "core/factorization/products.h"

namespace molae {
namespace {

// Added to the diagonal of a moment, relative to its mean: inputs span less than the whole space where text is short.
constexpr double kRidge = 1e-4;
// Tokens of an expert that project() measures what is lost on.
constexpr int64_t kMeasuredTokens = 256;
// Tokens of an expert that observe() takes together: enough for matrix products, and few enough for what is computed
// of them to stay in a cache and in the same memory. Whole chunks of 512, which moments are summed in.
constexpr int64_t kPieceTokens = 1024;

CalibrationSteps& steps_of(Backend& backend) {
  CalibrationSteps* steps = backend.calibration_steps();
  if (!steps) {
    fail(ErrorCode::DeviceUnavailable, "Calibrated factorization does not run on ", backend.info().kind,
         " yet: use the device cpu");
  }
  return *steps;
}

void expect_matrix(const Backend& backend, const Tensor& w, const Shape& shape, const char* name) {
  expect_owner(w, name, &backend);
  expect_shape(w, name, shape);
  expect_floats(w, name);
}

const char* name_of(ExpertMatrix matrix) {
  switch (matrix) {
    case ExpertMatrix::Gate:
      return "gate";
    case ExpertMatrix::Up:
      return "up";
    default:
      return "down";
  }
}

}  // namespace

CalibratedGroup::CalibratedGroup(Backend& backend, Options options, Tensor x, const Routing& routing,
                                 std::vector<int32_t> experts)
    : backend_(backend), steps_(steps_of(backend)), options_(options), x_(std::move(x)) {
  const int64_t n = options_.hidden_size;
  expect_tensor(x_, "x", DType::F32, {kAny, n}, &backend_);
  check_routing(routing, x_.rows(), &backend_);
  const int64_t tokens = find_tokens(routing, experts);
  const int64_t m = options_.intermediate_size, stacked = static_cast<int64_t>(experts.size()) * m;
  moment_ = zeros(backend_, DType::F64, {n, n});
  gate_stack_ = std::make_unique<WeightedStack>(backend_, options_.shared_gate_up ? 2 * stacked : stacked, n);
  if (!options_.shared_gate_up) up_stack_ = std::make_unique<WeightedStack>(backend_, stacked, n);
  output_ = std::make_unique<RoutedOutput>(backend_, tokens, n, m, experts.size());
}

// The tokens of every member; how many they are together, each counted once.
int64_t CalibratedGroup::find_tokens(const Routing& routing, const std::vector<int32_t>& experts) {
  std::vector<int32_t> ids(routing.ids.elements());
  std::vector<float> weights(routing.weights.elements());
  backend_.download(routing.ids, ids.data());
  backend_.download(routing.weights, weights.data());
  const size_t top_k = static_cast<size_t>(routing.ids.cols());
  struct Found {
    std::vector<int32_t> rows, group_rows;
    std::vector<float> weights;
  };
  std::vector<Found> found(experts.size());
  std::unordered_map<int32_t, Found*> of_expert;
  for (size_t i = 0; i < experts.size(); ++i) {
    expect_integer(experts[i], "experts", 0, std::numeric_limits<int32_t>::max());
    if (!of_expert.emplace(experts[i], &found[i]).second) {
      fail(ErrorCode::InvalidArgument, "Expected every expert once for experts but received ", experts[i], " twice");
    }
  }
  int32_t last = -1, count = 0;
  for (size_t slot = 0; slot < ids.size(); ++slot) {
    const auto expert = of_expert.find(ids[slot]);
    if (expert == of_expert.end()) continue;
    const int32_t row = static_cast<int32_t>(slot / top_k);
    if (row != last) ++count;
    last = row;
    expert->second->rows.push_back(row);
    expert->second->group_rows.push_back(count - 1);
    expert->second->weights.push_back(weights[slot]);
  }
  for (const auto& [rows, group_rows, scales] : found) {
    std::vector<int32_t> sampled_rows;
    std::vector<float> sampled_scales;
    const size_t step = std::max<size_t>(1, rows.size() / kMeasuredTokens);
    for (size_t i = 0; i < rows.size(); i += step) {
      sampled_rows.push_back(rows[i]);
      sampled_scales.push_back(scales[i]);
    }
    Member member;
    member.count = static_cast<int64_t>(rows.size());
    member.tokens = {uploaded(backend_, DType::I32, rows), uploaded(backend_, DType::F32, scales)};
    member.group_rows = uploaded(backend_, DType::I32, group_rows);
    member.sample = {uploaded(backend_, DType::I32, sampled_rows), uploaded(backend_, DType::F32, sampled_scales)};
    total_tokens_ += member.count;
    members_.push_back(std::move(member));
  }
  return count;
}

int64_t CalibratedGroup::tokens(int64_t index) const { return members_.at(static_cast<size_t>(index)).count; }

void CalibratedGroup::check_index(int64_t index) const {
  expect_integer(index, "index", 0, static_cast<int64_t>(members_.size()) - 1);
}

void CalibratedGroup::check(int64_t index, const Expert& expert) const {
  check_index(index);
  const int64_t n = options_.hidden_size, m = options_.intermediate_size;
  expect_matrix(backend_, expert.gate, {m, n}, "gate");
  expect_matrix(backend_, expert.up, {m, n}, "up");
  expect_matrix(backend_, expert.down, {n, m}, "down");
}

void CalibratedGroup::check(const Factors& factors) const {
  const int64_t m = options_.intermediate_size;
  const auto expect_factor = [&](const Tensor& a, const char* name, const Shape& shape) {
    expect_owner(a, name, &backend_);
    expect_shape(a, name, shape);
  };
  if (factors.gate) expect_factor(factors.gate, "gate.a", {m, basis_of(ExpertMatrix::Gate).rows.rows()});
  if (factors.up) expect_factor(factors.up, "up.a", {m, basis_of(ExpertMatrix::Up).rows.rows()});
  if (factors.down) {
    if (!down_basis_) fail(ErrorCode::InvalidArgument, "project() before the basis of down was solved");
    expect_factor(factors.down, "down.a", {down_basis_.cols(), m});
  }
}

void CalibratedGroup::check_finite(const Expert& expert) {
  for (const auto& [w, matrix] :
       {std::pair{expert.gate, ExpertMatrix::Gate}, {expert.up, ExpertMatrix::Up}, {expert.down, ExpertMatrix::Down}}) {
    const int64_t bad = backend_.find_non_finite(w);
    if (bad < 0) continue;
    fail(ErrorCode::NonFinite, name_of(matrix), " has NaN or infinity at [", bad / w.cols(), ", ", bad % w.cols(), "]");
  }
}

// x [t, n] of some tokens, times their weights where asked for.
Tensor CalibratedGroup::gathered(const Tokens& tokens, bool weighted) const {
  Tensor x = empty(backend_, DType::F32, {tokens.rows.rows(), x_.cols()});
  steps_.gather_rows(x_, tokens.rows, weighted ? tokens.weights : Tensor(), x);
  return x;
}

void CalibratedGroup::observe(int64_t index, const Expert& expert) {
  check(index, expert);
  if (factored_) fail(ErrorCode::InvalidArgument, "observe() after a basis was solved for");
  check_finite(expert);
  Member& member = members_[index];
  if (member.count == 0) return observe_unused(member, expert);

  const int64_t n = options_.hidden_size, m = options_.intermediate_size;
  const bool keeps_moment = fits_own_inputs(member) && member.count > n;
  const Tensor moment = keeps_moment ? zeros(backend_, DType::F64, {n, n}) : moment_;
  const double before = steps_.trace(moment);
  const Tensor gate_slopes = zeros(backend_, DType::F64, {m});
  const Tensor up_slopes = zeros(backend_, DType::F64, {m});
  const Expert wide{converted(backend_, expert.gate, DType::F32), converted(backend_, expert.up, DType::F32), {}};
  output_->begin_expert(expert.down);
  for (int64_t begin = 0; begin < member.count; begin += kPieceTokens) {
    const int64_t end = std::min(member.count, begin + kPieceTokens);
    const Tokens tokens{member.tokens.rows.row_range(begin, end), member.tokens.weights.row_range(begin, end)};
    const Tensor x = gathered(tokens, false);
    steps_.accumulate_moment(x, tokens.weights, moment);
    const PreActivations pre = original_pre_activations(x, wide);
    const Tensor hidden = empty(backend_, DType::F32, pre.gate.shape());
    steps_.expert_hidden(pre.gate, pre.up, tokens.weights, options_.activation, hidden, gate_slopes, up_slopes);
    output_->add(member.group_rows.row_range(begin, end), hidden);
  }
  member.mass = steps_.trace(moment) - before;
  mass_ += member.mass;
  if (keeps_moment) {
    steps_.add_scaled(moment, 1, moment_);
    steps_.mirror_triangle(moment);
    member.moment = converted(backend_, moment, DType::F32);
  }

  Tensor norms = empty(backend_, DType::F64, {m});
  steps_.column_norms(expert.down, norms);
  std::vector<float> weights(member.count);
  backend_.download(member.tokens.weights, weights.data());
  double squared_weights = 0;
  for (const float w : weights) squared_weights += static_cast<double>(w) * w;
  const std::vector<double> column_norms = downloaded(backend_, norms);
  member.gate_weights = row_weights(downloaded(backend_, gate_slopes), column_norms, squared_weights);
  member.up_weights = row_weights(downloaded(backend_, up_slopes), column_norms, squared_weights);
  add_rows(member, expert, member.mass);
}

// Factors of an expert that is alone, or that has seen nothing, are fitted to the inputs of its group.
bool CalibratedGroup::fits_own_inputs(const Member& member) const {
  return options_.refit && members_.size() > 1 && member.count > 0;
}

void CalibratedGroup::add_rows(Member& member, const Expert& expert, double mass) {
  gate_stack_->add(expert.gate, member.gate_weights, mass);
  (up_stack_ ? up_stack_ : gate_stack_)->add(expert.up, member.up_weights, mass);
}

// An expert without tokens has no say in the bases of its group; where none of the group has any, all count alike, as
// if their inputs were white.
void CalibratedGroup::observe_unused(Member& member, const Expert& expert) {
  const std::vector<double> ones(options_.intermediate_size, 1.0);
  member.gate_weights = member.up_weights = uploaded(backend_, DType::F64, ones);
  if (total_tokens_ > 0) return;
  add_rows(member, expert, 1);
  output_->add_white(expert.down);
}

// D_i: the mean square of the slopes under the tokens' squared weights, times the norms of W_down's columns.
Tensor CalibratedGroup::row_weights(const std::vector<double>& slopes, const std::vector<double>& norms,
                                    double squared_weights) const {
  std::vector<double> weights(slopes.size(), 1.0);
  if (options_.weigh_rows && squared_weights > 0) {
    for (size_t j = 0; j < weights.size(); ++j) weights[j] = slopes[j] / squared_weights * norms[j];
  }
  return uploaded(backend_, DType::F64, weights);
}

void CalibratedGroup::factor_moment() {
  if (factored_) return;
  factored_ = true;
  const double n = static_cast<double>(options_.hidden_size);
  if (total_tokens_ == 0) {
    mass_ = n;
    steps_.add_to_diagonal(moment_, 1);
  } else {
    // Inputs that are all zero leave nothing to weigh by either.
    steps_.add_to_diagonal(moment_, mass_ > 0 ? kRidge * mass_ / n : 1);
    mass_ = steps_.trace(moment_);
  }
  steps_.cholesky(moment_);
}

// All eigenvalues, descending, as squared output. Rows of `basis` get those of VᵀL⁻¹ (down: Vᵀ), V the leading
// eigenvectors.
std::vector<double> CalibratedGroup::decompose(ExpertMatrix matrix, const Tensor& basis) {
  const auto checked = [&](const auto& slot) {
    if (!slot) fail(ErrorCode::InvalidArgument, "The basis of ", name_of(matrix), " was solved for already");
  };
  std::vector<double> spectrum;
  double unit = 1;
  if (matrix == ExpertMatrix::Down) {
    checked(output_);
    spectrum = std::exchange(output_, nullptr)->decompose(basis);
  } else {
    auto& stack = matrix == ExpertMatrix::Gate ? gate_stack_ : up_stack_;
    checked(stack);
    factor_moment();
    spectrum = std::exchange(stack, nullptr)->decompose(moment_, basis);
    unit = 1 / mass_;
  }
  for (double& value : spectrum) value = std::max(value, 0.0) * unit;
  return spectrum;
}

std::vector<double> CalibratedGroup::spectrum(ExpertMatrix matrix) {
  return decompose(matrix, empty(backend_, DType::F64, {0, options_.hidden_size}));
}

std::vector<double> CalibratedGroup::solve(ExpertMatrix matrix, const Tensor& b) {
  const bool is_down = matrix == ExpertMatrix::Down;
  const int64_t n = options_.hidden_size;
  expect_owner(b, "b", &backend_);
  expect_shape(b, "b", is_down ? Shape{n, kAny} : Shape{kAny, n});
  const int64_t r = b.dim(is_down ? 1 : 0);
  expect_integer(r, "latentSize", 1, n);
  Tensor vectors = empty(backend_, DType::F64, {r, n});
  std::vector<double> spectrum = decompose(matrix, vectors);
  if (is_block(b.dtype())) {
    balance(backend_, vectors, spectrum);
  } else if (!is_down) {
    orthonormalize(vectors);
  }
  if (is_down) {
    store_output_basis(vectors, b);
  } else {
    Basis basis = store_input_basis(vectors, b);
    if (options_.shared_gate_up) up_ = basis;
    (matrix == ExpertMatrix::Gate ? gate_ : up_) = std::move(basis);
  }
  return spectrum;
}

// Changes no product A B: rounding to floats then costs every direction alike.
void CalibratedGroup::orthonormalize(const Tensor& rows) {
  const Tensor overlaps = product(backend_, rows, false, rows, true);
  steps_.cholesky(overlaps);
  steps_.solve_triangle(overlaps, rows);
}

CalibratedGroup::Basis CalibratedGroup::store_input_basis(const Tensor& rows, const Tensor& b) {
  backend_.copy(rows, b);

  const Tensor stored = converted(backend_, b, DType::F64);
  const Tensor whitened = product(backend_, stored, false, moment_, false);
  Tensor cross = empty(backend_, DType::F64, {options_.hidden_size, stored.rows()});
  multiply(backend_, moment_, false, whitened, true, cross, 1 / mass_);
  return {converted(backend_, b, DType::F32), converted(backend_, cross, DType::F32)};
}

void CalibratedGroup::store_output_basis(const Tensor& vectors, const Tensor& b) {
  backend_.copy(transposed(backend_, vectors), b);
  const Tensor projection = transposed(backend_, converted(backend_, b, DType::F64));
  const Tensor overlaps = product(backend_, projection, false, projection, true);
  backend_.solve_spd(overlaps, projection);
  down_basis_ = converted(backend_, b, DType::F32);
  down_projection_ = converted(backend_, projection, DType::F32);
}

const CalibratedGroup::Basis& CalibratedGroup::basis_of(ExpertMatrix matrix) const {
  const Basis& basis = matrix == ExpertMatrix::Gate ? gate_ : up_;
  if (!basis.rows) fail(ErrorCode::InvalidArgument, "The basis of ", name_of(matrix), " was not solved for yet");
  return basis;
}

void CalibratedGroup::begin_alternation(ExpertMatrix matrix) {
  if (matrix == ExpertMatrix::Down || options_.shared_gate_up) {
    fail(ErrorCode::InvalidArgument, "Alternation is for gate and up with a basis of their own");
  }
  auto& alternation = matrix == ExpertMatrix::Gate ? gate_alternation_ : up_alternation_;
  alternation = std::make_unique<Alternation>(backend_, x_, moment_, mass_, basis_of(matrix).rows);
}

Alternation& CalibratedGroup::alternation_of(ExpertMatrix matrix) const {
  const auto& alternation = matrix == ExpertMatrix::Gate ? gate_alternation_ : up_alternation_;
  if (matrix == ExpertMatrix::Down || !alternation) {
    fail(ErrorCode::InvalidArgument, "No alternation of ", name_of(matrix), " has begun");
  }
  return *alternation;
}

void CalibratedGroup::add_to_alternation(ExpertMatrix matrix, int64_t index, const Tensor& w) {
  Alternation& alternation = alternation_of(matrix);
  check_index(index);
  const int64_t n = options_.hidden_size, m = options_.intermediate_size;
  expect_matrix(backend_, w, {m, n}, name_of(matrix));
  const Member& member = members_[index];
  const Basis& basis = basis_of(matrix);
  Tensor a = empty(backend_, DType::F32, {m, basis.rows.rows()});
  fit_input(member, basis, w, a);
  alternation.add({member.tokens.rows, member.tokens.weights, member.mass, shrinkage_of(member)},
                  matrix == ExpertMatrix::Gate ? member.gate_weights : member.up_weights,
                  converted(backend_, w, DType::F32), a);
}

void CalibratedGroup::end_alternation(ExpertMatrix matrix, const Tensor& b) {
  Alternation& alternation = alternation_of(matrix);
  Basis& basis = matrix == ExpertMatrix::Gate ? gate_ : up_;
  expect_owner(b, "b", &backend_);
  expect_shape(b, "b", basis.rows.shape());
  if (alternation.experts() != static_cast<int64_t>(members_.size())) {
    fail(ErrorCode::InvalidArgument, "Expected all ", members_.size(), " experts in the alternation of ",
         name_of(matrix), " but received ", alternation.experts());
  }
  const Tensor rows = alternation.solve();
  orthonormalize(rows);
  basis = store_input_basis(rows, b);
  (matrix == ExpertMatrix::Gate ? gate_alternation_ : up_alternation_).reset();
}

// l: the share of the group's moment in C~_i.
double CalibratedGroup::shrinkage_of(const Member& member) const {
  if (!fits_own_inputs(member) || member.mass <= 0) return 1;
  return options_.shrinkage / (options_.shrinkage + static_cast<double>(member.count));
}

// C~_i Bᵀ [n, r]
Tensor CalibratedGroup::cross_moment(const Member& member, const Basis& basis) {
  const double shrinkage = shrinkage_of(member);
  if (shrinkage == 1) return basis.shared_cross;
  Tensor cross = empty(backend_, DType::F32, basis.shared_cross.shape());
  backend_.copy(basis.shared_cross, cross);
  const double own = (1 - shrinkage) / member.mass;
  if (member.moment) {
    multiply(backend_, member.moment, false, basis.rows, true, cross, own, shrinkage);
  } else {
    const Tensor x = gathered(member.tokens, true);
    multiply(backend_, x, true, product(backend_, x, false, basis.rows, true), false, cross, own, shrinkage);
  }
  return cross;
}

// A = W C~ Bᵀ (B C~ Bᵀ)⁻¹
void CalibratedGroup::fit_input(const Member& member, const Basis& basis, const Tensor& w, const Tensor& a) {
  const Tensor cross = cross_moment(member, basis);
  const Tensor normal = converted(backend_, product(backend_, basis.rows, false, cross, false), DType::F64);
  steps_.add_to_diagonal(normal, 1e-7 * steps_.trace(normal) / static_cast<double>(normal.rows()));
  const Tensor wide = converted(backend_, w, DType::F32);
  const Tensor solution = converted(backend_, product(backend_, cross, true, wide, true), DType::F64);
  backend_.solve_spd(normal, solution);
  backend_.copy(transposed(backend_, solution), a);
}

// hidden elements [t, m] of pre-activations, times the tokens' weights
Tensor CalibratedGroup::hidden(const Tensor& gate, const Tensor& up, const Tensor& weights) {
  Tensor result = empty(backend_, DType::F32, gate.shape());
  const Tensor unused = zeros(backend_, DType::F64, {gate.cols()});
  steps_.expert_hidden(gate, up, weights, options_.activation, result, unused, unused);
  return result;
}

// A = Bᵀ W, or fitted to the hidden elements h' of the converted gate and up: A = Bᵀ W H (H' + ridge)⁻¹ with
// H = sum of h h'ᵀ + ridge, H' = sum of h' h'ᵀ, both shrunk towards h' = h.
void CalibratedGroup::fit_output(const Member& member, const Expert& expert, const Factors& factors) {
  const Tensor projected =
      product(backend_, down_projection_, false, converted(backend_, expert.down, DType::F32), false);
  if (!options_.refit_down || member.count == 0) {
    backend_.copy(projected, factors.down);
    return;
  }
  const auto [original, converted_hidden] = hidden_pair(member.tokens, expert, factors);
  const Tensor normal =
      converted(backend_, product(backend_, converted_hidden, true, converted_hidden, false), DType::F64);
  const Tensor cross = converted(backend_, product(backend_, original, true, converted_hidden, false), DType::F64);
  const double ridge = options_.shrinkage * steps_.trace(normal) /
                       (static_cast<double>(normal.rows()) * static_cast<double>(member.count));
  const double least = 1e-7 * steps_.trace(normal) / static_cast<double>(normal.rows());
  steps_.add_to_diagonal(normal, std::max(ridge, least));
  steps_.add_to_diagonal(cross, std::max(ridge, least));
  const Tensor solution = product(backend_, cross, true, converted(backend_, projected, DType::F64), true);  // [m, r]
  backend_.solve_spd(normal, solution);
  backend_.copy(transposed(backend_, solution), factors.down);
}

CalibratedGroup::PreActivations CalibratedGroup::original_pre_activations(const Tensor& x, const Expert& expert) {
  return {product(backend_, x, false, converted(backend_, expert.gate, DType::F32), true),
          product(backend_, x, false, converted(backend_, expert.up, DType::F32), true)};
}

// Those of the factors where there are some.
CalibratedGroup::PreActivations CalibratedGroup::latent_pre_activations(const Tensor& x, const PreActivations& original,
                                                                        const Factors& factors) {
  const auto through = [&](const Basis& basis, const Tensor& a, const Tensor& plain) {
    if (!a) return plain;
    return product(backend_, product(backend_, x, false, basis.rows, true), false, converted(backend_, a, DType::F32),
                   true);
  };
  return {through(gate_, factors.gate, original.gate), through(up_, factors.up, original.up)};
}

std::pair<Tensor, Tensor> CalibratedGroup::hidden_pair(const Tokens& tokens, const Expert& expert,
                                                       const Factors& factors) {
  const Tensor x = gathered(tokens, false);
  const PreActivations original = original_pre_activations(x, expert);
  const PreActivations latent = latent_pre_activations(x, original, factors);
  return {hidden(original.gate, original.up, tokens.weights), hidden(latent.gate, latent.up, tokens.weights)};
}

CalibratedGroup::Loss CalibratedGroup::project(int64_t index, const Expert& expert, const Factors& factors) {
  check(index, expert);
  check(factors);
  const Member& member = members_[index];
  if (factors.gate) fit_input(member, gate_, expert.gate, factors.gate);
  if (factors.up) fit_input(member, up_, expert.up, factors.up);
  if (factors.down) fit_output(member, expert, factors);
  return measure(member, expert, factors);
}

CalibratedGroup::Loss CalibratedGroup::measure(const Member& member, const Expert& expert, const Factors& factors) {
  const Tokens& tokens = member.sample;
  const Tensor x = gathered(tokens, false);
  const PreActivations original = original_pre_activations(x, expert);
  const PreActivations latent = latent_pre_activations(x, original, factors);
  const Tensor down = converted(backend_, expert.down, DType::F32);
  const Tensor h = hidden(original.gate, original.up, tokens.weights);
  const Tensor y = product(backend_, h, false, down, true);
  const auto output = [&](const Tensor& hidden) {
    if (!factors.down) return product(backend_, hidden, false, down, true);
    const Tensor a = converted(backend_, factors.down, DType::F32);
    return product(backend_, product(backend_, hidden, false, a, true), false, down_basis_, true);
  };
  Loss loss;
  loss.original = {steps_.weighted_distance(original.gate, Tensor(), tokens.weights, member.gate_weights),
                   steps_.weighted_distance(original.up, Tensor(), tokens.weights, member.up_weights),
                   steps_.weighted_distance(y, Tensor(), Tensor(), Tensor())};
  loss.lost = {steps_.weighted_distance(original.gate, latent.gate, tokens.weights, member.gate_weights),
               steps_.weighted_distance(original.up, latent.up, tokens.weights, member.up_weights),
               steps_.weighted_distance(y, output(h), Tensor(), Tensor())};
  loss.lost_output =
      steps_.weighted_distance(y, output(hidden(latent.gate, latent.up, tokens.weights)), Tensor(), Tensor());
  return loss;
}

}  // namespace molae
