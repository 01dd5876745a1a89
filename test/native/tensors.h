#pragma once

#include <string>
#include <vector>

#include "core/backend.h"
#include "native/harness.h"

// Random tensors, and their values in f64 on the host.
namespace molae::test {

using Values = std::vector<double>;

inline constexpr DType kFloats[] = {DType::F32, DType::F64, DType::F16, DType::BF16};
inline constexpr DType kBlocks[] = {DType::Q8, DType::Q4};

Values random_values(Context& context, size_t count, double scale = 1);

// The values as the dtype stores them go back into `values`, so that references see what the device sees.
Tensor make_tensor(Context& context, DType dtype, const Shape& shape, Values& values);
Tensor make_ints(Context& context, const Shape& shape, const std::vector<int32_t>& values);
// Every element NaN (ints: a large negative number): what is not written shows.
Tensor poisoned(Context& context, DType dtype, const Shape& shape);

Values read(Backend& backend, const Tensor& tensor);
std::vector<int32_t> read_ints(Backend& backend, const Tensor& tensor);

// Softmax and top-k.
RouterSpec plain_spec(int64_t top_k, bool renormalize);

// The tolerances of one operation in one dtype: norm-wise relative error.
double tolerance(DType dtype);
// Of products of halves summed in f32. Tensor cores cut off what does not fit where a CPU rounds, so that errors of a
// sum add up: about 1.2e-6 for 900 terms on Hopper by published models of them, twice that on Ampere, 1.4e-7 rounded.
double tolerance_of_half_sums(const Context& context);
void expect_close(const Values& actual, const Values& wanted, double relative, const std::string& what);
// Relative to `scale` where that is larger: results of few elements may cancel by chance, rounding errors do not.
void expect_close(const Values& actual, const Values& wanted, const Values& scale, double relative,
                  const std::string& what);

// C = op(a) op(b) in f64; a [m, k] and b [k, n] after their transpositions.
Values reference_product(const Values& a, bool transpose_a, const Values& b, bool transpose_b, int64_t m, int64_t n,
                         int64_t k);
// The scale of its elements: the roots of the sums of the squared terms.
Values product_scale(const Values& a, bool transpose_a, const Values& b, bool transpose_b, int64_t m, int64_t n,
                     int64_t k);

Values squared(Values values);
Values roots(Values values);

}  // namespace molae::test
