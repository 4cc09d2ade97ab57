"""The GPU benchmark without a GPU: it compares its answers, and measures and writes nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

PROGRAM = Path(__file__).resolve().parent.parent / "benchmarks" / "bench_gpu.py"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(PROGRAM), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_answers_agree_at_small_sizes() -> None:
    done = run("--device", "cpu", "--tiny", "--threads", "1")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("answers agree") == 12


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_nothing_is_measured(tmp_path: Path) -> None:
    done = run("--markdown", str(tmp_path / "gpu.md"))
    assert done.returncode == 0
    assert "there is no GPU here" in done.stderr
    assert not (tmp_path / "gpu.md").exists()
