"""What flows back from a contraction to the tensors it was made of: draws, best values, or marginals.

A result remembers its factors, as a graph, in its attribute `_pyro_backward`. A result used in a further
contraction passes its factors on, so that one native call draws all variables together, however many
operations the last result was made in.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from sumprod.errors import SupportError
from sumprod.ops._plan import make_plan
from sumprod.ops._plated import components, homes
from sumprod.ops._rings import LOG, Factor, multiply
from sumprod.ops.contraction import draw
from sumprod.ops.logsumexp import logsumexp

__all__ = ["SAMPLE_SYMBOL", "Backward", "Mode", "Parts", "attach", "parts_of", "require_backward", "sizes_of"]

SAMPLE_SYMBOL = " "
"""name of the first dim of a draw, along which the variables of a tensor follow one another"""

Mode = Literal["draw", "maximise", "marginal"]
_Dims = tuple[Hashable, ...]


class _Required:
    """Marks a tensor that wants to know what flows back to it. Does not refer to it: no cycles."""

    def __call__(self) -> None:
        raise ValueError("_pyro_backward() was called on a tensor put in: call it on a result made of it")


def require_backward(tensor: Tensor) -> None:
    """Ask contractions for what flows back to a tensor.

    After `result._pyro_backward()`, for a result that was made of the tensor in one of the rings for draws,
    best values and marginals, the tensor's attribute `_pyro_backward_result` holds

    * draws and best values: None when none of its variables is summed out, else int64 values of these
      variables, a packed tensor. Its first dim, called `" "`, goes over the variables, which its attribute
      `_pyro_sample_dims` names; then follow plates and those dims of the result the values depend on.
    * marginals: the log-weight of each of its entries together with everything else, of its shape.
    """
    tensor._pyro_backward = _Required()  # type: ignore[attr-defined]


@dataclass(frozen=True, eq=False)
class _Inner:
    """A dim that an earlier operation summed out or multiplied along; equal to no other."""

    name: Hashable

    def __str__(self) -> str:
        return str(self.name)


@dataclass(frozen=True)
class Part:
    """One factor of a result."""

    factor: Factor
    letters: tuple[str, ...]
    """what the factor's dims were called when it was first used"""
    target: Tensor | None
    """the tensor that gets what flows back"""
    own: _Dims
    """names of the target's dims; the factor may have more, along which it is constant"""

    def expanded(self, dims: Iterable[Hashable], sizes: Mapping[Hashable, int]) -> Part:
        """The same, with all of some dims."""
        tensor, names = self.factor
        lacking = tuple(dim for dim in dims if dim not in names)
        wide = tensor.expand([*(sizes[dim] for dim in lacking), *tensor.shape])
        letters = (*map(str, lacking), *self.letters)
        return replace(self, factor=(wide, (*lacking, *names)), letters=letters)

    def renamed(self, names: Mapping[Hashable, Hashable]) -> Part:
        """The same under other names."""
        tensor, dims = self.factor
        factor = tensor, tuple(names[dim] for dim in dims)
        return replace(self, factor=factor, own=tuple(names[dim] for dim in self.own))

    def spelled(self, dims: Iterable[Hashable]) -> str:
        """The letters of some of the factor's dims."""
        letters = dict(zip(self.factor[1], self.letters, strict=True))
        return "".join(letters[dim] for dim in dims)


Parts = tuple[list[Part], frozenset[Hashable]]
"""the factors of a term, and the plates inside it"""


def parts_of(tensor: Tensor, dims: Sequence[Hashable], plates: Mapping[Any, int]) -> Parts:
    """The factors that a tensor was made of, or itself; and the plates inside it.

    Args:
        tensor: with dims `dims`.
        dims: names.
        plates: sizes of plates it is in, with or without dims for them.
    """
    origin = getattr(tensor, "_pyro_backward", None)
    if not isinstance(origin, Backward):
        target = None if origin is None else tensor
        part = Part((tensor, tuple(dims)), tuple(map(str, dims)), target, tuple(dims))
        return [part.expanded(plates, plates)], frozenset()
    if not origin.plates.isdisjoint(origin.dims):
        raise NotImplementedError(
            "A result with plates that not all of its operands are in was put into another contraction:"
            " nothing can flow back through it. Contract all operands at once"
        )
    names: dict[Hashable, Hashable] = dict(zip(origin.dims, dims, strict=True))
    for part in origin.parts:
        for dim in part.factor[1]:
            if dim not in names:
                names[dim] = _Inner(str(dim))
    parts = [part.renamed(names).expanded(plates, plates) for part in origin.parts]
    return parts, frozenset(names[plate] for plate in origin.plates)


def attach(
    result: Tensor,
    mode: Mode | None,
    terms: Sequence[Parts],
    dims: Sequence[Hashable],
    plates: Iterable[Hashable] = (),
) -> None:
    """Let a new result remember what it was made of, if one of the terms wants to know.

    Args:
        result: a new tensor.
        mode: what flows back; None: nothing.
        terms: `parts_of` all terms. What is neither in `dims` nor a plate was summed out.
        dims: names of the dims of the result.
        plates: multiplied along, or kept as far as in `dims`.
    """
    parts = [part for found, _ in terms for part in found]
    if mode is None or all(part.target is None for part in parts):
        return
    scopes = [frozenset(part.factor[1]) for part in parts]
    inside = frozenset(plates).union(*(inner for _, inner in terms)) & frozenset().union(*scopes)
    # A plate of the result that all factors are in is a dim like any other.
    inside -= frozenset(dims).intersection(*scopes)
    result._pyro_backward = Backward(mode, tuple(parts), tuple(dims), inside)  # type: ignore[attr-defined]


@dataclass(frozen=True, eq=False)
class Backward:
    """The factor graph of a result. Calling it tells its tensors their draws, best values or marginals.

    Each cell of the result has draws of its own: they are those of its plate slice, given the variables
    that the result keeps. In cells of log-weight -inf they mean nothing.

    Raises:
        SupportError: (draws and best values) the result has no dims and log-weight -inf.
        NotImplementedError: the result keeps a variable inside a plate that other variables are outside of.
    """

    mode: Mode
    parts: tuple[Part, ...]
    dims: _Dims
    plates: frozenset[Hashable]

    def __call__(self) -> None:
        draws = self.mode != "marginal"
        parts = self._separate() if draws else self.parts
        # Plans are remembered by structure: names must not be new ones in every call.
        number: dict[Hashable, Hashable] = {}
        for part in parts:
            for dim in part.factor[1]:
                number.setdefault(dim, len(number))
        parts = [part.renamed(number) for part in parts]
        own = frozenset(number[dim] for dim in self.dims)
        plates = frozenset(number[dim] for dim in self.plates)
        found = self._draws(parts, own | plates) if draws else _marginals(parts, own, plates)
        for part, result in zip(parts, found, strict=True):
            if part.target is not None:
                part.target._pyro_backward_result = result  # type: ignore[attr-defined]

    def _separate(self) -> list[Part]:
        """The parts, so that dims of the result can be plates: each of their values has its own draws."""
        factors = [part.factor for part in self.parts]
        sizes = sizes_of(factors)
        home = homes(factors, self.plates)
        kept = [dim for dim in self.dims if dim not in self.plates]
        parts = list(self.parts)
        for positions in components([dims for _, dims in factors], home.keys() - set(kept)):
            scope = {dim for i in positions for dim in factors[i][1]}
            common = scope.intersection(*(factors[i][1] for i in positions))
            mine = [dim for dim in kept if dim in scope]
            for dim in mine:
                missing = sorted(map(str, home[dim] - common))
                if missing:
                    raise NotImplementedError(
                        f"No draws for a result that keeps dim '{dim}', of which there is one per slice of"
                        f" plate '{missing[0]}', together with variables outside the plate: use a result"
                        f" without '{dim}'"
                    )
            for i in positions:
                parts[i] = parts[i].expanded(mine, sizes)
        return parts

    def _draws(self, parts: Sequence[Part], plates: frozenset[Hashable]) -> list[Tensor | None]:
        with torch.no_grad():
            totals, values = draw(
                [part.factor[0] for part in parts],
                [part.factor[1] for part in parts],
                plates,
                maximise=self.mode == "maximise",
            )
        if not self.dims and any(bool(total == -torch.inf) for _, total in totals):
            raise SupportError(
                "No assignment is possible, so there is nothing to draw: the log-weight of the result is"
                " -inf. Look for entries of -inf in the operands that rule each other out"
            )
        return [_stacked(part, values, plates) for part in parts]


def sizes_of(factors: Iterable[Factor]) -> dict[Hashable, int]:
    """The sizes of all dims."""
    return {dim: size for tensor, dims in factors for dim, size in zip(dims, tensor.shape, strict=True)}


def _stacked(
    part: Part,
    values: Mapping[Hashable, tuple[_Dims, Tensor]],
    plates: frozenset[Hashable],
) -> Tensor | None:
    """The values of a tensor's variables, one after the other, for each slice of its plates."""
    variables = [dim for dim in part.own if dim in values]
    if not variables:
        return None
    slices = sorted((dim for dim in part.factor[1] if dim in plates), key=lambda dim: part.spelled([dim]))
    sizes = sizes_of([part.factor])
    rows = [multiply(LOG, [values[dim][::-1]], slices, sizes)[0] for dim in variables]
    result = torch.stack(rows)
    result._pyro_dims = SAMPLE_SYMBOL + part.spelled(slices)  # type: ignore[attr-defined]
    result._pyro_sample_dims = part.spelled(variables)  # type: ignore[attr-defined]
    return result


# ---- marginals


def _marginals(
    parts: Sequence[Part],
    own: frozenset[Hashable],
    plates: frozenset[Hashable],
) -> list[Tensor]:
    """For each tensor the log of the sum over the cells of the result, with the tensor's dims fixed.

    In torch operations along the plan, in float64 logs: the native gradient of a total says the same, but
    as probabilities, of which those below 1e-45 (float32) are lost.
    """
    factors: list[Factor] = [(part.factor[0].double(), part.factor[1]) for part in parts]
    sizes = sizes_of(factors)
    plan = make_plan([dims for _, dims in factors], sizes, plates, keep_common_plates=True)
    values = list(factors)
    conditionals: list[Factor] = []  # of a step's scope, given the dims it leaves
    for step in plan.steps:
        scope = plan.scope(step)
        joint, _ = multiply(LOG, [values[i] for i in step.inputs], scope, sizes)
        left = tuple(dim for dim in scope if dim not in step.variables)
        summed = _sum_to((joint, scope), left)
        spread, _ = multiply(LOG, [summed], scope, sizes)
        conditionals.append((joint - spread.masked_fill(spread == -torch.inf, 0.0), scope))
        values.append(LOG.product(summed, step.plates))
    weights = _result_weights([values[i] for i in plan.results], own, plates, sizes)
    marginals = dict(zip(plan.results, weights, strict=True))
    for i in reversed(range(len(plan.steps))):
        step = plan.steps[i]
        weight = multiply(LOG, [marginals.pop(len(parts) + i), conditionals[i]], conditionals[i][1], sizes)
        for j in step.inputs:
            marginals[j] = _sum_to(weight, values[j][1])
    found = []
    for i, part in enumerate(parts):
        # Slices of a plate along which a tensor is constant stay apart; kept dims it lacks are summed.
        dims = tuple(dim for dim in factors[i][1] if dim in part.own or dim in plates)
        marginal = _sum_to(marginals[i], dims)[0].to(part.factor[0].dtype)
        marginal._pyro_dims = part.spelled(dims)  # type: ignore[attr-defined]
        found.append(marginal)
    return found


def _result_weights(
    results: Sequence[Factor],
    own: frozenset[Hashable],
    plates: frozenset[Hashable],
    sizes: Mapping[Hashable, int],
) -> list[Factor]:
    """The weight of everything, over the dims of each component's result."""
    scope = tuple(sorted((dim for dim in own & plates), key=str))
    parts = [LOG.product(factor, [dim for dim in factor[1] if dim not in own]) for factor in results]
    whole = multiply(LOG, parts, scope, sizes)
    shared = [_sum_to(whole, tuple(dim for dim in scope if dim in dims)) for _, dims in parts]
    return [multiply(LOG, [weight], dims, sizes) for weight, (_, dims) in zip(shared, results, strict=True)]


def _sum_to(factor: Factor, dims: _Dims) -> Factor:
    """All other dims summed out; those left in this order."""
    tensor, names = factor
    others = [i for i, dim in enumerate(names) if dim not in dims]
    left = [dim for dim in names if dim in dims]
    summed = logsumexp(tensor, others) if others else tensor
    return summed.permute([left.index(dim) for dim in dims]), dims
