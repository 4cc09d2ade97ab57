"""Timing shared by every benchmark: one process, interleaved turns, medians of per-round ratios.

A benchmark program builds a `Bench`, checks that all answers agree, hands each case to `Bench.case`
and returns `Bench.finish()`.  How a case is timed:

* every contender (ours, the peers, the floors) is called until it is warm;
* rounds follow; in each round every contender has one turn, in a rotating order: a short pause (so that
  another library's worker threads stop spinning), an untimed call, then a few timed calls whose median
  is the turn;
* a ratio is formed inside each round and the median of these ratios is reported, so a slow spell of the
  machine hits both sides.  `+-` is half the distance between the quartiles, in per cent.

Floors: the time `torch.mm` needs for as many flops at 1024^3, and the time of a tensor copy that reads
and writes as many bytes; both are contenders too, and the larger one counts.

Threads: `--threads N` restricts the process to N processors, which every library obeys, and tells torch.
"""

from __future__ import annotations

import gc
import importlib
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType

import torch

from _machine import OtherLoad, limit_threads, machine_line, parse_options

Call = Callable[[], object]

EXIT_DISAGREE = 2
EXIT_TARGET_MISSED = 1
# Above this share of the machine used by other processes, times are marked as not to be trusted.
BUSY_SHARE = 0.05
_MM_SIZE = 1024
# Long enough that code and data are in the caches, as they are in a training loop.
_TURN_SECONDS = 0.03
_PAUSE_SECONDS = 0.002


class DisagreementError(RuntimeError):
    """Two implementations gave different answers, so their times mean nothing."""


@dataclass(frozen=True)
class Peer:
    """One implementation to compare with; `run` is None when it cannot run here and `absent` says why."""

    name: str
    run: Call | None
    at_least: float | None = None
    absent: str = ""


@dataclass(frozen=True)
class Floor:
    """The least work a case can be: flops for `torch.mm`, bytes read plus written for a copy."""

    flops: float = 0.0
    bytes: float = 0.0
    at_most: float | None = None


def optional_import(module: str) -> ModuleType | None:
    """Import a peer, or say plainly that it is missing and carry on without it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        print(f"peer missing: {module} ({error}); install with: pip install '.[bench]'", file=sys.stderr)
        return None


def require_close(
    what: str, actual: torch.Tensor, expected: torch.Tensor, *, rtol: float = 1e-5, atol: float = 1e-4
) -> None:
    """Stop the program unless `actual` matches `expected` (compared in float64)."""
    left, right = actual.detach().double(), expected.detach().double()
    if left.shape != right.shape:
        raise DisagreementError(f"{what}: shape {tuple(left.shape)}, expected {tuple(right.shape)}")
    if torch.allclose(left, right, rtol=rtol, atol=atol):
        return
    gap = (left - right).abs()
    # nan_to_num: a NaN is the worst possible difference and must be the one that is shown.
    worst = int(gap.nan_to_num(nan=float("inf")).argmax())
    raise DisagreementError(
        f"{what}: largest difference {gap.flatten()[worst].item():.3g} "
        f"({left.flatten()[worst].item():.9g}, expected {right.flatten()[worst].item():.9g}), "
        f"allowed rtol {rtol:g} atol {atol:g}"
    )


def require(condition: bool, what: str) -> None:
    """Stop the program unless `condition` holds."""
    if not condition:
        raise DisagreementError(what)


def guarded(program: Callable[[], int]) -> int:
    """Run a benchmark; a disagreement is shouted and becomes exit status 2."""
    try:
        return program()
    except DisagreementError as error:
        bar = "!" * 100
        print(f"\n{bar}\nANSWERS DISAGREE, nothing was timed for this case:\n{error}\n{bar}", file=sys.stderr)
        return EXIT_DISAGREE


@dataclass
class _Runner:
    """A contender with its measured cost and the medians of its turns."""

    call: Call
    estimate: float = 0.0
    turns: list[float] | None = None

    def warm(self, seconds: float) -> None:
        self.call()
        spent, best = 0.0, float("inf")
        while spent < seconds:
            took = _time_once(self.call)
            spent, best = spent + took, min(best, took)
        self.estimate, self.turns = best, []

    @property
    def inner(self) -> int:
        return min(50, max(1, round(_TURN_SECONDS / self.estimate)))

    @property
    def turn_cost(self) -> float:
        return self.estimate * (self.inner + (self.estimate < 0.1)) + _PAUSE_SECONDS

    def turn(self) -> None:
        time.sleep(_PAUSE_SECONDS)
        if self.estimate < 0.1:
            self.call()
        assert self.turns is not None
        self.turns.append(statistics.median(_time_once(self.call) for _ in range(self.inner)))


def _time_once(call: Call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def race(
    calls: dict[str, Call], budget: float, min_rounds: int, max_rounds: int = 60
) -> dict[str, list[float]]:
    """Time all `calls` in interleaved rounds; the i-th entry of every list belongs to round i.

    A slow contender takes part in the first rounds only, but in at least `min_rounds`.  The first of
    `calls` takes part in every round.
    """
    runners = {name: _Runner(call) for name, call in calls.items()}
    for runner in runners.values():
        runner.warm(min(0.1, budget / 20))
    share = budget / len(runners)
    rounds = {
        name: max(min_rounds, min(max_rounds, int(share / runner.turn_cost)))
        for name, runner in runners.items()
    }
    names = list(runners)
    rounds[names[0]] = max(rounds.values())
    gc.collect()
    gc.disable()
    try:
        for number in range(rounds[names[0]]):
            start = number % len(names)
            for name in names[start:] + names[:start]:
                if number < rounds[name]:
                    runners[name].turn()
    finally:
        gc.enable()
    return {name: runner.turns or [] for name, runner in runners.items()}


def spread(values: Sequence[float]) -> float:
    """Half the distance between the quartiles, relative to the median, in per cent."""
    if len(values) < 3:
        return float("nan")
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return 50.0 * (high - low) / middle


class Bench:
    """Collects the cases of one program, prints its table and counts the targets."""

    def __init__(
        self, title: str, description: str, packages: Sequence[str] = (), *, threads: int | None = None
    ) -> None:
        """`threads` is how many everybody gets unless the command line says otherwise (default: all)."""
        self.options = parse_options(description, threads=threads)
        self.title, self.description, self.packages = title, description, packages
        limit_threads(self.options.threads)
        torch.manual_seed(0)
        self._rows: list[dict[str, str]] = []
        self._columns: list[str] = []
        self._met = self._missed = self._open = 0
        self._load = OtherLoad()
        self._mm = [torch.randn(_MM_SIZE, _MM_SIZE) for _ in range(3)]
        print(machine_line(self.options.threads, packages), file=sys.stderr, flush=True)

    def wants(self, label: str, *, heavy: bool = False) -> bool:
        """Whether the options ask for this case (ask before preparing its data)."""
        return self.options.only in label and not (heavy and self.options.quick)

    def case(self, label: str, ours: Call, peers: Sequence[Peer], floor: Floor | None = None) -> None:
        """Time one case and add its row.  Agreement must have been checked by the caller."""
        calls: dict[str, Call] = {"ours": ours}
        calls.update({f"peer {peer.name}": peer.run for peer in peers if peer.run is not None})
        calls.update(self._floor_calls(floor))
        load = OtherLoad()
        times = race(calls, self.options.budget, 3 if self.options.quick else 5)
        mine, busy = times["ours"], load.share() or 0.0
        row = {"case": label, "ours ms": f"{1e3 * statistics.median(mine):.3f} +-{spread(mine):.0f}%"}
        if busy > BUSY_SHARE:
            row["ours ms"] += f" (others: {busy:.0%})"
        for peer in peers:
            theirs = times.get(f"peer {peer.name}")
            row[f"{peer.name} / ours"] = self._peer_cell(peer, theirs, mine)
        if floor is not None:
            row["ours / floor"] = self._floor_cell(floor, times, mine)
        self.add_row(row)

    def add_row(self, row: dict[str, str]) -> None:
        """Add a finished row; columns appear in the order in which rows bring them."""
        self._columns += [name for name in row if name not in self._columns]
        self._rows.append(row)
        print("  ".join(f"{name}: {text}" for name, text in row.items()), file=sys.stderr, flush=True)

    def verdict(self, met: bool) -> str:
        """Count a target and name the outcome."""
        if met:
            self._met += 1
        else:
            self._missed += 1
        return "PASS" if met else "**FAIL**"

    def _peer_cell(self, peer: Peer, theirs: list[float] | None, mine: list[float]) -> str:
        if theirs is None:
            if peer.at_least is not None:
                self._open += 1
            return peer.absent or "not installed"
        ratios = [b / a for a, b in zip(mine, theirs, strict=False)]
        ratio = statistics.median(ratios)
        text = f"{ratio:.3g}x +-{spread(ratios):.0f}%"
        if peer.at_least is not None:
            text += f" (>= {peer.at_least:g}x {self.verdict(ratio >= peer.at_least)})"
        return text

    def _floor_calls(self, floor: Floor | None) -> dict[str, Call]:
        calls: dict[str, Call] = {}
        if floor is not None and floor.flops:
            left, right, product = self._mm
            calls["floor mm"] = lambda: torch.mm(left, right, out=product)
        if floor is not None and floor.bytes:
            # A copy of n bytes reads n and writes n.
            source = torch.zeros(max(1, int(floor.bytes / 8)))
            target = torch.zeros_like(source)
            calls["floor copy"] = lambda: target.copy_(source)
        return calls

    def _floor_cell(self, floor: Floor, times: dict[str, list[float]], mine: list[float]) -> str:
        scale = floor.flops / (2.0 * _MM_SIZE**3)
        sides = []
        if "floor mm" in times:
            sides.append([scale * t for t in times["floor mm"]])
        if "floor copy" in times:
            sides.append(times["floor copy"])
        best = max(sides, key=statistics.median)
        ratio = statistics.median(a / b for a, b in zip(mine, best, strict=False))
        text = f"{ratio:.2f} of {1e3 * statistics.median(best):.3f} ms"
        if floor.at_most is not None:
            text += f" (<= {floor.at_most:g} {self.verdict(ratio <= floor.at_most)})"
        return text

    def finish(self) -> int:
        """Print the table, write the markdown file, return the exit status."""
        lines = [f"# {self.title}", "", self.description.strip().split("\n\n")[0].replace("\n", " "), ""]
        lines += [machine_line(self.options.threads, self.packages) + ".", ""]
        share = self._load.share()
        if share is not None:
            busy = (
                " **Do not trust these numbers: measure on a quiet machine.**" if share > BUSY_SHARE else ""
            )
            lines += [f"Other processes used {share:.0%} of the machine meanwhile.{busy}", ""]
        lines += render(self._columns, self._rows)
        unmeasured = f", {self._open} not measured" if self._open else ""
        lines += ["", f"Targets: {self._met} met, {self._missed} missed{unmeasured}."]
        if self.options.quick:
            lines.append("Quick run: few rounds, heavy cases left out.")
        print("\n" + "\n".join(lines), flush=True)
        if self.options.markdown is not None:
            self.options.markdown.parent.mkdir(parents=True, exist_ok=True)
            self.options.markdown.write_text("\n".join(lines) + "\n")
        return EXIT_TARGET_MISSED if self.options.strict and self._missed else 0


def render(columns: Sequence[str], rows: Sequence[dict[str, str]]) -> list[str]:
    """A markdown table whose columns line up in a terminal too."""
    widths = {name: max([len(name), *(len(row.get(name, "-")) for row in rows)]) for name in columns}
    head = "| " + " | ".join(name.ljust(widths[name]) for name in columns) + " |"
    rule = "|" + "|".join("-" * (widths[name] + 2) for name in columns) + "|"
    body = ["| " + " | ".join(row.get(n, "-").ljust(widths[n]) for n in columns) + " |" for row in rows]
    return [head, rule, *body]
