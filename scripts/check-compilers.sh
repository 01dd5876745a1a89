#!/usr/bin/env bash
# Whether the oldest compilers that docs/install.md names compile what holds all kernels of the CPU. Without
# optimization, as this is about what they accept: attributes, instructions in assembly, C++20.
# Usage: scripts/check-compilers.sh [compiler...], g++-11 and clang++-14 by default. Leaves the build in build/compilers.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

compilers=("$@")
if [ ${#compilers[@]} -eq 0 ]; then
  compilers=(g++-11 clang++-14)
fi
for compiler in "${compilers[@]}"; do
  tree=build/compilers/$(basename "$compiler")
  cmake -S . -B "$tree" -G Ninja -DCMAKE_CXX_COMPILER="$compiler" -DCMAKE_BUILD_TYPE=Debug \
    -DCMAKE_CXX_FLAGS_DEBUG='-O0 -Werror' -DMOLAE_NODE="$(command -v node)"
  cmake --build "$tree" --target molae_native
done
