#include "core/factorization/calibrated_group.h"

#include <algorithm>
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
    : backend_(backend),
      steps_(steps_of(backend)),
      options_(options),
      activations_(backend, steps_, std::move(x), options.activation) {
  const int64_t n = options_.hidden_size;
  expect_tensor(activations_.layer_inputs(), "x", DType::F32, {kAny, n}, &backend_);
  check_routing(routing, activations_.layer_inputs().rows(), &backend_);
  GroupTokens tokens = group_tokens(backend_, routing, experts);
  total_tokens_ = tokens.total;
  for (ExpertTokens& expert : tokens.experts) members_.emplace_back().tokens = std::move(expert);
  const int64_t m = options_.intermediate_size, stacked = static_cast<int64_t>(experts.size()) * m;
  moment_ = zeros(backend_, DType::F64, {n, n});
  gate_stack_ = std::make_unique<WeightedStack>(backend_, options_.shared_gate_up ? 2 * stacked : stacked, n);
  if (!options_.shared_gate_up) up_stack_ = std::make_unique<WeightedStack>(backend_, stacked, n);
  output_ = std::make_unique<RoutedOutput>(backend_, tokens.distinct, n, m, experts.size());
}

int64_t CalibratedGroup::tokens(int64_t index) const { return members_.at(static_cast<size_t>(index)).count(); }

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

void CalibratedGroup::observe(int64_t index, const Expert& expert) {
  check(index, expert);
  if (factored_) fail(ErrorCode::InvalidArgument, "observe() after a basis was solved for");
  check_finite(expert);
  Member& member = members_[index];
  if (member.count() == 0) return observe_unused(member, expert);

  const int64_t n = options_.hidden_size, m = options_.intermediate_size;
  const bool keeps_moment = fits_own_inputs(member) && member.count() > n;
  const Tensor moment = keeps_moment ? zeros(backend_, DType::F64, {n, n}) : moment_;
  const double before = steps_.trace(moment);
  const Tensor gate_slopes = zeros(backend_, DType::F64, {m});
  const Tensor up_slopes = zeros(backend_, DType::F64, {m});
  const Tensor gate = converted(backend_, expert.gate, DType::F32), up = converted(backend_, expert.up, DType::F32);
  output_->begin_expert(expert.down);
  for (int64_t begin = 0; begin < member.count(); begin += kPieceTokens) {
    const int64_t end = std::min(member.count(), begin + kPieceTokens);
    const RoutedTokens tokens = member.tokens.all.range(begin, end);
    const Tensor x = activations_.inputs(tokens);
    steps_.accumulate_moment(x, tokens.weights, moment);
    const PreActivations pre = activations_.times(x, gate, up);
    const Tensor hidden = empty(backend_, DType::F32, pre.gate.shape());
    steps_.expert_hidden(pre.gate, pre.up, tokens.weights, options_.activation, hidden, gate_slopes, up_slopes);
    output_->add(member.tokens.group_rows.row_range(begin, end), hidden);
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
  std::vector<float> weights(member.count());
  backend_.download(member.tokens.all.weights, weights.data());
  double squared_weights = 0;
  for (const float w : weights) squared_weights += static_cast<double>(w) * w;
  const std::vector<double> column_norms = downloaded(backend_, norms);
  member.gate_weights = row_weights(downloaded(backend_, gate_slopes), column_norms, squared_weights);
  member.up_weights = row_weights(downloaded(backend_, up_slopes), column_norms, squared_weights);
  add_rows(member, expert, member.mass);
}

// Factors of an expert that is alone, or that has seen nothing, are fitted to the inputs of its group.
bool CalibratedGroup::fits_own_inputs(const Member& member) const {
  return options_.refit && members_.size() > 1 && member.count() > 0;
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
    InputBasis basis = store_input_basis(vectors, b);
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

InputBasis CalibratedGroup::store_input_basis(const Tensor& rows, const Tensor& b) {
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

const InputBasis& CalibratedGroup::basis_of(ExpertMatrix matrix) const {
  const InputBasis& basis = matrix == ExpertMatrix::Gate ? gate_ : up_;
  if (!basis.rows) fail(ErrorCode::InvalidArgument, "The basis of ", name_of(matrix), " was not solved for yet");
  return basis;
}

void CalibratedGroup::begin_alternation(ExpertMatrix matrix) {
  if (matrix == ExpertMatrix::Down || options_.shared_gate_up) {
    fail(ErrorCode::InvalidArgument, "Alternation is for gate and up with a basis of their own");
  }
  auto& alternation = matrix == ExpertMatrix::Gate ? gate_alternation_ : up_alternation_;
  alternation =
      std::make_unique<Alternation>(backend_, activations_.layer_inputs(), moment_, mass_, basis_of(matrix).rows);
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
  const InputBasis& basis = basis_of(matrix);
  Tensor a = empty(backend_, DType::F32, {m, basis.rows.rows()});
  fit_input_factor(backend_, activations_, moment_of(member), basis, w, a);
  alternation.add({member.tokens.all.rows, member.tokens.all.weights, member.mass, shrinkage_of(member)},
                  matrix == ExpertMatrix::Gate ? member.gate_weights : member.up_weights,
                  converted(backend_, w, DType::F32), a);
}

void CalibratedGroup::end_alternation(ExpertMatrix matrix, const Tensor& b) {
  Alternation& alternation = alternation_of(matrix);
  InputBasis& basis = matrix == ExpertMatrix::Gate ? gate_ : up_;
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
  return options_.shrinkage / (options_.shrinkage + static_cast<double>(member.count()));
}

InputMoment CalibratedGroup::moment_of(const Member& member) const {
  return {shrinkage_of(member), member.mass, member.moment, member.tokens.all};
}

// A = Bᵀ W, or fitted to the hidden elements of the converted gate and up.
void CalibratedGroup::fit_output(const Member& member, const Expert& expert, const Factors& factors) {
  const Tensor projected =
      product(backend_, down_projection_, false, converted(backend_, expert.down, DType::F32), false);
  if (!options_.refit_down || member.count() == 0) {
    backend_.copy(projected, factors.down);
    return;
  }
  const Tensor& weights = member.tokens.all.weights;
  const auto [original, latent] = pre_activations(member.tokens.all, expert, factors);
  const HiddenPair hidden{activations_.hidden(original, weights), activations_.hidden(latent, weights)};
  fit_output_factor(backend_, projected, hidden, options_.shrinkage, factors.down);
}

// Those of the expert, and those of its factors where there are some.
std::pair<PreActivations, PreActivations> CalibratedGroup::pre_activations(const RoutedTokens& tokens,
                                                                           const Expert& expert,
                                                                           const Factors& factors) const {
  const Tensor x = activations_.inputs(tokens);
  PreActivations original = activations_.times(x, expert.gate, expert.up);
  PreActivations latent{factors.gate ? activations_.through(x, gate_.rows, factors.gate) : original.gate,
                        factors.up ? activations_.through(x, up_.rows, factors.up) : original.up};
  return {std::move(original), std::move(latent)};
}

CalibratedGroup::Loss CalibratedGroup::project(int64_t index, const Expert& expert, const Factors& factors) {
  check(index, expert);
  check(factors);
  const Member& member = members_[index];
  const InputMoment moment = moment_of(member);
  if (factors.gate) fit_input_factor(backend_, activations_, moment, gate_, expert.gate, factors.gate);
  if (factors.up) fit_input_factor(backend_, activations_, moment, up_, expert.up, factors.up);
  if (factors.down) fit_output(member, expert, factors);
  return measure(member, expert, factors);
}

CalibratedGroup::Loss CalibratedGroup::measure(const Member& member, const Expert& expert, const Factors& factors) {
  const RoutedTokens& tokens = member.tokens.sample;
  const auto [original, latent] = pre_activations(tokens, expert, factors);
  const Tensor down = converted(backend_, expert.down, DType::F32);
  const Tensor h = activations_.hidden(original, tokens.weights);
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
      steps_.weighted_distance(y, output(activations_.hidden(latent, tokens.weights)), Tensor(), Tensor());
  return loss;
}

}  // namespace molae
