"""`MaskedMixture`: one of two distributions, chosen per batch element."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributions import constraints

from sumprod.distributions._feasible import feasible_point
from sumprod.distributions.torch_distribution import TorchDistribution
from sumprod.distributions.util import broadcast_shape

__all__ = ["MaskedMixture"]


class _MaskedSupport(constraints.Constraint):
    """The first support where the mask is False, the second where it is True."""

    def __init__(
        self, mask: Tensor, support0: constraints.Constraint, support1: constraints.Constraint
    ) -> None:
        self.mask, self.support0, self.support1 = mask, support0, support1
        self.is_discrete = support0.is_discrete and support1.is_discrete
        self.event_dim = support0.event_dim
        super().__init__()

    def check(self, value: Tensor) -> Tensor:
        return torch.where(self.mask, self.support1.check(value), self.support0.check(value))

    def __repr__(self) -> str:
        return f"MaskedSupport({self.support0!r}, {self.support1!r})"


class MaskedMixture(TorchDistribution):
    """Elements of two distributions, mixed by a mask that is known.

    Unlike a mixture with random components, nothing is summed: where `mask` is False an element is
    distributed as `component0`, where it is True as `component1`.

    Args:
        mask: bool tensor that broadcasts with the batch shapes of both components.
        component0, component1: distributions of equal event shape.
        validate_args: whether to check parameters and values.

    Where supports differ, the component that is not chosen sees a harmless value of its own support, so
    that neither its checks nor its gradients meet a value that is not meant for it.

    Raises:
        TypeError, ValueError: the mask is not a bool tensor, shapes do not fit; the message names them.

    Example:
        >>> import torch
        >>> from sumprod.distributions import MaskedMixture, Exponential, Normal
        >>> mixed = MaskedMixture(torch.tensor([False, True]), Normal(0.0, 1.0), Exponential(0.5))
        >>> mixed.mean.tolist()
        [0.0, 2.0]
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}

    def __init__(
        self, mask: Tensor, component0: Any, component1: Any, validate_args: bool | None = None
    ) -> None:
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            got = f"a tensor of {mask.dtype}" if isinstance(mask, Tensor) else type(mask).__name__
            raise ValueError(f"Expected mask to be a BoolTensor but got {got}; convert it with .bool()")
        if component0.event_shape != component1.event_shape:
            raise ValueError(
                f"components event_shape disagree: {component0.event_shape} vs {component1.event_shape}: "
                "component0 and component1 of MaskedMixture must have the same event shape"
            )
        shape = torch.Size(broadcast_shape(mask.shape, component0.batch_shape, component1.batch_shape))
        self._which = mask.expand(shape)
        self.component0 = component0 if component0.batch_shape == shape else component0.expand(shape)
        self.component1 = component1 if component1.batch_shape == shape else component1.expand(shape)
        self.has_rsample = bool(component0.has_rsample and component1.has_rsample)
        super().__init__(shape, component0.event_shape, validate_args=validate_args)

    @constraints.dependent_property
    def support(self) -> constraints.Constraint:
        """Each element's own support."""
        support0: constraints.Constraint = self.component0.support
        support1: constraints.Constraint = self.component1.support
        return support0 if support0 is support1 else _MaskedSupport(self._which, support0, support1)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> MaskedMixture:
        """The same parameters, not copied, under a larger batch shape."""
        new: MaskedMixture = self._get_checked_instance(MaskedMixture, _instance)  # type: ignore[no-untyped-call]
        batch_shape = torch.Size(batch_shape)
        new._which = self._which.expand(batch_shape)
        new.component0 = self.component0.expand(batch_shape)
        new.component1 = self.component1.expand(batch_shape)
        new.has_rsample = self.has_rsample
        super(MaskedMixture, new).__init__(batch_shape, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def _select(self, of_component: Callable[[Any], Tensor]) -> Tensor:
        """Values with event dims; component 1 draws first."""
        value1, value0 = of_component(self.component1), of_component(self.component0)
        mask = self._which.reshape(*self._which.shape, *(1 for _ in self.event_shape))
        return torch.where(mask, value1, value0)

    def sample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        """Draws of shape sample_shape + batch_shape + event_shape."""
        with torch.no_grad():
            return self._select(lambda component: component.sample(torch.Size(sample_shape)))

    def rsample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        """Reparameterised draws of shape sample_shape + batch_shape + event_shape."""
        return self._select(lambda component: component.rsample(torch.Size(sample_shape)))

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density under each element's own component."""
        if self._validate_args and not (self.component0._validate_args and self.component1._validate_args):
            self._validate_sample(value)  # otherwise the components check what they are given
        value0 = value1 = value
        if self.component0.support is not self.component1.support:
            mask = self._which.reshape(*self._which.shape, *(1 for _ in self.event_shape))
            value0 = _replaced(self.component0, value, mask)
            value1 = _replaced(self.component1, value, ~mask)
        log_prob1: Tensor = self.component1.log_prob(value1)
        log_prob0: Tensor = self.component0.log_prob(value0)
        return torch.where(self._which, log_prob1, log_prob0)

    @property
    def mean(self) -> Tensor:
        """Each element's own mean."""
        return self._select(lambda component: component.mean)

    @property
    def variance(self) -> Tensor:
        """Each element's own variance."""
        return self._select(lambda component: component.variance)


def _replaced(component: Any, value: Tensor, where: Tensor) -> Tensor:
    point = feasible_point(component.support, value, component.event_shape)
    return value if point is None else torch.where(where, point.to(value.dtype), value)
