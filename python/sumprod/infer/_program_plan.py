"""What it takes to sum out the enumerated variables of a program: components, steps and their cost."""

from __future__ import annotations

import math
import warnings
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from sumprod._random import preserve_rng_state
from sumprod._tables import Row, collapsed, wrapped
from sumprod.handlers import block
from sumprod.handlers.markov_chain import MarkovChain
from sumprod.handlers.trace_struct import Trace
from sumprod.infer._calling import call_method
from sumprod.infer._enum_chain import loops_at_once
from sumprod.infer._enum_elimination import Contraction, contractions
from sumprod.infer._enum_factors import FactorGraph
from sumprod.infer._enum_hmm import HiddenMarkov
from sumprod.ops._plan import NotTreeStructured, Plan, make_plan, name_dims
from sumprod.params.param_store import PARAM_STORE

__all__ = [
    "ChainPlan",
    "Component",
    "ProgramPlan",
    "ProgramStep",
    "named_variables",
    "plan_of_graph",
    "run_hidden",
    "variable_names",
]


@dataclass(frozen=True)
class ProgramStep:
    """Multiply the inputs, sum out variables, then multiply along plates. All names are those of sites."""

    inputs: tuple[str, ...]
    """factors by site; results of earlier steps by their dims, in brackets"""
    variables: tuple[str, ...]
    plates: tuple[str, ...]
    result: tuple[str, ...]
    """dims of the output"""
    flops: int


@dataclass(frozen=True)
class Component:
    """Factors that hang together through variables."""

    factors: tuple[str, ...]
    variables: tuple[str, ...]
    """in the order of the program"""
    steps: tuple[ProgramStep, ...]
    result: tuple[str, ...]
    """dims of what is left: plates that all factors are in, and variables of the guide"""
    flops: int
    peak_bytes: int
    """of intermediate tensors alive at one time"""
    chain: str
    """what chain the variables form, in words; empty: none"""

    @property
    def order(self) -> tuple[str, ...]:
        """The variables in the order in which they are summed out."""
        return tuple(name for step in self.steps for name in step.variables)


@dataclass(frozen=True)
class ChainPlan:
    """How a chain whose steps ran at once is summed out."""

    name: str
    size: int
    """steps"""
    history: int
    states: tuple[str, ...]
    """sites of the states of a step"""
    refusal: str
    """why it is written out step by step; empty: it is a hidden Markov model, for the native operators"""
    combined: int
    """states of that model: combinations of those that the next step depends on; 0: none"""
    batch: tuple[str, ...]
    """its batch dims, as `plate=size` or `variable=size`"""
    homogeneous: bool
    """whether all steps have the same transitions"""
    flops: int
    """multiplications and additions of the model; those of a chain written out are in the components"""

    def __str__(self) -> str:
        what = f"chain '{self.name}': {_count(self.size, 'step')} of {', '.join(self.states)}"
        if self.refusal:
            return f"{what}; written out step by step, because {self.refusal}"
        batch = f"for each of {' '.join(self.batch)}, " if self.batch else ""
        kind = "the same transitions at all steps" if self.homogeneous else "transitions of each step"
        return (
            f"{what}; {batch}forward recursion of a hidden Markov model with"
            f" {_count(self.combined, 'state')} and {kind}, {self.flops:,} flops"
        )


@dataclass(frozen=True, repr=False)
class ProgramPlan:
    """How the enumerated variables of a program's model are summed out, and what it costs.

    Attributes:
        components: parts of the factor graph that do not touch each other.
        plans: the plans that the operator runs, with variables by id; mostly one for all components.
        chains: loops of `vectorized_markov` whose steps ran at once.
        dtype: of the factors.
        flops: multiplications and additions of one forward pass.
        peak_bytes: of intermediate tensors alive at one time, at most; running tile by tile takes less.
        refusal: why there is no plan; None when there is one.
    """

    components: tuple[Component, ...]
    plans: tuple[Plan, ...]
    dtype: torch.dtype
    flops: float
    peak_bytes: int
    refusal: str | None = None
    chains: tuple[ChainPlan, ...] = ()

    def table(self, full: bool = False) -> str:
        """As text; `full`: all rows, also those that repeat."""
        if self.refusal is not None:
            return wrapped(f"plan: refused. {self.refusal}", "  ")
        if not self.components:
            return "plan: nothing to sum out"
        count = sum(len(component.factors) for component in self.components)
        steps = sum(len(component.steps) for component in self.components)
        head = (
            f"plan: {_count(count, 'factor')}, {_count(len(self.components), 'component')},"
            f" {_count(steps, 'step')}, {self.flops:,.0f} flops, {self.peak_bytes:,} bytes of intermediate"
            f" {str(self.dtype).removeprefix('torch.')}"
        )
        lines = [head, *(wrapped(str(chain), "  ") for chain in self.chains)]
        groups: dict[tuple[object, ...], list[int]] = {}
        for number, component in enumerate(self.components):
            likeness = tuple(row.likeness for row in _step_rows(component))
            facts = (component.flops, component.peak_bytes, len(component.factors))
            groups.setdefault((*likeness, *facts), []).append(number)
        for alike in [[number] for number in range(len(self.components))] if full else groups.values():
            lines += self._component_lines(alike, full)
        return "\n".join(lines)

    def _component_lines(self, alike: list[int], full: bool) -> list[str]:
        component = self.components[alike[0]]
        title = f"component {alike[0] + 1}"
        if len(alike) > 1:
            title += f", and {len(alike) - 1:,} more like it"
        lines = [
            f"{title}: {_count(len(component.variables), 'variable')},"
            f" {_count(len(component.factors), 'factor')}, {_count(len(component.steps), 'step')},"
            f" {component.flops:,} flops, {component.peak_bytes:,} bytes;"
            f" result [{' '.join(component.result)}]"
        ]
        if component.chain:
            lines.append(f"  {component.chain}")
        if component.steps:
            table = collapsed(("sum", "multiply along", "of", "to", "flops"), _step_rows(component), full)
            lines += [f"  {line}" for line in table]
        return lines

    def __repr__(self) -> str:
        return self.table()


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _step_rows(component: Component) -> list[Row]:
    rows = []
    for step in component.steps:
        variables, plates = " ".join(step.variables), " ".join(step.plates)
        factors = [name for name in step.inputs if not name.startswith("[")]
        name = [*step.variables, *factors, " ".join(step.result)][0]
        cells = (
            variables or "-",
            plates or "-",
            " ".join(step.inputs),
            f"[{' '.join(step.result)}]",
            f"{step.flops:,}",
        )
        rows.append(Row.of(name, cells, named=range(4)))
    return rows


# ---- from a run of a program


def run_hidden(
    elbo: Any, model: Any, guide: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[tuple[Trace, Trace], list[str]]:
    """The first pair (model trace, guide trace) that a loss would look at, and what it warned of.

    Handlers around the call see nothing. Generators and the parameter store are afterwards as they were;
    while the programs run, other threads see a copy of the store.
    """
    with (
        preserve_rng_state(),
        block(),
        PARAM_STORE.scope(PARAM_STORE.get_state()),
        warnings.catch_warnings(record=True) as caught,
    ):
        warnings.simplefilter("always")
        pair = next(iter(call_method(elbo, "_get_traces", model, guide, args, kwargs)))
    return pair, list(dict.fromkeys(str(one.message) for one in caught))


def variable_names(model_trace: Trace, guide_trace: Trace) -> dict[Hashable, str]:
    """Id of each enumerated variable -> name of its site, also of those that no trace shows."""
    sites = [
        site
        for one in (guide_trace, model_trace)
        for site in one.nodes.values()
        if site["type"] == "sample" and "_enumerate_dim" in site["infer"]
    ]
    hidden = [site for chain in loops_at_once(sites) for step in chain.previous for site in step]
    return {
        site["infer"]["_dim_to_id"][site["infer"]["_enumerate_dim"]]: site["name"] for site in sites + hidden
    }


def named_variables(dims: Iterable[Hashable], names: Mapping[Hashable, str]) -> tuple[str, ...]:
    """Names of the variables among some dims, in the order of the program."""
    return tuple(names[dim] for dim in sorted(dim for dim in dims if dim in names))  # type: ignore[type-var]


def plan_of_graph(graph: FactorGraph, guide_trace: Trace, names: Mapping[Hashable, str]) -> ProgramPlan:
    """The plan for a factor graph; a structure that cannot be contracted has one with a refusal."""
    dtype = torch.float32
    for term in graph.terms:
        dtype = torch.promote_types(dtype, term.tensor.dtype)
    components: list[Component] = []
    plans = []
    chains: tuple[ChainPlan, ...] = ()
    try:
        chains, graph = _chains(graph, names)
        names = {**names, **{number: site["name"] for number, site in graph.variables.items()}}
        for part in contractions(graph, guide_trace) if graph.terms else ():
            plan = _plan_of(part, graph)
            plans.append(plan)
            components += _components(plan, part, graph, names, dtype.itemsize)
    except (NotTreeStructured, ValueError) as error:
        if isinstance(error, NotTreeStructured):
            name_dims(error, names)
        return ProgramPlan((), (), dtype, math.inf, 0, str(error))
    peak = max((plan.peak_elements for plan in plans), default=0) * dtype.itemsize
    flops = sum(plan.flops for plan in plans) + sum(chain.flops for chain in chains)
    return ProgramPlan(tuple(components), tuple(plans), dtype, flops, peak, chains=chains)


def _chains(graph: FactorGraph, names: Mapping[Hashable, str]) -> tuple[tuple[ChainPlan, ...], FactorGraph]:
    """How chains are summed out, and the graph without them."""
    models: list[HiddenMarkov | str] = []
    left = graph.without_chains(models)
    return tuple(_chain_plan(*pair, names) for pair in zip(graph.chains, models, strict=True)), left


def _chain_plan(chain: MarkovChain, model: HiddenMarkov | str, names: Mapping[Hashable, str]) -> ChainPlan:
    states = tuple(site["name"] for site in chain.current)
    if isinstance(model, str):
        return ChainPlan(chain.name, chain.size, chain.history, states, model, 0, (), False, 0)
    sizes, combined = model.emission.shape[:-2], model.emission.shape[-1]
    return ChainPlan(
        name=chain.name,
        size=chain.size,
        history=chain.history,
        states=states,
        refusal="",
        combined=combined,
        batch=tuple(f"{names.get(name, name)}={size}" for name, size in zip(model.batch, sizes, strict=True)),
        homogeneous=model.transition.dim() == 2 or model.transition.shape[-3] == 1,
        flops=2 * math.prod(sizes) * chain.steps * combined**2,
    )


def _plan_of(part: Contraction, graph: FactorGraph) -> Plan:
    sizes = {
        name: size
        for i in part.members
        for name, size in zip(graph.terms[i].dims, graph.shape(graph.terms[i]), strict=True)
    }
    # Elements of no bytes: a plan above the memory budget can be looked at.
    return make_plan(part.dims, sizes, part.plates, keep_common_plates=True, element_size=0)


def _components(
    plan: Plan, part: Contraction, graph: FactorGraph, names: Mapping[Hashable, str], element_size: int
) -> list[Component]:
    count = len(plan.factors)
    component_of = {number: i for i, number in enumerate(plan.results)}
    for i in reversed(range(len(plan.steps))):  # a step's output has one user, or is a result
        for number in plan.steps[i].inputs:
            component_of[number] = component_of[count + i]
    factors: list[list[int]] = [[] for _ in plan.results]
    steps: list[list[int]] = [[] for _ in plan.results]
    for number, component in sorted(component_of.items()):
        (factors if number < count else steps)[component].append(number)

    def named(dims: tuple[Hashable, ...]) -> tuple[str, ...]:
        return named_variables(dims, names) + tuple(str(dim) for dim in dims if dim not in names)

    def described(number: int) -> ProgramStep:
        step = plan.steps[number - count]
        inputs = tuple(
            graph.sites[part.members[one]]["name"] if one < count else f"[{' '.join(named(plan.dims(one)))}]"
            for one in step.inputs
        )
        return ProgramStep(
            inputs, named(step.variables), named(step.plates), named(step.dims), plan.work(step)
        )

    found = []
    for own, own_steps, result in zip(factors, steps, plan.results, strict=True):
        described_steps = tuple(map(described, own_steps))
        scopes = [sorted(dim for dim in plan.dims(number) if dim in graph.variables) for number in own]
        variables = sorted({dim for scope in scopes for dim in scope})
        found.append(
            Component(
                factors=tuple(graph.sites[part.members[number]]["name"] for number in own),
                variables=named(tuple(variables)),
                steps=described_steps,
                result=named(plan.dims(result)),
                flops=sum(step.flops for step in described_steps),
                peak_bytes=_peak(plan, own_steps) * element_size,
                chain=_chain(variables, scopes, plan, names),
            )
        )
    return found


def _peak(plan: Plan, steps: list[int]) -> int:
    """Elements of intermediate tensors alive at one time during some of a plan's steps."""
    count = len(plan.factors)
    alive = most = 0
    for number in steps:
        step = plan.steps[number - count]
        alive += plan.volume(step.dims)
        most = max(most, alive)
        alive -= sum(plan.volume(plan.dims(one)) for one in step.inputs if one >= count)
    return most


def _chain(variables: list[Any], scopes: list[list[Any]], plan: Plan, names: Mapping[Hashable, str]) -> str:
    """Words for variables each of which is tied to a few before it only."""
    position = {variable: i for i, variable in enumerate(variables)}
    spans = [(position[scope[0]], position[scope[-1]]) for scope in scopes if len(scope) > 1]
    history = max((last - first for first, last in spans), default=0)
    tied = {last for _, last in spans}
    if history == 0 or len(variables) <= 2 * history or len(tied) < len(variables) - 1:
        return ""
    sizes = sorted({plan.sizes[variable] for variable in variables})
    size = f"{sizes[0]}" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
    before = "the one before" if history == 1 else f"the {history} before"
    return (
        f"chain of {len(variables):,} variables of size {size}, '{names[variables[0]]}' to"
        f" '{names[variables[-1]]}', each tied to {before}"
    )
