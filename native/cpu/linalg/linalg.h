#pragma once

#include <span>

#include "core/backend.h"
#include "cpu/context.h"

// The linear algebra of the CPU backend, over BLAS and LAPACK.
namespace molae::cpu {

void gemm(Context context, std::span<const Gemm> problems);
void svd(Context context, const Tensor& a, const Tensor& u, const Tensor& s, const Tensor& vt);
void eigh(Context context, const Tensor& a, const Tensor& values, const Tensor& vectors);

void accumulate_gram(Context context, const Tensor& w, SharedSide side, const Tensor& gram);
// gram += DᵀD (Input) or DDᵀ (Output), lower triangle, D row-major with rows of ld elements and `inner` the length of
// the side that is summed over: at most 512 products in f32 where D is, the rest in f64.
template <class Real>
void add_gram(Context context, const Real* data, int64_t ld, int64_t inner, SharedSide side, const Tensor& gram);
double squared_norm(Context context, const Tensor& w);
double squared_residual(Context context, const Tensor& w, const Tensor& a, const Tensor& b, DType compute);
void solve_spd(Context context, const Tensor& spd, const Tensor& rhs);

void transpose(Context context, const Tensor& from, const Tensor& to);
void signed_permutation(const Tensor& w, SharedSide side, std::span<const int32_t> source,
                        std::span<const int8_t> signs, const Tensor& out);

}  // namespace molae::cpu
