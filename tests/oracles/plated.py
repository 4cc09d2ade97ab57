"""Plated factor graphs by unrolling: every copy of every variable, every assignment, in float64.

A variable is copied once per slice of the plates that all its factors are in. The weight of an
assignment is the product over factors and over the slices of their plates.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Mapping, Sequence

import numpy as np

Factors = Sequence[tuple[Sequence[Hashable], np.ndarray]]
Sizes = Mapping[Hashable, int]


def log_total(
    factors: Factors,
    sizes: Sizes,
    plates: frozenset[Hashable],
    fixed: Mapping[Hashable, int] | None = None,
) -> float:
    """log of the sum over all assignments; `fixed` gives unplated variables a value."""
    fixed = fixed or {}
    home = variable_plates(factors, plates)
    copies = [
        (variable, where)
        for variable, own in home.items()
        if variable not in fixed
        for where in slices(own, sizes)
    ]
    number = {copy: i for i, copy in enumerate(copies)}
    logs = []
    for assignment in itertools.product(*(range(sizes[variable]) for variable, _ in copies)):
        log = 0.0
        for dims, table in factors:
            own_plates = tuple(dim for dim in dims if dim in plates)
            for where in slices(own_plates, sizes):
                at = dict(zip(own_plates, where, strict=True))
                index = []
                for dim in dims:
                    if dim in plates:
                        index.append(at[dim])
                    elif dim in fixed:
                        index.append(fixed[dim])
                    else:
                        copy = (dim, tuple(at[plate] for plate in home[dim]))
                        index.append(assignment[number[copy]])
                log += table[tuple(index)]
        logs.append(log)
    return float(np.logaddexp.reduce(np.array(logs)))


def variable_plates(factors: Factors, plates: frozenset[Hashable]) -> dict[Hashable, tuple[Hashable, ...]]:
    """For each variable the plates that all its factors are in, in a fixed order."""
    found: dict[Hashable, set[Hashable]] = {}
    for dims, _ in factors:
        own = set(dims) & plates
        for dim in dims:
            if dim not in plates:
                found[dim] = found.get(dim, own) & own
    return {variable: tuple(sorted(own, key=str)) for variable, own in found.items()}


def slices(own: Sequence[Hashable], sizes: Sizes) -> list[tuple[int, ...]]:
    """All positions in some plates."""
    return list(itertools.product(*(range(sizes[plate]) for plate in own)))
