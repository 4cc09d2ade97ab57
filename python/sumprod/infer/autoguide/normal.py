"""Independent normals, one per latent number."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from sumprod.distributions import Normal, constraints
from sumprod.infer.autoguide.base import AutoGuide, CreatePlates, Model, initialised
from sumprod.infer.autoguide.initialization import init_to_feasible
from sumprod.infer.autoguide.latent import LatentSite
from sumprod.infer.autoguide.utils import deep_getattr, deep_setattr
from sumprod.nn.module import PyroModule, PyroParam
from sumprod.primitives import sample


def check_init_scale(init_scale: float) -> float:
    """A standard deviation to start from, as a float.

    Raises:
        ValueError: it is not a positive number.
    """
    if isinstance(init_scale, bool) or not isinstance(init_scale, int | float) or not init_scale > 0:
        raise ValueError(f"Expected init_scale > 0. but got {init_scale!r}")
    return float(init_scale)


class AutoNormal(AutoGuide):
    """A normal for every latent site, diagonal on the real line and mapped to the site's support.

    Site by site, unlike `AutoDiagonalNormal`: it knows plates, subsampled ones too, and parallel
    particles, and `TraceMeanField_ELBO` suits it.

    Args:
        model: a program.
        init_loc_fn: the strategy for the first values.
        init_scale: the first standard deviation, on the real line.
        create_plates: see `AutoGuide`.

    Parameters of site `x`: `AutoNormal.locs.x` and `AutoNormal.scales.x`, of the shape of the site on
    the real line, full-size along subsampled plates. A run has the auxiliary site `x_unconstrained` and
    the site `x`, a point mass at its image.

    >>> import torch, sumprod
    >>> from sumprod.distributions import LogNormal
    >>> guide = AutoNormal(lambda: sumprod.sample("x", LogNormal(0.0, 1.0)))
    >>> guide()["x"].shape, guide.quantiles([0.5])["x"]
    (torch.Size([]), tensor([1.]))
    """

    scale_constraint = constraints.softplus_positive

    def __init__(
        self,
        model: Model,
        init_loc_fn: Callable[[Any], Any] = init_to_feasible,
        init_scale: float = 0.1,
        *,
        create_plates: CreatePlates | None = None,
    ) -> None:
        self.init_loc_fn = init_loc_fn
        self._init_scale = check_init_scale(init_scale)
        super().__init__(initialised(model, init_loc_fn), create_plates=create_plates)

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        super()._setup_prototype(*args, **kwargs)
        self.locs = PyroModule()
        self.scales = PyroModule()
        for latent in self._latents:
            event_dim = latent.unconstrained_event_dim
            loc = latent.full_size(latent.unconstrained, event_dim)
            scale = torch.full_like(loc, self._init_scale)
            deep_setattr(self.locs, latent.path, PyroParam(loc, constraints.real, event_dim))
            deep_setattr(self.scales, latent.path, PyroParam(scale, self.scale_constraint, event_dim))

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
        """Sample every latent site; returns the values by site."""
        self._ensure_prototype(args, kwargs)
        locs, scales = self.locs, self.scales

        def draw(latent: LatentSite) -> torch.Tensor:
            # Valid by construction: a check of the parameters would cost as much as the draw.
            normal: Any = Normal(
                deep_getattr(locs, latent.path), deep_getattr(scales, latent.path), validate_args=False
            )
            if latent.unconstrained_event_dim:
                normal = normal.to_event(latent.unconstrained_event_dim)
            point = sample(latent.name + "_unconstrained", normal, infer={"is_auxiliary": True})
            value: torch.Tensor = sample(latent.name, latent.delta(point))
            return value

        return self._sample_sites(draw, args, kwargs)

    @torch.no_grad()
    def median(self, *args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
        """The images of the locations, by site; full-size along subsampled plates."""
        self._ensure_prototype(args, kwargs)
        return {
            latent.name: latent.constrain(deep_getattr(self.locs, latent.path).detach().clone())
            for latent in self._latents
        }

    @torch.no_grad()
    def quantiles(self, quantiles: Any, *args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
        """The images of the normals' quantiles.

        Args:
            quantiles: a probability, or a list or tensor of them.
            args, kwargs: of the model; needed if the guide has not run yet.

        Returns:
            Tensors of shape (number of quantiles,) + shape of the site, by site; full-size along
            subsampled plates.
        """
        self._ensure_prototype(args, kwargs)
        result = {}
        for latent in self._latents:
            loc, scale = deep_getattr(self.locs, latent.path), deep_getattr(self.scales, latent.path)
            q = torch.as_tensor(quantiles, dtype=loc.dtype, device=loc.device)
            normal: Any = Normal(loc, scale)
            result[latent.name] = latent.constrain(normal.icdf(q.reshape((-1,) + (1,) * loc.dim())))
        return result
