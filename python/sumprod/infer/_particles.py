"""Many runs of a program at once: a plate of particles around it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sumprod._random import preserve_rng_state
from sumprod.handlers import block, replay, trace
from sumprod.handlers.plate import plate
from sumprod.handlers.trace_struct import Trace
from sumprod.handlers.util import prune_subsample_sites, site_is_subsample
from sumprod.infer._trace_sequence import TraceSequence

__all__ = ["ParticleTraces", "per_particle", "run_particles"]

PLATE = "num_particles_vectorized"


def run_particles(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    count: int,
    max_plate_nesting: int,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> tuple[Trace, Trace, dict[str, Tensor], dict[str, Tensor]]:
    """Guide and replayed model, run once for `count` particles.

    The particles are a plate at dim -max_plate_nesting - 1.

    Returns:
        Trace of the model, trace of the guide, and for each the log-densities of its sites, shape
        (count,). Plate indices are not among the sites of the traces.
    """

    def inside(fn: Callable[..., Any]) -> Callable[..., Any]:
        def vectorized(*args: Any, **kwargs: Any) -> Any:
            with plate(PLATE, count, dim=-max_plate_nesting - 1):
                return fn(*args, **kwargs)

        return vectorized

    guide_trace = trace(inside(guide)).get_trace(*args, **kwargs)
    model_trace = trace(replay(inside(model), trace=guide_trace)).get_trace(*args, **kwargs)
    traces = [model_trace, guide_trace]
    for one in traces:
        one.remove_node(PLATE)
    sums = []
    for one in map(prune_subsample_sites, traces):
        one.compute_log_prob()
        sums.append(
            {
                name: per_particle(site["log_prob"], count, max_plate_nesting)
                for name, site in one.nodes.items()
                if site["type"] == "sample"
            }
        )
    return model_trace, guide_trace, sums[0], sums[1]


def per_particle(log_prob: Tensor, count: int, max_plate_nesting: int) -> Tensor:
    """Log-densities summed over all dims but that of the particles, shape (count,)."""
    axis = log_prob.dim() - 1 - max_plate_nesting
    if axis < 0:  # the same for all particles
        return log_prob.sum().expand(count)
    others = [dim for dim in range(log_prob.dim()) if dim != axis]
    return (log_prob.sum(others) if others else log_prob).expand(count)


class ParticleTraces(TraceSequence):
    """The particles of one vectorised run, as a sequence of ordinary traces.

    Latent values are kept as the run made them. A trace is put together when asked for, by running
    the model with the values of its particle: model and arguments are kept, too.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        model_trace: Trace,
        count: int,
        max_plate_nesting: int,
        detach: bool,
    ) -> None:
        self._model, self._args, self._kwargs = model, args, kwargs
        self._count = count
        self._nesting = max_plate_nesting
        latent = {name: site for name, site in model_trace.nodes.items() if _is_latent(site)}
        self._values: dict[str, Tensor] = {
            name: site["value"].detach() if detach else site["value"] for name, site in latent.items()
        }
        self._sites = {name: _layout_of(site) for name, site in latent.items()}
        self._detach = detach
        self._first: Trace | None = None

    def __len__(self) -> int:
        return self._count

    def _trace(self, number: int) -> Trace:
        source = Trace()
        for name, site in self._sites.items():
            value = self._values[name]
            if not site["subsample"]:
                value = _drop_left(self._by_particle(name)[number], site["batch_dim"] + site["event_dim"])
            source.add_node(name, type="sample", is_observed=False, value=value, infer=site["infer"])
        with preserve_rng_state(), block(), torch.set_grad_enabled(not self._detach):
            one: Trace = trace(replay(self._model, trace=source)).get_trace(*self._args, **self._kwargs)
        return one

    def _by_particle(self, name: str) -> Tensor:
        """Latent values with the particles leftmost: (count,) + plates + event."""
        value: Tensor = self._values[name]
        axis = value.dim() - 1 - self._nesting - self._sites[name]["event_dim"]
        if axis < 0:
            return value.expand(self._count, *value.shape)
        value = value.movedim(axis, 0)
        return value.expand(self._count, *value.shape[1:])

    def site(self, index: int, name: str) -> dict[str, Any]:
        """One site of trace `index`.

        Raises:
            KeyError: there is no such site.
        """
        one = self._layout() if index == 0 else self[index]
        if name not in one:
            raise KeyError(f"no site '{name}' in trace {index}: its sites are {list(one.nodes)}")
        return one.nodes[name]  # type: ignore[no-any-return]

    def _layout(self) -> Trace:
        if self._first is None:
            self._first = self[0]
        return self._first

    def stack(self, name: str) -> Tensor:
        """The values of a site in all traces, (count,) + value shape.

        A site that is not latent (deterministic, observed, "_RETURN") takes one run per particle.
        """
        first = self.site(0, name).get("value")
        if not isinstance(first, Tensor):
            raise TypeError(
                f"the value of site '{name}' is not a tensor but {type(first).__name__}: only tensors have an"
                " empirical distribution"
            )
        if name not in self._sites:
            return torch.stack([self.site(index, name)["value"] for index in range(self._count)])
        if self._sites[name]["subsample"]:
            return first.expand(self._count, *first.shape)
        return self._by_particle(name).reshape(self._count, *first.shape)

    def groups(self) -> list[list[int]]:
        """All traces have one structure."""
        return [list(range(self._count))] if self._count else []

    def representatives(self) -> list[Trace]:
        """The first trace."""
        return [self._layout()] if self._count else []

    def stack_group(self, index: int, name: str) -> Tensor:
        """The values of a site in all traces."""
        return self.stack(name)

    def __eq__(self, other: object) -> bool:
        return self is other

    __hash__ = None  # type: ignore[assignment]


def _is_latent(site: Any) -> bool:
    return bool(site["type"] == "sample" and not site["is_observed"])


def _layout_of(site: Any) -> dict[str, Any]:
    """What is needed to cut a latent value into particles."""
    plates = [
        -frame.dim for frame in site["cond_indep_stack"] if frame.dim is not None and frame.name != PLATE
    ]
    return {
        "infer": site["infer"],
        "subsample": site_is_subsample(site),
        "batch_dim": max(plates, default=0),
        "event_dim": len(getattr(site["fn"], "event_shape", ())),
    }


def _drop_left(value: Tensor, least: int) -> Tensor:
    """Without leftmost dims of size 1, which the particle plate has made, down to `least` dims."""
    extra = 0
    while value.dim() - extra > least and value.shape[extra] == 1:
        extra += 1
    return value.reshape(value.shape[extra:]) if extra else value
