"""Point estimates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from sumprod.distributions import Delta
from sumprod.infer.autoguide.base import AutoGuide, CreatePlates, Model, initialised
from sumprod.infer.autoguide.initialization import init_to_median
from sumprod.infer.autoguide.latent import LatentSite
from sumprod.infer.autoguide.utils import deep_getattr, deep_setattr
from sumprod.nn.module import PyroParam
from sumprod.primitives import sample


class AutoDelta(AutoGuide):
    """A point mass at every latent site: SVI with it finds the maximum a posteriori.

    Args:
        model: a program.
        init_loc_fn: the strategy for the first values.
        create_plates: see `AutoGuide`.

    The parameter of site `x` is `AutoDelta.x`, of the shape of the site, full-size along subsampled
    plates, with the support of the site's distribution as its constraint.

    >>> import torch, sumprod
    >>> from sumprod.distributions import LogNormal
    >>> from sumprod.infer.autoguide import init_to_value
    >>> guide = AutoDelta(lambda: sumprod.sample("x", LogNormal(0.0, 1.0)), init_to_value(values={"x": 2.0}))
    >>> guide()["x"].detach()
    tensor(2.)
    """

    def __init__(
        self,
        model: Model,
        init_loc_fn: Callable[[Any], Any] = init_to_median,
        *,
        create_plates: CreatePlates | None = None,
    ) -> None:
        self.init_loc_fn = init_loc_fn
        super().__init__(initialised(model, init_loc_fn), create_plates=create_plates)

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        super()._setup_prototype(*args, **kwargs)
        for latent in self._latents:
            value = latent.full_size(latent.value, latent.event_dim)
            deep_setattr(self, latent.path, PyroParam(value, latent.support, latent.event_dim))

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
        """Sample every latent site; returns the values by site."""
        self._ensure_prototype(args, kwargs)
        return self._sample_sites(self._draw, args, kwargs)

    def _draw(self, latent: LatentSite) -> torch.Tensor:
        value: torch.Tensor = sample(
            latent.name, Delta(deep_getattr(self, latent.path), event_dim=latent.event_dim)
        )
        return value

    @torch.no_grad()
    def median(self, *args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
        """The points, by site; full-size along subsampled plates."""
        self._ensure_prototype(args, kwargs)
        return {latent.name: deep_getattr(self, latent.path).detach().clone() for latent in self._latents}

    @torch.no_grad()
    def quantiles(self, quantiles: Any, *args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
        """All quantiles of a point mass are its point: shape (number of quantiles,) + that of the site."""
        count = torch.as_tensor(quantiles).numel()
        medians = self.median(*args, **kwargs)
        return {name: value.expand((count, *value.shape)) for name, value in medians.items()}
