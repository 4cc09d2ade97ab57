"""Timing on a GPU, and what the least time of a case is.

Times are those between two CUDA events around several calls, so that a call which only puts work on the
stream counts for the work. Contenders take turns in rounds, as in `_harness`; a ratio is formed inside each
round and the median of these is reported. CPU contenders are timed by the clock in the same rounds.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

Call = Callable[[], object]

# An H200: bytes of a large copy, fp32 on CUDA cores, and one dependent step of a recursion inside a block.
BYTES_PER_SECOND = 4.3e12
FLOPS_PER_SECOND = 67e12
STEP_SECONDS = 70e-9
_TURN_SECONDS = 0.02


@dataclass(frozen=True)
class Contender:
    """What is timed; `run` is None when it cannot run here, and `absent` says why."""

    name: str
    run: Call | None
    on_gpu: bool = True
    at_least: float | None = None
    absent: str = ""


def hmm_floor(batch: int, steps: int, states: int, *, size: float, passes: int = 1, chains: int = 1) -> float:
    """The least seconds of an HMM operator: the better of a resident recursion and a scan over time.

    `size`: bytes read and written; `passes`: sums or maxima over all transitions; `chains`: how many
    recursions follow each other.
    """
    moves = batch * steps * 2.0 * states**2 * passes / FLOPS_PER_SECOND
    resident = max(size / BYTES_PER_SECOND, moves, chains * steps * STEP_SECONDS)
    depth = chains * 2 * math.log2(max(steps, 2)) * STEP_SECONDS
    scan = max(size / BYTES_PER_SECOND, moves * states, depth)
    return min(resident, scan)


def bytes_floor(size: float) -> float:
    return size / BYTES_PER_SECOND


def captured(function: Call) -> Call:
    """The same work as one CUDA graph, replayed by each call."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        function()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    return graph.replay


def _gpu_seconds(call: Call, count: int) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(count):
        call()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3 / count


def _cpu_seconds(call: Call, count: int) -> float:
    start = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - start) / count


def race(contenders: list[Contender], budget: float, rounds: int) -> dict[str, list[float]]:
    """Seconds per call of everybody, one entry per round; slow ones take part in the first rounds only."""
    runners: dict[str, tuple[Callable[[Call, int], float], Call, int, int]] = {}
    for contender in contenders:
        if contender.run is None:
            continue
        clock = _gpu_seconds if contender.on_gpu else _cpu_seconds
        clock(contender.run, 1)
        estimate = min(clock(contender.run, 1) for _ in range(2))
        count = min(200, max(1, round(_TURN_SECONDS / estimate)))
        turns = max(2, min(rounds, int(budget / (estimate * count))))
        runners[contender.name] = clock, contender.run, count, turns
    names, found = list(runners), {name: list[float]() for name in runners}
    for number in range(rounds):
        start = number % len(names)
        for name in names[start:] + names[:start]:
            clock, call, count, turns = runners[name]
            if number < turns:
                found[name].append(clock(call, count))
    return found


def ratio(left: list[float], right: list[float]) -> float:
    """The median over rounds of left / right."""
    return statistics.median(a / b for a, b in zip(left, right, strict=False))
