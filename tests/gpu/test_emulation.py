"""The emulated GPU finds the mistakes that it is there to find; else no test on it would show anything."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from functools import cache
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CSRC = HERE.parents[1] / "csrc"

pytestmark = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64") or platform.system() != "Linux",
    reason="the emulated GPU is written for Linux on x86-64",
)


@cache
def _compiled(directory: Path, sanitizer: str) -> Path:
    compiler = [
        os.environ.get("CXX", "c++"),
        "-std=c++20",
        "-O1",
        "-g",
        f"-I{CSRC}",
        "-DSUMPROD_EMULATED_GPU",
    ]
    sanitize = [f"-fsanitize={sanitizer}"] if sanitizer else []
    # As in CMakeLists.txt: what runs the kernels is not looked at for races.
    emulation = ["-DSUMPROD_LOOKS_FOR_RACES"] if sanitizer == "thread" else sanitize
    kernels, runner, program = (
        directory / f"{sanitizer}{name}" for name in ("kernels.o", "runner.o", "program")
    )
    for command in (
        [*compiler, *sanitize, "-x", "c++", "-c", HERE / "emulation_cases.cu", "-o", kernels],
        [*compiler, *emulation, "-c", CSRC / "gpu" / "emulation.cpp", "-o", runner],
        [*compiler, *sanitize, kernels, runner, "-o", program],
    ):
        subprocess.run(command, check=True, timeout=300)
    return program


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory):
    directory = tmp_path_factory.mktemp("emulation")

    def run_case(case: str, sanitizer: str = "", order: str = "forward") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [_compiled(directory, sanitizer), case],
            env={**os.environ, "SUMPROD_EMULATED_ORDER": order},
            capture_output=True,
            text=True,
            timeout=120,
        )

    return run_case


def _rotated(threads: int, blocks: int = 4) -> list[float]:
    return [b * threads + (i + 1) % threads for b in range(blocks) for i in range(threads)]


def _numbers(completed: subprocess.CompletedProcess[str]) -> list[float]:
    assert completed.returncode == 0, completed.stderr
    return [float(x) for x in completed.stdout.split()]


@pytest.mark.parametrize("sanitizer", ["", "thread", "address"])
@pytest.mark.parametrize("order", ["forward", "backward", "7"])
@pytest.mark.parametrize(("case", "threads"), [("with_barrier", 64), ("with_warp_barrier", 32)])
def test_a_barrier_orders_memory(run, case: str, threads: int, order: str, sanitizer: str) -> None:
    assert _numbers(run(case, sanitizer, order)) == _rotated(threads)


@pytest.mark.parametrize("sanitizer", ["", "thread"])
def test_blocks_of_a_cluster_see_what_was_written_before_arrival(run, sanitizer: str) -> None:
    expected = [64 * b + i for b in (1, 0, 3, 2) for i in range(64)]
    assert _numbers(run("cluster_before_arrival", sanitizer)) == expected


@pytest.mark.parametrize(
    "case",
    [
        "without_barrier",
        "with_shuffle",
        "two_warps_with_warp_barriers",
        "overlapping_blocks",
        "cluster_after_arrival",
    ],
)
def test_races_are_reported_whatever_the_results(run, case: str) -> None:
    completed = run(case, "thread")
    assert completed.returncode != 0
    assert "WARNING: ThreadSanitizer: data race" in completed.stderr
    assert re.search(r"emulation_cases\.cu:\d+", completed.stderr)


def test_a_missing_barrier_shows_in_one_of_the_orders(run) -> None:
    results = [_numbers(run("without_barrier", order=order)) for order in ("forward", "backward")]
    assert str(results[0]) != str(results[1])  # as text: some are NaN


def test_shared_memory_is_not_zero_at_first(run) -> None:
    numbers = _numbers(run("unfilled"))
    assert len(numbers) == 256
    assert all(x != x for x in numbers)


def test_shared_memory_ends_where_it_ends(run) -> None:
    completed = run("beyond_shared_memory", "address")
    assert completed.returncode != 0
    assert "heap-buffer-overflow" in completed.stderr


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("half_a_block", "not all threads reach __syncthreads|leave"),
        ("half_a_warp", "not all threads reach __syncwarp|leave"),
        ("two_meetings", "some threads are at __syncwarp, others at a shuffle"),
        ("two_places", r"lanes of a warp meet, some at .*emulation_cases\.cu:\d+ .*, some at .*:\d+ "),
    ],
)
def test_meetings_that_are_not_met_by_all_end_the_process(run, case: str, message: str) -> None:
    completed = run(case)
    assert completed.returncode < 0
    assert re.search(f"emulated GPU: .*({message}).*block 0 of 4, thread", completed.stderr)
