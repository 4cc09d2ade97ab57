"""The factor graph of a program's enumerated variables: its total, joint draws, and who is to blame."""

from __future__ import annotations

from collections.abc import Container, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from sumprod.distributions._support import is_whole_support
from sumprod.errors import MemoryBudgetError, SupportError
from sumprod.handlers.markov_chain import MarkovChain
from sumprod.handlers.trace_struct import Trace
from sumprod.infer._enum_chain import at_step, chain_of, gathered, is_step, unroll
from sumprod.infer._enum_groups import site_terms
from sumprod.infer._enum_hmm import HiddenMarkov, hidden_markov
from sumprod.infer._enum_requirements import warn_of_dependency
from sumprod.infer._enum_sites import Names, Term, align, variable_of
from sumprod.ops._plan import NotTreeStructured, name_dims
from sumprod.ops._plated import components
from sumprod.ops.contraction import contract, draw
from sumprod.settings import state

__all__ = ["FactorGraph"]


class FactorGraph:
    """Log-densities of sites with enumerated variables, masked and not scaled.

    Attributes:
        sites: the sites, in the order of the program.
        terms: their log-densities; of size 1 along plates where they are constant, and one tensor for all
            sites whose densities are known to be equal.
        variables: id -> site that enumerates it.
        plates: name -> size of all plates.
        chains: loops whose steps ran at once; their sites have one term for many steps.
        steps: variable of many steps -> its chain, and the variable of each step, of chains that have been
            written out.
    """

    def __init__(self) -> None:
        self.sites: list[Any] = []
        self.terms: list[Term] = []
        self.variables: dict[int, Any] = {}
        self.plates: dict[Hashable, int] = {}
        self.chains: list[MarkovChain] = []
        self.steps: dict[int, tuple[MarkovChain, list[int]]] = {}

    @classmethod
    def of_trace(cls, trace: Trace, max_plate_nesting: float, known: Container[str] = ()) -> FactorGraph:
        """The graph of a trace whose plates are no deeper; sites in `known` have no variable of the graph."""
        graph = cls()
        samples = [site for site in trace.nodes.values() if site["type"] == "sample"]
        for site in samples:
            if site["name"] not in known:
                graph.declare(site)
        terms = site_terms(trace, samples, graph.variables, max_plate_nesting)
        for site, term in zip(samples, terms, strict=True):
            if graph.concerns(term):
                graph.add(site, term)
        return graph

    def declare(self, site: Any) -> None:
        """Note which variable a site enumerates, if it does."""
        variable = variable_of(site)
        if variable is not None:
            self.variables[variable] = site
            chain = chain_of(site)
            if chain is not None and chain not in self.chains:
                self.chains.append(chain)
                for sites in chain.previous:
                    for one in sites:
                        self.declare(one)

    def concerns(self, term: Term) -> bool:
        """Whether a log-density depends on any variable."""
        return not self.variables.keys().isdisjoint(term.dims)

    def add(self, site: Any, term: Term) -> None:
        """Add a site that depends on a variable."""
        self._insert(site, term)
        if state.validate_infer:
            self._check_plates(site, term)

    def _insert(self, site: Any, term: Term) -> None:
        self.sites.append(site)
        self.terms.append(term)
        for frame in site["cond_indep_stack"]:
            if frame.name in term.ordinal:
                self.plates[frame.name] = frame.size

    def _check_plates(self, site: Any, term: Term) -> None:
        for name in term.dims:
            owner = self.variables.get(name)  # type: ignore[call-overload]
            if owner is None or owner["cond_indep_stack"] == site["cond_indep_stack"]:
                continue
            chain = chain_of(owner)
            if chain is not None and not is_step(site, chain):
                owner = at_step(owner, chain, chain.size - 1)  # the last one is what is left of a chain
            warn_of_dependency(site, owner)

    def shape(self, term: Term) -> list[int]:
        """The shape of a term's tensor, expanded to its plates."""
        return [self.plates.get(name, size) for name, size in zip(term.dims, term.tensor.shape, strict=True)]

    def whole(self, term: Term) -> Tensor:
        """A term's tensor, expanded to its plates."""
        shape = self.shape(term)
        return term.tensor if list(term.tensor.shape) == shape else term.tensor.expand(shape)

    # ---- chains

    def without_chains(self, models: list[HiddenMarkov | str] | None = None) -> FactorGraph:
        """The graph with each chain summed out by a native operator, or else written out step by step.

        Args:
            models: gets for each chain its model, or why it has none.
        """
        graph = self
        for chain in self.chains:
            model = hidden_markov(graph, chain)
            if isinstance(model, HiddenMarkov):
                graph = graph._without(model)
                graph._insert({**chain.current[0], "name": f"chain '{chain.name}'"}, model.total())
            else:
                graph = graph._written_out([chain])
            if models is not None:
                models.append(model)
        return graph

    def _written_out(self, chains: Sequence[MarkovChain]) -> FactorGraph:
        """The graph with chains written out, which knows how to gather their values."""
        unrolled = unroll(self.sites, self.terms, self.variables, chains)
        graph = FactorGraph()
        graph.variables = unrolled.variables
        graph.chains = [chain for chain in self.chains if chain not in chains]
        graph.steps = {**self.steps, **unrolled.steps}
        for site, term in zip(unrolled.sites, unrolled.terms, strict=True):
            graph._insert(site, term)
        return graph

    def _without(self, model: HiddenMarkov) -> FactorGraph:
        """The graph without a chain's terms."""
        graph = FactorGraph()
        graph.variables, graph.steps = self.variables, self.steps
        graph.chains = [chain for chain in self.chains if chain is not model.chain]
        for i, (site, term) in enumerate(zip(self.sites, self.terms, strict=True)):
            if i not in model.members:
                graph._insert(site, term)
        return graph

    # ---- what the engine answers

    def totals(self, keep_common_plates: bool = False) -> list[tuple[tuple[Hashable, ...], Tensor]]:
        """Per connected component: dims, and log of the sum over all assignments."""
        graph = self.without_chains()
        if not any(map(graph.concerns, graph.terms)):
            totals = [(term.dims, graph.whole(term)) for term in graph.terms]
            return totals if keep_common_plates else [((), total.sum()) for _, total in totals]
        tensors, dims = [term.tensor for term in graph.terms], [term.dims for term in graph.terms]
        return graph.contract(tensors, dims, graph.plates, keep_common_plates)

    def contract(
        self,
        tensors: Sequence[Tensor],
        dims: Sequence[Names],
        plates: Iterable[Hashable],
        keep_common_plates: bool,
    ) -> list[tuple[tuple[Hashable, ...], Tensor]]:
        """`ops.contraction.contract`, whose refusals call the graph's variables by their sites' names."""
        with self._named_refusals():
            return contract(tensors, dims, plates, keep_common_plates=keep_common_plates, sizes=self.plates)

    @contextmanager
    def _named_refusals(self) -> Iterator[None]:
        """Errors of contractions name sites instead of variables."""
        try:
            yield
        except (NotTreeStructured, MemoryBudgetError) as error:
            name_dims(error, {variable: site["name"] for variable, site in self.variables.items()})
            raise

    def draw(self, maximise: bool) -> dict[str, Tensor]:
        """Values of the enumerated sites: a joint posterior draw, or the most probable assignment.

        Where the evidence is impossible, the first value of the support.

        Raises:
            SupportError: the evidence is impossible (when validating).
        """
        with torch.no_grad():
            found = self._indices(maximise)
            shown = [site for site in self.variables.values() if "_auxiliary" not in site["infer"]]
            return {site["name"]: _value_at(site, found) for site in shown}

    def _indices(self, maximise: bool) -> dict[Hashable, tuple[Names, Tensor]]:
        """For each variable its plates, and a position in its support for each slice of them."""
        graph = self
        known: dict[Hashable, tuple[Names, Tensor]] = {}
        for chain in self.chains:
            model = hidden_markov(graph, chain)
            if isinstance(model, HiddenMarkov) and model.is_whole:
                drawn = model.draw(maximise, [(name, self.plates[name]) for name in model.plates])
                if drawn is not None:
                    graph = graph._without(model)
                    known.update(drawn)
                    continue
            graph = graph._written_out([chain])
        if graph.terms:
            known.update(graph._contracted_indices(maximise))
        return gathered(known, graph.steps)

    def _contracted_indices(self, maximise: bool) -> dict[Hashable, tuple[Names, Tensor]]:
        with self._named_refusals():
            totals, found = draw(
                [term.tensor for term in self.terms],
                [term.dims for term in self.terms],
                self.plates,
                maximise=maximise,
                sizes=self.plates,
            )
        impossible = [bool((total == -torch.inf).any()) for _, total in totals]
        if any(impossible) and state.validate_infer:
            raise self.blame()
        possible = self._possible() if any(impossible) else {}
        for variable, (dims, mask) in possible.items():
            plates, index = found[variable]
            found[variable] = plates, torch.where(align(mask, dims, plates), index, 0)
        return found

    def _possible(self) -> dict[int, tuple[tuple[Hashable, ...], Tensor]]:
        """For each variable, where the evidence around it is possible."""
        found: dict[int, tuple[tuple[Hashable, ...], Tensor]] = {}
        for members in self.components():
            part = self._part(members)
            [(dims, total)] = part.totals(keep_common_plates=True)
            for position in members:
                for name in self.terms[position].dims:
                    if name in self.variables:
                        found[name] = dims, total > -torch.inf
        return found

    def components(self) -> list[list[int]]:
        """Positions of the terms that hang together through variables."""
        return components([term.dims for term in self.terms], self.variables)

    def _part(self, positions: list[int]) -> FactorGraph:
        part = FactorGraph()
        part.variables, part.plates = self.variables, self.plates
        part.sites = [self.sites[i] for i in positions]
        part.terms = [Term(t.ordinal, t.dims, t.tensor.detach()) for t in (self.terms[i] for i in positions)]
        return part

    # ---- errors

    def blame(self) -> SupportError:
        """The error for evidence that no assignment explains: the first site that makes it impossible."""
        if self.chains:
            return self._written_out(self.chains).blame()
        for members in self.components():
            if not self._part(members)._is_possible():
                break
        low, high = 0, len(members)  # the first `low` are possible, the first `high` are not
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._part(members[:middle])._is_possible() else (low, middle)
        # Of the sites up to there, those that hang together with the last one.
        part = self._part(members[:high])
        part = part._part(next(group for group in part.components() if high - 1 in group))
        site = part.sites[-1]
        [(dims, total)] = part.totals(keep_common_plates=True)
        where = [int(i) for i in (total == -torch.inf).nonzero()[0]] if total.dim() else []
        index = {str(name): i for name, i in zip(dims, where, strict=True)}
        factors = tuple(dict.fromkeys(one["name"] for one in part.sites))  # a site may have several terms
        shown = ", ".join(f"'{name}'" for name in factors[-5:])
        place = "".join(f", at index {i} of plate '{name}'" for name, i in index.items())
        return SupportError(
            f"no assignment of the enumerated variables is possible: the first site that rules out the last"
            f" one is '{site['name']}'{place}. It is impossible together with"
            f" {'..., ' if len(factors) > 5 else ''}{shown}; look for probabilities of 0 that the data at"
            f" '{site['name']}' contradict",
            batch_index=tuple(where),
            time=site["infer"].get("_markov_step"),
            site=site["name"],
            plate_index=index,
            factors=factors,
        )

    def _is_possible(self) -> bool:
        return not any(bool((total == -torch.inf).any()) for _, total in self.totals())


def _value_at(site: Any, found: Mapping[Hashable, tuple[Names, Tensor]]) -> Tensor:
    """The value of a site given indices into the variables' supports, with the plates at their dims."""
    frames: dict[Hashable, int] = {
        frame.name: frame.dim for frame in site["cond_indep_stack"] if frame.dim is not None
    }
    rank = max((-dim for dim in frames.values()), default=0)

    def placed(variable: Hashable) -> Tensor:
        plates, index = found[variable]
        order = tuple(sorted(plates, key=frames.__getitem__))
        index = align(index, plates, order)
        if len(order) == rank:  # every dim has its plate
            return index
        shape = [1] * rank
        for name, size in zip(order, index.shape, strict=True):
            shape[frames[name]] = size
        return index.reshape(shape)

    value: Tensor = site["value"]
    event = len(site["fn"]._event_shape)
    ids, own = site["infer"]["_dim_to_id"], site["infer"]["_enumerate_dim"]
    batch = value.shape[: value.dim() - event]
    if is_whole_support(value, batch[own]):
        return placed(ids[own])
    if sum(size > 1 for size in batch) == 1:
        return value.reshape((batch[own], *value.shape[len(batch) :]))[placed(ids[own])]
    # The support varies: along plates, and along variables that the site depends on.
    where = []
    for dim, size in zip(range(-len(batch), 0), batch, strict=True):
        if size == 1:
            where.append(torch.zeros((), dtype=torch.int64, device=value.device))
        elif dim in ids:
            where.append(placed(ids[dim]))
        else:
            where.append(torch.arange(size, device=value.device).reshape([-1] + [1] * (-dim - 1)))
    return value[tuple(where)]
