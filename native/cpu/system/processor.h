#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

// What this machine is.
namespace molae {

// The processors this process may use: its affinity mask and its cgroup's quota. 0 asks for that number.
// Throws InvalidArgument for a negative or absurd number.
int resolve_threads(int requested);

}  // namespace molae

namespace molae::cpu {

// Families of vector instructions that our kernels are written for, each a part of the next.
enum class Instructions {
  Plain,
  Avx2,    // with FMA and F16C
  Avx512,  // F, VL, BW and DQ
};

// The most that this processor has, or less where MOLAE_INSTRUCTIONS (plain, avx2, avx512) asks for it: to test and to
// measure what other processors get. Throws InvalidArgument for what is not there. Kernels, BLAS (but for plain) and
// the ceilings follow it; small loops that the compiler cloned (multiversion.h) take the processor's best anyway.
Instructions instructions();

std::string processor_name();
std::vector<std::string> processor_features();  // of the instruction sets that our kernels care about, those in use
size_t memory_bytes();

// Of the caches of a core. Where the system does not say: what most have, and 0 for what differs.
struct Caches {
  int64_t first_bytes;
  int64_t first_ways;
  int64_t second_bytes;
};
const Caches& caches();

// Whether the processor brings one run of memory into its caches as fast as a thread reads it, without being asked to.
// AMD's do: on a Zen 4 kernels of four rows of f32 that asked had an eighth less than those that left it alone. On a
// Xeon of Intel's, reading a run that nobody asked for had three quarters of what reading two has.
bool reads_ahead();

// Whether AVX512-BF16, of two products a lane, is worth its rounding: on AMD's Zen 4 it has the rate of multiply-adds,
// on a Xeon of Intel's fifth generation a quarter of it. Not where MOLAE_INSTRUCTIONS leaves out AVX-512.
bool multiplies_pairs_fast();

}  // namespace molae::cpu
