"""What torch's families get here beyond the mixin: cheap checks, and `expand` that keeps what was set.

The families that programs use most (see `_real_line`, `_positive`, `_discrete`) are also constructed and
evaluated with fewer operators than torch needs: arguments of equal shape are not broadcast, a check
costs one or two operators, and log-densities fuse multiply with add. Subclassing torch's classes keeps
`isinstance`, KL rules, moments and entropies.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributions.utils import broadcast_all

from sumprod.distributions._checks import eager, satisfied
from sumprod.distributions._switch import ValidateArgs

__all__ = ["NO_DIMS", "PUBLIC", "Family", "LeanFamily", "alone", "expanded", "together"]

NO_DIMS = torch.Size()

PUBLIC = "sumprod.distributions.torch"
"""`__module__` of every family, so that pickles do not depend on how this package is cut into files."""


class Family:
    """First base of every family: `class Gumbel(Family, torch's Gumbel, TorchDistributionMixin)`."""

    _batch_shape: torch.Size
    _event_shape: torch.Size
    _validate_args: Any = ValidateArgs()

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        """The distribution under a larger batch shape; parameters are shared, not copied."""
        new = super().expand(torch.Size(batch_shape), _instance)  # type: ignore[misc]
        if "has_rsample" in self.__dict__:
            new.has_rsample = self.__dict__["has_rsample"]
        return new

    def _blank(self, family: Any, _instance: Any) -> Any:
        """The object that an `expand` fills."""
        if _instance is None and type(self) is family:
            return object.__new__(family)
        return self._get_checked_instance(family, _instance)  # type: ignore[attr-defined]

    def _validate_sample(self, value: Any) -> None:
        if not (
            isinstance(value, Tensor)
            and eager()
            and _suits(value.shape, self._batch_shape, self._event_shape)
            and satisfied(self.support, value)  # type: ignore[attr-defined]
        ):
            super()._validate_sample(value)  # type: ignore[misc]


def _suits(shape: torch.Size, batch_shape: torch.Size, event_shape: torch.Size) -> bool:
    """Whether a value of this shape has the event dims, and its others broadcast with the batch."""
    expected = batch_shape + event_shape
    own = len(shape) - len(expected)
    if own >= 0 and shape[own:] == expected:
        return True
    batch = len(shape) - len(event_shape)
    return (
        batch >= 0
        and shape[batch:] == event_shape
        and all([i == j or i == 1 or j == 1 for i, j in zip(shape[::-1], expected[::-1], strict=False)])  # noqa: C419, a generator is slow
    )


class LeanFamily(Family):
    """A family all of whose parameters are tensors of the batch shape."""

    _parameters: ClassVar[tuple[str, ...]]

    def _start(self, batch_shape: torch.Size, validate_args: bool | None) -> bool:
        """Set what torch's constructor sets; the answer says whether arguments are to be checked."""
        self._batch_shape = batch_shape
        self._event_shape = NO_DIMS
        if validate_args is not None:
            self._validate_args = validate_args
        return bool(self._validate_args)

    def _check_closely(self) -> None:
        """torch's check of all parameters, which raises torch's error."""
        torch.distributions.Distribution.__init__(
            self,  # type: ignore[arg-type]
            self._batch_shape,
            self._event_shape,
            validate_args=self.__dict__.get("_validate_args"),
        )

    def _expand_as(self, family: Any, batch_shape: Any, _instance: Any) -> Any:
        new: Any = self._blank(family, _instance)
        batch_shape = torch.Size(batch_shape)
        same = batch_shape == self._batch_shape
        like: Tensor | None = None
        for name in family._parameters:
            parameter = getattr(self, name)
            if not same:
                # `expand_as` takes half the time of `expand`, which has to read the sizes.
                like = expanded(parameter, batch_shape) if like is None else parameter.expand_as(like)
                parameter = like
            setattr(new, name, parameter)
        new._batch_shape = batch_shape
        new._event_shape = NO_DIMS
        new._validate_args = self._validate_args
        if "has_rsample" in self.__dict__:
            new.has_rsample = self.__dict__["has_rsample"]
        return new

    def _draw_shape(self, sample_shape: Any) -> torch.Size:
        return torch.Size((*sample_shape, *self._batch_shape)) if sample_shape else self._batch_shape


def together(a: Any, b: Any) -> tuple[Tensor, Tensor]:
    """Two arguments as tensors of one shape, by torch's rules.

    A number takes dtype and device of the other argument; two numbers become tensors of shape () of
    the default dtype. Tensors that agree in shape are returned as they are.
    """
    if isinstance(a, Tensor):
        if isinstance(b, Tensor):
            if a.shape == b.shape:
                return a, b
            a, b = torch.broadcast_tensors(a, b)
            return a, b
        if isinstance(b, (int, float)):
            return a, _filled_like(a, b)
    elif isinstance(a, (int, float)):
        if isinstance(b, Tensor):
            return _filled_like(b, a), b
        if isinstance(b, (int, float)):
            dtype = torch.get_default_dtype()
            return torch.full(NO_DIMS, a, dtype=dtype), torch.full(NO_DIMS, b, dtype=dtype)
    a, b = broadcast_all(a, b)
    return a, b


def alone(a: Any) -> Tensor:
    """One argument as a tensor, by the same rules."""
    if isinstance(a, Tensor):
        return a
    if isinstance(a, (int, float)):
        return torch.full(NO_DIMS, a, dtype=torch.get_default_dtype())
    (a,) = broadcast_all(a)
    return a  # type: ignore[no-any-return]


def _filled_like(like: Tensor, number: float) -> Tensor:
    # One element under any shape: nothing is written per entry of the batch.
    filled = torch.full(NO_DIMS, number, dtype=like.dtype, device=like.device)
    return filled.expand_as(like) if like.dim() else filled


def expanded(tensor: Tensor, shape: Any) -> Tensor:
    """`tensor.expand(shape)`; torch reads sizes faster when each is an argument of its own."""
    return tensor.expand(*shape) if shape else tensor.expand(shape)
