#!/usr/bin/env bash
# Everything there is to check on a machine with an NVIDIA GPU, without an installation: builds the library for
# this GPU, runs the tests on it, looks for memory errors and races, measures, and prints one table last.
#
#   scripts/gpu_check.sh [build] [test] [infer] [sanitize] [bench] [table]     (all of them when none is named)
#   sanitize is memcheck, racecheck and synccheck; each of them can be named by itself
#
#   PYTHON=python3     has a CUDA torch (2.10 or newer), and the headers to build extensions with
#   ARCH=90            what to compile for; only this GPU, since that is quick
#   OUT=build/gpu/out  where logs and tables go
#   PIP_ARGS='--no-index --find-links wheels'    how missing tools are installed, into build/gpu/packages; wheels
#                      can be brought in a folder: cmake ninja pybind11 pytest hypothesis scipy (pyro-ppl)
#   TEST_ARGS='-k viterbi'       more arguments for pytest
#   BENCH_ARGS='--quick'         more arguments for the benchmark
#
# nvcc is looked for on the PATH and in /usr/local/cuda/bin. Each step can be run by itself, also in a later call.
# The exit code is 1 when a step of this call failed; the table names every step that has not run.
set -uo pipefail
cd "$(dirname "$0")/.."

work=$PWD/build/gpu
out=${OUT:-$work/out}
state=$work/state
python=${PYTHON:-python3}
mkdir -p "$out" "$state" "$work/site/sumprod"
command -v nvcc > /dev/null || PATH=$PATH:/usr/local/cuda/bin
export PATH=$work/packages/bin:$PATH
export PYTHONPATH=$work/site:$work/packages${PYTHONPATH:+:$PYTHONPATH}
failed=0

say() { printf '\n==== %s (%ds)\n' "$*" "$SECONDS"; }

has() { "$python" -c "import importlib.util as u, sys; sys.exit(u.find_spec('$1') is None)"; }

# Installs what cannot be imported. Without a network and without wheels this fails, and says so.
need() {
    local missing=() pair
    for pair in "$@"; do
        has "${pair%%:*}" || missing+=("${pair##*:}")
    done
    [[ ${#missing[@]} == 0 ]] && return
    # shellcheck disable=SC2086
    "$python" -m pip install --quiet --no-deps --upgrade --target "$work/packages" ${PIP_ARGS:-} "${missing[@]}" ||
        { echo "gpu_check: missing ${missing[*]}; bring wheels: PIP_ARGS='--no-index --find-links FOLDER'"; return 1; }
}

build() {
    need pybind11:pybind11 || return
    command -v cmake > /dev/null || need cmake:cmake || return
    command -v ninja > /dev/null || need ninja:ninja || return
    command -v nvcc > /dev/null || { echo "gpu_check: nvcc was not found"; return 1; }
    cmake -S . -B "$work/build" -G Ninja -Wno-dev -DCMAKE_BUILD_TYPE=Release \
        -DPython_EXECUTABLE="$("$python" -c 'import sys; print(sys.executable)')" \
        -Dpybind11_DIR="$("$python" -m pybind11 --cmakedir)" \
        -DSKBUILD_PROJECT_VERSION="$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)" \
        -DSUMPROD_CUDA=ON -DCMAKE_CUDA_ARCHITECTURES="${ARCH:-90}-real" -DCMAKE_CUDA_COMPILER="$(command -v nvcc)" &&
        cmake --build "$work/build" || return
    # The package is this checkout's Python files beside the libraries that have just been built.
    rm -rf "$work/site/sumprod" && mkdir "$work/site/sumprod"
    ln -s "$PWD"/python/sumprod/* "$work"/build/_ops.so "$work"/build/_planner.*so "$work/site/sumprod/"
    scripts/check_symbols.sh --library "$work/build/_ops.so" && "$python" -m sumprod.doctor
}

# What is tested must be what was built, not another sumprod that is installed.
is_ours() {
    local library
    library=$("$python" -c 'from sumprod import _native; print(_native.library_path)') || return
    [[ $library == "$work"/* ]] || { echo "gpu_check: python imports $library"; return 1; }
}

run_pytest() {
    local name=$1 workers=()
    shift
    need pytest:pytest hypothesis:hypothesis sortedcontainers:sortedcontainers scipy:scipy || return
    is_ours || return
    has xdist && workers=(-n "${WORKERS:-6}")
    # A newer torch may deprecate something: warnings are shown, and are no errors here.
    # shellcheck disable=SC2086
    PYTHONHASHSEED=0 "$python" -m pytest -q -p no:cacheprovider -W default --device cuda "${workers[@]}" --tb=short \
        --junit-xml="$state/$name.xml" ${TEST_ARGS:-} "$@"
}

# Modules that compare with a peer can only be collected where the peer is installed; the table names the others.
collectable() {
    local file list=$state/$1.left_out peer=1
    shift
    : > "$list"
    has pyro || peer=0
    for file in "$@"; do
        if [[ $peer == 0 ]] && grep -qE '^(from|import) pyro' "$file"; then
            echo "$file" >> "$list"
        else
            echo "$file"
        fi
    done
}

test_operators() {
    local files
    mapfile -t files < <(collectable test tests/ops/test_*.py)
    run_pytest test --run-slow "${files[@]}"
}

test_inference() { run_pytest infer tests/infer/test_devices.py; }

# Without torch's cache of device memory every tensor is an allocation of its own, with an end that is noticed.
sanitize() {
    is_ours || return
    command -v compute-sanitizer > /dev/null || { echo "gpu_check: compute-sanitizer was not found"; return 1; }
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 timeout "${SANITIZE_SECONDS:-540}" compute-sanitizer --tool "$1" \
        --error-exitcode 9 --report-api-errors no --print-limit 20 "$python" scripts/gpu_small_cases.py
}

bench() {
    is_ours || return
    # shellcheck disable=SC2086
    "$python" benchmarks/bench_gpu.py --markdown "$out/gpu.md" ${BENCH_ARGS:-} && cp "$out/gpu.md" "$state/gpu.md"
}

step() {
    local name=$1 code
    shift
    say "$name"
    rm -f "$state/$name.code"
    ("$@") 2>&1 | tee "$out/$name.log"
    code=${PIPESTATUS[0]}
    echo "$code" > "$state/$name.code"
    [[ $code == 0 ]] || failed=1
}

steps=("$@")
[[ ${#steps[@]} == 0 ]] && steps=(build test infer sanitize bench)
for name in "${steps[@]}"; do
    case $name in
        build) step build build ;;
        test) step test test_operators ;;
        infer) step infer test_inference ;;
        sanitize) for tool in memcheck racecheck synccheck; do step "$tool" sanitize "$tool"; done ;;
        memcheck | racecheck | synccheck) step "$name" sanitize "$name" ;;
        bench) step bench bench ;;
        table) ;;
        *) sed -n '2,19s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
    esac
done
say table
"$python" scripts/gpu_table.py "$state" | tee "$out/table.txt"
[[ ${PIPESTATUS[0]} == 0 ]] || failed=1
exit $failed
