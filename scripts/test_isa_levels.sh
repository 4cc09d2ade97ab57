#!/usr/bin/env bash
# Runs the operator tests once per ISA level that this processor has, lowest first.
#
#   scripts/test_isa_levels.sh [--others] [pytest arguments]
#
# --others leaves out the level that is used anyway, because the full suite already runs on it.
set -euo pipefail
cd "$(dirname "$0")/.."
python=.venv/bin/python

info() { "$python" -c "from sumprod import _native; print(_native.build_info()['$1'].replace(',', ' '))"; }

skip=
if [[ ${1:-} == --others ]]; then
    skip=$(info isa)
    shift
fi
available=$(info isa_available)
for level in baseline avx2 avx512; do
    if [[ " $available " != *" $level "* ]]; then
        echo "-- $level: this processor lacks it, not tested"
    elif [[ $level != "$skip" ]]; then
        echo "-- SUMPROD_ISA=$level"
        SUMPROD_ISA=$level "$python" -m pytest -q tests/ops "$@"
    fi
done
