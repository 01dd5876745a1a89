#!/usr/bin/env bash
# The native tests under valgrind's memcheck: uninitialized reads and leaks, which AddressSanitizer does not see or sees
# otherwise. Slow, so a part of them; other parts by name:
#
#   scripts/valgrind.sh [filter...]
#
# Needs valgrind and npm run build:native -- -DMOLAE_NATIVE_TESTS=ON.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

filters=("$@")
if [ $# -eq 0 ]; then
  filters=(queue: 'experts: route' 'experts: a ' 'moves: u' 'moves: z' 'moves: t' 'linalg: solve' 'memory: usage' 'memory: repeated')
fi
for filter in "${filters[@]}"; do
  OPENBLAS_NUM_THREADS=1 valgrind --quiet --error-exitcode=1 --leak-check=full --errors-for-leak-kinds=definite \
    --show-leak-kinds=definite build/cmake/lib/molae_native_tests --device cpu --seed 1 --filter "$filter"
done
