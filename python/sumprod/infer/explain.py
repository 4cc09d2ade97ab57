"""What happens when a program with enumerated variables is run, and what it costs."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any

from torch import Tensor

from sumprod._tables import listed
from sumprod.distributions import ExpandedDistribution, Independent, MaskedDistribution
from sumprod.handlers.markov_chain import recorded_chain
from sumprod.handlers.trace_struct import Trace
from sumprod.handlers.util import site_is_factor
from sumprod.infer._calling import split_arguments
from sumprod.infer._enum_elimination import shared_scale
from sumprod.infer._enum_factors import FactorGraph
from sumprod.infer._enum_sites import named_dims, support_size
from sumprod.infer._explanation import EnumeratedVariable, Explanation, Factor, Plate, Site
from sumprod.infer._program_plan import (
    ProgramPlan,
    named_variables,
    plan_of_graph,
    run_hidden,
    variable_names,
)
from sumprod.infer.traceenum_elbo import TraceEnum_ELBO
from sumprod.infer.util import has_default_score_parts
from sumprod.settings import state

__all__ = ["explain"]

WIDE_FACTOR = 3  # variables
MAIN_STEP = 0.5  # share of the flops
MOST_NAMED = 5  # notes of one kind


def explain(model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any) -> Explanation:
    """Describe a program as `TraceEnum_ELBO` sees it: sites, plates, factors, the plan and its cost.

    Guide and model run under enumeration (twice: once to see how deep plates are nested). Handlers around
    the call see nothing of it. Random generators and the parameter store are afterwards as they were: also
    parameters that the programs create are gone again. Modules that set themselves up when first called,
    such as automatic guides, stay set up. Nothing is summed out, so that a program can be looked at that
    is too large to run.

    Args:
        model: the model.
        guide: the guide; `lambda *args: None` when everything latent is enumerated in the model.
        args: the programs' arguments, as in `loss(model, guide, *args, **kwargs)`; or packed, as
            `explain(model, guide, (x, y), {"n": 3})` or with keywords, `args=(x, y), kwargs={"n": 3}`.
            Keywords `args` and `kwargs` alone, and a tuple and a dict alone, are always taken as packed.
        kwargs: their keyword arguments.

    Returns:
        An `Explanation`, with fields `sites`, `plates`, `variables`, `factors`, `plan` and `notes`. It
        prints as tables, in which rows that repeat are written once; `table(full=True)` shows all.

    Raises:
        What the programs raise, and ValueError where shapes do not suit plates. What a loss would refuse
        later (plates that are not nested as a tree, unequal scales) is in `notes` instead.

    >>> import torch, sumprod
    >>> from sumprod.distributions import Bernoulli, Normal
    >>> def model(x):
    ...     fair = sumprod.sample("fair", Bernoulli(0.5), infer={"enumerate": "parallel"})
    ...     with sumprod.plate("data", len(x)):
    ...         sumprod.sample("x", Normal(4 * fair - 2, 1.), obs=x)
    >>> explain(model, lambda x: None, torch.zeros(3))
    model site  distribution  event  batch          plates  role
    fair        Bernoulli     ()     -              -       enumerated
    x           Normal        ()     fair=2 data=3  data    observed
    <BLANKLINE>
    plate  dim  size  of
    data   -1   3     -
    <BLANKLINE>
    variable  enumerated in  size  dim  id
    fair      model          2     -2   0
    <BLANKLINE>
    factor  variables  plates  elements
    fair    fair       -       2
    x       fair       -       2
    <BLANKLINE>
    plan: 2 factors, 1 component, 1 step, 4 flops, 4 bytes of intermediate float32
    component 1: 1 variable, 2 factors, 1 step, 4 flops, 4 bytes; result []
      sum   multiply along  of      to  flops
      fair  -               fair x  []  4
    """
    model_args, model_kwargs = _unpack(args, kwargs)
    elbo = TraceEnum_ELBO(strict_enumeration_warning=False)
    elbo._check_scopes = False  # which would spread dims, and show others than most runs have
    (model_trace, guide_trace), warned = run_hidden(elbo, model, guide, model_args, model_kwargs)
    _, graph = elbo._model_terms(model_trace, guide_trace)
    names = variable_names(model_trace, guide_trace)
    plan = plan_of_graph(graph, guide_trace, names)
    return Explanation(
        sites=tuple(_sites(model_trace, guide_trace, names)),
        plates=tuple(_plates(model_trace, guide_trace)),
        variables=tuple(_variables(model_trace, guide_trace)),
        factors=tuple(_factors(graph, names)),
        plan=plan,
        notes=(
            *_notes_on_plan(graph, plan, names),
            *_notes_on_model(graph),
            *_notes_on_chains(model_trace, plan),
            *_notes_on_guide(guide_trace),
            *(f"warning: {' '.join(text.split())}" for text in warned),
        ),
    )


def _unpack(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
    if not args and kwargs and kwargs.keys() <= {"args", "kwargs"}:
        return tuple(kwargs.get("args", ())), kwargs.get("kwargs") or {}
    return split_arguments(args, kwargs)


# ---- tables


def _samples(trace: Trace) -> list[Any]:
    return [site for site in trace.nodes.values() if site["type"] == "sample"]


def _sites(model_trace: Trace, guide_trace: Trace, names: Mapping[Hashable, str]) -> Iterator[Site]:
    for site in _samples(model_trace):
        yield _described(site, "model", _model_role(site, guide_trace), names)
    for site in _samples(guide_trace):
        role = _guide_role(site)
        if site["infer"].get("is_auxiliary"):
            role += ", auxiliary"
        yield _described(site, "guide", role, names)


def _described(site: Any, program: str, role: str, names: Mapping[Hashable, str]) -> Site:
    fn, scale = site["fn"], site["scale"]
    return Site(
        name=site["name"],
        program=program,
        distribution=type(_base(fn)).__name__,
        batch_shape=tuple(getattr(fn, "batch_shape", ())),
        batch_dims=tuple(_batch_dims(site, names)),
        event_shape=tuple(getattr(fn, "event_shape", ())),
        role=role,
        plates=tuple(frame.name for frame in site["cond_indep_stack"]),
        scale=_scale_text(scale),
        mask=_mask_text(site),
    )


def _batch_dims(site: Any, names: Mapping[Hashable, str]) -> Iterator[str]:
    shape = getattr(site["fn"], "batch_shape", ())
    owners, _ = named_dims(site)
    for dim in range(-len(shape), 0):
        if shape[dim] != 1:
            owner = owners.get(dim)
            yield f"{'?' if owner is None else names.get(owner, owner)}={shape[dim]}"


def _base(fn: Any) -> Any:
    while isinstance(fn, MaskedDistribution | ExpandedDistribution | Independent):
        fn = fn.base_dist
    return fn


def _scale_text(scale: Any) -> str:
    if isinstance(scale, Tensor):
        return f"{scale.item():g}" if scale.numel() == 1 else f"tensor {tuple(scale.shape)}"
    return "" if scale == 1.0 else f"{scale:g}"


def _mask_text(site: Any) -> str:
    mask = site["mask"]
    if mask is None:
        fn = site["fn"]
        while isinstance(fn, ExpandedDistribution | Independent):
            fn = fn.base_dist
        return "of distribution" if isinstance(fn, MaskedDistribution) else ""
    return f"tensor {tuple(mask.shape)}" if isinstance(mask, Tensor) else str(mask)


def _model_role(site: Any, guide_trace: Trace) -> str:
    if site["infer"].get("_deterministic"):
        return "deterministic"
    if site["is_observed"]:
        return "factor" if site_is_factor(site) else "observed"
    if site["name"] in guide_trace:
        return "value from the guide"
    if "_enumerate_dim" in site["infer"]:
        count = site["infer"].get("num_samples")
        return "enumerated" if count is None else f"{count} samples"
    return "drawn from the prior"


def _guide_role(site: Any) -> str:
    infer = site["infer"]
    if site["is_observed"]:
        return "factor" if site_is_factor(site) else "observed"
    if infer.get("_enum_total") is not None:
        return f"enumerated, {infer['_enum_total']} runs"
    if "_enumerate_dim" in infer:
        count = infer.get("num_samples")
        return "enumerated" if count is None else f"{count} samples"
    return "score function" if _has_score(site) else "reparameterised"


def _has_score(site: Any) -> bool:
    fn = site["fn"]
    return not (has_default_score_parts(fn) and fn.has_rsample)


def _plates(model_trace: Trace, guide_trace: Trace) -> list[Plate]:
    found = {}
    for site in (*_samples(model_trace), *_samples(guide_trace)):
        for frame in site["cond_indep_stack"]:
            found[frame.name] = Plate(frame.name, frame.dim, frame.size, frame.full_size)
    return sorted(found.values(), key=lambda plate: -math.inf if plate.dim is None else plate.dim)


def _variables(model_trace: Trace, guide_trace: Trace) -> Iterator[EnumeratedVariable]:
    for site in _samples(guide_trace):
        if "_enumerate_dim" in site["infer"]:
            yield _variable(site, "guide")
    for site in _samples(model_trace):
        if "_enumerate_dim" in site["infer"] and site["name"] not in guide_trace:
            yield _variable(site, "model")


def _variable(site: Any, program: str) -> EnumeratedVariable:
    dim = site["infer"]["_enumerate_dim"]
    size = support_size(site)
    assert size is not None
    return EnumeratedVariable(site["name"], program, size, dim, site["infer"]["_dim_to_id"][dim])


def _factors(graph: FactorGraph, names: Mapping[Hashable, str]) -> Iterator[Factor]:
    for site, term in zip(graph.sites, graph.terms, strict=True):
        yield Factor(
            site=site["name"],
            variables=named_variables(term.dims, names),
            plates=tuple(frame.name for frame in site["cond_indep_stack"] if frame.name in term.ordinal),
            elements=math.prod(graph.shape(term)),
        )


# ---- notes


def _notes_on_plan(graph: FactorGraph, plan: ProgramPlan, names: Mapping[Hashable, str]) -> Iterator[str]:
    if not graph.variables:
        yield "the model enumerates nothing: what the guide does not have is drawn, not summed out"
    if plan.refusal is not None:
        yield from _notes_on_joins(graph)
    wide = [factor for factor in _factors(graph, names) if len(factor.variables) >= WIDE_FACTOR]
    for factor in sorted(wide, key=lambda factor: -factor.elements)[:MOST_NAMED]:
        yield (
            f"wide factor: site '{factor.site}' depends on {len(factor.variables)} enumerated variables"
            f" ({listed(factor.variables)}): {factor.elements:,} elements"
        )
    steps = [step for component in plan.components for step in component.steps]
    if len(steps) >= 3:
        main = max(steps, key=lambda step: step.flops)
        if main.flops >= MAIN_STEP * plan.flops:
            what = f"summing out {listed(main.variables)}" if main.variables else "one product"
            yield f"{what} takes {main.flops / plan.flops:.0%} of the flops"
    budget = state.memory_budget
    if budget is not None and plan.peak_bytes > budget:
        yield f"the loss will be refused: {plan.peak_bytes:,} bytes are above memory_budget={budget:,}"


def _notes_on_joins(graph: FactorGraph) -> Iterator[str]:
    """Sites that depend on variables from different branches of plates."""
    plates = {
        variable: frozenset(frame.name for frame in site["cond_indep_stack"] if frame.dim is not None)
        for variable, site in graph.variables.items()
    }
    for site, term in zip(graph.sites, graph.terms, strict=True):
        own = [variable for variable in term.dims if variable in plates]
        for one in own:
            for other in own:
                if plates[one] - plates[other] and plates[other] - plates[one] and one < other:
                    first, second = graph.variables[one], graph.variables[other]
                    yield (
                        f"site '{site['name']}' ties '{first['name']}' (in {listed(sorted(plates[one]))}) to"
                        f" '{second['name']}' (in {listed(sorted(plates[other]))}): sample one of the two in"
                        " the guide, or loop over one of the plates"
                    )


def _notes_on_model(graph: FactorGraph) -> Iterator[str]:
    try:
        if graph.terms:
            shared_scale(graph)
    except ValueError as error:
        yield f"the loss will be refused: {error}"
    off = [site["name"] for site in graph.sites if site["mask"] is False and site["is_observed"]]
    if off:
        yield f"masked out altogether, yet factors of ones: {listed(off)}; a program can skip such sites"
    shown = [site for site in graph.variables.values() if "_auxiliary" not in site["infer"]]
    masked = [site["name"] for site in shown if _mask_text(site)]
    if masked:
        yield f"masks on enumerated sites have no effect: {listed(masked)}"
    for members in graph.components():
        component = [graph.sites[i] for i in members]
        if not any(site["is_observed"] for site in component):
            names = [site["name"] for site in component]
            yield f"nothing observed depends on {listed(names)}: summing out adds nothing"


def _notes_on_chains(model_trace: Trace, plan: ProgramPlan) -> Iterator[str]:
    for chain in dict.fromkeys(map(recorded_chain, _samples(model_trace))):
        if chain is not None and chain.reason is not None:
            yield f"the steps of chain '{chain.name}' run one by one: {chain.reason}"
    if any(component.chain for component in plan.components) and any(
        "_markov_step" in site["infer"] and "_chain" not in site["infer"] for site in _samples(model_trace)
    ):
        yield "the steps of a loop in markov run one by one; those of vectorized_markov would run at once"


def _notes_on_guide(guide_trace: Trace) -> Iterator[str]:
    sites = _samples(guide_trace)
    totals = {site["name"]: site["infer"].get("_enum_total") for site in sites}
    sequential = {name: total for name, total in totals.items() if total is not None}
    if sequential:
        yield (
            f"sequential enumeration of {listed(list(sequential))} takes {math.prod(sequential.values()):,}"
            " runs of guide and model; this is the first"
        )
    score = [site for site in sites if _guide_role(site) == "score function"]
    possible = [site["name"] for site in score if getattr(site["fn"], "has_enumerate_support", False)]
    others = [site["name"] for site in score if site["name"] not in possible]
    if possible:
        yield f"gradient estimated by the score function, could be enumerated instead: {listed(possible)}"
    if others:
        yield f"gradient estimated by the score function: {listed(others)}"
