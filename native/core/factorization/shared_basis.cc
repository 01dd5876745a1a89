#include "core/factorization/shared_basis.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>

#include "core/error.h"
#include "core/expect.h"
#include "core/factorization/balance.h"
#include "core/factorization/products.h"

namespace molae {
namespace {

double epsilon(DType dtype) {
  switch (dtype) {
    case DType::BF16:
      return 0x1p-8;
    case DType::F16:
      return 0x1p-10;
    case DType::F32:
      return 0x1p-23;
    default:
      return 0x1p-52;
  }
}

// The smallest singular value, relative to the largest, that can be told from zero: rounding of the experts
// themselves, and for the Gram matrix, whose eigenvalues are squares, half of the digits.
double zero_tolerance(Solver solver, DType dtype, int64_t size) {
  const double data = 8 * epsilon(dtype);
  if (is_half(dtype)) return epsilon(dtype);
  return solver == Solver::Gram ? std::max(data, std::sqrt(static_cast<double>(size) * 0x1p-52)) : data;
}

// Of f32 factors' least possible relative error, what rounding the products of f32 experts may not hide. Rounding moves
// A by eta <= 4e-6 of the experts (2^-24 sqrt(r), had by random signs), at right angles to what no A reaches: an error
// of e becomes sqrt(e^2 + eta^2), at most eta^2 / 2e = 8e-9 above it. Experts that nearly fit their basis have no such
// room.
constexpr double kLeastErrorInSingles = 1e-3;

DType product_dtype(DType experts, DType factors, double optimal_error) {
  if (is_half(experts)) return DType::F32;
  const bool wide = experts == DType::F64 || factors == DType::F64;
  return wide || optimal_error < kLeastErrorInSingles ? DType::F64 : DType::F32;
}

// Below it, f64 has not all digits of the squares of small singular values.
constexpr double kLeastSquaredNorm = 0x1p-970;

// Whether w, of which all squares are 0 in f64, has other elements than 0. Squares of f32 and halves do not vanish.
bool has_vanishing_squares(Backend& backend, const Tensor& w) {
  if (w.dtype() != DType::F64) return false;
  const std::vector<double> values = downloaded(backend, w);
  return std::any_of(values.begin(), values.end(), [](double value) { return value != 0; });
}

struct SignedPermutation {
  std::vector<int32_t> source;
  std::vector<int8_t> signs;
};

SignedPermutation random_signed_permutation(int64_t size, uint64_t seed) {
  std::mt19937_64 random(seed);
  SignedPermutation p{std::vector<int32_t>(size), std::vector<int8_t>(size)};
  std::iota(p.source.begin(), p.source.end(), 0);
  std::shuffle(p.source.begin(), p.source.end(), random);
  for (auto& sign : p.signs) sign = random() & 1 ? 1 : -1;
  return p;
}

}  // namespace

Solver parse_solver(std::string_view name) {
  if (name == "gram") return Solver::Gram;
  if (name == "svd") return Solver::Svd;
  fail(ErrorCode::InvalidArgument, "Expected gram or svd for solver but received ", quoted(name));
}

SharedBasis::SharedBasis(Backend& backend, Options options) : backend_(backend), options_(options) {
  expect_integer(options_.shared_size, "sharedSize", 1, std::numeric_limits<int32_t>::max());
  if (options_.rank_reduction < 0) {
    fail(ErrorCode::InvalidArgument, "Expected a rank from 0 on for rankReduction but received ",
         options_.rank_reduction);
  }
}

void SharedBasis::check_expert(const Tensor& w) const {
  const int64_t n = options_.shared_size;
  expect_owner(w, "an expert", &backend_);
  expect_shape(w, "an expert", options_.side == SharedSide::Input ? Shape{kAny, n} : Shape{n, kAny});
  expect_floats(w, "an expert");
  if (added_ > 0) expect_dtype(w, "an expert, as for all of its group,", dtype_);
}

void SharedBasis::add(const Tensor& w) {
  if (solved_) fail(ErrorCode::InvalidArgument, "add() after solve()");
  check_expert(w);
  const int64_t bad = backend_.find_non_finite(w);
  if (bad >= 0) {
    fail(ErrorCode::NonFinite, "NaN or infinity at [", bad / w.cols(), ", ", bad % w.cols(), "]");
  }
  const double squared_norm = backend_.squared_norm(w);
  if (!std::isfinite(squared_norm_ + squared_norm)) {
    fail(ErrorCode::InvalidArgument, "The experts' squares sum to more than f64 holds: divide all by a power of two");
  }
  dtype_ = w.dtype();
  const Tensor reduced = reduced_rank(w);
  add_to(original_, reduced, squared_norm);
  if (options_.control_seed) {
    const auto p = random_signed_permutation(options_.shared_size, *options_.control_seed + added_);
    Tensor permuted = empty(backend_, reduced.dtype(), reduced.shape());
    backend_.signed_permutation(reduced, options_.side, p.source, p.signs, permuted);
    add_to(control_, permuted, squared_norm);
  }
  squared_norm_ += squared_norm;
  nonzero_ = nonzero_ || squared_norm > 0 || has_vanishing_squares(backend_, w);
  stacked_rows_ += options_.side == SharedSide::Input ? w.rows() : w.cols();
  ++added_;
}

void SharedBasis::add_to(Accumulator& to, const Tensor& w, double squared_norm) {
  const int64_t n = options_.shared_size;
  if (options_.solver == Solver::Svd) {
    to.stack.push_back(converted(backend_, w, DType::F64));
    return;
  }
  if (!to.gram) {
    to.gram = empty(backend_, DType::F64, {n, n});
    backend_.zero(to.gram);
  }
  accumulate_gram(backend_, w, squared_norm, options_.side, to.gram);
}

// Eigenvalues of the Gram matrix, descending, and the leading eigenvectors as the rows of `vectors`.
std::vector<double> SharedBasis::solve_gram(Accumulator& from, const Tensor& vectors) {
  const int64_t n = options_.shared_size;
  Tensor values = empty(backend_, DType::F64, {n});
  backend_.eigh(from.gram, values, vectors);
  from.gram = Tensor();
  std::vector<double> spectrum(n);
  backend_.download(values, spectrum.data());
  for (double& value : spectrum) value = std::max(value, 0.0);
  return spectrum;
}

// The same from the singular values of the stack, whose shared side is made its columns.
std::vector<double> SharedBasis::solve_stack(Accumulator& from, const Tensor& vectors) {
  const int64_t n = options_.shared_size;
  Tensor stack = empty(backend_, DType::F64, {stacked_rows_, n});
  int64_t row = 0;
  for (Tensor& w : from.stack) {
    const int64_t rows = options_.side == SharedSide::Input ? w.rows() : w.cols();
    Tensor part = stack.row_range(row, row + rows);
    if (options_.side == SharedSide::Input) {
      backend_.copy(w, part);
    } else {
      backend_.transpose(w, part);
    }
    row += rows;
    w = Tensor();
  }
  from.stack.clear();
  const int64_t k = std::min(stacked_rows_, n);
  Tensor u = empty(backend_, DType::F64, {stacked_rows_, k});
  Tensor s = empty(backend_, DType::F64, {k});
  Tensor vt = empty(backend_, DType::F64, {k, n});
  backend_.svd(stack, u, s, vt);
  backend_.copy(vt.row_range(0, vectors.rows()), vectors);
  std::vector<double> spectrum(k);
  backend_.download(s, spectrum.data());
  for (double& value : spectrum) value *= value;
  return spectrum;
}

std::vector<double> SharedBasis::spectrum_and_vectors(Accumulator& from, const Tensor& vectors) {
  return options_.solver == Solver::Gram ? solve_gram(from, vectors) : solve_stack(from, vectors);
}

namespace {

// Eckart-Young: what no basis of `rank` vectors can reach, relative to the whole.
double tail_error(const std::vector<double>& spectrum, int64_t rank) {
  // From the small end, so that a small tail is not lost in the sum.
  const double tail = std::accumulate(spectrum.rbegin(), spectrum.rend() - rank, 0.0);
  const double total = std::accumulate(spectrum.rend() - rank, spectrum.rend(), tail);
  return total > 0 ? std::sqrt(tail / total) : 0;
}

}  // namespace

BasisReport SharedBasis::solve(const Tensor& b) {
  if (solved_) fail(ErrorCode::InvalidArgument, "solve() was called twice");
  if (added_ == 0) fail(ErrorCode::InvalidArgument, "solve() needs at least one expert");
  const bool input = options_.side == SharedSide::Input;
  const int64_t n = options_.shared_size;
  expect_owner(b, "b", &backend_);
  expect_shape(b, "b", input ? Shape{kAny, n} : Shape{n, kAny});
  const int64_t r = b.dim(input ? 0 : 1);
  if (r < 1 || r > std::min(n, stacked_rows_)) {
    fail(ErrorCode::InvalidArgument, "Expected 1 to ", std::min(n, stacked_rows_), " for latentSize but received ", r,
         " (the smaller of the hidden size and the group's stacked intermediate sizes)");
  }
  if (nonzero_ && squared_norm_ < kLeastSquaredNorm) {
    fail(ErrorCode::InvalidArgument, "The experts' squares are too small for f64: multiply all by a power of two");
  }
  solved_ = true;
  Tensor vectors = empty(backend_, DType::F64, {r, n});
  const std::vector<double> spectrum = spectrum_and_vectors(original_, vectors);

  BasisReport report;
  report.squared_norm = squared_norm_;
  report.optimal_relative_error = tail_error(spectrum, r);
  report.tolerance = zero_tolerance(options_.solver, dtype_, n);
  const double threshold = report.tolerance * report.tolerance * spectrum[0];
  report.joint_dimension =
      std::count_if(spectrum.begin(), spectrum.end(), [&](double value) { return value > threshold; });

  if (is_block(b.dtype())) balance(backend_, vectors, spectrum);
  store_basis(vectors, b, product_dtype(dtype_, b.dtype(), report.optimal_relative_error));
  vectors = Tensor();
  if (options_.control_seed) {
    Tensor unused = empty(backend_, DType::F64, {options_.solver == Solver::Gram ? 0 : r, n});
    report.control_relative_error = tail_error(spectrum_and_vectors(control_, unused), r);
  }
  return report;
}

// Rounds the basis to its stored dtype, and prepares the least-squares projection on what was stored: rows rounded more
// than the projection's products are no longer orthonormal to their precision.
void SharedBasis::store_basis(const Tensor& vectors, const Tensor& b, DType compute) {
  if (options_.side == SharedSide::Input) {
    backend_.copy(vectors, b);
    projection_ = converted(backend_, b, compute);
  } else {
    backend_.copy(transposed(backend_, converted(backend_, vectors, compute)), b);
    projection_ = transposed(backend_, converted(backend_, b, compute));
  }
  b_ = b;
  if (b.dtype() == compute) return;
  const int64_t r = vectors.rows();
  Tensor normal = empty(backend_, compute, {r, r});
  multiply(backend_, projection_, false, projection_, true, normal);
  backend_.solve_spd(normal, projection_);
}

double SharedBasis::project(const Tensor& w, const Tensor& a) {
  if (!solved_) fail(ErrorCode::InvalidArgument, "project() before solve()");
  check_expert(w);
  const int64_t r = projection_.rows();
  expect_owner(a, "a", &backend_);
  expect_shape(a, "a", options_.side == SharedSide::Input ? Shape{w.rows(), r} : Shape{r, w.cols()});
  const DType compute = projection_.dtype();
  const Tensor wide = converted(backend_, reduced_rank(w), compute);
  Tensor product = a.dtype() == compute ? a : empty(backend_, compute, a.shape());
  if (options_.side == SharedSide::Input) {
    multiply(backend_, wide, false, projection_, true, product);
  } else {
    multiply(backend_, projection_, false, wide, false, product);
  }
  if (a.dtype() != compute) backend_.copy(product, a);
  return options_.side == SharedSide::Input ? squared_residual(w, a, b_) : squared_residual(w, b_, a);
}

// Of what is stored.
double SharedBasis::squared_residual(const Tensor& w, const Tensor& left, const Tensor& right) {
  const auto read_back = [&](const Tensor& factor) {
    return is_block(factor.dtype()) ? converted(backend_, factor, DType::F32) : factor;
  };
  return backend_.squared_residual(w, read_back(left), read_back(right), projection_.dtype());
}

// The best approximation of w of rank `rank_reduction`, from the eigenvectors of the smaller of its Gram matrices or,
// with the SVD solver, from its own SVD. w itself where the step is off or has nothing to do.
Tensor SharedBasis::reduced_rank(const Tensor& w) {
  const int64_t rank = options_.rank_reduction;
  const int64_t smaller = std::min(w.rows(), w.cols());
  if (rank == 0 || rank >= smaller) return w;
  const DType compute = is_half(w.dtype()) ? DType::F32 : DType::F64;
  const Tensor wide = converted(backend_, w, compute);
  const bool left = w.rows() <= w.cols();  // project the rows or the columns
  Tensor vectors = empty(backend_, compute, {rank, smaller});
  if (options_.solver == Solver::Svd) {
    Tensor u = empty(backend_, compute, {w.rows(), smaller});
    Tensor s = empty(backend_, compute, {smaller});
    Tensor vt = empty(backend_, compute, {smaller, w.cols()});
    backend_.svd(wide, u, s, vt);
    if (left) {
      Tensor ut = empty(backend_, compute, {smaller, w.rows()});
      backend_.transpose(u, ut);
      backend_.copy(ut.row_range(0, rank), vectors);
    } else {
      backend_.copy(vt.row_range(0, rank), vectors);
    }
  } else {
    Tensor gram = empty(backend_, DType::F64, {smaller, smaller});
    Tensor values = empty(backend_, DType::F64, {smaller});
    Tensor leading = empty(backend_, DType::F64, {rank, smaller});
    backend_.zero(gram);
    accumulate_gram(backend_, w, backend_.squared_norm(w), left ? SharedSide::Output : SharedSide::Input, gram);
    backend_.eigh(gram, values, leading);
    backend_.copy(leading, vectors);
  }
  Tensor reduced = empty(backend_, compute, w.shape());
  if (left) {
    Tensor coordinates = empty(backend_, compute, {rank, w.cols()});
    multiply(backend_, vectors, false, wide, false, coordinates);
    multiply(backend_, vectors, true, coordinates, false, reduced);
  } else {
    Tensor coordinates = empty(backend_, compute, {w.rows(), rank});
    multiply(backend_, wide, false, vectors, true, coordinates);
    multiply(backend_, coordinates, false, vectors, false, reduced);
  }
  return reduced;
}

}  // namespace molae
