"""Helpers that losses are written with: numbers or tensors, plates, and terms that live in plates."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

from sumprod.distributions.distribution import Distribution
from sumprod.distributions.util import is_identically_zero
from sumprod.handlers.util import site_is_subsample
from sumprod.infer._dice import Dice, compute_site_dice_factor
from sumprod.settings import state

__all__ = [
    "CloneMixin",
    "Dice",
    "MultiFrameTensor",
    "check_fully_reparametrized",
    "compute_site_dice_factor",
    "detach_iterable",
    "enable_validation",
    "get_dependent_plate_dims",
    "get_plate_stacks",
    "has_default_score_parts",
    "is_fully_reparametrized",
    "is_identically_zero",
    "is_validation_enabled",
    "plate_log_prob_sum",
    "torch_backward",
    "torch_exp",
    "torch_item",
    "torch_sum",
    "validation_enabled",
    "zero_grads",
]

_Self = TypeVar("_Self")


# ---- validation switch of the inference algorithms


def enable_validation(is_validate: bool = True) -> None:
    """Switch the checks of inference algorithms on or off."""
    state.validate_infer = bool(is_validate)


def is_validation_enabled() -> bool:
    """Whether inference algorithms check models and guides."""
    return state.validate_infer


@contextmanager
def validation_enabled(is_validate: bool = True) -> Iterator[None]:
    """`enable_validation` inside a `with` block; the old value comes back after it."""
    before = state.validate_infer
    state.validate_infer = bool(is_validate)
    try:
        yield
    finally:
        state.validate_infer = before


# ---- numbers or tensors


def torch_item(x: torch.Tensor | float) -> float:
    """A number as it is; a tensor of one element as a Python number."""
    return x.item() if isinstance(x, torch.Tensor) else x


def torch_backward(x: torch.Tensor | float, retain_graph: bool | None = None) -> None:
    """`x.backward(retain_graph=...)`; nothing for numbers and for tensors without a graph."""
    if isinstance(x, torch.Tensor) and x.requires_grad:
        x.backward(retain_graph=retain_graph)


def torch_exp(x: torch.Tensor | float) -> torch.Tensor | float:
    """The exponential of a tensor or of a number."""
    return x.exp() if isinstance(x, torch.Tensor) else math.exp(x)


def torch_sum(tensor: torch.Tensor, dims: Iterable[int]) -> torch.Tensor:
    """Sum over those of the negative `dims` that `tensor` has; they disappear.

    >>> torch_sum(torch.ones(2, 3), [-1, -3])
    tensor([3., 3.])
    """
    present = [dim for dim in dims if tensor.dim() >= -dim]
    return tensor.sum(present) if present else tensor


def detach_iterable(values: Any) -> Any:
    """`values.detach()` for a tensor; otherwise a list of the detached elements."""
    return values.detach() if isinstance(values, torch.Tensor) else [value.detach() for value in values]


def zero_grads(tensors: Iterable[torch.Tensor]) -> None:
    """Set gradients to zeros, in place, in one call; a gradient that is None stays None."""
    grads = [tensor.grad for tensor in tensors if tensor.grad is not None]
    if not grads:
        return
    with torch.no_grad():
        if any(grad.requires_grad for grad in grads):  # left by backward(create_graph=True)
            for grad in grads:
                grad.detach_()
        torch._foreach_zero_(grads)


class CloneMixin:
    """Gives a dataclass of tensors the method `clone`."""

    def clone(self: _Self) -> _Self:
        """A copy whose tensors have their own memory."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}  # type: ignore[arg-type]
        return type(self)(
            **{key: v.clone() if isinstance(v, torch.Tensor) else v for key, v in values.items()}
        )


# ---- plates


def get_plate_stacks(trace: Any) -> dict[str, list[Any]]:
    """Name of each sample site -> frames of its vectorised plates, outermost first."""
    return {
        name: [frame for frame in site["cond_indep_stack"] if frame.dim is not None]
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and not site_is_subsample(site)
    }


def get_dependent_plate_dims(sites: Iterable[Any]) -> list[int]:
    """Dims, sorted, of the vectorised plates that are not around every one of the sample sites."""
    stacks = [
        {frame for frame in site["cond_indep_stack"] if frame.dim is not None}
        for site in sites
        if site["type"] == "sample" and not site_is_subsample(site)
    ]
    shared = set.intersection(*stacks) if stacks else set()
    return sorted({frame.dim for stack in stacks for frame in stack - shared})


def plate_log_prob_sum(trace: Any, plate_symbol: str) -> Any:
    """Sum of a packed trace's log-densities over everything but the plate with this symbol.

    A site outside the plate counts once in each element. The trace needs `compute_log_prob` and
    `pack_tensors` before.

    Returns:
        A tensor with one dim, or a scalar when no site is in the plate.
    """
    total: Any = 0.0
    for site in trace.nodes.values():
        if site["type"] == "sample":
            log_prob = site["packed"]["log_prob"]
            dims = getattr(log_prob, "_pyro_dims", "")
            others = [dim for dim, name in enumerate(dims) if name != plate_symbol]
            total = total + (log_prob.sum(others) if others else log_prob)
    return total


class MultiFrameTensor(dict[frozenset[Any], Any]):
    """A sum of tensors that live in different plates, kept apart by plate.

    A term is a tensor together with the plates it lives in: the term has one entry per element of
    these plates. `sum_to` asks for the sum as seen from inside some plates.

    Args:
        *items: pairs (cond_indep_stack, tensor). Frames of sequential plates do not count.
    """

    def __init__(self, *items: tuple[Iterable[Any], torch.Tensor]) -> None:
        super().__init__()
        self.add(*items)

    def add(self, *items: tuple[Iterable[Any], torch.Tensor]) -> None:
        """Add terms. Terms in the same plates are added up.

        Raises:
            ValueError: a tensor has fewer dims than its plates need.
        """
        for stack, value in items:
            frames = frozenset(frame for frame in stack if frame.dim is not None)
            rank = max([0, *(-frame.dim for frame in frames)])
            shape = tuple(getattr(value, "shape", ()))
            if len(shape) < rank:
                names = ", ".join(sorted(frame.name for frame in frames))
                raise ValueError(
                    f"a term in the plates {names} needs at least {rank} dims, got shape {shape}"
                )
            known = self.get(frames)
            self[frames] = value if known is None else known + value

    def sum_to(self, target_frames: Iterable[Any]) -> torch.Tensor | float:
        """The sum of all terms, each summed over those of its plates that are not in `target_frames`.

        Returns:
            A tensor without leading dims of size 1; 0.0 when there are no terms.
        """
        targets = set(target_frames)
        total: torch.Tensor | float = 0.0
        for frames, value in self.items():
            dims = [frame.dim for frame in frames if frame not in targets]
            term = value.sum(dims, keepdim=True) if dims else value
            if isinstance(term, torch.Tensor):
                while term.dim() and term.shape[0] == 1:
                    term = term[0]
            total = total + term
        return total

    def __repr__(self) -> str:
        entries = (
            f"({', '.join(sorted(map(str, frames)))}): {tuple(getattr(value, 'shape', ()))}"
            for frames, value in self.items()
        )
        return f"{type(self).__name__}({{{'; '.join(entries)}}})"


# ---- reparameterisation


def has_default_score_parts(fn: Any) -> bool:
    """Whether a distribution's score parts follow from `has_rsample` and its log-density alone."""
    return getattr(type(fn), "score_parts", None) is Distribution.score_parts


def is_fully_reparametrized(site: Any) -> bool:
    """Whether all gradients with respect to a site's parameters flow through its value and density."""
    parts = site.get("score_parts")
    if parts is None:
        fn = site["fn"]
        if has_default_score_parts(fn):
            return bool(getattr(fn, "has_rsample", False))
        parts = fn.score_parts(site["value"], *site["args"], **site["kwargs"])
    return bool(is_identically_zero(parts.score_function))


def check_fully_reparametrized(guide_site: Any) -> None:
    """Raise NotImplementedError, naming the site, unless it is fully reparameterised."""
    if not is_fully_reparametrized(guide_site):
        raise NotImplementedError(
            "All distributions in the guide must be fully reparameterized. Site"
            f" '{guide_site['name']}' draws from {type(guide_site['fn']).__name__}, which has no rsample():"
            " use a reparameterised distribution there, or Trace_ELBO, which does not need one"
        )
