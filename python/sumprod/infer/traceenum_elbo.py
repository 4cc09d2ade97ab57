"""The evidence lower bound with discrete variables summed out exactly."""

from __future__ import annotations

import math
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from sumprod._numeric import warn_if_nan
from sumprod.distributions.util import is_identically_zero
from sumprod.handlers import EnumMessenger, block, queue, replay, trace
from sumprod.handlers.trace_struct import Trace
from sumprod.handlers.util import prune_subsample_sites, site_is_subsample
from sumprod.infer._backward_sample import (
    BackwardSampleMessenger,
    SitePosterior,
    SubsampleRecorder,
    check_guide_is_not_enumerated,
    settled_sites,
)
from sumprod.infer._calling import call_method, either_convention
from sumprod.infer._checks import check_model_guide_match
from sumprod.infer._dice import expectation
from sumprod.infer._enum_elimination import eliminate, is_one, scaled, shared_scale
from sumprod.infer._enum_factors import FactorGraph
from sumprod.infer._enum_groups import site_terms
from sumprod.infer._enum_guide import guide_terms, masked_term
from sumprod.infer._enum_marginals import site_marginals
from sumprod.infer._enum_requirements import check_guide_dependencies
from sumprod.infer._enum_sites import Term
from sumprod.infer._nesting import deepest_plate
from sumprod.infer._program_plan import ProgramPlan, plan_of_graph, run_hidden, variable_names
from sumprod.infer.elbo import ELBO, Arguments, Keywords, Program
from sumprod.infer.enum import iter_discrete_escape, iter_discrete_extend
from sumprod.infer.util import torch_item
from sumprod.ops._plan import memory_budget
from sumprod.settings import state

__all__ = ["BackwardSampleMessenger", "TraceEnum_ELBO"]

Pair = tuple[Trace, Trace]


class _Stack(list[Trace]):
    """The branches of a guide that are still to be run, as `queue` wants them; for one thread only."""

    put = list.append
    get = list.pop

    def empty(self) -> bool:
        return not self


class TraceEnum_ELBO(ELBO):
    """The evidence lower bound, where sites marked for enumeration are summed out instead of sampled.

    Sites are marked by `config_enumerate` or `infer={"enumerate": "parallel"}`. In the model, that is for
    latent sites that the guide does not have: the bound is then one on the evidence of the remaining
    variables, tighter and with less noise. In the guide, the expectation over a site's values is exact
    ("parallel" in one run, "sequential" in one run per combination), or an average of independent samples
    (`num_samples`). Other guide sites are sampled, with the score function estimator in a form that can be
    differentiated any number of times.

    A mask is applied inside the sum over values, a scale outside of it; all sites around enumerated
    variables of the model must have one scale. A mask on an enumerated site itself has no effect: the
    variable then follows its prior, and contributes nothing unless something observed depends on it.

    Arguments are those of `ELBO`.

    References:
        Obermeyer et al. 2019, "Tensor Variable Elimination for Plated Factor Graphs".
        Foerster et al. 2018, "DiCE: The Infinitely Differentiable Monte Carlo Estimator".

    >>> import torch, sumprod
    >>> from sumprod.distributions import Bernoulli, Normal
    >>> def model(x):
    ...     z = sumprod.sample("z", Bernoulli(0.5), infer={"enumerate": "parallel"})
    ...     sumprod.sample("x", Normal(4 * z - 2, 1.), obs=x)
    >>> def guide(x):
    ...     pass
    >>> round(TraceEnum_ELBO().loss(model, guide, torch.tensor(2.)), 4)  # -log (N(2; -2) + N(2; 2)) / 2
    1.6118
    """

    _check_scopes = True  # look for dependences on variables out of sight, in the first runs of a program

    # ---- traces

    @either_convention
    def _get_trace(self, model: Program, guide: Program, args: Arguments, kwargs: Keywords) -> Pair:
        """A pair (model trace, guide trace); the guide allocates dims for enumeration, then the model."""
        guide_trace = trace(guide).get_trace(*args, **kwargs)
        enumerated = EnumMessenger()
        enumerated._replayed = guide_trace.nodes
        enumerated._checked = self._check_scopes and state.validate_infer
        program = replay(enumerated(model), trace=guide_trace)
        model_trace = trace(program).get_trace(*args, **kwargs)
        self._check_marks(model_trace, guide_trace)
        if state.validate_infer:
            check_model_guide_match(model_trace, guide_trace, self.max_plate_nesting)
            check_guide_dependencies((model_trace, guide_trace), guide_trace)
        pair = tuple(
            prune_subsample_sites(one) if any(map(site_is_subsample, one.nodes.values())) else one
            for one in (model_trace, guide_trace)
        )
        deepest = deepest_plate(pair)
        if deepest > self.max_plate_nesting:
            raise ValueError(
                f"plate stack overflow: max_plate_nesting={self.max_plate_nesting}\n"
                f"Try increasing max_plate_nesting to at least {deepest}"
            )
        return pair  # type: ignore[return-value]

    @either_convention
    def _get_traces(
        self, model: Program, guide: Program, args: Arguments, kwargs: Keywords
    ) -> Iterator[Pair]:
        """Pairs whose expectations are added up: per particle one, or one per sequential combination."""
        self._need_max_plate_nesting(model, guide, args, kwargs)
        pairs = self._iter_traces(model, guide, args, kwargs)
        try:
            first = next(pairs)
        except ValueError:
            # The remembered depth may be too small for these arguments.
            before = self.max_plate_nesting
            if self._nesting_given:
                raise
            call_method(self, "_guess_max_plate_nesting", model, guide, args, kwargs)
            if self.max_plate_nesting <= before:
                raise
            pairs = self._iter_traces(model, guide, args, kwargs)
            first = next(pairs)
        yield first
        yield from pairs

    def _iter_traces(
        self, model: Program, guide: Program, args: Arguments, kwargs: Keywords
    ) -> Iterator[Pair]:
        at_once = bool(self._particle_dims())
        if at_once:
            model = self._vectorized_num_particles(model)
            guide = self._vectorized_num_particles(guide)
        partial = _Stack()
        enumerated = EnumMessenger(first_available_dim=-1 - int(self.max_plate_nesting))
        enumerated._vectorizes = False  # a guide's sites get their names step by step
        enumerated._checked = self._check_scopes and state.validate_infer
        guide = queue(
            enumerated(guide),
            queue=partial,
            escape_fn=iter_discrete_escape,
            extend_fn=iter_discrete_extend,
        )
        for _ in range(1 if at_once else self.num_particles):
            partial.put(Trace())
            while not partial.empty():
                yield call_method(self, "_get_trace", model, guide, args, kwargs)

    def _check_marks(self, model_trace: Trace, guide_trace: Trace) -> None:
        marked = False
        for one in (guide_trace, model_trace):
            for name, site in one.nodes.items():
                if site["type"] != "sample" or site["is_observed"]:
                    continue
                mark = site["infer"].get("enumerate")
                marked = marked or bool(mark)
                if mark == "sequential" and one is model_trace and name not in guide_trace:
                    raise NotImplementedError(
                        f"At site '{name}', model-side sequential enumeration is not implemented. Use"
                        " infer={'enumerate': 'parallel'}, or sample the site in the guide"
                    )
        if not marked and self.strict_enumeration_warning and state.validate_infer:
            warnings.warn(
                "TraceEnum_ELBO found no sample sites configured for enumeration. If you want to enumerate"
                ' sites, use @config_enumerate or infer={"enumerate": "parallel"}. If you do not want to'
                " enumerate, consider using Trace_ELBO instead, or strict_enumeration_warning=False.",
                UserWarning,
                stacklevel=2,
            )

    # ---- one pair of traces

    def _model_terms(self, model_trace: Trace, guide_trace: Trace) -> tuple[list[Term], FactorGraph]:
        """Terms of log p that depend on no enumerated variable of the model, and the graph of the others."""
        graph = FactorGraph()
        sites = [site for site in model_trace.nodes.values() if site["type"] == "sample"]
        for site in sites:
            if site["name"] not in guide_trace.nodes:
                graph.declare(site)
        terms = site_terms(model_trace, sites, graph.variables, self.max_plate_nesting)
        costs = []
        for site, term in zip(sites, terms, strict=True):
            if site["name"] in guide_trace.nodes:
                term = masked_term(model_trace, site, term)
            if graph.concerns(term):
                graph.add(site, term)
            elif site["mask"] is not False:
                costs.append(scaled(site, term))
        return costs, graph

    def _model_costs(self, model_trace: Trace, guide_trace: Trace) -> tuple[list[Term], FactorGraph]:
        """Terms of log p, with the model's enumerated variables summed out."""
        costs, graph = self._model_terms(model_trace, guide_trace)
        if graph.terms:
            scale = shared_scale(graph)
            with memory_budget(self.memory_budget):
                left = eliminate(graph, guide_trace)
            costs += [term if is_one(scale) else term._replace(tensor=term.tensor * scale) for term in left]
        return costs, graph

    def _elbo(self, pair: Pair) -> tuple[Any, FactorGraph]:
        """The bound: its value, whose derivatives of any order estimate those of its expectation."""
        costs, graph = self._model_costs(*pair)
        guide_costs, factors = guide_terms(pair[1], self.max_plate_nesting)
        return expectation(factors, [*costs, *guide_costs]), graph

    def _value(self, elbo: Any, graph: FactorGraph) -> float:
        value = -torch_item(elbo) + 0.0  # -0.0 becomes 0.0
        if value == math.inf and graph.terms and state.validate_infer and not graph._is_possible():
            raise graph.blame()
        return value

    # ---- losses

    def loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """An estimate of minus the evidence lower bound.

        Raises:
            SupportError: no assignment of the model's enumerated variables is possible (when validating).
        """
        loss = 0.0
        for pair in call_method(self, "_get_traces", model, guide, args, kwargs):
            loss += self._value(*self._elbo(pair)) / self.num_particles
        warn_if_nan(loss, "loss")
        return loss + 0.0

    def differentiable_loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        """The loss as a scalar tensor; its derivatives of any order estimate those of its expectation.

        Raises:
            ValueError: there is no site, so that there is nothing to differentiate.
            SupportError: no assignment of the model's enumerated variables is possible (when validating).
        """
        total: Any = 0.0
        for pair in call_method(self, "_get_traces", model, guide, args, kwargs):
            elbo, graph = self._elbo(pair)
            if is_identically_zero(elbo):
                continue
            if state.validate_infer:
                self._value(elbo.detach(), graph)
            total = total - elbo / self.num_particles
        if not isinstance(total, Tensor):
            raise ValueError("ELBO is cannot be differentiated: model and guide have no sample sites")
        return warn_if_nan(total, "loss") if state.validate_infer else total

    def loss_and_grads(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """`loss`, while gradients are added to the `grad` of every leaf it depends on.

        `backward` runs once per pair of traces, with `retain_graph`, and not at all when nothing
        requires grad.
        """
        loss = 0.0
        for pair in call_method(self, "_get_traces", model, guide, args, kwargs):
            elbo, graph = self._elbo(pair)
            loss += self._value(elbo, graph) / self.num_particles
            if isinstance(elbo, Tensor) and elbo.requires_grad:
                (-elbo / self.num_particles).backward(retain_graph=self.retain_graph)
        warn_if_nan(loss, "loss")
        return loss + 0.0

    # ---- posteriors of the enumerated variables

    def compute_marginals(
        self, model: Program, guide: Program, *args: Any, **kwargs: Any
    ) -> OrderedDict[str, Any]:
        """Posterior marginals of the model's enumerated sites, given data and the guide's draws.

        Returns:
            name -> distribution whose batch shape is that of the site's plates. Bernoulli, Categorical and
            OneHotCategorical sites keep their family; others get a `FiniteSupport`.

        Raises:
            NotImplementedError: there are several particles, or the guide enumerates a site.
            SupportError: no assignment of the variables is possible (when validating).
        """
        pair = self._only_pair("compute_marginals", model, guide, args, kwargs)
        graph = FactorGraph.of_trace(pair[0], self.max_plate_nesting, pair[1].nodes)
        with memory_budget(self.memory_budget):
            return site_marginals(graph, pair[0], pair[1].nodes)

    def sample_posterior(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Any:
        """Run the model with its enumerated sites drawn from their joint posterior; returns its result.

        The posterior is conditioned on the guide's draws, on the indices of subsampled plates, and on the
        model's other draws that do not depend on an enumerated site; the run has these too. Handlers around
        the call see this run only.

        Raises:
            As `compute_marginals`.
        """
        recorder = SubsampleRecorder()
        with block(), recorder, warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Found vars in model but not guide")
            pair = self._only_pair("sample_posterior", model, guide, args, kwargs)
        graph = FactorGraph.of_trace(pair[0], self.max_plate_nesting, pair[1].nodes)
        posterior = SitePosterior.of_trace(graph, pair[0], pair[1].nodes)
        with memory_budget(self.memory_budget), BackwardSampleMessenger.of_posterior(posterior):
            return replay(model, trace=settled_sites(pair[0], recorder.sites))(*args, **kwargs)

    # ---- cost

    def plan(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> ProgramPlan:
        """How the model's enumerated variables would be summed out, and what that costs.

        Guide and model are run, as by `sumprod.explain`, which shows more; nothing is summed out.

        >>> import torch, sumprod
        >>> from sumprod.distributions import Bernoulli, Normal
        >>> def model(x):
        ...     z = sumprod.sample("z", Bernoulli(0.5), infer={"enumerate": "parallel"})
        ...     sumprod.sample("x", Normal(4 * z - 2, 1.), obs=x)
        >>> TraceEnum_ELBO().plan(model, lambda x: None, torch.tensor(2.))
        plan: 2 factors, 1 component, 1 step, 4 flops, 4 bytes of intermediate float32
        component 1: 1 variable, 2 factors, 1 step, 4 flops, 4 bytes; result []
          sum  multiply along  of   to  flops
          z    -               z x  []  4
        """
        pair, _ = run_hidden(self, model, guide, args, kwargs)
        _, graph = self._model_terms(*pair)
        return plan_of_graph(graph, pair[1], variable_names(*pair))

    def _only_pair(
        self, what: str, model: Program, guide: Program, args: Arguments, kwargs: Keywords
    ) -> Pair:
        if self.num_particles != 1:
            raise NotImplementedError(f"TraceEnum_ELBO.{what}() is not compatible with multiple particles")
        pair: Pair = next(iter(call_method(self, "_get_traces", model, guide, args, kwargs)))
        check_guide_is_not_enumerated(pair[1], f"TraceEnum_ELBO.{what}()")
        return pair
