"""What an automatic guide needs to know of a latent site of its model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.distributions import biject_to

from sumprod.distributions import Delta, Distribution
from sumprod.distributions.util import sum_rightmost
from sumprod.handlers.indep import CondIndepStackFrame
from sumprod.infer.autoguide.utils import helpful_support_errors, periodic_repeat
from sumprod.params._entry import is_exp, is_identity


class GuideSite:
    """A latent site of the prototype, in its plates.

    Attributes:
        name: of the site; `path` is its parts between dots.
        frames: of the vectorised plates around, outermost first; `plates` are their names.
    """

    __slots__ = ("frames", "name", "path", "plates")

    def __init__(self, site: Any) -> None:
        self.name: str = site["name"]
        self.path = tuple(self.name.split("."))
        self.frames: tuple[CondIndepStackFrame, ...] = tuple(site["cond_indep_stack"])
        self.plates = tuple(frame.name for frame in self.frames)

    def full_size(self, tensor: torch.Tensor, event_dim: int) -> torch.Tensor:
        """Repeat a tensor, whose rightmost `event_dim` dims are no batch dims, along subsampled plates."""
        for frame in self.frames:
            full_size, dim = frame.full_size, (frame.dim or 0) - event_dim
            if full_size is not None and full_size != frame.size and tensor.dim() >= -dim:
                tensor = periodic_repeat(tensor, full_size, dim)
        return tensor.contiguous()


class LatentSite(GuideSite):
    """A continuous latent site of the prototype, and the bijection between its support and the real numbers.

    Attributes:
        support: of the distribution in the prototype run.
        value: in the prototype run; detached.
        unconstrained: the same on the real line; its rightmost `unconstrained_event_dim` dims are no
            batch dims.
        event_dim: number of rightmost dims of `value` that are no batch dims.
        transform: from the real line to the support.
    """

    __slots__ = (
        "event_dim",
        "log_abs_det_jacobian",
        "support",
        "transform",
        "unconstrained",
        "unconstrained_event_dim",
        "value",
    )

    def __init__(self, site: Any) -> None:
        super().__init__(site)
        fn = site["fn"]
        if not isinstance(fn, Distribution):
            raise TypeError(
                f"an automatic guide needs a distribution at site '{self.name}', not {fn!r}: hide the"
                f" site, e.g. handlers.block(model, hide=['{self.name}'])"
            )
        self.value: torch.Tensor = site["value"].detach()
        self.event_dim: int = fn.event_dim  # type: ignore[attr-defined]
        with helpful_support_errors(site), torch.no_grad():
            self.support: Any = fn.support  # type: ignore[attr-defined]
            self.transform: Any = biject_to(self.support)
            self.unconstrained: torch.Tensor = self.transform.inv(self.value)
        batch_dim = self.value.dim() - self.event_dim
        self.unconstrained_event_dim = self.unconstrained.dim() - batch_dim
        self._shorten()

    def _shorten(self) -> None:
        """Replace the commonest transforms by single operations with the same result."""
        self.log_abs_det_jacobian: Callable[..., torch.Tensor] | None
        if is_identity(self.transform):
            self.log_abs_det_jacobian = None  # it is zero
        elif is_exp(self.transform):
            self.transform, self.log_abs_det_jacobian = torch.exp, _log_of_exp
        else:
            self.log_abs_det_jacobian = self.transform.log_abs_det_jacobian

    def constrain(self, unconstrained: torch.Tensor) -> torch.Tensor:
        """The value within the support that belongs to a point of the real line."""
        if self.log_abs_det_jacobian is None:
            return unconstrained
        return self.transform(unconstrained)  # type: ignore[no-any-return]

    def delta(self, unconstrained: torch.Tensor) -> Any:
        """A point mass at the value that belongs to `unconstrained`.

        Its log-density is that of the change of variables: added to the density of `unconstrained`, it
        makes the density of the value.
        """
        if self.log_abs_det_jacobian is None:
            return Delta(unconstrained, event_dim=self.event_dim)
        value = self.transform(unconstrained)
        log_density = -self.log_abs_det_jacobian(unconstrained, value)
        log_density = sum_rightmost(log_density, log_density.dim() - value.dim() + self.event_dim)
        return Delta(value, log_density=log_density, event_dim=self.event_dim)


def _log_of_exp(unconstrained: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """The log of the derivative of exp, which is its argument."""
    return unconstrained
