#!/usr/bin/env bash
# Installs what libmolae_cuda.so needs to BUILD (no GPU, no driver, no root) from NVIDIA's wheels on PyPI:
#
#   scripts/cuda-toolkit.sh [--tools] PREFIX      prints the path of nvcc
#
#   export CUDACXX=$(scripts/cuda-toolkit.sh ~/.cache/molae-cuda)
#   cmake -S . -B build -DMOLAE_CUDA=ON
#
# --tools adds cuobjdump and nvdisasm (13.2: there are no wheels of 13.0), for looking at the machine code. The run-time
# libraries (cuBLAS, cuSOLVER) are several hundred megabytes and not needed to build: of them only headers are kept.
# A prefix that is complete already is left as it is.
set -euo pipefail

tools=0
if [ "${1:-}" = --tools ]; then
  tools=1
  shift
fi
if [ $# -ne 1 ]; then
  sed -n '2,11s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
mkdir -p "$1"
prefix=$(cd "$1" && pwd)
release=13.0.3
python=${PYTHON:-python3}
root=$prefix/nvidia/cu13
marker=$prefix/.molae-cuda-$release

log() { echo "cuda-toolkit: $*" >&2; }

# The meta package pins a coherent set of wheels; its extras name the parts.
install_compiler() {
  log "installing nvcc $release and the CUDA runtime into $prefix"
  "$python" -m pip install --quiet --disable-pip-version-check --no-compile --upgrade --target "$prefix" \
    "cuda-toolkit[nvcc,cudart,cccl,crt,nvvm,culibos]==$release" >&2
}

# Prints the pinned requirement of one package, as the meta package's metadata has it.
pinned() {
  "$python" - "$prefix" "$1" <<'PYTHON'
import email, glob, re, sys
prefix, name = sys.argv[1:]
with open(glob.glob(f"{prefix}/cuda_toolkit-*.dist-info/METADATA")[0]) as file:
    metadata = email.message_from_file(file)
for line in metadata.get_all("Requires-Dist"):
    found = re.match(rf"({name}==[0-9.*]+)", line)
    if found:
        print(found.group(1))
        break
PYTHON
}

install_headers() {
  local wheels
  wheels=$(mktemp -d)
  for package in nvidia-cublas nvidia-cusolver nvidia-cusparse; do
    log "taking the headers of $package"
    "$python" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: -d "$wheels" \
      "$(pinned "$package")" >&2
    "$python" - "$wheels" "$prefix" <<'PYTHON'
import glob, sys, zipfile
wheels, prefix = sys.argv[1:]
for wheel in glob.glob(f"{wheels}/*.whl"):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(prefix, [name for name in archive.namelist() if "/include/" in name])
PYTHON
    rm -f "$wheels"/*.whl
  done
  rmdir "$wheels"
}

# The wheels have the libraries in lib, nvcc and CMake look in lib64.
finish() {
  [ -e "$root/lib64" ] || ln -s lib "$root/lib64"
  chmod +x "$root"/bin/* "$root"/nvvm/bin/* 2>/dev/null || true
  touch "$marker"
}

# Through a folder of its own: pip replaces a whole folder that another package shares.
install_tools() {
  local folder
  folder=$(mktemp -d)
  log "installing cuobjdump and nvdisasm"
  "$python" -m pip install --quiet --disable-pip-version-check --no-compile --no-deps --target "$folder" \
    "nvidia-cuda-cuobjdump==13.2.*" "nvidia-cuda-nvdisasm==13.2.*" >&2
  cp -a "$folder"/nvidia/cu13/. "$root"/
  chmod +x "$root"/bin/*
  rm -rf "$folder"
}

if [ ! -e "$marker" ] || [ ! -x "$root/bin/nvcc" ]; then
  install_compiler
  install_headers
  finish
fi
if [ $tools = 1 ] && [ ! -e "$root/bin/cuobjdump" ]; then install_tools; fi
echo "$root/bin/nvcc"
