#pragma once

#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "core/backend.h"

namespace molae {

// How the shared basis of a group is found: from the eigenvectors of the Gram matrix (a fraction of the cost), or by a
// direct SVD of the stacked experts (the reference).
enum class Solver { Gram, Svd };

Solver parse_solver(std::string_view name);

// What the spectrum of the stacked experts says about a latent space of a given size.
struct BasisReport {
  double squared_norm = 0;                       // sum of ||W_i||_F^2
  double optimal_relative_error = 0;             // Eckart-Young: sqrt(tail of the spectrum / its sum)
  int64_t joint_dimension = 0;                   // numerical dimension of the joint row (down: column) space
  double tolerance = 0;                          // singular values below tolerance * the largest one count as zero
  std::optional<double> control_relative_error;  // the optimum for signed-permuted experts
};

// The two passes of the paper's factorization over one operator of one group, against any Backend:
//   1. add() every expert, then solve(): B is the best shared basis of the latent size (top right singular vectors of
//      the stack W_1; W_2; ...; for down the left ones of W_1 W_2 ...).
//   2. project() every expert: A_i minimizes ||W_i - A_i B||_F for B as stored, rounded to the factors' dtype.
// Memory: Gram solver 8 n^2 bytes here and at most 16 n^2 in the eigen-solver; SVD solver the whole stack and its
// decomposition.
class SharedBasis {
 public:
  struct Options {
    SharedSide side = SharedSide::Input;
    int64_t shared_size = 0;  // n
    Solver solver = Solver::Gram;
    int64_t rank_reduction = 0;            // truncate each expert to this rank first; 0: off
    std::optional<uint64_t> control_seed;  // also find the optimum of randomly signed-permuted experts
  };

  SharedBasis(Backend& backend, Options options);

  // Pass 1. Throws NonFinite with the row and column of the first NaN or infinity in w, InvalidArgument where the
  // squares of the experts (f64) sum to more than f64 holds.
  void add(const Tensor& w);

  // b [r, n] (down: [n, r]) gets the basis, rounded to its dtype. Ends pass 1. Throws InvalidArgument where the squares
  // of the experts (f64) are too small for f64 to tell what their spectrum is.
  BasisReport solve(const Tensor& b);

  // Pass 2. a [m, r] (down: [r, m]) gets the projection of w, rounded to its dtype. Returns
  // ||w - a b||_F^2 with a and b as stored.
  double project(const Tensor& w, const Tensor& a);

 private:
  // The experts so far: the Gram matrix, or the stack that the SVD solver decomposes.
  struct Accumulator {
    Tensor gram;
    std::vector<Tensor> stack;
  };

  void check_expert(const Tensor& w) const;
  Tensor reduced_rank(const Tensor& w);
  void add_to(Accumulator& to, const Tensor& w, double squared_norm);
  std::vector<double> solve_gram(Accumulator& from, const Tensor& vectors);
  std::vector<double> solve_stack(Accumulator& from, const Tensor& vectors);
  std::vector<double> spectrum_and_vectors(Accumulator& from, const Tensor& vectors);
  void store_basis(const Tensor& vectors, const Tensor& b, DType compute);
  double squared_residual(const Tensor& w, const Tensor& left, const Tensor& right);

  Backend& backend_;
  Options options_;
  Accumulator original_, control_;
  DType dtype_ = DType::F32;  // of the experts
  int64_t added_ = 0;
  int64_t stacked_rows_ = 0;
  double squared_norm_ = 0;
  bool nonzero_ = false;  // some expert has an element other than 0
  bool solved_ = false;
  Tensor b_;           // as stored
  Tensor projection_;  // (B Bt)^-1 B with the basis vectors as rows, in the compute dtype
};

}  // namespace molae
