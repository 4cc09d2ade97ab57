"""One output of a plated contraction: a marginal of variables, in each slice of their plates."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sumprod.ops._plan import NotTreeStructured
from sumprod.ops._rings import Factor, Semiring, multiply

__all__ = ["components", "homes", "output", "require_plates"]

Plates = frozenset[Hashable]
_Flagged = tuple[Factor, bool]


def homes(factors: Sequence[Factor], plates: Plates) -> dict[Hashable, Plates]:
    """For each variable the plates that all its factors are in: it has one copy per slice of them."""
    found: dict[Hashable, Plates] = {}
    for _, dims in factors:
        own = plates.intersection(dims)
        for dim in dims:
            if dim not in plates:
                found[dim] = found.get(dim, own) & own
    return found


def components(scopes: Sequence[Sequence[Hashable]], variables: Collection[Hashable]) -> list[list[int]]:
    """Positions of the scopes connected through shared variables, in order of their first ones."""
    parent = list(range(len(scopes)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    first: dict[Hashable, int] = {}
    for i, dims in enumerate(scopes):
        for dim in dims:
            if dim in variables:
                one, other = root(i), root(first.setdefault(dim, i))
                parent[max(one, other)] = min(one, other)
    groups: dict[int, list[int]] = {}
    for i in range(len(scopes)):
        groups.setdefault(root(i), []).append(i)
    return list(groups.values())


def require_plates(
    dims: Sequence[Hashable], home: Mapping[Hashable, Plates], sizes: Mapping[Hashable, int]
) -> None:
    """Raise ValueError unless all dims are known, and with each variable its plates are there."""
    names = ", ".join(map(str, dims))
    for dim in dims:
        if dim not in sizes:
            raise ValueError(f"Expected outputs made of the operands' dims, got '{dim}' in [{names}]")
        missing = sorted(map(str, home.get(dim, frozenset()).difference(dims)))
        if missing:
            raise ValueError(
                f"Output [{names}] keeps dim '{dim}', of which there is one per slice of plate"
                f" '{missing[0]}', but not this plate: add it to the output"
            )


def output(
    semiring: Semiring,
    factors: Sequence[Factor],
    plates: Plates,
    dims: Sequence[Hashable],
    sizes: Mapping[Hashable, int],
) -> Tensor:
    """Sum out all variables but those in `dims`, and multiply along all plates.

    Variables in plates need these among `dims`. Then the result has, per slice, the total over everything
    with the variables of this slice fixed. Parts of the graph that fall apart along these plates count
    with their own slice only: a factor per slice of the result, constant in the variables.

    Raises:
        ValueError: a variable is kept without its plates; a dim that no factor has.
        NotTreeStructured: (a NotImplementedError) the cost would be exponential in a plate's size.
    """
    home = homes(factors, plates)
    require_plates(dims, home, sizes)
    kept = [dim for dim in dims if dim not in plates]
    own_plates = plates.intersection(dims)
    if not own_plates:
        return multiply(semiring, semiring.contract(factors, plates, kept), dims, sizes)[0]
    parts: list[Factor] = []
    rest: list[Factor] = []
    for positions in components([names for _, names in factors], home):
        component = [factors[i] for i in positions]
        own = [variable for variable in kept if any(variable in names for _, names in component)]
        if own:
            parts.append(_Slices(semiring, component, plates, home, sizes).marginal(own))
        else:
            rest += component
    if rest:
        for tensor, found in semiring.contract(rest, plates, keep_common_plates=True):
            parts.append(semiring.product((tensor, found), [dim for dim in found if dim not in own_plates]))
    return multiply(semiring, parts, dims, sizes)[0]


@dataclass(frozen=True)
class _Slice:
    """A plate's dim where its slice is that of the result: not multiplied along."""

    plate: Hashable


def _in_slice(factor: Factor, plates: Plates) -> Factor:
    tensor, dims = factor
    return tensor, tuple(_Slice(dim) if dim in plates else dim for dim in dims)


class _Slices:
    """A connected component, seen from one slice of the plates of some of its variables.

    Variables that are in plates are reached from the root through messages: one per slice of a plate, of
    which the root receives the product. Seen from a slice, all factors of the slice itself are there
    one by one, and of all other slices the product of the messages.
    """

    def __init__(
        self,
        semiring: Semiring,
        factors: Sequence[Factor],
        plates: Plates,
        home: Mapping[Hashable, Plates],
        sizes: Mapping[Hashable, int],
    ) -> None:
        self._semiring, self._plates, self._home, self._sizes = semiring, plates, home, sizes
        # Messages to the root are marked: the slice's own view replaces them.
        self._factors: list[_Flagged] = [(factor, False) for factor in factors]
        self._like = factors[0][0]

    def marginal(self, kept: Sequence[Hashable]) -> Factor:
        """The joint weight of some variables, over them and their plates."""
        view: list[Factor] = []
        waiting = list(kept)
        while waiting:
            start = max(waiting, key=lambda variable: len(self._home[variable]))
            inner, reached, interface = self._inside(start)
            at = self._home[start]
            view += [_in_slice(factor, at) for factor, is_message in inner if not is_message]
            waiting = [variable for variable in waiting if variable not in reached]
            if interface:
                others = self._send([factor for factor, _ in inner], at, interface)
                view.append(_in_slice(others, at))
                waiting += [variable for variable in interface if variable not in waiting]
        at = frozenset[Hashable]().union(*(self._home[variable] for variable in kept))
        wanted = [*kept, *(_Slice(plate) for plate in self._ordered(at))]
        sizes = dict(self._sizes)
        sizes.update((_Slice(plate), self._sizes[plate]) for plate in at)
        own: list[Hashable] = [dim for dim in wanted if isinstance(dim, _Slice)]
        pieces = self._contract(self._per_slice(view, own, wanted, sizes), self._plates, wanted, sizes, own)
        tensor, dims = multiply(self._semiring, pieces, wanted, sizes)
        return tensor, tuple(dim.plate if isinstance(dim, _Slice) else dim for dim in dims)

    def _per_slice(
        self,
        view: list[Factor],
        own: list[Hashable],
        wanted: Sequence[Hashable],
        sizes: Mapping[Hashable, int],
    ) -> list[Factor]:
        """Factors that all have the slice's dims: what others share is contracted once, then repeated."""
        inner = [factor for factor in view if set(own) <= set(factor[1])]
        outer = [factor for factor in view if not set(own) <= set(factor[1])]
        if not outer:
            return inner
        seen = {dim for _, dims in inner for dim in dims} | set(wanted)
        found = dict.fromkeys(dim for _, dims in outer for dim in dims)
        kept = [dim for dim in found if dim in seen and dim not in self._plates]
        for tensor, dims in self._contract(outer, self._plates, kept, sizes, []):
            lacking = [dim for dim in own if dim not in dims]
            expanded = tensor.expand([*(sizes[dim] for dim in lacking), *tensor.shape])
            inner.append((expanded, (*lacking, *dims)))
        return inner

    def _inside(self, start: Hashable) -> tuple[list[_Flagged], set[Hashable], list[Hashable]]:
        """Take out all factors connected to a variable through variables in its plates.

        Also returns these variables, and those through which the factors are connected to others.
        """
        at = self._home[start]
        reached = {start}
        inner: dict[int, _Flagged] = {}
        grown = True
        while grown:
            grown = False
            for i, entry in enumerate(self._factors):
                dims = entry[0][1]
                if i not in inner and not reached.isdisjoint(dims):
                    inner[i] = entry
                    reached.update(dim for dim in dims if dim in self._home and self._home[dim] >= at)
                    grown = True
        self._factors = [entry for i, entry in enumerate(self._factors) if i not in inner]
        entries = [inner[i] for i in sorted(inner)]
        found = dict.fromkeys(dim for (_, dims), _ in entries for dim in dims)
        return entries, reached, [dim for dim in found if dim in self._home and dim not in reached]

    def _send(self, inner: list[Factor], at: Plates, interface: list[Hashable]) -> Factor:
        """Replace the factors by their message to variables outside; the message of all other slices."""
        parent = frozenset[Hashable]().union(*(self._home[variable] for variable in interface))
        if not parent < at:
            raise NotTreeStructured(
                "Expected tree-structured plate nesting, but found dependencies between plates "
                f"{', '.join(sorted(map(repr, at)))} and {', '.join(sorted(map(repr, parent)))}: "
                "make one of them a sequential plate"
            )
        wanted = [*interface, *self._ordered(at)]
        pieces = self._contract(inner, self._plates, wanted, self._sizes, self._ordered(at))
        message = multiply(self._semiring, pieces, wanted, self._sizes)
        across = self._ordered(at - parent)
        self._factors.append((self._semiring.product(message, across), True))
        return self._semiring.product_of_others(message, across)

    def _ordered(self, plates: Plates) -> list[Hashable]:
        return [dim for dim in self._sizes if dim in plates]

    def _contract(
        self,
        factors: list[Factor],
        plates: Plates,
        kept: Sequence[Hashable],
        sizes: Mapping[Hashable, int],
        common: list[Hashable],
    ) -> list[Factor]:
        """Keep dims of which all that these factors show may be inside plates; all are in `common` ones."""
        home = homes(factors, plates)
        one = torch.full((), self._semiring.one, dtype=self._like.dtype, device=self._like.device)
        units = [
            (one.expand([sizes[name] for name in (dim, *common)]), (dim, *common))
            for dim in kept
            if dim not in common and not home.get(dim, frozenset()) <= frozenset(common)
        ]
        return self._semiring.contract([*factors, *units], plates.union(common), kept)
