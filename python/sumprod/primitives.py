"""The statements of a program: sample, param, plate and what is built on them."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch.distributions import constraints

from sumprod import settings
from sumprod._random import set_rng_seed
from sumprod.distributions import Delta, Unit
from sumprod.distributions.torch_distribution import TorchDistributionMixin
from sumprod.handlers.condition import condition
from sumprod.handlers.do import do
from sumprod.handlers.lift import lift
from sumprod.handlers.markov import markov
from sumprod.handlers.plate import PlateMessenger as plate
from sumprod.handlers.scan import scan
from sumprod.handlers.vectorized_markov import vectorized_markov
from sumprod.params.param_store import (
    PARAM_STORE,
    clear_param_store,
    get_param_store,
    param_with_module_name,
)
from sumprod.runtime import apply_stack, effectful, handler_stack, new_message

__all__ = [
    "barrier",
    "clear_param_store",
    "condition",
    "deterministic",
    "do",
    "enable_validation",
    "factor",
    "get_param_store",
    "iarange",
    "irange",
    "markov",
    "module",
    "param",
    "plate",
    "plate_stack",
    "random_module",
    "sample",
    "scan",
    "set_rng_seed",
    "subsample",
    "validation_enabled",
    "vectorized_markov",
]


def sample(
    name: str,
    fn: Callable[..., Any],
    *args: Any,
    obs: Any = None,
    obs_mask: torch.Tensor | bool | None = None,
    infer: dict[str, Any] | None = None,
    **kwargs: Any,
) -> Any:
    """Draw a value from `fn`, or observe one; the handlers around decide.

    Args:
        name: unique within one run of the program.
        fn: a distribution, or any callable.
        args, kwargs: passed to `fn`.
        obs: the observed value; a Python number becomes a tensor of the distribution's dtype. None:
            the site is latent.
        obs_mask: bool tensor of the site's batch shape: where True, `obs` is observed; elsewhere the
            value is latent. Makes the sites `NAME_observed`, `NAME_unobserved` (which a guide must
            cover) and `NAME`, their merger.
        infer: options for inference; copied.

    Returns:
        The value, of shape batch shape + event shape.

    Raises:
        ValueError: `obs_mask` has the wrong shape.

    >>> import sumprod
    >>> from sumprod.distributions import Normal
    >>> sumprod.sample("x", Normal(0., 1.)).shape
    torch.Size([])
    """
    if isinstance(obs, bool | int | float):
        obs = _as_observation(fn, obs)
    if obs_mask is not None:
        return _sample_partly_observed(name, fn, args, kwargs, obs, obs_mask, infer)
    infer = {} if infer is None else infer.copy()
    is_observed = infer.pop("is_observed", obs is not None)
    if not handler_stack():
        if obs is None:
            return fn(*args, **kwargs)
        if not infer.get("_deterministic"):
            warnings.warn(
                f"trying to observe a value outside of inference at {name}", RuntimeWarning, stacklevel=2
            )
        return obs
    msg = new_message("sample", name, fn, args, kwargs, value=obs, is_observed=is_observed, infer=infer)
    return apply_stack(msg)["value"]


def _as_observation(fn: Any, value: float) -> Any:
    """A Python number as a tensor of the dtype that the distribution's parameters have."""
    if not isinstance(fn, TorchDistributionMixin):
        return value
    base: Any = fn
    while hasattr(base, "base_dist"):
        base = base.base_dist
    for member in vars(base).values():
        if isinstance(member, torch.Tensor) and member.is_floating_point():
            return torch.tensor(value, dtype=member.dtype, device=member.device)
    return torch.tensor(value, dtype=torch.get_default_dtype())


def _sample_partly_observed(
    name: str, fn: Any, args: Any, kwargs: Any, obs: Any, obs_mask: Any, infer: dict[str, Any] | None
) -> Any:
    if not isinstance(obs_mask, bool | torch.Tensor) or (
        isinstance(obs_mask, torch.Tensor) and obs_mask.dtype != torch.bool
    ):
        got = f"a tensor of {obs_mask.dtype}" if isinstance(obs_mask, torch.Tensor) else repr(obs_mask)
        raise TypeError(f"Expected obs_mask of site '{name}' to be a bool tensor, got {got}")
    if obs is None:
        raise ValueError(f"obs_mask at site '{name}' needs obs: the values to observe where it is True")
    shape = obs_mask.shape if isinstance(obs_mask, torch.Tensor) else torch.Size()
    try:
        # Broadcasting also settles a distribution of shape () inside a plate.
        batch_shape = torch.broadcast_shapes(shape, fn.batch_shape)
    except RuntimeError:
        raise ValueError(
            f"Invalid obs_mask shape at site '{name}': {tuple(shape)} does not broadcast with the batch"
            f" shape {tuple(fn.batch_shape)}"
        ) from None
    fn = fn.expand(batch_shape)
    mask = torch.as_tensor(obs_mask)
    observed = sample(f"{name}_observed", fn.mask(mask), *args, obs=obs, infer=infer, **kwargs)
    unobserved = sample(f"{name}_unobserved", fn.mask(~mask), *args, infer=infer, **kwargs)
    where = mask.reshape(mask.shape + (1,) * fn.event_dim)
    return deterministic(name, torch.where(where, observed, unobserved), event_dim=fn.event_dim)


def param(
    name: str,
    init_tensor: torch.Tensor | Callable[[], torch.Tensor] | None = None,
    constraint: constraints.Constraint = constraints.real,
    event_dim: int | None = None,
) -> torch.Tensor:
    """A learnable parameter of the process-wide store, created at its first use.

    Args:
        name: the key in the store.
        init_tensor: the first value, within the constraint; or a function that makes it, called only
            when the name is new. Later uses of the name may leave it out.
        constraint: of the value; fixed by the first use.
        event_dim: inside a subsampled plate, the number of rightmost dims that are not plates: the
            value is the subsample of the stored, full-size tensor.

    Returns:
        The constrained value; its attribute `unconstrained()` is the leaf tensor.

    Raises:
        KeyError: the name is new and there is no `init_tensor`.
        ValueError: a wrong size along a subsampled plate; an initial value on or outside the boundary
            of the constraint.
    """
    if not handler_stack():
        value: torch.Tensor = PARAM_STORE.get_param(name, init_tensor, constraint, event_dim)
        return value
    args = (name,) if init_tensor is None else (name, init_tensor)
    msg = new_message(
        "param",
        name,
        PARAM_STORE.get_param,
        args,
        {"constraint": constraint, "event_dim": event_dim},
    )
    value = apply_stack(msg)["value"]
    return value


@contextmanager
def plate_stack(prefix: str, sizes: Sequence[int], rightmost_dim: int = -1) -> Iterator[None]:
    """Nested plates `PREFIX_0`, `PREFIX_1`, ... from right to left.

    Args:
        sizes: of the dims as in a shape: the last is that of `PREFIX_0`, at `rightmost_dim`.

    Raises:
        ValueError: rightmost_dim is not negative.
    """
    if rightmost_dim >= 0:
        raise ValueError(f"Expected rightmost_dim < 0, got {rightmost_dim} at plate_stack '{prefix}'")
    with ExitStack() as plates:
        for i, size in enumerate(reversed(sizes)):
            plates.enter_context(plate(f"{prefix}_{i}", size, dim=rightmost_dim - i))
        yield


def factor(name: str, log_factor: torch.Tensor, *, has_rsample: bool | None = None) -> None:
    """Multiply the density by an arbitrary positive factor.

    Args:
        log_factor: the logarithm, of the batch shape.
        has_rsample: in a guide, whether the factor depends on reparameterised draws only.

    Raises:
        ValueError: (in inference) a guide's factor does not say `has_rsample`.
    """
    unit = Unit(log_factor, has_rsample=has_rsample)
    sample(name, unit, obs=unit.sample(), infer={"is_auxiliary": True})


def deterministic(name: str, value: torch.Tensor, event_dim: int | None = None) -> torch.Tensor:
    """Record a value in the trace. It adds nothing to the density.

    Args:
        event_dim: how many rightmost dims are not batch dims; None: all.
    """
    event_dim = value.ndim if event_dim is None else event_dim
    fn = Delta(value, event_dim=event_dim).mask(False)
    recorded: torch.Tensor = sample(name, fn, obs=value, infer={"_deterministic": True})
    return recorded


@effectful(type="subsample")
def subsample(data: torch.Tensor, event_dim: int) -> torch.Tensor:
    """The part of full-size data that belongs to the subsample of the plates around.

    Args:
        event_dim: number of rightmost dims that are not batch dims.

    Raises:
        ValueError: a batch dim has neither the plate's size nor size 1.
    """
    if not isinstance(event_dim, int) or event_dim < 0:
        raise ValueError(f"Expected event_dim >= 0, got {event_dim!r}")
    return data


def barrier(data: Any) -> Any:
    """`data`. Marks a point that lazy backends must not move work across; here nothing is lazy."""
    return data


def module(name: str, nn_module: torch.nn.Module, update_module_params: bool = False) -> torch.nn.Module:
    """Register a module's parameters under `NAME$$$PARAMETER` and return the module.

    Args:
        update_module_params: put the values that handlers and the store hold into the module.

    Raises:
        NotImplementedError: a class was given instead of an instance.
        ValueError: the name contains `$$$`.
    """
    if isinstance(nn_module, type):
        raise NotImplementedError(
            f"module('{name}', ...) got the class {nn_module.__name__} instead of an instance: construct it"
            " first"
        )
    if "$$$" in name:
        raise ValueError(
            f"Expected a module name without '$$$', which divides it from the parameter's: {name!r}"
        )
    found: dict[int, torch.Tensor] = {}  # by identity of the module's parameter: tied ones map to one leaf
    for local_name, parameter in nn_module.named_parameters():
        if parameter.requires_grad:
            found[id(parameter)] = param(param_with_module_name(name, local_name), parameter)
        elif nn_module.training:
            warnings.warn(
                f"{local_name} of module '{name}' was not registered in the param store because"
                " requires_grad=False. You can silence this warning by calling my_module.train(False)",
                stacklevel=2,
            )
    if update_module_params:
        for part in nn_module.modules():
            for key, held in part._parameters.items():
                value: Any = found.get(id(held))
                if value is not None and value is not held:
                    # Not an nn.Parameter: that would be a new leaf without history.
                    part._parameters[key] = value
    return nn_module


def random_module(
    name: str, nn_module: torch.nn.Module, prior: Any, *args: Any, **kwargs: Any
) -> Callable[[], torch.nn.Module]:
    """A function that draws copies of a module with parameters from a prior.

    Args:
        prior: a distribution, a callable, or a dict of them by parameter name (see `lift`).
    """
    lifted = lift(module, prior=prior)

    def draw() -> torch.nn.Module:
        drawn: torch.nn.Module = lifted(
            name, copy.deepcopy(nn_module), *args, update_module_params=True, **kwargs
        )
        return drawn

    return draw


def iarange(*args: Any, **kwargs: Any) -> plate:
    """Deprecated name of `plate`."""
    warnings.warn("iarange is deprecated; use plate instead", DeprecationWarning, stacklevel=2)
    return plate(*args, **kwargs)


def irange(*args: Any, **kwargs: Any) -> plate:
    """Deprecated name of `plate`."""
    warnings.warn("irange is deprecated; use plate instead", DeprecationWarning, stacklevel=2)
    return plate(*args, **kwargs)


def enable_validation(is_validate: bool = True) -> None:
    """Switch all checks, of distributions, inference and handlers, on or off."""
    settings.set(
        validate_distributions_pyro=is_validate,
        validate_distributions_torch=is_validate,
        validate_infer=is_validate,
        validate_poutine=is_validate,
    )


@contextmanager
def validation_enabled(is_validate: bool = True) -> Iterator[None]:
    """`enable_validation` inside a `with` block; the old values come back after it."""
    with settings.context(
        validate_distributions_pyro=is_validate,
        validate_distributions_torch=is_validate,
        validate_infer=is_validate,
        validate_poutine=is_validate,
    ):
        yield
