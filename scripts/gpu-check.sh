#!/usr/bin/env bash
# Checks molae on a bare machine with a GPU: an NVIDIA driver 580 or newer and the CUDA 13 libraries (cuBLAS, cuSOLVER),
# but neither node nor a compiler. Everything else comes along in one archive of less than 35 MB.
#
#   scripts/gpu-check.sh pack ARCHIVE.tar.xz [BUILD]   here: BUILD (default: build) has molae.node, libmolae_cuda.so,
#                                                      molae_native_tests and molae_device_bench
#   tar -xJf ARCHIVE.tar.xz && molae-gpu-check/gpu-check.sh [--budget SECONDS] [--parts PART,PART...] [RESULT.json]
#                                                      there: one JSON, and the steps' output beside it in RESULT.logs.tgz
#
# Parts, in this order: parity, benches, sanitizers, and peers, of bench/gpu, where python3 has torch there: held against what
# the benches of the same call measured. Default: all. No step begins that the budget (default: 540 seconds) has no time for,
# and none goes on beyond it: what a device is lent for is mostly 10 minutes a call. Begin with --parts parity, and what fails;
# then --parts benches,peers and --parts sanitizers. Both files are written anew after every step, so that a call which is cut
# off leaves what it had.
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

find_in() {  # BUILD NAME: the newest such file, wherever a generator put it
  local found
  found=$(find "$1" -name "$2" -type f -not -path '*/CMakeFiles/*' -not -path '*/on-host/*' -printf '%T@ %p\n' | sort -n | tail -n 1)
  [ -n "$found" ] || { echo "gpu-check: there is no $2 in $1" >&2; exit 1; }
  echo "${found#* }"
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
  [ $# -ge 2 ] || { sed -n '2,22s/^# \{0,1\}//p' "$0" >&2; exit 2; }
  pack "$2" "${3:-$here/../build}"
  exit 0
fi

# --- run ---------------------------------------------------------------------------------------------------------------

usage() {
  echo "usage: $0 [--budget SECONDS] [--parts parity,benches,sanitizers,peers] [RESULT.json]" >&2
  exit 2
}

budget=540
parts=parity,benches,sanitizers,peers
while [ $# -gt 0 ]; do
  case $1 in
  --budget) [ $# -ge 2 ] || usage; budget=$2; shift 2 ;;
  --parts) [ $# -ge 2 ] || usage; parts=$2; shift 2 ;;
  -*) usage ;;
  *) break ;;
  esac
done
[[ $# -le 1 && $budget =~ ^[1-9][0-9]*$ && $parts =~ ^(parity|benches|sanitizers|peers)(,(parity|benches|sanitizers|peers))*$ ]] || usage

result=$(readlink -f "${1:-gpu-check.json}")
packed_logs=${result%.json}.logs.tgz
scratch=$(mktemp -d)
logs=$scratch/logs
mkdir "$logs"
cd "$here"
export MOLAE_REQUIRE_GPU=1
# NVIDIA's wheels are looked for beside this interpreter, too, where a wrapper in PATH hides its environment.
wheels=$(python3 -c 'import sysconfig; print(sysconfig.get_path("purelib"))' 2>/dev/null || true)
export PYTHONPATH=${PYTHONPATH:+$PYTHONPATH:}$wheels

grace=10      # seconds between asking a step to end and ending it
worthwhile=10 # seconds: with less left, no step begins
failed=0
current=
child=

# Without a node that runs here, the steps alone.
summarize() {
  tar -C "$scratch" -czf "$packed_logs" logs || true
  ./node summarize.cjs "$logs" "$result" && return
  [ $? = 1 ] && [ -s "$result" ] && return
  local file status seconds separator=
  {
    printf '{"ok": %s, "steps": {' "$([ $failed = 0 ] && echo true || echo false)"
    for file in "$logs"/*.status; do
      [ -e "$file" ] || continue
      read -r status seconds <"$file"
      printf '%s\n  "%s": {"status": "%s", "seconds": %s}' "$separator" "$(basename "$file" .status)" "$status" "$seconds"
      separator=,
    done
    printf '\n}}\n'
  } >"$result"
}

finish() {
  trap - EXIT
  trap '' TERM INT HUP
  if [ -n "$child" ]; then
    kill "$child" 2>/dev/null || true  # timeout, which passes it on
    echo "cut $(($SECONDS - began))" >"$logs/$current.status"
    failed=1
  fi
  rm -f "$result"
  summarize || true
  rm -rf "$scratch"
  exit $failed
}
trap finish EXIT
trap 'exit 1' TERM INT HUP

# What is of this machine and not of molae: whether it has torch, and whether the sanitizer takes its device.
not_ours() { [[ $1 =~ ^(peers|torch|sanitizer)$ ]]; }
# A sanitizer that is cut off before it finds anything: how many times slower a kernel is under it, nobody knows before.
out_of_time() {
  local finding='^========= (Invalid|Misaligned|Uninitialized|Out-of-range|Barrier|Potential|((Error|Warning): )?Race)'
  [[ $2 =~ ^(124|137)$ && $1 =~ ^(memcheck|racecheck|initcheck) ]] && ! grep -qE "$finding" "$logs/$1.log" "$logs/$1.err"
}

# step NAME SECONDS COMMAND...: its output to NAME.log and NAME.err, its exit status and time to NAME.status. Never fails.
step() {
  local limit=$2 left=$((budget - SECONDS - grace)) status=0
  current=$1
  shift 2
  if [ "$left" -lt $worthwhile ]; then
    echo "skipped 0" >"$logs/$current.status"
    echo "gpu-check: no time for $current"
    return
  fi
  [ "$limit" -le "$left" ] || limit=$left
  began=$SECONDS
  # In the background: only a `wait` ends at once where the script is told to.
  timeout -k $grace "$limit" "$@" >"$logs/$current.log" 2>"$logs/$current.err" </dev/null &
  child=$!
  wait "$child" || status=$?
  child=
  if out_of_time "$current" $status; then status=skipped; fi
  echo "$status $((SECONDS - began))" >"$logs/$current.status"
  [[ $status =~ ^(0|skipped)$ ]] || not_ours "$current" || failed=1
  echo "gpu-check: $current ended with $status after $((SECONDS - began)) s"
  summarize >/dev/null 2>&1 || true
}

wanted() { [[ ,$parts, == *,$1,* ]]; }

step gpu 15 nvidia-smi --query-gpu=name,driver_version,compute_cap,memory.total --format=csv,noheader
case $(cat "$logs/gpu.log") in
*', 9.0, '*) hopper=1 ;;
*) hopper=0 ;;
esac

# Apart, each in a process of its own: a kernel that hangs or reads what it must not takes no other result with it. What is
# mostly libraries' work comes first.
if wanted parity; then
  for family in memory: moves: linalg: factor: calibrat decoder: experts: tiles:; do
    step "parity_${family%:}" 60 ./molae_native_tests --device cuda --filter "$family" --exclude "every Hopper tile" --exclude "graphs:"
  done
  if [ $hopper = 1 ]; then step parity_hopper 40 ./molae_native_tests --device cuda --filter "every Hopper tile"; fi
  step parity_graphs 25 ./molae_native_tests --device cuda --filter "graphs:" --exclude "every Hopper tile"
fi

if wanted benches; then
  step bench 110 ./molae_device_bench --device cuda --tiles mma
  if [ $hopper = 1 ]; then step bench_hopper 75 ./molae_device_bench --device cuda --tiles hopper; fi
  step bench_small 20 ./molae_device_bench --device cuda --tiles small
  step bench_graph 25 ./molae_device_bench --device cuda --tiles mma --launch graph
  if [ $hopper = 1 ]; then step bench_hopper_graph 25 ./molae_device_bench --device cuda --tiles hopper --launch graph; fi
fi

ended_well() { read -r status _ <"$logs/$1.status" && [ "$status" = 0 ]; }

# Every memory access is watched: a small part of the tests, many times slower. That a library asks the driver for what it
# may not have is no error of ours.
sanitize() {  # NAME SECONDS TOOL SEED FILTER
  local options=()
  [ "$3" != memcheck ] || options=(--report-api-errors no)
  step "$1" "$2" "$sanitizer" --tool "$3" "${options[@]}" --error-exitcode 9 \
    ./molae_native_tests --device cuda --seed "$4" --filter "$5"
}
find_sanitizer() {
  command -v compute-sanitizer || ls /usr/local/cuda*/bin/compute-sanitizer 2>/dev/null | head -n 1
}
sanitizer=$(find_sanitizer || true)
# In some containers it refuses the device, whatever runs under it.
if wanted sanitizers && [ -n "$sanitizer" ]; then
  step sanitizer 45 "$sanitizer" --tool memcheck --report-api-errors no ./molae_native_tests --device cuda --seed 1 \
    --filter "experts: a bad routing"
fi
if wanted sanitizers && [ -n "$sanitizer" ] && ended_well sanitizer; then
  if [ $hopper = 1 ]; then
    sanitize racecheck_hopper 30 racecheck 4 "layers of every Hopper tile"
    sanitize memcheck_hopper 30 memcheck 4 "layers of every Hopper tile"
  fi
  sanitize memcheck 20 memcheck 1 "experts: forward of random"
  sanitize memcheck_stream 20 memcheck 5 "one to four tokens, streamed"
  sanitize racecheck_stream 20 racecheck 5 "one to four tokens, streamed"
  sanitize racecheck 15 racecheck 1 "experts: route"
  sanitize memcheck_graphs 20 memcheck 6 "graphs: layers give"
  sanitize initcheck 20 initcheck 2 "experts: a bad routing"
  sanitize memcheck_decoder 20 memcheck 3 "decoder: linear"
  sanitize racecheck_decoder 20 racecheck 3 "decoder: attention"
fi

if wanted parity; then step smoke 15 ./node smoke.cjs; fi

if wanted peers; then step torch 90 python3 -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; fi
if wanted peers && ended_well torch; then
  benches=("$logs"/bench.log "$logs"/bench_graph.log)
  if [ $hopper = 1 ]; then benches+=("$logs"/bench_hopper.log "$logs"/bench_hopper_graph.log); fi
  step peers 300 python3 peers/run.py "$logs/peers.json" --quick --molae-json "${benches[@]}"
fi
