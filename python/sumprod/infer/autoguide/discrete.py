"""Guides of discrete variables, summed over."""

from __future__ import annotations

from typing import Any

import torch

from sumprod.distributions import Bernoulli, Categorical, OneHotCategorical, constraints
from sumprod.infer.autoguide.base import AutoGuide, CreatePlates, Model
from sumprod.infer.autoguide.latent import GuideSite
from sumprod.infer.autoguide.utils import deep_getattr, deep_setattr
from sumprod.infer.enum import config_enumerate
from sumprod.nn.module import PyroParam
from sumprod.primitives import sample

# family -> the constraint on its probabilities, and how many of their rightmost dims are no batch dims
_FAMILIES: dict[Any, tuple[Any, int]] = {
    Bernoulli: (constraints.unit_interval, 0),
    Categorical: (constraints.simplex, 1),
    OneHotCategorical: (constraints.simplex, 1),
}


class _DiscreteSite(GuideSite):
    """A discrete latent site of the prototype: its family, and its prior probabilities."""

    __slots__ = ("family", "probs")

    def __init__(self, site: Any) -> None:
        super().__init__(site)
        fn = site["fn"]
        if site["infer"].get("enumerate") != "parallel":
            raise NotImplementedError(
                f'Expected sample site "{self.name}" to be discrete and configured for parallel enumeration,'
                f" got {type(fn).__name__} with infer={{'enumerate': {site['infer'].get('enumerate')!r}}}."
                f" Hide it from this guide: handlers.block(model, hide=['{self.name}'])"
            )
        self.family = next((family for family in _FAMILIES if type(fn) is family), None)
        if self.family is None:
            names = ", ".join(family.__name__ for family in _FAMILIES)
            raise NotImplementedError(
                f"{type(fn).__name__} is not supported by AutoDiscreteParallel, as at site '{self.name}'; it"
                f" has {names}. Sum the site out in the model instead, and hide it from this guide"
            )
        self.probs: torch.Tensor = fn.probs.detach()
        self.path = (*self.path[:-1], f"{self.path[-1]}_probs")


class AutoDiscreteParallel(AutoGuide):
    """A free distribution for each discrete latent site, independent of the others, summed over in parallel.

    For `TraceEnum_ELBO`. Continuous sites must be hidden from it by `handlers.block`, and go to another part
    of an `AutoGuideList`. To sum a discrete site out exactly, mark it in the model instead, and have no guide
    for it.

    Args:
        model: a program whose latent sites are Bernoulli, Categorical or OneHotCategorical.
        create_plates: see `AutoGuide`.

    The parameter of site `z` is `AutoDiscreteParallel.z_probs`: probabilities, at first those of the model,
    full-size along subsampled plates.

    Raises:
        NotImplementedError: (at the first call) a latent site is of another family, or marked otherwise.

    >>> import torch, sumprod
    >>> from sumprod.distributions import Categorical
    >>> guide = AutoDiscreteParallel(lambda: sumprod.sample("z", Categorical(torch.tensor([0.5, 0.5]))))
    >>> list(guide())
    ['z']
    >>> guide.z_probs.detach()
    tensor([0.5000, 0.5000])
    """

    def __init__(self, model: Model, *, create_plates: CreatePlates | None = None) -> None:
        super().__init__(config_enumerate(model), create_plates=create_plates)

    @staticmethod
    def _guide_site(site: Any) -> Any:
        return _DiscreteSite(site)

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        super()._setup_prototype(*args, **kwargs)
        for latent in self._latents:
            constraint, event_dim = _FAMILIES[latent.family]
            probs = latent.full_size(latent.probs, event_dim)
            deep_setattr(self, latent.path, PyroParam(probs, constraint, event_dim))

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
        """Sample every latent site; returns the values by site."""
        self._ensure_prototype(args, kwargs)
        return self._sample_sites(self._draw, args, kwargs)

    def _draw(self, latent: _DiscreteSite) -> torch.Tensor:
        family: Any = latent.family
        fn = family(deep_getattr(self, latent.path))
        value: torch.Tensor = sample(latent.name, fn, infer={"enumerate": "parallel"})
        return value
