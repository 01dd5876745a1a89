#pragma once

#include <vector>

#include "core/backend.h"

namespace molae {

// Scales the rows of a basis [r, n] in f64, in place, so that factors in blocks lose least. `spectrum` has the
// eigenvalue of each row first. A block costs all its elements the error that its largest asks for; with row j times
// s_j, column j of the other factor is sqrt(l_j) / s_j large, and its errors count s_j times: their sum is least where
// s_j = l_j^(1/4). Neither the products nor blocks along the basis' own rows are changed by it.
void balance(Backend& backend, const Tensor& rows, const std::vector<double>& spectrum);

}  // namespace molae
