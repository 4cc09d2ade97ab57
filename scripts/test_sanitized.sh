#!/usr/bin/env bash
# Builds with the address and undefined-behaviour sanitizers and runs the operator tests there.
#
#   scripts/test_sanitized.sh [pytest arguments]        SANITIZE=address,undefined to choose others
#
# Only our libraries are instrumented, so the run-time libraries of the sanitizers are preloaded
# into an ordinary Python. Leaks are not looked for: Python and torch keep memory until the end.
# CUDA kernels are looked at by scripts/test_emulated.sh.
set -euo pipefail
cd "$(dirname "$0")/.."
sanitize=${SANITIZE:-address,undefined}
venv=$PWD/build/sanitize/venv

.venv/bin/python scripts/layered_venv.py "$venv"
"$venv/bin/python" -m pip --disable-pip-version-check --quiet install \
    --no-build-isolation --no-deps --ignore-installed \
    --config-settings=build-dir=build/sanitize/native \
    --config-settings=cmake.define.SUMPROD_SANITIZE="$sanitize" \
    --config-settings=cmake.define.SUMPROD_CUDA=OFF \
    --config-settings=install.strip=false .

runtime() { "${CXX:-c++}" -print-file-name="lib$1.so"; }
preload="$(runtime asan) $(runtime ubsan) $(runtime stdc++)"
LD_PRELOAD=$preload ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 \
    "$venv/bin/python" -m pytest -q "${@:-tests/ops}"
