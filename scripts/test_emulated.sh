#!/usr/bin/env bash
# Builds the CUDA kernels as C++, on an emulated GPU (csrc/gpu/emulation.h), and runs the operator tests on them.
#
#   scripts/test_emulated.sh [pytest arguments]
#
#   SANITIZE=address,undefined    also looks for accesses outside of arrays, in shared memory too
#   SANITIZE=thread               also looks for races: accesses of two CUDA threads that no barrier orders
#   SUMPROD_EMULATED_ORDER=backward (or a seed)   runs the threads of a block in another order between
#                                 barriers; a result that changes shows that a barrier is missing
#   SUMPROD_EMULATED_PIECES=5,3                   HMMs cut into pieces of 5 steps, worked on in parallel, and these
#                                 into ranges of 3
#   SUMPROD_EMULATED_CAPABILITY=80                a GPU without clusters
#   SUMPROD_EMULATED_MULTIPROCESSORS=132          a large GPU, which chooses other kernels for small batches
set -euo pipefail
cd "$(dirname "$0")/.."
python=.venv/bin/python
sanitize=${SANITIZE:-}
build=$PWD/build/emulated${sanitize:+-${sanitize//,/-}}
venv=$build/venv

[[ -d $venv ]] || "$python" scripts/layered_venv.py "$venv"
PATH=$PWD/.venv/bin:$PATH
cmake -S . -B "$build" -G Ninja -Wno-dev --log-level=WARNING -DCMAKE_BUILD_TYPE=Release \
    -DPython_EXECUTABLE="$("$python" -c 'import sys; print(sys.executable)')" \
    -Dpybind11_DIR="$("$python" -m pybind11 --cmakedir)" \
    -DSKBUILD_PROJECT_VERSION="$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)" \
    -DSUMPROD_WERROR="${WERROR:-ON}" -DSUMPROD_EMULATED_GPU=ON -DSUMPROD_SANITIZE="$sanitize"
cmake --build "$build" -- --quiet

# The package is this checkout's Python files beside the library that has just been built.
site=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/sumprod
rm -rf "$site"
mkdir "$site"
ln -s "$PWD"/python/sumprod/* "$build"/_ops.so "$build"/_planner.*.so "$site"/

runtime() { "${CXX:-c++}" -print-file-name="lib$1.so"; }
preload=
run=()
case $sanitize in
    "") ;;
    thread)
        preload="$(runtime tsan) $(runtime stdc++)"
        if setarch -R true 2>/dev/null; then run=(setarch -R); fi  # it may refuse memory at random addresses
        rm -f "$build"/races.*
        ;;
    *) preload="$(runtime asan) $(runtime ubsan) $(runtime stdc++)" ;;
esac
# pytest hides what a passing test prints, so races are written to files. Only our library is instrumented.
status=0
LD_PRELOAD=$preload ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 \
    TSAN_OPTIONS=log_path=$build/races:ignore_noninstrumented_modules=1:history_size=5 \
    "${run[@]}" "$venv/bin/python" -m pytest -q -p no:cacheprovider "${@:-tests/ops}" || status=$?
if compgen -G "$build/races.*" >/dev/null; then
    cat "$build"/races.*
    status=1
fi
exit $status
