"""Automatic guides under the constructors and parameter names of Pyro 0.3.

A guide takes a `prefix`; its parameters are called `PREFIX_loc`, `PREFIX_scale`, ..., or, for
`AutoDelta`, `PREFIX_<site>`. Standard deviations start at 1. `sumprod.infer.autoguide` has the same
families with parameters named after the class and the site, and `AutoNormal`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.distributions import constraints

from sumprod.distributions import LowRankMultivariateNormal, MultivariateNormal
from sumprod.infer import autoguide
from sumprod.infer.autoguide.base import Model
from sumprod.infer.autoguide.callable import AutoCallable
from sumprod.infer.autoguide.initialization import (
    init_to_feasible,
    init_to_mean,
    init_to_median,
    init_to_sample,
)
from sumprod.infer.autoguide.utils import mean_field_entropy
from sumprod.nn._context import Context
from sumprod.nn.module import PyroParam

__all__ = [
    "AutoCallable",
    "AutoContinuous",
    "AutoDelta",
    "AutoDiagonalNormal",
    "AutoGuide",
    "AutoGuideList",
    "AutoLaplaceApproximation",
    "AutoLowRankMultivariateNormal",
    "AutoMultivariateNormal",
    "init_to_feasible",
    "init_to_mean",
    "init_to_median",
    "init_to_sample",
    "mean_field_entropy",
]

Strategy = Callable[[Any], Any]


class AutoGuide(autoguide.AutoGuide):
    """Base class of these guides.

    Args:
        model: a program.
        prefix: of the names of the parameters.
    """

    def __init__(self, model: Model, prefix: str = "auto") -> None:
        super().__init__(model)
        self._set_prefix(prefix)

    def _set_prefix(self, prefix: str) -> None:
        if not isinstance(prefix, str):
            raise TypeError(
                f"Expected prefix to be a str, got {prefix!r}: the guides of sumprod.contrib.autoguide take"
                " (model, prefix, ...), those of sumprod.infer.autoguide take no prefix"
            )
        self.prefix = prefix
        self.__dict__["_pyro_name"] = prefix

    def _pyro_get_fullname(self, name: str) -> str:
        return f"{self.prefix}_{name}"

    def _pyro_set_supermodule(self, name: str, context: Context) -> None:
        # A part of a list keeps its own prefix.
        super()._pyro_set_supermodule(self.prefix, context)


class AutoGuideList(AutoGuide, autoguide.AutoGuideList):
    """Guides that are run one after the other, each for some of the latent sites of one model.

    Args:
        model: a program.
        prefix: not used in names: the parts have their own.
    """


class AutoDelta(AutoGuide, autoguide.AutoDelta):
    """A point mass at every latent site.

    Args:
        model: a program.
        prefix: of the names of the parameters: `PREFIX_<site>`.
        init_loc_fn: the strategy for the first values.
    """

    def __init__(self, model: Model, prefix: str = "auto", init_loc_fn: Strategy = init_to_median) -> None:
        autoguide.AutoDelta.__init__(self, model, init_loc_fn)
        self._set_prefix(prefix)


class AutoContinuous(AutoGuide, autoguide.AutoContinuous):
    """Base class of guides with a joint distribution of all latent variables on the real line.

    Args:
        model: a program with at least one continuous latent variable.
        prefix: of the names of the parameters.
        init_loc_fn: the strategy for the first values.
    """

    def __init__(self, model: Model, prefix: str = "auto", init_loc_fn: Strategy = init_to_median) -> None:
        autoguide.AutoContinuous.__init__(self, model, init_loc_fn)
        self._set_prefix(prefix)


class AutoDiagonalNormal(AutoContinuous, autoguide.AutoDiagonalNormal):
    """A normal with diagonal covariance on the real line; parameters `PREFIX_loc`, `PREFIX_scale`."""

    scale_constraint = constraints.positive

    def __init__(self, model: Model, prefix: str = "auto", init_loc_fn: Strategy = init_to_median) -> None:
        autoguide.AutoDiagonalNormal.__init__(self, model, init_loc_fn, init_scale=1.0)
        self._set_prefix(prefix)


class AutoMultivariateNormal(AutoContinuous):
    """A normal with full covariance on the real line; parameters `PREFIX_loc`, `PREFIX_scale_tril`."""

    loc: Any
    scale_tril: Any

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        super()._setup_prototype(*args, **kwargs)
        loc = self._init_loc()
        self.loc = nn.Parameter(loc)
        identity = torch.eye(self.latent_dim, dtype=loc.dtype, device=loc.device)
        self.scale_tril = PyroParam(identity, constraints.lower_cholesky)

    def get_posterior(self, *args: Any, **kwargs: Any) -> Any:
        """The distribution of the packed vector."""
        return MultivariateNormal(self.loc, scale_tril=self.scale_tril, validate_args=False)

    def _loc_scale(self, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        return self.loc, self.scale_tril.pow(2).sum(-1).sqrt()


class AutoLowRankMultivariateNormal(AutoContinuous):
    """A normal on the real line whose covariance is a low-rank matrix plus a diagonal one.

    Parameters `PREFIX_loc`, `PREFIX_cov_factor` and `PREFIX_cov_diag`; each part of the covariance starts
    with a variance of one half.

    Args:
        model: a program with at least one continuous latent variable.
        prefix: of the names of the parameters.
        init_loc_fn: the strategy for the first values.
        rank: of the low-rank part.
    """

    loc: Any
    cov_factor: Any
    cov_diag: Any

    def __init__(
        self, model: Model, prefix: str = "auto", init_loc_fn: Strategy = init_to_median, rank: int = 1
    ) -> None:
        if isinstance(rank, bool) or not isinstance(rank, int) or rank <= 0:
            raise ValueError(f"Expected rank > 0 but got {rank!r}")
        self.rank = rank
        super().__init__(model, prefix, init_loc_fn)

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        super()._setup_prototype(*args, **kwargs)
        loc = self._init_loc()
        factor = loc.new_empty(self.latent_dim, self.rank).normal_(0, math.sqrt(0.5 / self.rank))
        self.loc = nn.Parameter(loc)
        self.cov_factor = nn.Parameter(factor)
        self.cov_diag = PyroParam(torch.full_like(loc, 0.5), constraints.positive)

    def get_posterior(self, *args: Any, **kwargs: Any) -> Any:
        """The distribution of the packed vector."""
        return LowRankMultivariateNormal(self.loc, self.cov_factor, self.cov_diag, validate_args=False)

    def _loc_scale(self, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        return self.loc, (self.cov_factor.pow(2).sum(-1) + self.cov_diag).sqrt()


class AutoLaplaceApproximation(AutoContinuous, autoguide.AutoLaplaceApproximation):
    """A point estimate on the real line; parameter `PREFIX_loc`. See `laplace_approximation`."""
