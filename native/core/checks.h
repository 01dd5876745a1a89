#pragma once

#include "core/backend.h"

// The argument checks of every backend operation that users can call: one place, so that all backends refuse the
// same input with the same words.
namespace molae {

void check_copy(const Tensor& from, const Tensor& to, const Backend* owner);
void check_transpose(const Tensor& from, const Tensor& to, const Backend* owner);
void check_gemm(const Gemm& problem, const Backend* owner);
// Three stacks of as many matrices: of slices that differ in their data only, the first is looked at.
void check_batched_gemm(const Gemm& stack, const Backend* owner);
void check_svd(const Tensor& a, const Tensor& u, const Tensor& s, const Tensor& vt, const Backend* owner);
void check_eigh(const Tensor& a, const Tensor& values, const Tensor& vectors, const Backend* owner);
void check_route(const Tensor& logits, const RouterSpec& spec, const Routing& routing, const Backend* owner);
// A token names an expert once at most, so that a row of ids is no longer than there are experts.
void check_forward(int64_t hidden_size, int64_t num_experts, const Tensor& x, const Routing& routing, const Tensor& y,
                   const Backend* owner);
// ids i32 [tokens, any], weights f32 of the same shape.
void check_routing(const Routing& routing, int64_t tokens, const Backend* owner);

}  // namespace molae
