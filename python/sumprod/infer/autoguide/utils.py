"""Helpers of the automatic guides."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from sumprod.errors import describe_plates
from sumprod.handlers.trace import trace
from sumprod.handlers.util import site_is_subsample
from sumprod.nn.module import PyroModule, PyroParam

__all__ = ["deep_getattr", "deep_setattr", "helpful_support_errors", "mean_field_entropy", "periodic_repeat"]


def deep_setattr(module: PyroModule, path: Sequence[str], value: PyroParam) -> None:
    """Add the parameter `module.a.b` for the path ("a", "b"), making the modules between.

    Attributes and methods of these names are left as they are: a site may be called like one of them.

    Raises:
        ValueError: a parameter is in the way of a module, or the other way round.
    """
    *parents, name = path
    for parent in parents:
        if parent in module._pyro_params:
            raise ValueError(f"there are sites called '{parent}' and '{parent}.<...>': rename one of them")
        child = module._modules.get(parent)
        if child is None:
            child = module._modules[parent] = PyroModule()
            child._pyro_set_supermodule(module._pyro_get_fullname(parent), module._pyro_context)
        assert isinstance(child, PyroModule)
        module = child
    if name in module._modules:
        raise ValueError(f"there are sites called '{name}' and '{name}.<...>': rename one of them")
    module._pyro_set_param(name, value)


def deep_getattr(module: Any, path: Sequence[str]) -> Any:
    """The parameter that `deep_setattr` has added. (Ordinary access would find an attribute first.)"""
    for parent in path[:-1]:
        module = module._modules[parent]
    return module.__getattr__(path[-1])


def periodic_repeat(tensor: torch.Tensor, size: int, dim: int) -> torch.Tensor:
    """Make dim `dim` of a tensor `size` long by repeating its entries in order, cut where it ends."""
    index = torch.arange(size, device=tensor.device) % tensor.shape[dim]
    return tensor.index_select(dim, index)


@contextmanager
def helpful_support_errors(site: Any) -> Iterator[None]:
    """Say what to do when a site's support has no bijection from the real numbers.

    Raises:
        ValueError: the site is discrete.
    """
    try:
        yield
    except NotImplementedError as error:
        if not _is_discrete(site["fn"]):
            raise
        name = site["name"]
        raise ValueError(
            f"Continuous inference cannot handle discrete sample site '{name}'"
            f"{describe_plates(site['cond_indep_stack'])} ({type(site['fn']).__name__})."
            " Sum it out: enumerate it in the model and hide it from the guide, e.g."
            f" AutoNormal(handlers.block(model, hide=['{name}'])) with TraceEnum_ELBO"
        ) from error


def _is_discrete(fn: Any) -> bool:
    try:
        return bool(fn.support.is_discrete)
    except NotImplementedError:  # the distribution has no support
        return False


def mean_field_entropy(
    model: Callable[..., Any], args: Sequence[Any], whitelist: Sequence[str] | None = None
) -> Any:
    """The entropy of a program whose sites are independent: the sum of its sites' entropies.

    Args:
        model: a program; it is run once.
        args: its arguments.
        whitelist: names of the sites that count; None: all sample sites, observed ones too.

    Returns:
        A tensor whose shape is the broadcast of the batch shapes: plates are not summed out.

    >>> import torch, sumprod
    >>> from sumprod.distributions import Normal
    >>> mean_field_entropy(lambda: sumprod.sample("x", Normal(0.0, 1.0)), [])
    tensor(1.4189)
    """
    entropy: Any = 0.0
    for name, site in trace(model).get_trace(*args).nodes.items():
        if (
            site["type"] == "sample"
            and not site_is_subsample(site)
            and (whitelist is None or name in whitelist)
        ):
            entropy = entropy + site["fn"].entropy()
    return entropy
