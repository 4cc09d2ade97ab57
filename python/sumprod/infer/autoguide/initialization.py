"""Where inference starts: strategies that give each latent site its first value.

A strategy is a function of a site (the message of a sample statement) that returns a value of the shape
of the site. Called without a site, `init_to_x(option=...)`, each of them returns such a function.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch.distributions import constraints, transform_to

from sumprod.distributions import Distribution
from sumprod.handlers.messenger import Messenger
from sumprod.handlers.util import site_is_subsample
from sumprod.infer.autoguide.utils import helpful_support_errors

__all__ = [
    "InitMessenger",
    "init_to_feasible",
    "init_to_generated",
    "init_to_mean",
    "init_to_median",
    "init_to_sample",
    "init_to_uniform",
    "init_to_value",
]

Strategy = Callable[[Any], Any]


def _is_multivariate(fn: Any) -> bool:
    """Whether one draw of the distribution, `to_event` aside, is more than a number."""
    while hasattr(fn, "base_dist") and not isinstance(fn, torch.distributions.TransformedDistribution):
        fn = fn.base_dist
    return any(size > 1 for size in fn.event_shape)


def _unconstrained_zeros(site: Any, transform: Any) -> torch.Tensor:
    """Zeros of the shape that the site's value has on the real line."""
    fn = site["fn"]
    try:
        like: torch.Tensor = fn.sample().detach()
    except NotImplementedError:  # a density that cannot be sampled, e.g. an improper one
        return torch.zeros(torch.Size(transform.inverse_shape(fn.shape())))
    return torch.zeros_like(transform.inv(like))


def init_to_feasible(site: Any = None) -> Any:
    """The image of zero under the transform from the real line: a point inside the support."""
    if site is None:
        return init_to_feasible
    transform = transform_to(site["fn"].support)
    return transform(_unconstrained_zeros(site, transform))


def init_to_sample(site: Any = None) -> Any:
    """A draw from the prior."""
    if site is None:
        return init_to_sample
    return site["fn"].sample().detach()


def init_to_median(
    site: Any = None, num_samples: int = 15, *, fallback: Strategy | None = init_to_feasible
) -> Any:
    """The median of draws from the prior.

    Multivariate distributions start at a feasible point: their medians need not be in the support.

    Args:
        num_samples: how many draws.
        fallback: the strategy for sites that cannot be sampled or whose median is NaN; None: leave
            them to the model.
    """
    if site is None:
        return functools.partial(init_to_median, num_samples=num_samples, fallback=fallback)
    fn = site["fn"]
    if _is_multivariate(fn):
        return init_to_feasible(site)
    try:
        samples = fn.sample((num_samples,))
    except NotImplementedError:
        samples = None
    if samples is not None:
        # torch's median of an expanded tensor is wrong.
        value = samples.contiguous().median(dim=0)[0]
        if not torch.isnan(value).any():
            return value
    return None if fallback is None else fallback(site)


def init_to_mean(site: Any = None, *, fallback: Strategy | None = init_to_median) -> Any:
    """The prior mean.

    Args:
        fallback: the strategy for sites whose mean does not exist or is not finite.
    """
    if site is None:
        return functools.partial(init_to_mean, fallback=fallback)
    try:
        value = site["fn"].mean.detach()
    except NotImplementedError:
        value = None
    if value is not None and torch.isfinite(value).all():
        return value
    return None if fallback is None else fallback(site)


def init_to_uniform(site: Any = None, radius: float = 2.0) -> Any:
    """A random point, uniform between -radius and radius on the real line."""
    if site is None:
        return functools.partial(init_to_uniform, radius=radius)
    transform = transform_to(site["fn"].support)
    zeros = _unconstrained_zeros(site, transform)
    return transform(torch.rand_like(zeros) * (2 * radius) - radius)


def init_to_value(
    site: Any = None,
    values: Mapping[str, Any] = MappingProxyType({}),
    *,
    fallback: Strategy | None = init_to_uniform,
) -> Any:
    """A given value.

    Args:
        values: by name of the site.
        fallback: the strategy for sites that are not in `values`; None: leave them to the model.
    """
    if site is None:
        return functools.partial(init_to_value, values=values, fallback=fallback)
    if site["name"] in values:
        return values[site["name"]]
    return None if fallback is None else fallback(site)


class _InitToGenerated:
    """A strategy that is generated anew for each run of the program."""

    def __init__(self, generate: Callable[[], Strategy]) -> None:
        self.generate = generate
        self._strategy: Strategy | None = None

    def start(self) -> None:
        """Forget the strategy of the last run."""
        self._strategy = None

    def __call__(self, site: Any) -> Any:
        if self._strategy is None:
            self._strategy = self.generate()
        return self._strategy(site)


def init_to_generated(site: Any = None, generate: Callable[[], Strategy] = lambda: init_to_uniform) -> Any:
    """Another strategy for each run of the program, e.g. to restart from random points.

    Args:
        generate: makes a strategy; called once per run.
    """
    strategy = _InitToGenerated(generate)
    return strategy if site is None else strategy(site)


class InitMessenger(Messenger):
    """Give the latent sites of a program the values of a strategy.

    Args:
        init_fn: the strategy; where it returns None, the program draws.

    Raises:
        ValueError: (while running) a value does not broadcast to the shape of its site or is outside its
            support, or a strategy for continuous sites meets a discrete one.
    """

    def __init__(self, init_fn: Strategy) -> None:
        super().__init__()
        self.init_fn = init_fn

    def __enter__(self) -> Any:
        if isinstance(self.init_fn, _InitToGenerated):
            self.init_fn.start()
        return super().__enter__()

    def _pyro_sample(self, msg: Any) -> None:
        if msg["done"] or msg["is_observed"] or site_is_subsample(msg):
            return
        with torch.no_grad(), helpful_support_errors(msg):
            value = self.init_fn(msg)
        if value is None:
            return
        if isinstance(msg["fn"], Distribution):
            value = _of_shape(msg, value)
            _check_support(msg, value)
        msg["value"] = value
        msg["done"] = True


def _of_shape(site: Any, value: Any) -> Any:
    """An initial value as a tensor of the shape of its site."""
    shape = torch.Size(site["fn"].shape())
    if not isinstance(value, torch.Tensor):
        value = torch.as_tensor(value, dtype=torch.get_default_dtype())
    if value.shape == shape:
        return value
    try:
        return value.expand(shape)
    except RuntimeError:
        raise ValueError(
            f"the initial value of site '{site['name']}' has shape {tuple(value.shape)}, which does not"
            f" broadcast to the shape of the site, {tuple(shape)}"
        ) from None


def _check_support(site: Any, value: torch.Tensor) -> None:
    """Check the numbers of an initial value one by one.

    Not constraints on several numbers together, which rounding may break.
    """
    support = getattr(site["fn"], "support", None)
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    if support is None or support is constraints.dependent or support.event_dim > 0:
        return
    valid = support.check(value)
    if not valid.all():
        raise ValueError(
            f"the initial value of site '{site['name']}' is outside the support of its distribution,"
            f" {support}: {value[~valid].flatten()[:4].tolist()}"
        )
