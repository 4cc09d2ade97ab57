#!/usr/bin/env bash
# Checks a wheel: its contents, its native library, and that it works once installed.
#
#   scripts/check_wheel.sh FILE.whl
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
wheel=$(realpath "$1")
python=$root/.venv/bin/python
venv=$root/build/wheel-check

names=$("$python" -m zipfile --list "$wheel" | awk 'NR > 1 {print $1}')
fail() { echo "check_wheel: $*" >&2; exit 1; }
for wanted in sumprod/__init__.py sumprod/_ops.so 'sumprod/_planner\..*so' sumprod/py.typed '.*\.dist-info/.*LICENSE'; do
    grep -qx "$wanted" <<<"$names" || fail "$wanted is missing"
done
foreign=$(grep -vE '^sumprod(/|-[^/]*\.dist-info/)' <<<"$names" || true)
foreign+=$(grep -E '\.(cpp|h|cu|o)$|__pycache__' <<<"$names" || true)
[[ -z $foreign ]] || fail "unexpected files: $foreign"

"$python" "$root/scripts/layered_venv.py" "$venv"
"$venv/bin/python" -m pip --disable-pip-version-check --quiet install \
    --no-index --no-deps --ignore-installed "$wheel"
# What the wheel says that it needs has to be enough; torch is there.
"$venv/bin/python" -m pip --disable-pip-version-check --quiet install \
    --constraint "$root/.venv/stamps/constraints.txt" "$wheel"
cd "$venv" # not the repository: what is imported must be the installed package
library=$(bin/python -c 'from sumprod import _native; print(_native.library_path)')
[[ $library == "$venv"/* ]] || fail "imported $library instead of the wheel"
"$root/scripts/check_symbols.sh" --library "$library"
"$python" "$root/scripts/check_abi.py" "$library"
bin/python -m sumprod.doctor
echo "check_wheel: $(basename "$wheel"), $(($(stat -c %s "$wheel") / 1024)) KiB: ok"
