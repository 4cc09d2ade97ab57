"""Guides that put all latent variables into one vector on the real line."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from sumprod.distributions import (
    LowRankMultivariateNormal,
    MultivariateNormal,
    Normal,
    constraints,
    transforms,
)
from sumprod.distributions.util import broadcast_shape
from sumprod.infer.autoguide.base import AutoGuide, Model, initialised
from sumprod.infer.autoguide.initialization import init_to_median
from sumprod.infer.autoguide.latent import LatentSite
from sumprod.infer.autoguide.normal import check_init_scale
from sumprod.nn.module import PyroParam
from sumprod.primitives import sample


class AutoContinuous(AutoGuide):
    """Base class of guides with a joint distribution of all latent variables on the real line.

    Subclasses define `get_posterior`, the distribution of the packed vector: the latent sites'
    unconstrained values, flattened, in the order of the prototype. A run has one auxiliary site,
    `_AutoX_latent`, and at each latent site a point mass at the image of its part of the vector.

    Args:
        model: a program with at least one continuous latent variable.
        init_loc_fn: the strategy for the first values.

    Attributes:
        latent_dim: size of the packed vector; 0 before the first call.

    Reference: Kucukelbir et al. 2017, "Automatic Differentiation Variational Inference".
    """

    def __init__(self, model: Model, init_loc_fn: Callable[[Any], Any] = init_to_median) -> None:
        self.init_loc_fn = init_loc_fn
        super().__init__(initialised(model, init_loc_fn))
        self.latent_dim = 0
        self._sizes: list[int] = []

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        super()._setup_prototype(*args, **kwargs)
        self._sizes = [latent.unconstrained.numel() for latent in self._latents]
        self.latent_dim = sum(self._sizes)
        if self.latent_dim == 0:
            raise RuntimeError(f"{type(self).__name__} found no latent variables; Use an empty guide instead")
        self._warn_of_subsamples()

    def _warn_of_subsamples(self) -> None:
        plates = [name for name, f in self._prototype_frames.items() if f.full_size != f.size]
        sites = [latent.name for latent in self._latents if set(plates) & set(latent.plates)]
        if sites:
            warnings.warn(
                f"{type(self).__name__}: the sites {', '.join(sites)} are inside subsampled plates"
                f" ({', '.join(plates)}), and their entries in the packed vector stand for whichever rows are"
                " drawn. AutoNormal has parameters for each row",
                stacklevel=2,
            )

    def _init_loc(self) -> torch.Tensor:
        """The packed vector of the prototype."""
        return torch.cat([latent.unconstrained.reshape(-1) for latent in self._latents])

    def get_base_dist(self) -> Any:
        """The distribution that `get_transform` maps to the posterior."""
        raise NotImplementedError(f"{type(self).__name__} does not define get_base_dist()")

    def get_transform(self, *args: Any, **kwargs: Any) -> Any:
        """The transform from the base distribution to the posterior."""
        raise NotImplementedError(f"{type(self).__name__} does not define get_transform()")

    def get_posterior(self, *args: Any, **kwargs: Any) -> Any:
        """The distribution of the packed vector, of event shape (latent_dim,)."""
        raise NotImplementedError(f"{type(self).__name__} does not define get_posterior()")

    def _loc_scale(self, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Means and standard deviations of the packed vector, each (latent_dim,)."""
        raise NotImplementedError(f"{type(self).__name__} does not define _loc_scale(): no quantiles")

    def sample_latent(self, *args: Any, **kwargs: Any) -> Any:
        """Sample the packed vector, of shape (..., latent_dim)."""
        self._ensure_prototype(args, kwargs)
        posterior = self.get_posterior(*args, **kwargs)
        return sample(f"_{self._pyro_name}_latent", posterior, infer={"is_auxiliary": True})

    def _unpack_latent(self, vector: torch.Tensor) -> Iterator[tuple[LatentSite, torch.Tensor]]:
        """The sites and their unconstrained values, from a packed vector (..., latent_dim)."""
        for latent, part in zip(self._latents, vector.split(self._sizes, dim=-1), strict=True):
            shape = latent.unconstrained.shape
            batch_dim = len(shape) - latent.unconstrained_event_dim
            batch_shape = broadcast_shape(vector.shape[:-1], shape[:batch_dim])
            yield latent, part.reshape(torch.Size(batch_shape) + shape[batch_dim:])

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
        """Sample every latent site; returns the values by site."""
        self._ensure_prototype(args, kwargs)
        vector = self.sample_latent(*args, **kwargs)
        parts = {latent.name: part for latent, part in self._unpack_latent(vector)}

        def draw(latent: LatentSite) -> torch.Tensor:
            value: torch.Tensor = sample(latent.name, latent.delta(parts[latent.name]))
            return value

        return self._sample_sites(draw, args, kwargs)

    @torch.no_grad()
    def median(self, *args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
        """The images of the location, by site."""
        self._ensure_prototype(args, kwargs)
        loc = self._loc_scale(*args, **kwargs)[0].detach().clone()
        return {latent.name: latent.constrain(part) for latent, part in self._unpack_latent(loc)}

    @torch.no_grad()
    def quantiles(self, quantiles: Any, *args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
        """The images of the marginal quantiles.

        Args:
            quantiles: a probability, or a list or tensor of them.
            args, kwargs: of the model; needed if the guide has not run yet.

        Returns:
            Tensors of shape (number of quantiles,) + shape of the site, by site.
        """
        self._ensure_prototype(args, kwargs)
        loc, scale = self._loc_scale(*args, **kwargs)
        normal: Any = Normal(loc, scale)
        q = torch.as_tensor(quantiles, dtype=loc.dtype, device=loc.device).reshape(-1, 1)
        result: dict[str, list[torch.Tensor]] = {latent.name: [] for latent in self._latents}
        for vector in normal.icdf(q):
            for latent, part in self._unpack_latent(vector):
                result[latent.name].append(latent.constrain(part))
        return {name: torch.stack(values) for name, values in result.items()}


class _ScaledGuide(AutoContinuous):
    """What guides with a location and scales share.

    Args:
        model: a program with at least one continuous latent variable.
        init_loc_fn: the strategy for the first values.
        init_scale: the first standard deviation, on the real line.
    """

    scale_constraint = constraints.softplus_positive
    loc: Any
    scale: Any

    def __init__(
        self, model: Model, init_loc_fn: Callable[[Any], Any] = init_to_median, init_scale: float = 0.1
    ) -> None:
        self._init_scale = check_init_scale(init_scale)
        super().__init__(model, init_loc_fn=init_loc_fn)

    def _set_loc_and_scale(self, scale: float) -> None:
        loc = self._init_loc()
        self.loc = nn.Parameter(loc)
        self.scale = PyroParam(torch.full_like(loc, scale), self.scale_constraint)


class AutoDiagonalNormal(_ScaledGuide):
    """A normal with diagonal covariance on the real line.

    Parameters: `AutoDiagonalNormal.loc` and `.scale`, each (latent_dim,).

    Args:
        model: a program with at least one continuous latent variable.
        init_loc_fn: the strategy for the first values.
        init_scale: the first standard deviation, on the real line.
    """

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        super()._setup_prototype(*args, **kwargs)
        self._set_loc_and_scale(self._init_scale)

    def get_base_dist(self) -> Any:
        """Independent standard normals."""
        return Normal(torch.zeros_like(self.loc), torch.ones_like(self.loc)).to_event(1)

    def get_transform(self, *args: Any, **kwargs: Any) -> Any:
        """Multiply by the scale and add the location."""
        return transforms.AffineTransform(self.loc, self.scale, event_dim=1)

    def get_posterior(self, *args: Any, **kwargs: Any) -> Any:
        """The distribution of the packed vector."""
        return Normal(self.loc, self.scale, validate_args=False).to_event(1)

    def _loc_scale(self, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        return self.loc, self.scale


class AutoMultivariateNormal(_ScaledGuide):
    """A normal with full covariance on the real line.

    Parameters: `AutoMultivariateNormal.loc` and `.scale`, each (latent_dim,), and `.scale_tril`, lower
    triangular with ones on the diagonal, (latent_dim, latent_dim). The Cholesky factor of the
    covariance is `scale_tril` with its rows multiplied by `scale`.

    Args:
        model: a program with at least one continuous latent variable.
        init_loc_fn: the strategy for the first values.
        init_scale: the first standard deviation, on the real line.
    """

    scale_tril_constraint = constraints.unit_lower_cholesky
    scale_tril: Any

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        super()._setup_prototype(*args, **kwargs)
        self._set_loc_and_scale(self._init_scale)
        identity = torch.eye(self.latent_dim, dtype=self.loc.dtype, device=self.loc.device)
        self.scale_tril = PyroParam(identity, self.scale_tril_constraint)

    def get_base_dist(self) -> Any:
        """Independent standard normals."""
        return Normal(torch.zeros_like(self.loc), torch.ones_like(self.loc)).to_event(1)

    def _cholesky(self) -> Any:
        return self.scale[..., None] * self.scale_tril

    def get_transform(self, *args: Any, **kwargs: Any) -> Any:
        """Multiply by the Cholesky factor and add the location."""
        cholesky = self._cholesky()
        return transforms.LowerCholeskyAffine(self.loc, scale_tril=cholesky)

    def get_posterior(self, *args: Any, **kwargs: Any) -> Any:
        """The distribution of the packed vector."""
        cholesky = self._cholesky()
        return MultivariateNormal(self.loc, scale_tril=cholesky, validate_args=False)

    def _loc_scale(self, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        return self.loc, self.scale * self.scale_tril.pow(2).sum(-1).sqrt()


class AutoLowRankMultivariateNormal(_ScaledGuide):
    """A normal on the real line whose covariance is a low-rank matrix plus a diagonal one.

    Parameters: `AutoLowRankMultivariateNormal.loc` and `.scale`, each (latent_dim,), and `.cov_factor`,
    (latent_dim, rank). With D = diag(scale) the covariance is D (cov_factor cov_factor^T + 1) D.

    Args:
        model: a program with at least one continuous latent variable.
        init_loc_fn: the strategy for the first values.
        init_scale: roughly the first standard deviation, on the real line.
        rank: of the low-rank part; None: the square root of the size of the vector, rounded.
    """

    def __init__(
        self,
        model: Model,
        init_loc_fn: Callable[[Any], Any] = init_to_median,
        init_scale: float = 0.1,
        rank: int | None = None,
    ) -> None:
        if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int) or rank <= 0):
            raise ValueError(f"Expected rank > 0 but got {rank!r}")
        self.rank = rank
        super().__init__(model, init_loc_fn=init_loc_fn, init_scale=init_scale)

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        super()._setup_prototype(*args, **kwargs)
        if self.rank is None:
            self.rank = round(self.latent_dim**0.5)
        # Each of the two parts starts with half of the variance.
        self._set_loc_and_scale(math.sqrt(0.5) * self._init_scale)
        factor = self.loc.new_empty(self.latent_dim, self.rank).normal_(0, 1 / math.sqrt(self.rank))
        self.cov_factor = nn.Parameter(factor)

    def get_posterior(self, *args: Any, **kwargs: Any) -> Any:
        """The distribution of the packed vector."""
        scale = self.scale
        factor = self.cov_factor * scale.unsqueeze(-1)
        return LowRankMultivariateNormal(self.loc, factor, scale * scale, validate_args=False)

    def _loc_scale(self, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        return self.loc, self.scale * (self.cov_factor.pow(2).sum(-1) + 1).sqrt()
