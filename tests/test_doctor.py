"""`python -m sumprod.doctor`: exit codes, and reports that name what is wrong."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path

import pytest
import torch

import sumprod
from sumprod import doctor
from tests.installations import Run, copy_package, run_python

DOCTOR = ("-m", "sumprod.doctor")


def failures(run: Run) -> list[str]:
    """First words of the report's lines that say FAIL."""
    return [line.split()[0] for line in run.out.splitlines() if line.startswith("  ") and " FAIL" in line]


def test_healthy() -> None:
    run = run_python(*DOCTOR)
    assert (run.code, run.error) == (0, "")
    assert failures(run) == []
    assert "Everything is fine." in run.out
    operators = [name for name in sumprod.ops.__all__ if inspect.isfunction(getattr(sumprod.ops, name))]
    for name in operators:
        assert f"  {name:<20}OK" in run.out
    for word in (sumprod.__version__, torch.__version__, "_ops.so", "_planner", "threads", "CUDA"):
        assert word in run.out
    assert "extra examples" in run.out


def test_copy_of_the_package_is_healthy(tmp_path: Path) -> None:
    """The broken copies below differ from a working one only in what they break."""
    run = run_python(*DOCTOR, package=copy_package(tmp_path))
    assert (run.code, run.error) == (0, "")
    assert str(tmp_path) in run.out


def test_missing_library(tmp_path: Path) -> None:
    run = run_python(*DOCTOR, package=copy_package(tmp_path, ops="absent"))
    assert (run.code, run.error) == (1, "")
    assert failures(run) == ["_ops"]
    assert "_ops.so was not found" in run.out
    assert "Likely causes:\n  - the package was not built" in run.out
    assert f"{tmp_path}/sumprod/_ops.so: no such file" in run.out


def test_damaged_library(tmp_path: Path) -> None:
    run = run_python(*DOCTOR, package=copy_package(tmp_path, ops="damaged"))
    assert (run.code, run.error) == (1, "")
    assert failures(run) == ["_ops"]
    assert f"{tmp_path}/sumprod/_ops.so does not load" in run.out
    assert "Likely causes:" in run.out


def test_missing_planner(tmp_path: Path) -> None:
    run = run_python(*DOCTOR, package=copy_package(tmp_path, planner="absent"))
    assert run.code == 1
    assert failures(run) == ["_planner", "after"]
    assert "after contraction" in run.out
    assert f"there is none for Python {sys.version_info[0]}.{sys.version_info[1]}" in run.out


def test_unknown_instruction_set() -> None:
    run = run_python(*DOCTOR, SUMPROD_ISA="mmx")
    assert run.code == 1
    assert "SUMPROD_ISA must be baseline, avx2 or avx512, got 'mmx'" in run.out
    assert "Traceback" not in run.out + run.error


def test_error_in_the_package_is_shown(tmp_path: Path) -> None:
    folder = copy_package(tmp_path)
    (folder / "sumprod" / "errors.py").write_text("raise ImportError('errors.py is not whole')\n")
    run = run_python(*DOCTOR, package=folder)
    assert run.code == 1
    assert "errors.py is not whole" in run.out + run.error


def test_versions_that_do_not_fit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "_package_version", lambda: "99.0")
    assert doctor.main() == 1
    out = capsys.readouterr().out
    assert "sumprod 99.0: these do not belong together" in out
    assert out.count("FAIL") == 2  # the line itself and the closing one


def test_old_torch(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch, "__version__", "2.9.1+cpu")
    assert doctor.main() == 1
    assert "2.9.1+cpu is too old; 2.10 or newer is needed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("built", "torchs", "usable", "ok", "expected"),
    [
        (
            "no",
            None,
            False,
            None,
            "no: sumprod was built without CUDA kernels (nvcc was not found) and torch was",
        ),
        ("no", "13.0", True, None, "no: sumprod was built without CUDA kernels"),
        (
            "13.0.88: 80-real,90-real,100",
            None,
            False,
            None,
            "(kernels are built: 13.0.88: 80-real,90-real,100)",
        ),
        (
            "13.0.88: 80-real,90-real,100",
            "13.0",
            False,
            None,
            "no: torch finds no usable CUDA device (kernels",
        ),
        ("13.0.88: 80-real,90-real,100", "13.0", True, None, "yes (13.0.88: 80-real,90-real,100): Some GPU"),
        (
            "emulated",
            "13.0",
            True,
            False,
            "this build emulates a GPU, slowly: it is for tests; install sumprod",
        ),
    ],
)
def test_cuda_rows(
    built: str,
    torchs: str | None,
    usable: bool,
    ok: bool | None,
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.version, "cuda", torchs)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: usable)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: "Some GPU")
    info = {"isa": "avx2", "isa_available": "baseline,avx2", "cuda": built}
    [row] = [row for row in doctor._processor(info) if row.name == "CUDA"]
    assert row.ok is ok
    assert expected in row.text


@pytest.mark.parametrize("name", ["logsumexp", "hmm_filter", "hmm_marginals", "hmm_pairwise"])
def test_wrong_result(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    right = getattr(sumprod.ops, name)
    monkeypatch.setattr(sumprod.ops, name, lambda *args, **kwargs: right(*args, **kwargs) + 1e-3)
    wrong = [row for row in doctor.self_test() if not row.ok]
    assert wrong == [doctor.Row(name, False, "wrong in torch.float32; wrong in torch.float64")]
    assert doctor.main() == 1
    assert "Something is wrong" in capsys.readouterr().out


def test_operator_that_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object, **kwargs: object) -> None:
        raise RuntimeError("no kernel")

    monkeypatch.setattr(sumprod.ops, "hmm_viterbi", broken)
    wrong = [row for row in doctor.self_test() if not row.ok]
    assert len(wrong) == 1
    assert "RuntimeError: no kernel" in wrong[0].text


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (["python", "-m", "sumprod.doctor"], True),
        (["python", "-W", "error", "-m", "sumprod.doctor"], True),
        (["python", "-m", "pytest"], False),
        (["python", "program.py", "sumprod.doctor"], False),
    ],
)
def test_requested(command: list[str], expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "orig_argv", command)
    assert doctor.requested() is expected


def test_the_caller_is_left_alone() -> None:
    """No random numbers are taken from the caller's generator, and no gradient mode is changed."""
    state = torch.get_rng_state()
    with torch.no_grad():
        assert all(row.ok for row in doctor.self_test())
        assert not torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), state)
