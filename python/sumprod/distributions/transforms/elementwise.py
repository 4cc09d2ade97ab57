"""Monotone functions of single numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions.transforms import Transform
from torch.nn import functional

from sumprod.distributions import constraints

__all__ = ["ELUTransform", "LeakyReLUTransform", "elu", "leaky_relu"]

_LEAK = 0.01


class _Elementwise(Transform):
    domain = constraints.real
    codomain: Any = constraints.real
    bijective = True
    sign = +1

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self)


class ELUTransform(_Elementwise):
    """y = x for positive x, else exp(x) - 1."""

    codomain = constraints.greater_than(-1.0)

    def _call(self, x: Tensor) -> Tensor:
        return functional.elu(x)

    def _inverse(self, y: Tensor) -> Tensor:
        # The branch that is not taken must not make a NaN for the gradient.
        return torch.where(y > 0, y, torch.log1p(y.clamp(max=0)))

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """x where negative, else 0."""
        return x.clamp(max=0)


class LeakyReLUTransform(_Elementwise):
    """y = x for positive x, else x / 100."""

    def _call(self, x: Tensor) -> Tensor:
        return functional.leaky_relu(x, _LEAK)

    def _inverse(self, y: Tensor) -> Tensor:
        return functional.leaky_relu(y, 1 / _LEAK)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """log(1 / 100) where negative, else 0."""
        slope = torch.where(x < 0, torch.full_like(x, _LEAK), torch.ones_like(x))
        return slope.log()


def elu() -> ELUTransform:
    """A new `ELUTransform`."""
    return ELUTransform()


def leaky_relu() -> LeakyReLUTransform:
    """A new `LeakyReLUTransform`."""
    return LeakyReLUTransform()
