#pragma once

#include <cstddef>
#include <string>
#include <vector>

// What this machine is.
namespace molae::cpu {

std::string processor_name();
std::vector<std::string> processor_features();  // of the instruction sets that our kernels care about
size_t memory_bytes();
bool has_f16c();  // with AVX2 and FMA: vectors of halves become floats in one instruction

}  // namespace molae::cpu
