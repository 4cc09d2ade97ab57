"""Plans: how a plated factor graph is contracted, decided from its structure alone."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

from sumprod._planner import NotTreeStructured
from sumprod._planner import plan as native_plan
from sumprod._tables import columns
from sumprod.errors import MemoryBudgetError
from sumprod.settings import state

__all__ = [
    "NotTreeStructured",
    "Plan",
    "Step",
    "check_budget",
    "make_plan",
    "memory_budget",
    "name_dims",
]

logger = logging.getLogger("sumprod")

LONGEST_TABLE = 40  # steps shown by `repr`

_BUDGET: ContextVar[int | None] = ContextVar("memory_budget", default=None)


@dataclass(frozen=True)
class Step:
    """Multiply the inputs, sum out `variables`, then multiply along `plates`.

    Inputs are numbers: first the factors, then the outputs of the steps.
    """

    inputs: tuple[int, ...]
    variables: tuple[Hashable, ...]
    plates: tuple[Hashable, ...]
    dims: tuple[Hashable, ...]
    """dims of the output"""


@dataclass(frozen=True, repr=False)
class Plan:
    """A program that contracts factors with the given dims; `repr` shows it as a table."""

    factors: tuple[tuple[Hashable, ...], ...]
    sizes: Mapping[Hashable, int]
    plates: frozenset[Hashable]
    steps: tuple[Step, ...]
    results: tuple[int, ...]
    """numbers of the results, one per connected component, in order of their first factors"""
    flops: float
    """multiplications and additions"""
    peak_elements: int
    """elements of the intermediate tensors alive at one time"""
    _text: tuple[str, tuple[str, ...], str]
    """the encoded plan: what comes before the factors, each factor, what comes after"""
    _encoded: dict[tuple[int, ...], str] = field(default_factory=dict, compare=False)

    def dims(self, number: int) -> tuple[Hashable, ...]:
        """The dims of a factor or of a step's output."""
        if number < len(self.factors):
            return self.factors[number]
        return self.steps[number - len(self.factors)].dims

    @cached_property
    def result_dims(self) -> tuple[tuple[Hashable, ...], ...]:
        """The dims of each result."""
        return tuple(self.dims(number) for number in self.results)

    @cached_property
    def drawn(self) -> tuple[tuple[Hashable, tuple[Hashable, ...]], ...]:
        """Each variable summed out, with the plates that it is in, in the order of the steps."""
        return tuple((variable, self._plates(step)) for step in self.steps for variable in step.variables)

    @cached_property
    def uniforms(self) -> int:
        """How many uniforms a draw takes: one per step that sums, and per slice of its plates."""
        return sum(self.volume(self._plates(step)) for step in self.steps if step.variables)

    def _plates(self, step: Step) -> tuple[Hashable, ...]:
        return tuple(dim for dim in step.dims if dim in self.plates)

    def encoded(self, operands: tuple[int, ...]) -> str:
        """The plan as the native operators take it; csrc/ops/contract_plan.h describes the layout.

        `operands` has for each factor the number of its tensor.
        """
        known = self._encoded.get(operands)
        if known is None:
            before, factors, after = self._text
            numbered = [f"{number} {text}" for number, text in zip(operands, factors, strict=True)]
            known = self._encoded[operands] = " ".join([before, *numbered, after])
        return known

    def scope(self, step: Step) -> tuple[Hashable, ...]:
        """The dims of a step's inputs."""
        return tuple(dict.fromkeys(dim for number in step.inputs for dim in self.dims(number)))

    def volume(self, dims: Iterable[Hashable]) -> int:
        """Elements of a tensor with these dims."""
        return math.prod(self.sizes[dim] for dim in dims)

    def work(self, step: Step) -> int:
        """Multiplications and additions of a step."""
        reduces = bool(step.variables or step.plates)
        return self.volume(self.scope(step)) * (len(step.inputs) - 1 + reduces)

    def table(self) -> str:
        """All steps, one per line."""
        return self._table(range(len(self.steps)))

    def __repr__(self) -> str:
        count = len(self.steps)
        if count <= LONGEST_TABLE:
            return self.table()
        half = LONGEST_TABLE // 2
        return self._table([*range(half), *range(count - half, count)])

    def _table(self, shown: Sequence[int]) -> str:
        rows = [("step", "inputs", "sum", "reduce", "result", "flops")]
        for i in shown:
            step = self.steps[i]
            rows.append(
                (
                    f"#{i + len(self.factors)}",
                    " ".join(f"#{number}[{_names(self.dims(number))}]" for number in step.inputs),
                    _names(step.variables) or "-",
                    _names(step.plates) or "-",
                    f"[{_names(step.dims)}]",
                    f"{self.work(step):,}",
                )
            )
        lines = columns(rows)
        if len(shown) < len(self.steps):
            left_out = len(self.steps) - len(shown)
            lines.insert(1 + len(shown) // 2, f"... {left_out:,} more steps: see table()")
        results = [f"#{number}[{_names(self.dims(number))}]" for number in self.results[:LONGEST_TABLE]]
        if len(self.results) > LONGEST_TABLE:
            results.append(f"... {len(self.results) - LONGEST_TABLE:,} more")
        return "\n".join(
            [
                f"Plan: {len(self.factors)} factors, {len(self.steps)} steps, {self.flops:,.0f} flops,"
                f" {8 * self.peak_elements:,} bytes in float64",
                *lines,
                f"results: {', '.join(results) or 'none'}",
            ]
        )


def _names(dims: Iterable[Hashable]) -> str:
    return " ".join(map(str, dims))


def make_plan(
    factors: Sequence[Sequence[Hashable]],
    sizes: Mapping[Hashable, int],
    plates: Iterable[Hashable] = (),
    kept: Iterable[Hashable] = (),
    keep_common_plates: bool = False,
    element_size: int = 8,
) -> Plan:
    """Plan the contraction of a plated factor graph.

    Variables are summed out and plates multiplied along. A factor lists all plates that it is in, also
    those along which its tensor is constant. The best of several elimination orders is taken.

    Args:
        factors: the dims of each.
        sizes: of every dim.
        plates: which dims are plates; the others are variables.
        kept: dims of the result: variables not summed out, plates not multiplied along.
        keep_common_plates: of each connected component, also keep the plates that all its factors are in.
        element_size: bytes per element of the tensors, for the memory budget.

    Returns:
        A plan; the same object for the same structure. With the setting `plan_log`, plans that are new are
        reported.

    Raises:
        NotTreeStructured: (a NotImplementedError) the cost would be exponential in a plate's size.
        MemoryBudgetError: (a MemoryError) the plan's peak is above the budget: that of the `memory_budget`
            block around the call, else the setting `memory_budget`.
        ValueError: `kept` has a variable but not the plates that it is in; a size is missing or less than 1;
            a factor names a dim twice.

    References:
        Obermeyer et al. 2019, "Tensor Variable Elimination for Plated Factor Graphs".

    >>> make_plan(["a", "ab", "bc"], {"a": 2, "b": 3, "c": 4})
    Plan: 3 factors, 3 steps, 28 flops, 40 bytes in float64
    step  inputs         sum  reduce  result  flops
    #3    #2[b c]        c    -       [b]     12
    #4    #3[b] #1[a b]  b    -       [a]     12
    #5    #0[a] #4[a]    a    -       []      4
    results: #5[]
    """
    plates = frozenset(plates)
    structure = tuple(tuple(dims) for dims in factors)
    known = tuple(
        (dim, sizes.get(dim, 0)) for dim in dict.fromkeys(dim for dims in structure for dim in dims)
    )
    plan = _plan(structure, known, plates, tuple(kept), keep_common_plates)
    check_budget(plan, element_size)
    return plan


def check_budget(plan: Plan, element_size: int) -> None:
    """Raise MemoryBudgetError for a plan that takes more memory than allowed."""
    budget = _BUDGET.get()
    if budget is None:
        budget = state.memory_budget
    if budget is not None and plan.peak_elements * element_size > budget:
        raise _over_budget(plan, element_size, budget)


@contextmanager
def memory_budget(limit: int | None) -> Iterator[None]:
    """In the block and thread, plans may use so many bytes; None: what the setting says."""
    token = _BUDGET.set(limit)
    try:
        yield
    finally:
        _BUDGET.reset(token)


def _over_budget(plan: Plan, element_size: int, budget: int) -> MemoryBudgetError:
    widest = max(plan.steps, key=lambda step: plan.volume(step.dims))
    dims = list(plan.sizes)
    shown = [f"'{_token(dims.index(dim))}' ({plan.sizes[dim]:,})" for dim in widest.dims]
    needed = plan.peak_elements * element_size
    error = MemoryBudgetError(
        "",
        needed=needed,
        budget=budget,
        variables=tuple(dim for dim in widest.dims if dim not in plan.plates),
        plates=tuple(dim for dim in widest.dims if dim in plan.plates),
    )
    _write(
        error,
        f"a contraction needs up to {needed:,} bytes for intermediate tensors, more than"
        f" memory_budget={budget:,} allows. The widest has {plan.volume(widest.dims):,} elements, with dims"
        f" {', '.join(shown) or 'none'}. Split the factors that tie these variables together, take a smaller"
        " subsample of the plates, use float32, or raise memory_budget",
        dims,
    )
    return error


# ---- names of dims in the texts of errors


def _token(position: int) -> str:
    """Stands for a dim's name until it is known how to call it."""
    return f"\x1f{position}\x1f"


def _write(error: Any, pattern: str, dims: list[Hashable]) -> None:
    error.pattern, error.dims = pattern, dims
    name_dims(error, {})


def name_dims(error: Any, names: Mapping[Hashable, object]) -> None:
    """Write the text of an error of this module anew, with other names for some dims."""
    shown = [str(names.get(dim, dim)) for dim in error.dims]
    error.args = (re.sub("\x1f([0-9]+)\x1f", lambda found: shown[int(found[1])], error.pattern),)


@lru_cache(maxsize=1024)
def _plan(
    factors: tuple[tuple[Hashable, ...], ...],
    sizes: tuple[tuple[Hashable, int], ...],
    plates: frozenset[Hashable],
    kept: tuple[Hashable, ...],
    keep_common_plates: bool,
) -> Plan:
    number = {dim: i for i, (dim, _) in enumerate(sizes)}
    names = list(number)
    for dim, size in sizes:
        if size < 1:
            raise ValueError(f"Expected a positive size of dim '{dim}', got {size or 'none'}")
    for dims in factors:
        if len(set(dims)) != len(dims):
            raise ValueError(f"A factor's dims must be distinct, got {_names(dims)}")
    try:
        steps, results, flops, peak = native_plan(
            sizes=[size for _, size in sizes],
            is_plate=[dim in plates for dim in names],
            names=[_token(i) for i in range(len(names))],
            factors=[sorted(number[dim] for dim in dims) for dims in factors],
            kept=sorted(number[dim] for dim in set(kept) if dim in number),
            keep_common_plates=keep_common_plates,
        )
    except (NotTreeStructured, ValueError) as error:
        _write(error, str(error), names)
        raise

    def listed(values: Iterable[int]) -> str:
        values = list(values)
        return " ".join(map(str, [len(values), *values]))

    before = [len(names), *(size for _, size in sizes), *(int(dim in plates) for dim in names), len(factors)]
    after = [str(len(steps)), *(listed(values) for parts in steps for values in parts), listed(results)]
    text = (
        " ".join(map(str, before)),
        tuple(listed(number[dim] for dim in dims) for dims in factors),
        " ".join(after),
    )

    def named(dims: Iterable[int]) -> tuple[Hashable, ...]:
        return tuple(names[dim] for dim in dims)

    plan = Plan(
        factors=factors,
        sizes=dict(sizes),
        plates=plates,
        steps=tuple(Step(tuple(i), named(v), named(p), named(d)) for i, v, p, d in steps),
        results=tuple(results),
        flops=flops,
        peak_elements=peak,
        _text=text,
    )
    if state.plan_log is True:
        logger.info("new contraction plan\n%r", plan)
    elif callable(state.plan_log):
        state.plan_log(plan)
    return plan
