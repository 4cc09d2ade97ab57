"""Predicates and helpers on sites and traces."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sumprod import settings
from sumprod.distributions import Distribution, ExpandedDistribution, Independent, MaskedDistribution, Unit
from sumprod.handlers.subsample import SubsampleIndices

if TYPE_CHECKING:
    from sumprod.handlers.trace_struct import Trace


def enable_validation(is_validate: bool = True) -> None:
    """Switch the checks of handlers and traces on or off."""
    settings.state.validate_poutine = bool(is_validate)


def is_validation_enabled() -> bool:
    """Whether handlers and traces check what they are given."""
    return settings.state.validate_poutine


@contextmanager
def validation_enabled(is_validate: bool = True) -> Iterator[None]:
    """`enable_validation` inside a `with` block; the old value comes back after it."""
    before = settings.state.validate_poutine
    settings.state.validate_poutine = bool(is_validate)
    try:
        yield
    finally:
        settings.state.validate_poutine = before


def site_is_subsample(site: Any) -> bool:
    """Whether a site holds the indices of a plate."""
    return site["type"] == "sample" and isinstance(site["fn"], SubsampleIndices)


def site_is_factor(site: Any) -> bool:
    """Whether a site was made by `factor`."""
    if site["type"] != "sample":
        return False
    fn = site["fn"]
    while isinstance(fn, MaskedDistribution | ExpandedDistribution | Independent):
        fn = fn.base_dist
    return isinstance(fn, Unit)


def prune_subsample_sites(trace: Trace) -> Trace:
    """A copy of a trace without the sites that hold plate indices."""
    pruned = trace.copy()
    for name, site in trace.nodes.items():
        if site_is_subsample(site):
            pruned.remove_node(name)
    return pruned


def enum_extend(trace: Trace, msg: Any, num_samples: int | None = None) -> list[Trace]:
    """One extension of a partial trace per value in the support of the site `msg`.

    With `num_samples`, only the first so many values.
    """
    values = msg["fn"].enumerate_support(*msg["args"], **msg["kwargs"])
    if num_samples is not None:
        values = values[:num_samples]
    return [_extended(trace, msg, value) for value in values]


def mc_extend(trace: Trace, msg: Any, num_samples: int | None = None) -> list[Trace]:
    """`num_samples` (or one) extensions of a partial trace by draws from the site `msg`."""
    count = 1 if num_samples is None else num_samples
    return [_extended(trace, msg, msg["fn"](*msg["args"], **msg["kwargs"])) for _ in range(count)]


def _extended(trace: Trace, msg: Any, value: Any) -> Trace:
    extended = trace.copy()
    site = msg.copy()
    site.update(value=value, infer=dict(msg["infer"]))
    extended.add_node(site["name"], **site)
    return extended


def _is_new_latent(trace: Trace, msg: Any) -> bool:
    return (
        msg["type"] == "sample"
        and not msg["is_observed"]
        and not site_is_subsample(msg)
        and msg["name"] not in trace
    )


def discrete_escape(trace: Trace, msg: Any) -> bool:
    """Whether a site is latent, enumerable, and not in the trace yet."""
    return _is_new_latent(trace, msg) and bool(getattr(msg["fn"], "has_enumerate_support", False))


def all_escape(trace: Trace, msg: Any) -> bool:
    """Whether a site is latent and not in the trace yet."""
    return _is_new_latent(trace, msg)


def is_distribution(fn: Any) -> bool:
    """Whether `fn` is a distribution rather than some other stochastic function."""
    return isinstance(fn, Distribution)


EscapeFn = Callable[[Any], bool]
