"""Chains of `vectorized_markov` as hidden Markov models: one call of a native operator per chain.

States of one step that the next steps depend on, and of several steps when history is more than 1, make one
state of the model, with all their combinations. Variables outside the chain that it depends on make batch
dims. What else is enumerated in a step is summed out first, for all steps at once.
"""

from __future__ import annotations

from collections.abc import Container, Hashable, Iterable, Sequence
from math import prod
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from sumprod.distributions import Bernoulli, Binomial, Categorical, OneHotCategorical
from sumprod.distributions.util import broadcast_shape
from sumprod.errors import SupportError
from sumprod.handlers.markov_chain import MarkovChain
from sumprod.infer._enum_chain import ChainVariables, chain_variables, is_step
from sumprod.infer._enum_sites import Names, Term, align, ordinal_of, support_size, unmasked
from sumprod.ops._plated import components
from sumprod.ops.contraction import contract
from sumprod.ops.hmm_log_normalizer import hmm_log_normalizer
from sumprod.ops.hmm_sample import hmm_sample
from sumprod.ops.hmm_viterbi import hmm_viterbi

if TYPE_CHECKING:
    from sumprod.infer._enum_factors import FactorGraph

__all__ = ["HiddenMarkov", "hidden_markov"]

# Multiplications and additions of a chain from which on looking for the ends of its sequences pays.
WORTH_LENGTHS = 1 << 20
# Families whose probabilities sum to one, whatever their parameters.
NORMALIZED = (Bernoulli, Binomial, Categorical, OneHotCategorical)
# Combined states: one native call beats fewer operations step by step by 1.2 to 2 times up to here.
MOST_COMBINED = 256
# Entries of the combined transitions, which are more than those of the terms.
MOST_ENTRIES = 1 << 24


class HiddenMarkov(NamedTuple):
    """A chain of a factor graph as a hidden Markov model."""

    chain: MarkovChain
    members: list[int]  # positions of the terms that are all in this model
    plates: Names  # around the chain, of size above 1
    batch: Names  # these, and variables outside the chain
    ordinal: frozenset[Hashable]
    reach: frozenset[Hashable]
    kept: list[int]  # which states of a step make the combined state
    sizes: list[int]  # of these
    transition: Tensor  # [S, S], or [*batch or 1, steps or 1, S, S]
    emission: Tensor  # [*batch or 1, 1 + steps, S]; the first is that of the first states
    is_whole: bool  # nothing was summed out beforehand, and nothing outside is tied to it
    lengths: Tensor | None  # [*batch]: the steps after these many sum to one

    def total(self) -> Term:
        """Log of the sum over all paths."""
        total = hmm_log_normalizer(*self._potentials(), lengths=self.lengths)
        return Term(self.ordinal, self.batch, total, self.reach)

    def _potentials(self) -> tuple[Tensor, Tensor, Tensor]:
        """What the native operators take: the first emission is all there is of the first state."""
        return self.emission.new_zeros(self.emission.shape[-1]), self.transition, self.emission

    def draw(
        self, maximise: bool, plates: Sequence[tuple[Hashable, int]]
    ) -> dict[Hashable, tuple[Names, Tensor]] | None:
        """Values of the chain's variables; None if some slice of the plates has no possible path, or NaN.

        Args:
            maximise: the most probable path, not a draw.
            plates: names and sizes of those around the chain.

        Returns:
            variable -> its plates, and values along them; those of all steps at once have the chain's plate
            as last dim.
        """
        names = tuple([name for name, _ in plates])
        transition = self.transition
        if transition.dim() > 2:
            transition = align(transition, (*self.batch, "t", "r", "s"), (*names, "t", "r", "s"))
        emission = align(self.emission, (*self.batch, "t", "s"), (*names, "t", "s"))
        # Every slice of the plates has a path of its own.
        emission = emission.expand([size for _, size in plates] + list(emission.shape[-2:]))
        potentials = self._replace(transition=transition, emission=emission)._potentials()
        try:
            path = hmm_viterbi(*potentials).path if maximise else hmm_sample(*potentials).squeeze(0)
        except SupportError:
            return None  # which sites are to blame is for the graph to say
        return None if bool((path[..., 0] < 0).any()) else self._decoded(path, names)

    def _decoded(self, path: Tensor, plates: Names) -> dict[Hashable, tuple[Names, Tensor]]:
        """Values of variables from combined states [*plates, 1 + steps]."""
        own = chain_variables(self.chain)
        parts = _parts(path, self.sizes * self.chain.history)
        found: dict[Hashable, tuple[Names, Tensor]] = {}
        within = len(self.sizes)  # states of a step
        for state in range(within):
            position = self.kept[state]
            for t in range(self.chain.history):
                found[own.first[t][position]] = plates, parts[t * within + state][..., 0]
            found[own.current[position]] = (*plates, self.chain.name), parts[-within + state][..., 1:]
        return found


def _parts(states: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    """The states that combined ones are made of; the last varies fastest."""
    parts = []
    for size in sizes[:0:-1]:
        parts.append(states % size)
        states = states // size
    return [states, *reversed(parts)]


class _Misfit(Exception):
    """Why a chain is not a hidden Markov model of moderate size."""


def hidden_markov(graph: FactorGraph, chain: MarkovChain) -> HiddenMarkov | str:
    """A chain of a graph as a hidden Markov model; or why it is none."""
    try:
        return _hidden_markov(graph, chain)
    except _Misfit as misfit:
        return str(misfit)


class _States(NamedTuple):
    """The states of a step that the next steps look at, and the variables that make one combined state."""

    lag: int  # how many steps make one state
    kept: list[int]  # positions within the step
    sizes: list[int]
    before: list[int | None]  # variables of the steps before, oldest first
    after: list[int | None]  # of this step
    early: list[int | None]  # of the last ones of the first steps

    @property
    def combined(self) -> int:
        """How many combinations of them there are."""
        return prod(self.sizes * self.lag)


def _hidden_markov(graph: FactorGraph, chain: MarkovChain) -> HiddenMarkov:
    own = chain_variables(chain)
    steps, firsts = _members(graph, chain, own)
    step_terms, first_terms = [graph.terms[i] for i in steps], [graph.terms[i] for i in firsts]
    states = _carried(chain, own, step_terms)
    ordinal = _plates_of(chain, states)
    outer = _outer(graph, own, step_terms + first_terms, ordinal)
    plates = tuple([name for name, size in graph.plates.items() if name in ordinal and size > 1])
    batch = (*plates, *outer)

    inner = graph.plates.keys() - ordinal - {chain.name}
    of_steps = _reduced(step_terms, {*batch, chain.name, *states.before, *states.after}, inner, graph)
    of_first = _reduced(first_terms, {*batch, *states.early}, inner, graph)
    old, dims = set(states.before), (*batch, chain.name)
    transition = _pairs([term for term in of_steps if not old.isdisjoint(term.dims)], dims, states)
    emission = _newest([term for term in of_steps if old.isdisjoint(term.dims)], dims, states)
    initial = _combinations(_sum(of_first, (*batch, *states.early)), len(batch), states.sizes * states.lag)
    shape = broadcast_shape(initial.shape[:-1], emission.shape[:-2], transition.shape[:-3])
    initial = _expanded(initial.unsqueeze(-2), (*shape, 1, states.combined))
    emission = _expanded(emission, (*shape, chain.steps, states.combined))
    reach = frozenset().union(*(term.reach or term.ordinal for term in step_terms + first_terms))
    states_in_use = sum(variable is not None for variable in own.current)
    return HiddenMarkov(
        chain=chain,
        members=[*firsts, *steps],
        plates=plates,
        batch=batch,
        ordinal=ordinal,
        reach=reach - {chain.name},
        kept=states.kept,
        sizes=states.sizes,
        transition=transition,
        emission=torch.cat([initial, emission], -2),
        is_whole=not outer and states.lag == chain.history and len(states.kept) == states_in_use,
        lengths=_lengths(graph, chain, steps, batch, emission.shape),
    )


def _lengths(
    graph: FactorGraph, chain: MarkovChain, steps: Sequence[int], batch: Names, shape: Sequence[int]
) -> Tensor | None:
    """How many steps of each sequence matter, where one mask hides all that is observed later.

    What is left there are the states' own distributions, which sum to one. None: all, or not worth a look.
    """
    if prod(shape) * shape[-1] < WORTH_LENGTHS:
        return None
    states = {site["name"] for site in chain.current}
    sites = [graph.sites[i] for i in steps]
    own = [site for site in sites if site["name"] in states]
    if len(own) != len(states) or any(type(unmasked(site["fn"])) not in NORMALIZED for site in own):
        return None  # the terms of a state are more than its distribution
    masks = [site["mask"] for site in sites if site["name"] not in states]
    mask = masks[0] if masks else None
    if not isinstance(mask, Tensor) or any(other is not mask for other in masks):
        return None
    names = {frame.dim: frame.name for frame in graph.sites[steps[-1]]["cond_indep_stack"]}
    dims = [names.get(dim) for dim in range(-mask.dim(), 0)]
    kept = [i for i, size in enumerate(mask.shape) if size > 1]
    order = (*batch, chain.name)
    if not {dims[i] for i in kept} <= set(order):
        return None
    mask = align(mask.reshape([mask.shape[i] for i in kept]), tuple(dims[i] for i in kept), order)
    mask = mask.expand(shape[:-1])
    if not bool((mask[..., 1:] <= mask[..., :-1]).all()):
        return None
    return 1 + mask.sum(-1)


def _members(graph: FactorGraph, chain: MarkovChain, own: ChainVariables) -> tuple[list[int], list[int]]:
    """Positions of the terms of all steps at once, and of the other terms with variables of the chain."""
    steps, firsts = [], []
    variables = own.all
    late = {variable for step in (*own.previous, own.current) for variable in step}
    for i, (site, term) in enumerate(zip(graph.sites, graph.terms, strict=True)):
        if is_step(site, chain):
            steps.append(i)
        elif not variables.isdisjoint(term.dims):
            if not late.isdisjoint(term.dims):
                raise _Misfit(f"site '{site['name']}' outside of it depends on its last states")
            firsts.append(i)
    return steps, firsts


def _carried(chain: MarkovChain, own: ChainVariables, terms: Sequence[Term]) -> _States:
    """The states of earlier steps that a step looks at."""
    touched = {name for term in terms for name in term.dims}
    lags = [chain.history - k for k, step in enumerate(own.previous) if not touched.isdisjoint(step)]
    if not lags:
        raise _Misfit("no step depends on another one")
    lag = max(lags)
    kept = [
        position
        for position, many in enumerate(zip(*own.previous, strict=True))
        if any(variable in touched for variable in many)
    ]

    def joined(steps: Sequence[list[int | None]]) -> list[int | None]:
        return [step[position] for step in steps[chain.history - lag :] for position in kept]

    found = [support_size(chain.current[position]) for position in kept]
    sizes = [size for size in found if size is not None]  # all: what earlier steps have is enumerated here
    after = [own.current[position] for position in kept]
    states = _States(lag, kept, sizes, joined(own.previous), after, joined(own.first))
    if len(states.before) > 1 and states.combined > MOST_COMBINED:
        raise _Misfit(f"its states have {states.combined:,} combinations, more than {MOST_COMBINED}")
    return states


def _plates_of(chain: MarkovChain, states: _States) -> frozenset[Hashable]:
    """The plates that all these states are in."""
    sites = [step[position] for step in (*chain.first, chain.current) for position in states.kept]
    found = {ordinal_of(site) - {chain.name} for site in sites}
    if len(found) > 1:
        raise _Misfit("its states are in different plates")
    return found.pop()


def _outer(
    graph: FactorGraph, own: ChainVariables, terms: Iterable[Term], ordinal: frozenset[Hashable]
) -> list[Hashable]:
    """Variables outside the chain that it depends on."""
    variables = own.all
    for term in terms:
        if not ordinal <= term.ordinal:
            raise _Misfit("something outside of its plates depends on it")
    names = dict.fromkeys(name for term in terms for name in term.dims)
    found = [name for name in names if name not in variables and name not in graph.plates]
    for name in found:
        owner = graph.variables.get(name)  # type: ignore[call-overload]  # None: a variable of the guide
        if owner is not None and not ordinal_of(owner) <= ordinal:
            raise _Misfit(f"it depends on site '{owner['name']}', which is inside other plates")
    return found


def _reduced(
    terms: list[Term], kept: set[Hashable], inner: Iterable[Hashable], graph: FactorGraph
) -> list[Term]:
    """The terms without other variables, summed out, and without inner plates, multiplied along."""
    plates = frozenset(inner)
    gone = {name for term in terms for name in term.dims if name not in kept and name not in plates}
    if not gone:
        return [_multiplied(term, plates, graph) for term in terms]
    result = []
    for positions in components([term.dims for term in terms], gone):
        part = [terms[i] for i in positions]
        if gone.isdisjoint(part[0].dims):
            result.append(_multiplied(part[0], plates, graph))
        else:
            result.append(_summed_out(part, kept, plates, graph))
    return result


def _summed_out(
    terms: list[Term], kept: set[Hashable], plates: frozenset[Hashable], graph: FactorGraph
) -> Term:
    """Terms that hang together through variables, which are summed out for each value of the kept dims."""
    sizes = {name: size for term in terms for name, size in zip(term.dims, graph.shape(term), strict=True)}
    outer = tuple(name for name in sizes if name in kept)
    orders = [outer + tuple(name for name in term.dims if name not in kept) for term in terms]
    tensors = [align(term.tensor, term.dims, order) for term, order in zip(terms, orders, strict=True)]
    # As plates: each value of theirs is a slice of its own.
    [(dims, total)] = contract(tensors, orders, plates.union(outer), kept=outer, sizes=sizes)
    return Term(frozenset(), dims, total)


def _without(term: Term, names: Container[Hashable]) -> Term:
    """A term without dims of size 1."""
    left = [i for i, name in enumerate(term.dims) if name not in names]
    if len(left) == len(term.dims):
        return term
    tensor = term.tensor.reshape([term.tensor.shape[i] for i in left])
    return term._replace(dims=tuple([term.dims[i] for i in left]), tensor=tensor)


def _multiplied(term: Term, plates: frozenset[Hashable], graph: FactorGraph) -> Term:
    axes = [i for i, name in enumerate(term.dims) if name in plates]
    if not axes:
        return term
    repeats = prod(graph.plates[term.dims[i]] for i in axes if term.tensor.shape[i] == 1)
    tensor = term.tensor.sum(axes)
    dims = tuple(name for name in term.dims if name not in plates)
    return term._replace(dims=dims, tensor=tensor * repeats if repeats > 1 else tensor)


def _sum(terms: Sequence[Term], order: Names) -> Tensor:
    """The sum of terms over dims in an order, of size 1 where nothing varies."""
    if not terms:
        return torch.zeros((1,) * len(order))
    total = align(terms[0].tensor, terms[0].dims, order)
    for term in terms[1:]:
        total = total + align(term.tensor, term.dims, order)
    return total


def _combinations(potential: Tensor, outer: int, sizes: Sequence[int]) -> Tensor:
    """Dims of states, after `outer` others, as one dim of combinations; the last varies fastest."""
    shape = potential.shape[:outer]
    if len(sizes) > 1:
        return potential.expand(*shape, *sizes).reshape(*shape, prod(sizes))
    return _expanded(potential, (*shape, *sizes))


def _expanded(tensor: Tensor, shape: Sequence[int]) -> Tensor:
    return tensor if tensor.shape == tuple(shape) else tensor.expand(shape)


def _pairs(terms: Sequence[Term], outer: Names, states: _States) -> Tensor:
    """The sum of terms of consecutive steps as [*outer or 1, combined states, combined states]."""
    sizes, lag = states.sizes, states.lag
    pairs = [pair for term in terms for pair in zip(term.dims, term.tensor.shape, strict=True)]
    if all(size == 1 for name, size in pairs if name in outer):
        terms = [_without(term, outer) for term in terms]
        outer = ()
    total = _sum(terms, (*outer, *states.before, *states.after))
    shape = total.shape[: len(outer)]
    if len(states.before) > 1 and prod(shape) * states.combined**2 > MOST_ENTRIES:
        raise _Misfit(f"transitions of its states have {prod(shape) * states.combined**2:,} entries")
    size, middle = prod(sizes), prod(sizes) ** (lag - 1)
    if lag == len(sizes) == 1:
        return _expanded(total, (*shape, size, size))
    total = _combinations(total, len(outer), sizes * (lag + 1))
    if lag == 1:
        return total.reshape(*shape, size, size)
    same = torch.eye(middle, dtype=torch.bool, device=total.device)[:, :, None]
    # From (oldest, middle) to (middle, newest).
    wide = total.reshape(*shape, size, middle, 1, size).where(same, -torch.inf)
    return wide.reshape(*shape, size * middle, middle * size)


def _newest(terms: Sequence[Term], outer: Names, states: _States) -> Tensor:
    """The sum of terms of one step as [*outer or 1, combined states], of which it is the newest."""
    total = _combinations(_sum(terms, (*outer, *states.after)), len(outer), states.sizes)
    if states.lag == 1:
        return total
    middle = states.combined // prod(states.sizes)
    shape = total.shape[:-1]
    return total.unsqueeze(-2).expand(*shape, middle, total.shape[-1]).reshape(*shape, states.combined)
