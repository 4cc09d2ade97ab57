"""Chains of `vectorized_markov` in a factor graph, written out step by step.

All steps of such a chain share one term per site. It has the chain's plate as a dim, and as variables the
state of "this step" and those of the steps before. Written out there is one variable per step, and per step
and site one term: the graph of the loop, with its tensors still those of all steps.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from itertools import count
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sumprod.handlers.markov_chain import MarkovChain, recorded_chain
from sumprod.infer._enum_sites import Names, Term, align, support_size, variable_of

__all__ = [
    "ChainVariables",
    "Unrolled",
    "at_step",
    "chain_of",
    "chain_variables",
    "gathered",
    "is_step",
    "loops_at_once",
    "unroll",
]


class ChainVariables(NamedTuple):
    """Ids of a chain's variables, by state within the step; None for a state of one value."""

    first: list[list[int | None]]  # by step
    previous: list[list[int | None]]  # by how many steps before: `history` comes first
    current: list[int | None]

    @property
    def all(self) -> set[int | None]:
        return {variable for step in (*self.first, *self.previous, self.current) for variable in step}


def chain_of(site: Any) -> MarkovChain | None:
    """The chain whose steps ran at once that a site belongs to, if steps depend on others."""
    chain = recorded_chain(site)
    if chain is None or chain.mode != "enumerated" or chain.reason is not None or chain.history == 0:
        return None
    return chain


def loops_at_once(sites: Iterable[Any]) -> list[MarkovChain]:
    """The chains whose steps ran at once that some sites belong to."""
    return list(dict.fromkeys(chain for chain in map(chain_of, sites) if chain is not None))


def is_step(site: Any, chain: MarkovChain) -> bool:
    """Whether a site is one of those that stand for all steps of a chain but the first ones."""
    return chain_of(site) is chain and any(frame.name == chain.name for frame in site["cond_indep_stack"])


def chain_variables(chain: MarkovChain) -> ChainVariables:
    """The variables of a chain.

    Raises:
        ValueError: a state has more values at some steps than at others; the loop was left early.
    """
    if not chain.is_complete:
        raise ValueError(
            f"vectorized_markov '{chain.name}' was left before its end, by `break` or `return`: steps that"
            " run at once cannot stop early. Use markov(range(n)), or a mask"
        )
    sizes = [list(map(support_size, sites)) for sites in (*chain.first, *chain.previous, chain.current)]
    for found in sizes:
        if any(None not in pair and pair[0] != pair[1] for pair in zip(found, sizes[-1], strict=True)):
            names = [site["name"] for site in chain.current]
            raise ValueError(
                f"vectorized_markov '{chain.name}': the latent sites {names} must have the same numbers of"
                f" values at all steps, but found {found} and {sizes[-1]}. Use markov(range(size)) for steps"
                " that differ"
            )
    return ChainVariables(
        [list(map(variable_of, sites)) for sites in chain.first],
        [list(map(variable_of, sites)) for sites in chain.previous],
        list(map(variable_of, chain.current)),
    )


class Unrolled(NamedTuple):
    """A factor graph with some chains written out."""

    sites: list[Any]
    terms: list[Term]
    variables: dict[int, Any]
    steps: dict[int, tuple[MarkovChain, list[int]]]
    """variable of the many steps of a chain -> the chain, and the variable of each of the steps"""


def gathered(
    found: Mapping[Hashable, tuple[Names, Tensor]], steps: Mapping[int, tuple[MarkovChain, list[int]]]
) -> dict[Hashable, tuple[Names, Tensor]]:
    """Values of variables, with those of many steps put together along the chain's plate.

    Args:
        found: variable -> its plates, and values along them.
        steps: as in `Unrolled`.
    """
    result = dict(found)
    for variable, (chain, numbers) in steps.items():
        plates = found[numbers[0]][0]
        values = [align(found[number][1], found[number][0], plates) for number in numbers]
        result[variable] = (chain.name, *plates), torch.stack(values)
    return result


def unroll(
    sites: Sequence[Any], terms: Sequence[Term], variables: Mapping[int, Any], chains: Sequence[MarkovChain]
) -> Unrolled:
    """Write chains out. Sites after a chain that depend on its states depend on those of the last steps."""
    result = Unrolled(list(sites), list(terms), dict(variables), {})
    fresh = count(1 + max(variables, default=0))
    for chain in chains:
        _unroll(result, chain, fresh)
    return result


def _unroll(graph: Unrolled, chain: MarkovChain, fresh: Any) -> None:
    own = chain_variables(chain)
    moments = [list(step) for step in own.first]  # per step, the variable of each state
    for t in range(chain.history, chain.size):
        moments.append([None if variable is None else next(fresh) for variable in own.current])
        for site, number in zip(chain.current, moments[t], strict=True):
            if number is not None:
                graph.variables[number] = at_step(site, chain, t)
    names: list[dict[Hashable, Hashable]] = [{} for _ in range(chain.steps)]
    for lag, many in enumerate((*own.previous, own.current)):
        for state, variable in enumerate(many):
            if variable is None:
                continue
            numbers = [moments[lag + i][state] for i in range(chain.steps)]
            if many is own.current:
                graph.steps[variable] = chain, numbers  # type: ignore[assignment]  # None for all or none
            del graph.variables[variable]
            for i, number in enumerate(numbers):
                names[i][variable] = number
    old = list(zip(graph.sites, graph.terms, strict=True))
    graph.sites.clear()
    graph.terms.clear()

    def add(site: Any, term: Term, i: int) -> None:
        graph.sites.append(site)
        graph.terms.append(term._replace(dims=tuple([names[i].get(name, name) for name in term.dims])))

    steps = [(site, _slices(term, chain)) for site, term in old if is_step(site, chain)]
    for site, term in old:
        if not is_step(site, chain):
            add(site, term, -1)  # what has no steps of its own sees the last one
        else:  # the first one: all are here, step by step
            for i in range(chain.steps):
                for own_site, pieces in steps:
                    add(at_step(own_site, chain, chain.history + i), pieces[i], i)
            steps = []


def _slices(term: Term, chain: MarkovChain) -> list[Term]:
    """The term of each step."""
    ordinal = term.ordinal - {chain.name}
    reach = None if term.reach is None else term.reach - {chain.name}
    if chain.name not in term.dims:
        return [Term(ordinal, term.dims, term.tensor, reach)] * chain.steps
    position = term.dims.index(chain.name)
    dims = term.dims[:position] + term.dims[position + 1 :]
    tensors = term.tensor.unbind(position)
    if len(tensors) == 1:
        tensors = tensors * chain.steps
    return [Term(ordinal, dims, tensor, reach) for tensor in tensors]


def at_step(site: Any, chain: MarkovChain, t: int) -> Any:
    """The site as it is at one step, called as in a loop."""
    frames = tuple([frame for frame in site["cond_indep_stack"] if frame.name != chain.name])
    return {
        **site,
        "name": site["name"].replace(chain.many, str(t)),
        "cond_indep_stack": frames,
        "infer": {**site["infer"], "_markov_step": t},
    }
