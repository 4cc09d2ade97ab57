"""Plans: how a plated factor graph is contracted, decided from its structure alone."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from sumprod._planner import NotTreeStructured
from sumprod._planner import plan as native_plan

__all__ = ["NotTreeStructured", "Plan", "Step", "make_plan"]


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
    encoded: tuple[int, ...]
    """the plan as the native operators take it; csrc/ops/contract_program.h describes the layout"""

    def dims(self, number: int) -> tuple[Hashable, ...]:
        """The dims of a factor or of a step's output."""
        if number < len(self.factors):
            return self.factors[number]
        return self.steps[number - len(self.factors)].dims

    def __repr__(self) -> str:
        rows = [("step", "inputs", "sum", "reduce", "result", "flops")]
        for i, step in enumerate(self.steps):
            scope = {dim for number in step.inputs for dim in self.dims(number)}
            work = math.prod(self.sizes[dim] for dim in scope)
            rows.append(
                (
                    f"#{i + len(self.factors)}",
                    " ".join(f"#{number}[{_names(self.dims(number))}]" for number in step.inputs),
                    _names(step.variables) or "-",
                    _names(step.plates) or "-",
                    f"[{_names(step.dims)}]",
                    f"{work * len(step.inputs):,}",
                )
            )
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = [
            "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows
        ]
        results = ", ".join(f"#{number}[{_names(self.dims(number))}]" for number in self.results)
        return "\n".join(
            [
                f"Plan: {len(self.factors)} factors, {len(self.steps)} steps, {self.flops:,.0f} flops,"
                f" {8 * self.peak_elements:,} bytes in float64",
                *lines,
                f"results: {results or 'none'}",
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

    Returns:
        A plan; the same object for the same structure.

    Raises:
        NotTreeStructured: (a NotImplementedError) the cost would be exponential in a plate's size.
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
    return _plan(structure, known, plates, tuple(kept), keep_common_plates)


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
    steps, results, flops, peak = native_plan(
        sizes=[size for _, size in sizes],
        is_plate=[dim in plates for dim in names],
        names=[str(dim) for dim in names],
        factors=[sorted(number[dim] for dim in dims) for dims in factors],
        kept=sorted(number[dim] for dim in set(kept) if dim in number),
        keep_common_plates=keep_common_plates,
    )

    encoded = [len(names), *(size for _, size in sizes), *(int(dim in plates) for dim in names)]

    def write(values: Iterable[int]) -> None:
        values = list(values)
        encoded.append(len(values))
        encoded.extend(values)

    encoded.append(len(factors))
    for dims in factors:
        write(number[dim] for dim in dims)
    encoded.append(len(steps))
    for parts in steps:
        for values in parts:
            write(values)
    write(results)

    def named(dims: Iterable[int]) -> tuple[Hashable, ...]:
        return tuple(names[dim] for dim in dims)

    return Plan(
        factors=factors,
        sizes=dict(sizes),
        plates=plates,
        steps=tuple(Step(tuple(i), named(v), named(p), named(d)) for i, v, p, d in steps),
        results=tuple(results),
        flops=flops,
        peak_elements=peak,
        encoded=tuple(encoded),
    )
