"""The package as installed: how a broken one fails, what it links, what its metadata says."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest

import sumprod
from sumprod import _native, _planner
from tests.installations import copy_package, run_python

ROOT = Path(__file__).resolve().parent.parent


def pyproject_version() -> str:
    found = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert found is not None
    return found[1]


def test_import_without_library(tmp_path: Path) -> None:
    code = "try:\n  import sumprod\nexcept ImportError as error:\n  print(type(error).__name__)\n  raise"
    run = run_python("-c", code, package=copy_package(tmp_path, ops="absent"))
    assert (run.code, run.out) == (1, "NativeLibraryError\n")
    assert "sumprod cannot load its native operators." in run.error
    assert "Likely causes:\n  - the package was not built" in run.error
    assert f"What was tried:\n  - {tmp_path}/sumprod/_ops.so: no such file" in run.error


def test_import_of_damaged_library(tmp_path: Path) -> None:
    run = run_python("-c", "import sumprod", package=copy_package(tmp_path, ops="damaged"))
    assert run.code == 1
    assert "another platform" in run.error
    assert f"{tmp_path}/sumprod/_ops.so: OSError" in run.error
    assert "file too short" in run.error  # the loader's own words


@pytest.mark.parametrize("level", ["baseline", "avx2", "avx512"])
def test_forced_instruction_set(level: str) -> None:
    code = "from sumprod import _native, _planner; print(_native.build_info()['isa'], _planner.isa())"
    run = run_python("-W", "error", "-c", code, SUMPROD_ISA=level)
    if level in _native.build_info()["isa_available"].split(","):
        assert run == (0, f"{level} {level}\n", "")
    else:
        assert run.code == 1
        assert f"SUMPROD_ISA={level} is not supported by this processor" in run.error


@pytest.mark.skipif(sys.platform != "linux", reason="reads ELF files")
def test_library_links_neither_python_nor_cuda() -> None:
    command = [str(ROOT / "scripts" / "check_symbols.sh"), "--library", str(_native.library_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_one_version() -> None:
    versions = {
        "pyproject.toml": pyproject_version(),
        "metadata": importlib.metadata.version("sumprod"),
        "sumprod.__version__": sumprod.__version__,
        "_ops": _native.build_info()["version"],
        "_planner": _planner.build_info()["version"],
    }
    assert set(versions.values()) == {pyproject_version()}, versions


def test_metadata() -> None:
    metadata = importlib.metadata.metadata("sumprod")
    assert metadata["Requires-Python"] == ">=3.10"
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert metadata["Summary"]
    assert "Apache-2.0" in (metadata["License-Expression"] or metadata["License"])
    assert {"examples", "test", "lint", "bench"} <= set(metadata.get_all("Provides-Extra") or [])
    needed = [r for r in importlib.metadata.requires("sumprod") or [] if "extra" not in r]
    assert sorted(re.split(r"[<>=!~ ]", r)[0] for r in needed) == ["numpy", "torch", "tqdm"]


def test_package_is_typed() -> None:
    assert (Path(sumprod.__file__).parent / "py.typed").exists()


def test_license_is_whole() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text
