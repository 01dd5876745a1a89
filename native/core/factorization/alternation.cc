#include "core/factorization/alternation.h"

#include <algorithm>
#include <utility>

#include "core/factorization/products.h"

namespace molae {
namespace {

// Conjugate gradients end when the residual is this small relative to the first one: what is left of the gain is the
// square of it.
constexpr double kTolerance = 1e-3;
constexpr int kMostSteps = 30;
// They end too, or do not begin, where all that could be gained is this little of what the factors give altogether:
// sums in f32 say no more, least of all of directions that inputs hardly have.
constexpr double kNegligible = 1e-7;
// How strongly B is held where it is, relative to the mean of normal: where factors have dependent columns, nothing
// else holds it in the directions that they leave out.
constexpr double kInertia = 1e-4;

}  // namespace

Alternation::Alternation(Backend& backend, Tensor x, Tensor l, double mass, Tensor b)
    : backend_(backend),
      steps_(*backend.calibration_steps()),
      x_(std::move(x)),
      l_(std::move(l)),
      mass_(mass),
      b_(std::move(b)) {
  const int64_t r = b_.rows();
  own_residual_ = zeros(backend_, DType::F32, b_.shape());
  shared_residual_ = zeros(backend_, DType::F64, b_.shape());
  shared_normal_ = zeros(backend_, DType::F64, {r, r});
  normal_ = zeros(backend_, DType::F64, {r, r});
}

Tensor Alternation::scaled_rows(const Tensor& a, const Tensor& weights) {
  Tensor scaled = empty(backend_, DType::F32, a.shape());
  steps_.gather_rows(a, counted(backend_, a.rows()), converted(backend_, weights, DType::F32), scaled);
  return scaled;
}

Tensor Alternation::gathered(const Member& member) {
  Tensor x = empty(backend_, DType::F32, {member.rows.rows(), x_.cols()});
  steps_.gather_rows(x_, member.rows, member.scales, x);
  return x;
}

void Alternation::add(const Inputs& inputs, const Tensor& row_weights, const Tensor& w, const Tensor& a) {
  ++experts_;
  if (inputs.mass <= 0) return;
  const Tensor weighted = scaled_rows(a, row_weights);
  const Member member{inputs.rows, inputs.scales, 1 - inputs.shrinkage, product(backend_, weighted, true, a, false)};
  const double shared = inputs.shrinkage * inputs.mass / mass_;
  const Tensor normal = converted(backend_, member.normal, DType::F64);
  steps_.add_scaled(normal, shared, shared_normal_);
  steps_.add_scaled(normal, inputs.mass, normal_);

  const Tensor difference = product(backend_, weighted, true, w, false);  // A_iᵀ D_i (W_i - A_i B)
  multiply(backend_, member.normal, false, b_, false, difference, -1, 1);
  steps_.add_scaled(converted(backend_, difference, DType::F64), shared, shared_residual_);
  if (member.own == 0) return;
  const Tensor x = gathered(member);
  multiply(backend_, product(backend_, difference, false, x, true), false, x, false, own_residual_, member.own, 1);
  members_.push_back(member);
}

// Y C
Tensor Alternation::times_moment(const Tensor& y) {
  return product(backend_, product(backend_, y, false, l_, false), false, l_, true);
}

// sum_i c_i A_iᵀ D_i A_i B C~_i, and inertia
Tensor Alternation::left_side(const Tensor& b) {
  const Tensor sum = times_moment(product(backend_, shared_normal_, false, b, false));
  const Tensor narrow = converted(backend_, b, DType::F32);
  const Tensor own = zeros(backend_, DType::F32, b.shape());
  for (const Member& member : members_) {
    const Tensor x = gathered(member);
    const Tensor latent = product(backend_, member.normal, false, product(backend_, narrow, false, x, true), false);
    multiply(backend_, latent, false, x, false, own, member.own, 1);
  }
  steps_.add_scaled(converted(backend_, own, DType::F64), 1, sum);
  return sum;
}

// normal⁻¹ residual C⁻¹
Tensor Alternation::preconditioned(const Tensor& residual) {
  const Tensor columns = transposed(backend_, residual);
  steps_.solve_triangle(l_, columns);
  const Tensor whitened = transposed(backend_, columns);
  steps_.divide_by_triangle(whitened, l_);
  steps_.solve_triangle(normal_, whitened);
  const Tensor rows = transposed(backend_, whitened);
  steps_.divide_by_triangle(rows, normal_);
  return transposed(backend_, rows);
}

Tensor Alternation::solve() {
  Tensor b = empty(backend_, DType::F64, b_.shape());
  backend_.copy(b_, b);
  const double scale = steps_.trace(normal_) / static_cast<double>(normal_.rows());
  if (!(scale > 0)) return b;  // nothing that is computed depends on B
  const Tensor whole = times_moment(product(backend_, normal_, false, b, false));
  const double negligible = kNegligible * steps_.dot(b, whole) / (mass_ * mass_);
  steps_.add_to_diagonal(normal_, kInertia * scale);
  steps_.add_to_diagonal(shared_normal_, kInertia * scale / mass_);
  steps_.cholesky(normal_);

  const Tensor residual = times_moment(shared_residual_);
  steps_.add_scaled(converted(backend_, own_residual_, DType::F64), 1, residual);
  Tensor direction = preconditioned(residual);
  double size = steps_.dot(residual, direction);
  const double small = std::max(kTolerance * kTolerance * size, negligible);
  for (int step = 0; step < kMostSteps && size > small; ++step) {
    const Tensor image = left_side(direction);
    const double curvature = steps_.dot(direction, image);
    if (!(curvature > 0)) break;
    steps_.add_scaled(direction, size / curvature, b);
    steps_.add_scaled(image, -size / curvature, residual);
    const Tensor next = preconditioned(residual);
    const double next_size = steps_.dot(residual, next);
    steps_.add_scaled(direction, next_size / size, next);
    direction = next;
    size = next_size;
  }
  return b;
}

}  // namespace molae
