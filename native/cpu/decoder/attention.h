#pragma once

#include <vector>

#include "core/decoder.h"
#include "cpu/context.h"

namespace molae::cpu {

void attention(Context context, const Tensor& q, const Tensor& keys, const Tensor& values,
               const std::vector<Sequence>& sequences, const AttentionSpec& spec, const Tensor& out);

}  // namespace molae::cpu
