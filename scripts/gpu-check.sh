#!/usr/bin/env bash
# Checks molae on a bare machine with a GPU: an NVIDIA driver 580 or newer and the CUDA 13 libraries (cuBLAS, cuSOLVER),
# but neither node nor a compiler. Everything else comes along in one archive of less than 35 MB.
#
#   scripts/gpu-check.sh pack ARCHIVE.tar.xz [BUILD]   here: BUILD (default: build) has molae.node, libmolae_cuda.so,
#                                                      molae_native_tests and molae_device_bench
#   tar -xJf ARCHIVE.tar.xz && molae-gpu-check/gpu-check.sh [RESULT.json]    there: under 10 minutes, one JSON; 5 minutes more
#                                                      where its python3 has torch, for the peers of bench/gpu
#
# To build what it packs:
#   export CUDACXX=$(scripts/cuda-toolkit.sh ~/.cache/molae-cuda)
#   cmake -S . -B build -DMOLAE_CUDA=ON -DMOLAE_NATIVE_TESTS=ON && cmake --build build -j2
#
# One call says whether every tile of the grouped product is right (the tests "tiles: ..."), times layers of 1 and 4 tokens by
# the streaming kernel and by the smallest mma tile, against the card's copy bandwidth, and on a Hopper GPU the mma tiles and
# Hopper's side by side, against cuBLAS. It also says whether layers launched as graphs give the bits of plain launches (the
# tests "graphs: ..."), and times both for up to 16 tokens: where the former pass and the latter are faster, kDefaultLaunch
# in native/cuda/config/launch_choice.h is to become Graph; MOLAE_CUDA_LAUNCH=graph asks for them until then. Where the
# tests of Hopper's tiles pass and they are faster, the default in native/cuda/config/tile_choice.h is to become Hopper's;
# MOLAE_CUDA_TILES=mma and =hopper choose until then, and after.
#
# STATUS: as of this writing this script has packed and has run up to the point where a GPU is needed. No GPU has been at
# hand: parity (of layers, of tiles and of the decoder's operations), compute-sanitizer and the benches have NEVER run on
# one.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)

# --- pack --------------------------------------------------------------------------------------------------------------

find_in() {  # BUILD NAME: the file, wherever a generator put it
  local found
  found=$(find "$1" -name "$2" -type f -not -path '*/CMakeFiles/*' -not -path '*/on-host/*' | head -n 1)
  [ -n "$found" ] || { echo "gpu-check: there is no $2 in $1" >&2; exit 1; }
  echo "$found"
}

pack() {
  local archive=$1 build=$2
  folder=$(mktemp -d)  # not local: the trap outlives the function
  trap 'rm -rf "$folder"' EXIT
  local to=$folder/molae-gpu-check
  mkdir "$to"
  for name in molae.node libmolae_cuda.so molae_native_tests molae_device_bench; do
    cp "$(find_in "$build" "$name")" "$to/$name"
    strip --strip-unneeded "$to/$name"
  done
  cp "$(node -p process.execPath)" "$to/node"
  strip "$to/node"
  cp "$here/gpu-check.sh" "$to/"
  cp "$here/../test/cuda/smoke.cjs" "$here/../test/cuda/summarize.cjs" "$to/"
  mkdir "$to/peers"
  cp "$here"/../bench/gpu/{run,cells,layer,timing,peers,triton_moe,factorization,molae}.py "$to/peers/"
  # Three of the files contain the same OpenBLAS: a dictionary that reaches from one to the next stores it once.
  tar -C "$folder" -cf - molae-gpu-check/{molae.node,molae_native_tests,molae_device_bench,libmolae_cuda.so,node} \
    molae-gpu-check/{gpu-check.sh,smoke.cjs,summarize.cjs,peers} | xz -T1 --lzma2=preset=9e,dict=192MiB >"$archive"
  local bytes
  bytes=$(stat -c %s "$archive")
  echo "gpu-check: $archive has $bytes bytes"
  [ "$bytes" -lt 35000000 ] || { echo "gpu-check: that is more than 35 MB" >&2; exit 1; }
}

if [ "${1:-}" = pack ]; then
  [ $# -ge 2 ] || { sed -n '2,16s/^# \{0,1\}//p' "$0" >&2; exit 2; }
  pack "$2" "${3:-$here/../build}"
  exit 0
fi

# --- run ---------------------------------------------------------------------------------------------------------------

result=$(readlink -f "${1:-gpu-check.json}")
logs=$(mktemp -d)
cd "$here"
export MOLAE_REQUIRE_GPU=1

# step NAME SECONDS COMMAND...: its output to NAME.log, its exit status and time to NAME.status. Never fails.
step() {
  local name=$1 limit=$2 start status=0
  shift 2
  start=$(date +%s)
  timeout "$limit" "$@" >"$logs/$name.log" 2>"$logs/$name.err" || status=$?
  echo "$status $(($(date +%s) - start))" >"$logs/$name.status"
  echo "gpu-check: $name ended with $status after $(($(date +%s) - start)) s"
}

find_sanitizer() {
  command -v compute-sanitizer || ls /usr/local/cuda*/bin/compute-sanitizer 2>/dev/null | head -n 1
}

step gpu 20 nvidia-smi --query-gpu=name,driver_version,compute_cap,memory.total --format=csv,noheader
# Apart, each in a process of its own: a kernel that hangs or reads what it must not takes no other result with it.
step parity 120 ./molae_native_tests --device cuda --exclude "every Hopper tile" --exclude "graphs:"
step parity_graphs 60 ./molae_native_tests --device cuda --filter "graphs:" --exclude "every Hopper tile"
case $(cat "$logs/gpu.log") in
*', 9.0, '*) hopper=1 ;;
*) hopper=0 ;;
esac
if [ $hopper = 1 ]; then step parity_hopper 60 ./molae_native_tests --device cuda --filter "every Hopper tile"; fi
sanitizer=$(find_sanitizer || true)
if [ -n "$sanitizer" ]; then
  # Both watch every memory access: a small part of the tests, many times slower.
  step memcheck 60 "$sanitizer" --tool memcheck --error-exitcode 9 ./molae_native_tests --device cuda --seed 1 \
    --filter "experts: forward of random"
  if [ $hopper = 1 ]; then
    step memcheck_hopper 90 "$sanitizer" --tool memcheck --error-exitcode 9 ./molae_native_tests --device cuda --seed 4 \
      --filter "every Hopper tile"
  fi
  step memcheck_stream 60 "$sanitizer" --tool memcheck --error-exitcode 9 ./molae_native_tests --device cuda --seed 5 \
    --filter "one to four tokens, streamed"
  step memcheck_graphs 60 "$sanitizer" --tool memcheck --error-exitcode 9 ./molae_native_tests --device cuda --seed 6 \
    --filter "graphs: layers give"
  step racecheck_stream 60 "$sanitizer" --tool racecheck --error-exitcode 9 ./molae_native_tests --device cuda --seed 5 \
    --filter "one to four tokens, streamed"
  step racecheck 60 "$sanitizer" --tool racecheck --error-exitcode 9 ./molae_native_tests --device cuda --seed 1 \
    --filter "experts: route"
  step initcheck 40 "$sanitizer" --tool initcheck --error-exitcode 9 ./molae_native_tests --device cuda --seed 2 \
    --filter "experts: a bad routing"
  step memcheck_decoder 60 "$sanitizer" --tool memcheck --error-exitcode 9 ./molae_native_tests --device cuda --seed 3 \
    --filter "decoder: linear"
  step racecheck_decoder 60 "$sanitizer" --tool racecheck --error-exitcode 9 ./molae_native_tests --device cuda --seed 3 \
    --filter "decoder: attention"
fi
step smoke 30 ./node smoke.cjs
step bench 150 ./molae_device_bench --device cuda --tiles mma
step bench_small 40 ./molae_device_bench --device cuda --tiles small
step bench_graph 60 ./molae_device_bench --device cuda --tiles mma --launch graph
if [ $hopper = 1 ]; then
  step bench_hopper 100 ./molae_device_bench --device cuda --tiles hopper
  step bench_hopper_graph 60 ./molae_device_bench --device cuda --tiles hopper --launch graph
fi
if python3 -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null; then
  benches=("$logs"/bench.log "$logs"/bench_graph.log)
  if [ $hopper = 1 ]; then benches+=("$logs"/bench_hopper.log "$logs"/bench_hopper_graph.log); fi
  step peers 300 python3 peers/run.py "$logs/peers.json" --quick --molae-json "${benches[@]}"
fi

./node summarize.cjs "$logs" "$result"
