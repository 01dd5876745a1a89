#!/usr/bin/env bash
# The native code under GCC's sanitizers:
#
#   scripts/sanitize.sh address [--quick]   # AddressSanitizer and UBSan: C++ tests, the TypeScript suite, hostile arguments
#   scripts/sanitize.sh thread [--quick]    # ThreadSanitizer: C++ tests of queue, pool and core, hostile arguments
#
# --quick is what CI runs: fewer hostile arguments, of the suite what is mostly native, and of the threads the tests that
# are about them. Builds in build-address or build-thread; the suite takes that addon by MOLAE_PREBUILD. Needs npm ci and,
# for the TypeScript tests, npm run build:ts.
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
# -O1 but for the kernels (CMakeLists.txt): compiled in half the time.
cmake -S . -B "$tree" "${generator[@]}" -DCMAKE_BUILD_TYPE=None -DCMAKE_CXX_FLAGS=-O1 -DMOLAE_CUDA=OFF \
  -DMOLAE_NATIVE_TESTS=ON "-DMOLAE_SANITIZE=$flags" "-DCMAKE_LIBRARY_OUTPUT_DIRECTORY=$tree/lib" >/dev/null
targets=(molae_native_tests)
if [ "$kind" = address ] || [ "$quick" -eq 0 ]; then
  targets+=(molae)
fi
cmake --build "$tree" --parallel "$(nproc)" --target "${targets[@]}"

# The first finding ends its process. What it reports goes to a file, so that no test can take it for an error that it expected.
# Absurd allocations are part of the tests, and must fail as they do without. Node's own allocations are counted among ours: a
# few frames for each, and less freed memory kept aside, make its part a quarter faster.
reports=$tree/reports
rm -rf "$reports" && mkdir -p "$reports"
export ASAN_OPTIONS=abort_on_error=0:allocator_may_return_null=1:detect_stack_use_after_return=1:malloc_context_size=8:quarantine_size_mb=64:log_path=$reports/address
export UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1:log_path=$reports/undefined
export TSAN_OPTIONS=halt_on_error=1:second_deadlock_stack=1:suppressions=$PWD/scripts/tsan-suppressions.txt:allocator_may_return_null=1:log_path=$reports/thread
export OPENBLAS_NUM_THREADS=2
# For tests of which a part means nothing here: they skip it, and say why.
export MOLAE_SANITIZER=$kind

finish() {
  local status=$?
  # Warnings of absurd allocations are there, too.
  if grep -rlE 'ERROR: |runtime error: |WARNING: ThreadSanitizer' "$reports" | xargs --no-run-if-empty cat | grep .; then
    exit 1
  fi
  exit "$status"
}
trap finish EXIT

native() {
  "$tree/lib/molae_native_tests" --device cpu "$@"
}

# node itself is not instrumented: the sanitizer comes first into the process, and leaks of node's are none of ours.
in_node() {
  mkdir -p "$tree/package/build/Release"
  cp "$tree/lib/molae.node" "$tree/package/build/Release/"
  LD_PRELOAD=$(g++ -print-file-name=$runtime) MOLAE_PREBUILD=$tree/package \
    ASAN_OPTIONS=$ASAN_OPTIONS:detect_leaks=0 "$@"
}

# The TypeScript suite, but for these files.
suite() {
  local not_run=(
    'test/checkpoint/memory.test.ts: measures memory, of which the sanitizer takes most'
    'test/cuda/library.test.ts: opens the CUDA library, which nvcc built without'
    'test/python/interop.test.ts: what computes there is PyTorch'
  )
  if [ "$quick" -eq 1 ]; then
    not_run+=(
      'test/conversion/convert-calibrated.test.ts: minutes, for what test/methods/calibrated and the C++ tests call'
      'test/conversion/convert-grouped.test.ts: the same, with groups that it finds'
      'test/methods/compare.test.ts: the same, once for each method'
      'test/methods/calibrated/search.test.ts: the same, for each plan that it tries'
      'test/cuda/gpu-check.test.ts: a shell script, and stand-ins for what it starts'
      'test/cli/**: processes that start, read and print around what other tests call'
      'test/docs.test.ts: mostly the TypeScript compiler'
      'test/environments.test.ts: other processes, too'
      'test/examples.test.ts: other processes, too'
    )
  fi
  local exclude=() line
  for line in "${not_run[@]}"; do
    echo "not run: $line"
    exclude+=(--exclude "${line%%:*}")
  done
  in_node node node_modules/vitest/vitest.mjs run "${exclude[@]}"
}

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

# Side by side: most of either half has one thread.
native --filter 'logic: ' &
logic=$!
native --exclude 'logic: '
wait "$logic"
suite
calls=20000
if [ "$quick" -eq 1 ]; then
  calls=2000
fi
in_node node test/endurance/fuzz-api.mjs --calls "$calls" --seed 1
