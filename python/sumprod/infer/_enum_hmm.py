"""Chains of `vectorized_markov` as hidden Markov models: one call of a native operator per chain.

States of one step that the next steps depend on, and of several steps when history is more than 1, make one
state of the model, with all their combinations. Variables outside the chain that it depends on make batch
dims. What else is enumerated in a step is summed out first, for all steps at once.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from sumprod.distributions import Bernoulli, Binomial, Categorical, OneHotCategorical
from sumprod.distributions.util import broadcast_shape
from sumprod.errors import SupportError
from sumprod.handlers.markov_chain import MarkovChain
from sumprod.infer._enum_chain import ChainVariables, chain_variables, is_step
from sumprod.infer._enum_sites import Names, Term, align, ordinal_of, unmasked
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
    transition: Tensor  # [*batch or 1, steps or 1, S, S]
    emission: Tensor  # [*batch or 1, 1 + steps, S]; the first is that of the first states
    is_whole: bool  # nothing was summed out beforehand, and nothing outside is tied to it
    lengths: Tensor | None  # [*batch]: the steps after these many sum to one

    def total(self) -> Term:
        """Log of the sum over all paths."""
        potentials = self._potentials(self.emission)
        total = hmm_log_normalizer(*potentials, lengths=self.lengths)
        return Term(self.ordinal, self.batch, total, self.reach)

    def _potentials(self, emission: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        transition = self.transition
        if all(size == 1 for size in transition.shape[:-2]):
            transition = transition.reshape(transition.shape[-2:])
        return emission.new_zeros(emission.shape[-1]), transition, emission

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
        transition = align(self.transition, (*self.batch, "t", "r", "s"), (*names, "t", "r", "s"))
        emission = align(self.emission, (*self.batch, "t", "s"), (*names, "t", "s"))
        # Every slice of the plates has a path of its own.
        emission = emission.expand([size for _, size in plates] + list(emission.shape[-2:]))
        potentials = self._replace(transition=transition)._potentials(emission)
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


def _hidden_markov(graph: FactorGraph, chain: MarkovChain) -> HiddenMarkov:
    own = chain_variables(chain)
    steps, firsts = _members(graph, chain, own)
    step_terms = [graph.terms[i] for i in steps]
    lag, kept = _carried(chain, own, step_terms)
    owners = [chain.current[state] for state in kept]
    ordinal = ordinal_of(owners[0]) - {chain.name}
    sites = [sites[state] for sites in chain.first for state in kept]
    if any(ordinal_of(site) - {chain.name} != ordinal for site in owners + sites):
        raise _Misfit("its states are in different plates")
    outer = _outer(graph, own, [graph.terms[i] for i in (*steps, *firsts)], ordinal)
    plates = [name for name, size in graph.plates.items() if name in ordinal and size > 1]
    batch = (*plates, *outer)

    before = [own.previous[k][state] for k in range(chain.history - lag, chain.history) for state in kept]
    after = [own.current[state] for state in kept]
    early = [own.first[t][state] for t in range(chain.history - lag, chain.history) for state in kept]
    sizes = [_size(chain.current[state]) for state in kept]
    combined = prod(sizes) ** lag
    if combined > MOST_COMBINED and len(before) > 1:
        raise _Misfit(f"its states have {combined:,} combinations, more than {MOST_COMBINED}")

    inner = graph.plates.keys() - ordinal - {chain.name}
    left = _reduced(step_terms, {*batch, chain.name, *before, *after}, inner, graph)
    of_first = _reduced([graph.terms[i] for i in firsts], {*batch, *early}, inner, graph)
    is_whole = not outer and lag == chain.history and len(kept) == sum(one is not None for one in own.current)
    old = set(before)
    across = [term for term in left if not old.isdisjoint(term.dims)]
    within = [term for term in left if old.isdisjoint(term.dims)]
    sizes_across = [dict(zip(term.dims, term.tensor.shape, strict=True)) for term in across]
    outer_sizes = [max(own.get(name, 1) for own in sizes_across) for name in (*batch, chain.name)]
    entries = combined**2 * prod(outer_sizes)
    if entries > MOST_ENTRIES and len(before) > 1:
        raise _Misfit(f"transitions of its combined states have {entries:,} entries")
    transition = _pairs(_sum(across, (*batch, chain.name, *before, *after)), sizes, lag)
    emission = _sum(within, (*batch, chain.name, *after))
    emission = _widened(emission, sizes, lag)
    initial = _sum(of_first, (*batch, *early))
    initial = initial.expand([*initial.shape[: len(batch)], *sizes * lag]).reshape(
        [*initial.shape[: len(batch)], 1, combined]
    )
    shape = broadcast_shape(initial.shape[:-2], emission.shape[:-2], transition.shape[:-3])
    emission = emission.expand([*shape, chain.steps, combined])
    reach = frozenset().union(*(graph.terms[i].reach or graph.terms[i].ordinal for i in (*steps, *firsts)))
    return HiddenMarkov(
        chain=chain,
        members=[*firsts, *steps],
        plates=tuple(plates),
        batch=batch,
        ordinal=ordinal,
        reach=reach - {chain.name},
        kept=kept,
        sizes=sizes,
        transition=transition,
        emission=torch.cat([initial.expand([*shape, 1, combined]), emission], -2),
        is_whole=is_whole,
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


def _carried(chain: MarkovChain, own: ChainVariables, terms: Sequence[Term]) -> tuple[int, list[int]]:
    """How many steps back a step looks, and which of the states of earlier steps it looks at."""
    touched = {name for term in terms for name in term.dims}
    lags = [chain.history - k for k, step in enumerate(own.previous) if not touched.isdisjoint(step)]
    if not lags:
        raise _Misfit("no step depends on another one")
    seen = [{variable in touched for variable in many} for many in zip(*own.previous, strict=True)]
    return max(lags), [state for state, found in enumerate(seen) if True in found]


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


def _pairs(potential: Tensor, sizes: list[int], lag: int) -> Tensor:
    """Potentials [..., steps, *states before, *states after] as a matrix of combined states."""
    size, count = prod(sizes), len(sizes) * (lag + 1)
    outer = potential.shape[: potential.dim() - count]
    potential = potential.expand(*outer, *sizes * (lag + 1))
    if lag == 1:
        return potential.reshape(*outer, size, size)
    middle = size ** (lag - 1)
    same = torch.eye(middle, dtype=torch.bool, device=potential.device)[:, :, None]
    # From (oldest, middle) to (middle, newest).
    wide = potential.reshape(*outer, size, middle, 1, size).where(same, -torch.inf)
    return wide.reshape(*outer, size * middle, middle * size)


def _widened(emission: Tensor, sizes: list[int], lag: int) -> Tensor:
    """Potentials [..., steps, *states] of the newest of the combined states."""
    size = prod(sizes)
    outer = emission.shape[: emission.dim() - len(sizes)]
    emission = emission.expand(*outer, *sizes).reshape(*outer, 1, size)
    middle = size ** (lag - 1)
    return emission.expand(*outer, middle, size).reshape(*outer, middle * size)


def _size(site: Any) -> int:
    size: int = site["value"].shape[site["infer"]["_enumerate_dim"] - len(site["fn"]._event_shape)]
    return size
