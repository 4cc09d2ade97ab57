"""Enumerated sites at values from their joint posterior, handed out while the program runs once more."""

from __future__ import annotations

from collections.abc import Container, Mapping
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from sumprod.handlers.messenger import Messenger
from sumprod.handlers.trace_struct import Trace
from sumprod.handlers.util import site_is_subsample
from sumprod.infer._enum_factors import FactorGraph
from sumprod.infer._enum_sites import site_term
from sumprod.infer._nesting import deepest_plate

__all__ = [
    "BackwardSampleMessenger",
    "SitePosterior",
    "SubsampleRecorder",
    "check_guide_is_not_enumerated",
    "settled_sites",
]


class SitePosterior:
    """The joint posterior of the sites that a trace enumerates.

    Attributes:
        sites: name -> enumerated site, in the order of the program.
    """

    def __init__(self, graph: FactorGraph, sites: Mapping[str, Any]) -> None:
        self._graph = graph
        self.sites = sites

    @classmethod
    def of_trace(cls, graph: FactorGraph, trace: Trace, known: Container[str] = ()) -> SitePosterior:
        """Of the enumerated sites of a trace that are not `known`; `graph` has their factors."""
        return cls(
            graph,
            {
                name: site
                for name, site in trace.nodes.items()
                if name not in known and site["type"] == "sample" and "_enumerate_dim" in site["infer"]
            },
        )

    def draw(self, maximise: bool = False) -> dict[str, Tensor]:
        """One joint draw, or the most probable assignment, of the shapes of an ordinary run.

        Raises:
            SupportError: no assignment is possible (when validating).
        """
        values = self._graph.draw(maximise) if self._graph.terms else {}
        return {
            name: values[name] if name in values else _only_value(site) for name, site in self.sites.items()
        }

    def given(self, values: Mapping[str, Any]) -> SitePosterior:
        """The posterior when these of the sites have these values."""
        old = self._graph
        graph = FactorGraph()
        graph.sites, graph.terms = list(old.sites), list(old.terms)
        graph.variables, graph.plates, graph.chains = old.variables, dict(old.plates), old.chains
        for name, value in values.items():
            term = site_term(self.sites[name], _indicator(self.sites[name], value))
            if graph.concerns(term):
                graph.add(self.sites[name], term)
        return SitePosterior(graph, self.sites)


def _indicator(site: Any, value: Any) -> Tensor:
    """Log of whether each value of an enumerated site's support is the given one."""
    support: Tensor = site["value"]
    equal = support == torch.as_tensor(value, device=support.device)
    event = len(site["fn"]._event_shape)
    if event:
        equal = equal.flatten(-event).all(-1)
    return torch.zeros(equal.shape, device=equal.device).masked_fill(~equal, -torch.inf)


def _only_value(site: Any) -> Tensor:
    """The value of a site whose support has one element, for each slice of its plates."""
    value: Tensor = site["value"]
    event = site["fn"]._event_shape
    sizes = {frame.dim: frame.size for frame in site["cond_indep_stack"] if frame.dim is not None}
    rank = max((-dim for dim in sizes), default=0)
    batch = value.shape[: value.dim() - len(event)]
    batch = batch[max(0, len(batch) - rank) :]
    plates = [max(sizes.get(dim, 1), 1) for dim in range(-rank, 0)]  # a plate without size has -1
    return value.reshape(batch + event).expand(torch.broadcast_shapes(batch, plates) + event)


def check_guide_is_not_enumerated(guide_trace: Trace, what: str) -> None:
    """Raise NotImplementedError when a guide enumerates a site, in parallel or sequentially."""
    for name, site in guide_trace.nodes.items():
        if site["type"] == "sample" and ("_enumerate_dim" in site["infer"] or "_enum_total" in site["infer"]):
            raise NotImplementedError(f"{what} is not compatible with guide enumeration, as at site '{name}'")


# ---- what is left of the first run


class SubsampleRecorder(Messenger):
    """Keeps the indices that subsampled plates draw, so that a second run has them too.

    Attributes:
        sites: name of the plate -> its site.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sites: dict[str, Any] = {}

    def _pyro_post_sample(self, msg: Any) -> None:
        if site_is_subsample(msg):
            self.sites[msg["name"]] = msg


def settled_sites(trace: Trace, subsampled: Mapping[str, Any]) -> Trace:
    """What a second run replays: indices of plates, and draws that the posterior is conditioned on.

    Left out are enumerated sites, and draws that vary along their dims: a second run makes those anew,
    given the values drawn for the enumerated sites.
    """
    kept = Trace()
    kept.nodes.update(subsampled)
    for name, site in trace.nodes.items():
        if site["type"] == "sample" and not site["is_observed"] and not _is_enumerated(site):
            kept.nodes[name] = site
    return kept


def _is_enumerated(site: Any) -> bool:
    """Whether a site's value has a dim of an enumerated variable."""
    if "_enumerate_dim" in site["infer"]:
        return True
    event = len(site["fn"]._event_shape)
    shape = site["value"].shape
    rank = len(shape) - event
    return any(rank >= -dim and shape[dim - event] > 1 for dim in site["infer"].get("_dim_to_id", ()))


# ---- the second run


class BackwardSampleMessenger(Messenger):
    """Runs a model with its enumerated sites drawn from their joint posterior.

    On entering, all enumerated sites of `enum_trace` are drawn together, in time linear in the length of a
    chain; each then gets its value when the program comes to it, and keeps its own distribution. What the
    posterior is conditioned on are the observations and the values of all other sites in `enum_trace`.

    Inside, the program runs once, usually replayed against the guide's trace, and not enumerated:
    - a site that another handler gives a value, or that is observed, keeps that value; sites after it are
      drawn given that value and all earlier ones;
    - a site that `enum_trace` does not enumerate is none of this handler's business;
    - each enumerated site must be visited, and only once.

    A messenger serves one run; the traces can be used again, for another draw.

    Args:
        enum_trace: trace of the model with its sites enumerated (`handlers.enum`), replayed against the
            guide. Whether it has densities, and whether these are packed, does not matter.
        guide_trace: trace of the guide; its sites are not drawn.

    Raises:
        NotImplementedError: the guide enumerates a site.
        SupportError: (on entering, or at a site) no assignment is possible, when validating.
        ValueError: (on entering) the messenger was used before; (at a site) it is visited twice, or
            enumerated again; (on leaving) enumerated sites were not visited. The handler has left the stack
            before it raises.

    References:
        Obermeyer et al. 2019, "Tensor Variable Elimination for Plated Factor Graphs".

    >>> import torch, sumprod
    >>> from sumprod import handlers
    >>> from sumprod.distributions import Categorical
    >>> def model():
    ...     z = sumprod.sample("z", Categorical(torch.tensor([0.5, 0.5])), infer={"enumerate": "parallel"})
    ...     sumprod.sample("x", Categorical(torch.eye(2)[z]), obs=torch.tensor(1))
    ...     return z
    >>> model_trace = handlers.trace(handlers.enum(model, first_available_dim=-1)).get_trace()
    >>> with BackwardSampleMessenger(model_trace, handlers.trace(lambda: None).get_trace()):
    ...     model()
    tensor(1)
    """

    def __init__(self, enum_trace: Trace, guide_trace: Trace) -> None:
        check_guide_is_not_enumerated(guide_trace, "BackwardSampleMessenger")
        fresh = _without_densities(enum_trace)
        graph = FactorGraph.of_trace(fresh, deepest_plate([fresh]), guide_trace.nodes)
        self._start(SitePosterior.of_trace(graph, fresh, guide_trace.nodes))

    @classmethod
    def of_posterior(cls, posterior: SitePosterior) -> BackwardSampleMessenger:
        """The same, from a posterior that is known already."""
        messenger = cls.__new__(cls)
        messenger._start(posterior)
        return messenger

    def _start(self, posterior: SitePosterior) -> None:
        super().__init__()
        self._posterior = posterior
        self._used = False
        self._known_values: dict[str, Tensor] = {}  # to be handed out
        self._visited: dict[str, Any] = {}
        self._stale = False  # whether a site has got another value than the one drawn for it

    def __enter__(self) -> BackwardSampleMessenger:
        if self._used:
            raise ValueError(
                "a BackwardSampleMessenger serves one run of a program, and this one was used before: make"
                " a new one for each draw; the traces can be the same"
            )
        self._used = True
        self._known_values = self._posterior.draw()
        super().__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        result = super().__exit__(kind, error, traceback)
        missing = [name for name in self._posterior.sites if name not in self._visited]
        if kind is None and missing:
            raise ValueError(
                f"BackwardSampleMessenger: of the enumerated sites, {', '.join(map(repr, missing))} were not"
                " visited. Inside the `with` block, run the program that the trace was made from, with the"
                " same arguments, and do not hide its sites from this handler"
            )
        return result

    def _pyro_sample(self, msg: Any) -> None:
        name = msg["name"]
        if name not in self._posterior.sites:
            return
        if name in self._visited:
            raise ValueError(
                f"BackwardSampleMessenger: site '{name}' is visited twice; run the program once, and make a"
                " new messenger for another draw"
            )
        if "_enumerate_dim" in msg["infer"]:
            raise ValueError(
                f"BackwardSampleMessenger: site '{name}' is enumerated again; inside the `with` block, run"
                " the program without handlers.enum, and replayed against the guide's trace at most"
            )
        if msg["done"] or msg["is_observed"] or msg["value"] is not None:
            return
        if self._stale:
            self._known_values = self._posterior.given(self._visited).draw()
            self._stale = False
        msg["value"] = self._known_values[name]
        msg["done"] = True

    def _pyro_post_sample(self, msg: Any) -> None:
        name = msg["name"]
        if name in self._posterior.sites:
            value = self._visited[name] = msg["value"]
            self._stale = self._stale or not _same(value, self._known_values[name])


def _same(value: Any, drawn: Tensor) -> bool:
    return value is drawn or (isinstance(value, Tensor) and torch.equal(value, drawn))


def _without_densities(trace: Trace) -> Trace:
    """Sample sites of a user's trace, whose densities are to be computed as a factor graph needs them.

    `Trace.compute_log_prob` masks enumerated sites too, and no others in `unscaled_log_prob`.
    """
    fresh = Trace()
    for name, site in trace.nodes.items():
        if site["type"] == "sample" and not site_is_subsample(site):
            fresh.nodes[name] = {**site, "unscaled_log_prob": None}
    return fresh
