#pragma once

#include <cstdint>
#include <string_view>

#include "core/error.h"

// MOLAE_CUDA_LAUNCH: how the kernels of a layer's forward pass get to the GPU. Read when a layer is prepared.
namespace molae::cuda {

inline constexpr const char* kLaunchVariable = "MOLAE_CUDA_LAUNCH";

enum class LaunchMode : uint8_t {
  Stream,  // one after the other
  Graph,   // for few tokens as one graph, captured once for each shape
};

// Graphs are what decode is to have, whose kernels are so short that the host may not launch them as fast as they run.
// But no graph has run on a GPU. This becomes Graph when scripts/gpu-check.sh has passed on one, and has it faster.
inline constexpr LaunchMode kDefaultLaunch = LaunchMode::Stream;

// Up to so many tokens: with more, the kernels should take longer than their launches, which the host makes beside
// them, and a graph would hold more memory.
inline constexpr int64_t kGraphTokens = 16;
// Shapes that a layer keeps a graph of, with the memory that the graph works in. Decode has one, or one for each number
// of sequences; the one that was used longest ago goes first.
inline constexpr int kGraphShapes = 4;

inline LaunchMode parse_launch_mode(std::string_view text) {
  if (text.empty()) return kDefaultLaunch;
  if (text == "stream") return LaunchMode::Stream;
  if (text == "graph") return LaunchMode::Graph;
  fail(ErrorCode::InvalidArgument, "Expected stream or graph for ", kLaunchVariable, " but received \"", text, "\"");
}

}  // namespace molae::cuda
