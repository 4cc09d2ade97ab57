"""Run a program with its discrete variables inferred, jointly and exactly."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from sumprod._random import preserve_rng_state
from sumprod.handlers import block, enum, trace
from sumprod.handlers.messenger import Messenger
from sumprod.handlers.util import prune_subsample_sites
from sumprod.infer._enum_factors import FactorGraph
from sumprod.infer._nesting import deepest_plate
from sumprod.settings import state

__all__ = ["infer_discrete"]


def infer_discrete(
    fn: Callable[..., Any] | None = None,
    first_available_dim: int | None = None,
    temperature: float = 1,
    *,
    strict_enumeration_warning: bool = True,
) -> Any:
    """A program with its sites marked for parallel enumeration inferred from the observed ones.

    Calling it runs `fn` twice: once, hidden from outer handlers, with all values of the marked sites at
    once; then with these sites at their inferred values and all other latent sites drawn again. The
    second run's result is returned; handlers around see that run. Its log-densities are those of the
    model's own distributions at the inferred values.

    Masks count, except on a marked site itself: such a variable follows its prior given the others.
    Scales do not count.

    Args:
        fn: a program; None: return a decorator.
        first_available_dim: the dim of the first enumerated variable, left of all plates; None: found by
            a trial run in each call.
        temperature: 1: a draw from the joint posterior; 0: its most probable joint assignment (of several,
            always the same one).
        strict_enumeration_warning: warn when no site is marked.

    Returns:
        A function of the program's arguments, or a decorator.

    Raises:
        ValueError: temperature is neither 0 nor 1; `first_available_dim` is not negative, or (when called)
            not left of all plates.
        SupportError: (when called, and validating) no assignment of the variables is possible. Without
            validation they get the first value of their support.

    References:
        Obermeyer et al. 2019, "Tensor Variable Elimination for Plated Factor Graphs".

    >>> import torch, sumprod
    >>> from sumprod.distributions import Categorical, Normal
    >>> @infer_discrete(first_available_dim=-2, temperature=0)
    ... def assign(data):
    ...     with sumprod.plate("data", len(data)):
    ...         z = sumprod.sample("z", Categorical(torch.ones(2)), infer={"enumerate": "parallel"})
    ...         sumprod.sample("x", Normal(torch.tensor([-1., 1.])[z], 1.), obs=data)
    ...     return z
    >>> assign(torch.tensor([-0.3, 2.0, 0.1]))
    tensor([0, 1, 1])
    """
    if not isinstance(temperature, int | float) or temperature not in (0, 1):
        raise ValueError(f"temperature must be 0 (map) or 1 (sample), but got {temperature!r}")
    if first_available_dim is not None and (
        not isinstance(first_available_dim, int) or first_available_dim >= 0
    ):
        raise ValueError(
            f"Expected first_available_dim < 0 to index from the right, got {first_available_dim!r}"
        )
    if fn is None:
        return functools.partial(
            infer_discrete,
            first_available_dim=first_available_dim,
            temperature=temperature,
            strict_enumeration_warning=strict_enumeration_warning,
        )

    @functools.wraps(fn)
    def inferred(*args: Any, **kwargs: Any) -> Any:
        dim = first_available_dim
        if dim is None:
            dim = -1 - _depth(fn, args, kwargs)
        with block(), enum(first_available_dim=dim):
            enumerated = prune_subsample_sites(trace(fn).get_trace(*args, **kwargs))
        deepest = deepest_plate([enumerated])
        if deepest >= -dim:
            raise ValueError(
                f"first_available_dim={dim} collides with a plate at dim {-deepest}: enumeration goes left of"
                f" all plates, use first_available_dim={-1 - deepest} or less"
            )
        graph = FactorGraph.of_trace(enumerated, -1 - dim)
        marked = any("_enumerate_dim" in site["infer"] for site in _samples(enumerated))
        if not marked and strict_enumeration_warning and state.validate_infer:
            warnings.warn(
                "infer_discrete found no sample sites configured for enumeration. Mark them by"
                ' @config_enumerate or infer={"enumerate": "parallel"}',
                UserWarning,
                stacklevel=2,
            )
        values = graph.draw(maximise=temperature == 0) if graph.terms else {}
        for name, site in enumerated.nodes.items():
            if name not in values and site["type"] == "sample" and "_enumerate_dim" in site["infer"]:
                values[name] = _only_value(site)
        with _Fixed(values):
            return fn(*args, **kwargs)

    return inferred


def _samples(enumerated: Any) -> list[Any]:
    """The sample sites of a trace."""
    return [site for site in enumerated.nodes.values() if site["type"] == "sample"]


def _depth(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    with preserve_rng_state(), block():
        return deepest_plate([prune_subsample_sites(trace(fn).get_trace(*args, **kwargs))])


def _only_value(site: Any) -> Tensor:
    """The value of a site whose support has one element."""
    value: Tensor = site["value"]
    rank = max((-frame.dim for frame in site["cond_indep_stack"] if frame.dim is not None), default=0)
    extra = value.dim() - rank - len(site["fn"].event_shape)
    return value.reshape(value.shape[extra:]) if extra > 0 else value


class _Fixed(Messenger):
    """Gives latent sites the values that were inferred for them."""

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.values = values

    def _pyro_sample(self, msg: Any) -> None:
        value = self.values.get(msg["name"])
        if value is not None and not msg["is_observed"]:
            msg["value"] = value
            msg["done"] = True
