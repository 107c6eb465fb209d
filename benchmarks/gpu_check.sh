#!/usr/bin/env bash
# Everything that needs a GPU, in one call of under ten minutes and without a network:
#
#     benchmarks/gpu_check.sh OUT_DIR
#
# Installs the library twice into a temporary directory, with and without CUDA kernels (then Triton
# has the GPU), tests both, runs the CUDA kernels under compute-sanitizer, and measures.
# Leaves at most 8 files in OUT_DIR. Exits with 1 if a step failed; the later ones run all the same.
# Needs nvcc, torch, torchvision, safetensors, pillow, triton, pytest, hypothesis, pybind11, ninja and cmake.
# PYTHON: which Python.
# shellcheck disable=SC2317  # step calls the functions by name, in a shell of its own
set -uo pipefail
if [[ $# != 1 ]]; then
  echo "usage: $0 OUT_DIR" >&2
  exit 2
fi
python=${PYTHON:-python3}
gpu_tests=${GPU_TESTS:-(cuda or triton) and not sim and not offline}
budget=580 # seconds for all steps together
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
mkdir -p "$1" && out=$(cd "$1" && pwd) || exit 2
rm -f "$out"/{summary.txt,{build,tests,sanitizer,bench}.log,bench_cuda.{json,md},bench_triton.json}
work=$(mktemp -d) && cd "$work" || exit 2 # not in the checkout, whose sources would be imported
trap 'rm -rf "$work"' EXIT
PATH=$("$python" -c 'import sysconfig; print(sysconfig.get_path("scripts"))'):$PATH:/usr/local/cuda/bin # its cmake
export XDG_CACHE_HOME=$work/cache TRITON_CACHE_DIR=$work/cache/triton PYTHONUNBUFFERED=1
unset TRITON_INTERPRET
SECONDS=0
table=()
failed=0

# step NAME SECONDS LOG COMMAND...: COMMAND, a program or a function from below, within SECONDS and
# within what is left of the budget
step() {
  local name=$1 limit=$2 log=$out/$3 start=$SECONDS
  local left=$((budget - SECONDS)) status=124 result=PASS
  shift 3
  echo "==== $name"
  ((limit < left)) || limit=$left
  if ((limit > 0)); then
    timeout --kill-after=5 "$limit" bash -o pipefail -c '"$@"' bash "$@" \
      >"$work/log" 2>&1 </dev/null
    status=$?
  else
    echo "no time left" >"$work/log"
  fi
  { echo "==== $name: $*"; tail -c 2000000 "$work/log"; echo "exit status $status"; } >>"$log"
  if ((status != 0)); then
    result=FAIL failed=1
    ((status != 124 && status != 137)) || result="FAIL (time limit)"
    tail -n 25 "$work/log"
  else
    tail -n 3 "$work/log"
  fi
  table+=("$(printf '%-28s %5d s  %s' "$name" $((SECONDS - start)) "$result")")
}

environment() {
  nvidia-smi --query-gpu=name,driver_version,compute_cap,memory.total --format=csv,noheader &&
    nvcc --version &&
    "$python" -c "import sys, torch, triton; print('python', sys.version); \
print('torch', torch.__version__, 'CUDA', torch.version.cuda, 'triton', triton.__version__); \
assert torch.cuda.is_available()"
}

build() { # build 0|1: into install_0 or install_1, from a copy, so that no build sees another
  set -e
  local capability
  capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -n 1)
  mkdir -p "source_$1"
  tar -C "$root" --exclude='./.?*' --exclude=./build --exclude='*.so' -cf - . |
    tar -C "source_$1" -xf -
  TINYOPS_CUDA=$1 TORCH_CUDA_ARCH_LIST=$capability "$python" -m pip install --verbose \
    --no-build-isolation --no-deps --no-index --target "install_$1" "./source_$1"
  PYTHONPATH=$work/install_$1 "$python" -c "import tinyops; from tinyops import _eval; \
print(tinyops.__file__, _eval.build_facts()); assert tinyops.has_cuda_kernels == bool($1)"
}

gpu_test_files() { # the others need packages that are no use here
  local file
  for file in "$root"/tinyops/ops/[a-z]*.py; do
    file=${file##*/}
    ls "$root"/python_tests/test_"${file%.py}"*.py
  done | sort -u
  echo "$root"/python_tests/test_{registration,models_gpu,engine}.py
}

tests() { # tests 0|1; tests that were all skipped are a failure
  [[ -d install_$1/tinyops ]] || exit 1 # else another tinyops might be found
  PYTHONPATH=$work/install_$1 "$python" -m pytest $(gpu_test_files) --rootdir "$root" \
    -c "$root/pyproject.toml" -p no:cacheprovider -q -k "$gpu_tests" --durations=10 |
    tee /dev/stderr | grep -E '[1-9][0-9]* passed'
}

sanitize() { # sanitize TOOL [CHECK...]
  [[ -d install_1/tinyops ]] || exit 1
  PYTHONPATH=$work/install_1 PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$1" \
    --error-exitcode 9 "$python" "$root/benchmarks/sanitize.py" "${@:2}"
}

bench() { # bench 0|1 OPERATOR OPTIONS...
  [[ -d install_$1/tinyops ]] || exit 1
  PYTHONPATH=$work/install_$1 "$python" "$root/benchmarks/bench.py" "$2" \
    --device cuda --quick "${@:3}"
}

bench_one() { # bench_one OPERATOR OPTIONS...: with CUDA kernels; leaves numbers to be collected
  bench 1 "$@" --json "$work/json/$1" --markdown "$work/md/$1"
}

bench_training() { # SSPNet's training step against plain PyTorch
  [[ -d install_1/tinyops ]] || exit 1
  PYTHONPATH=$work/install_1 "$python" "$root/benchmarks/train_step.py" --device cuda --batch 4 \
    --amp --seconds 8 --json "$work/json/train_step" --markdown "$work/md/train_step"
}

export -f gpu_test_files bench_training environment build tests sanitize bench bench_one
export python root work gpu_tests
mkdir "$work"/{json,md}

step "environment" 40 summary.txt environment
step "build, CUDA" 150 build.log build 1
step "tests, CUDA" 120 tests.log tests 1
step "bench, nms" 60 bench.log bench_one nms
step "bench, stitch_tiles" 40 bench.log bench_one stitch_tiles
step "bench, max_overlap" 60 bench.log bench_one max_overlap
step "bench, sample_negatives" 40 bench.log bench_one sample_negatives
step "bench, training step" 90 bench.log bench_training
step "memcheck" 90 sanitizer.log sanitize memcheck
step "racecheck" 60 sanitizer.log sanitize racecheck
step "bench, gated_upsample_add" 80 bench.log bench_one gated_upsample_add --shapes p2x8,p4
step "bench, pixel_shuffle" 50 bench.log bench_one pixel_shuffle --shapes p2x8,p3
step "bench, difference_gate" 60 bench.log bench_one difference_gate --shapes p2x8,p3
step "bench, difference_map" 30 bench.log bench_one difference_map --shapes tilex8
step "bench, avg_max_pool" 50 bench.log bench_one avg_max_pool
step "bench, balanced_l1" 50 bench.log bench_one balanced_l1
step "build, Triton" 100 build.log build 0
step "tests, Triton" 120 tests.log tests 0
step "bench, Triton" 60 bench.log bench 0 gated_upsample_add --json "$out/bench_triton.json" \
  --shapes p2x8,p4 --dtype float32 --modes forward
# Last: what is left of the budget is theirs.
step "bench, soft_nms" 30 bench.log bench_one soft_nms --shapes dup-1k,crowd-10k
step "bench, topk_per_target" 30 bench.log bench_one topk_per_target --shapes 2kx200,20kx2k
step "bench, attention_targets" 30 bench.log bench_one attention_targets

"$python" -c 'import json, pathlib, sys
found = {file.name: json.loads(file.read_text()) for file in pathlib.Path("json").iterdir()}
pathlib.Path(sys.argv[1]).write_text(json.dumps(found, indent=1) + "\n")' "$out/bench_cuda.json"
for file in md/*; do
  [[ ! -e $file ]] || { echo "## ${file##*/}"; echo; cat "$file"; }
done >"$out/bench_cuda.md"

{
  echo
  printf '%s\n' "${table[@]}"
  echo "total $SECONDS s"
} | tee -a "$out/summary.txt"
exit "$failed"
