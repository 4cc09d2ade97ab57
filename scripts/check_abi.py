"""Fails unless a native library uses only torch's stable ABI and runs on every torch it should.

    python scripts/check_abi.py FILE

torch-abi-audit reads the symbols; this adds the upper bound on the oldest torch that still works.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

OLDEST_TORCH = (2, 10, 0)
AUDIT = "import sys; from torch_abi_audit.cli import main; sys.exit(main())"


def audit(path: str) -> dict[str, Any]:
    command = [sys.executable, "-c", AUDIT, "--json", path]
    report = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    entries = report["extensions"] + report["bundled_libs"]
    if len(entries) != 1 or report["error"] is not None:
        raise SystemExit(f"{path}: torch-abi-audit saw {len(entries)} libraries, error {report['error']}")
    result: dict[str, Any] = entries[0]["torch"]
    return result


def main(path: str) -> None:
    torch = audit(path)
    if not (torch["uses_torch"] and torch["stable"]) or torch["unknown_shim_symbols"]:
        symbols = torch["unstable_symbols"] + torch["unknown_shim_symbols"]
        raise SystemExit(f"{path} leaves torch's stable ABI: {symbols or 'it does not use torch at all'}")
    oldest = tuple(int(part) for part in torch["min_torch_version"].split("."))
    if oldest > OLDEST_TORCH:
        wanted = ".".join(map(str, OLDEST_TORCH))
        raise SystemExit(
            f"{path} needs torch {torch['min_torch_version']}, but must run on {wanted}; "
            f"newer symbols: {torch['version_defining_symbols']}"
        )
    print(f"check_abi: STABLE, torch >= {torch['min_torch_version']}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    main(sys.argv[1])
