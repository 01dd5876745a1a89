#!/usr/bin/env bash
# The native code under GCC's sanitizers:
#
#   scripts/sanitize.sh address [--quick]   # AddressSanitizer and UBSan: C++ tests, TypeScript tests, hostile arguments
#   scripts/sanitize.sh thread [--quick]    # ThreadSanitizer: C++ tests of queue, pool and core, hostile arguments
#
# --quick is what CI runs. Builds in build-address or build-thread; the suite takes that addon by MOLAE_PREBUILD.
# Needs npm ci and, for the TypeScript tests, npm run build:ts.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

usage() {
  sed -n '2,9s/^# \{0,1\}//p' "$0" >&2
  exit 2
}
case "${1:-}" in
  address) flags=address,undefined runtime=libasan.so ;;
  thread) flags=thread runtime=libtsan.so ;;
  *) usage ;;
esac
kind=$1 quick=0
case "${2:-}" in
  '') ;;
  --quick) quick=1 ;;
  *) usage ;;
esac

tree=$PWD/build-$kind
generator=()
if command -v ninja >/dev/null && [ ! -e "$tree/CMakeCache.txt" ]; then
  generator=(-G Ninja)
fi
# -O1: the tests run several times as long as without, and are compiled in half the time.
cmake -S . -B "$tree" "${generator[@]}" -DCMAKE_BUILD_TYPE=None -DCMAKE_CXX_FLAGS=-O1 -DMOLAE_CUDA=OFF \
  -DMOLAE_NATIVE_TESTS=ON "-DMOLAE_SANITIZE=$flags" "-DCMAKE_LIBRARY_OUTPUT_DIRECTORY=$tree/lib" >/dev/null
cmake --build "$tree" --parallel "$(nproc)"
mkdir -p "$tree/package/build/Release"
cp "$tree/lib/molae.node" "$tree/package/build/Release/"

# The first finding ends the process. Absurd allocations are part of the tests, and must fail as they do without.
export ASAN_OPTIONS=abort_on_error=0:allocator_may_return_null=1:detect_stack_use_after_return=1
export UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1
export TSAN_OPTIONS=halt_on_error=1:second_deadlock_stack=1:suppressions=$PWD/scripts/tsan-suppressions.txt:allocator_may_return_null=1
export OPENBLAS_NUM_THREADS=2

native() {
  "$tree/lib/molae_native_tests" --device cpu "$@"
}

# node itself is not instrumented: the sanitizer comes first into the process, and leaks of node's are none of ours.
in_node() {
  LD_PRELOAD=$(g++ -print-file-name=$runtime) MOLAE_PREBUILD=$tree/package \
    ASAN_OPTIONS=$ASAN_OPTIONS:detect_leaks=0 "$@"
}

suite=(test/tensor.test.ts test/linalg.test.ts test/routing.test.ts test/experts.test.ts)
calls=2000
if [ "$quick" -eq 0 ]; then
  suite+=(test/factorize.test.ts test/golden.test.ts test/model/operations.test.ts test/model/golden.test.ts)
  calls=20000
fi

if [ "$kind" = thread ]; then
  native --filter queue:
  if [ "$quick" -eq 1 ]; then
    native --filter 'allocation from several threads'
    exit 0
  fi
  native --filter experts:
  native --filter moves:
  native --filter factor:
  # Not vitest: what it has in native code of its own has races of its own.
  in_node node test/endurance/fuzz-api.mjs --calls 5000 --seed 1
  exit 0
fi

if [ "$quick" -eq 1 ]; then
  for filter in queue: experts: factor: moves: 'allocation of a forward'; do
    native --filter "$filter"
  done
else
  native
fi
in_node node node_modules/vitest/vitest.mjs run --testTimeout 600000 "${suite[@]}"
in_node node test/endurance/fuzz-api.mjs --calls "$calls" --seed 1
