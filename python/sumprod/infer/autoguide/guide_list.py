"""Guides composed of guides for parts of a model."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from sumprod.handlers.trace_struct import Trace
from sumprod.infer.autoguide.base import AutoGuide
from sumprod.infer.autoguide.callable import AutoCallable
from sumprod.infer.autoguide.latent import GuideSite


class AutoGuideList(AutoGuide, nn.ModuleList):
    """Guides that are run one after the other, each for some of the latent sites of one model.

    Parts share the plates of the list. The parameters of part 0 are called `AutoGuideList.0.<...>`.

    Args:
        model: a program.
        create_plates: see `AutoGuide`.

    >>> import sumprod
    >>> from sumprod.distributions import Gamma, Normal
    >>> from sumprod.handlers import block
    >>> from sumprod.infer.autoguide import AutoDelta, AutoDiagonalNormal
    >>> def model():
    ...     scale = sumprod.sample("scale", Gamma(2.0, 2.0))
    ...     return sumprod.sample("x", Normal(0.0, scale))
    >>> guide = AutoGuideList(model)
    >>> guide.append(AutoDelta(block(model, expose=["scale"])))
    >>> guide.append(AutoDiagonalNormal(block(model, hide=["scale"])))
    >>> sorted(guide())
    ['scale', 'x']
    """

    def append(self, part: AutoGuide | Callable[..., Any]) -> None:  # type: ignore[override]
        """Add a part: an automatic guide of the model with sites hidden, or any guide of its own.

        A guide that is no `AutoGuide` returns a dict of its values by site, or None.

        Raises:
            TypeError: it is not callable.
        """
        if not isinstance(part, AutoGuide):
            if not callable(part):
                raise TypeError(f"Expected a guide to append to {self._pyro_name}, got {part!r}")
            part = AutoCallable(self.model, part)
        if part.master is not None and part.master() is not self:
            raise RuntimeError(f"the guide {part._pyro_name} is part of another AutoGuideList already")
        super().append(part)
        part._update_master(weakref.ref(self))

    def add(self, part: AutoGuide | Callable[..., Any]) -> None:
        """`append` under its older name."""
        self.append(part)

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
        """Run the parts; returns their values by site.

        Raises:
            ValueError: two parts sample the same site.
            TypeError: a part returns something else than a dict or None.
        """
        self._ensure_prototype(args, kwargs)
        self._create_plates(*args, **kwargs)
        result: dict[str, torch.Tensor] = {}
        for part in self._parts():
            self._merge(result, part(*args, **kwargs), part)
        return result

    def median(self, *args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
        """The medians of the parts, by site."""
        result: dict[str, torch.Tensor] = {}
        self._ensure_prototype(args, kwargs)
        for part in self._parts():
            self._merge(result, part.median(*args, **kwargs), part)
        return result

    def quantiles(self, quantiles: Any, *args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
        """The quantiles of the parts, by site."""
        result: dict[str, torch.Tensor] = {}
        self._ensure_prototype(args, kwargs)
        for part in self._parts():
            self._merge(result, part.quantiles(quantiles, *args, **kwargs), part)
        return result

    def _parts(self) -> list[AutoGuide]:
        return list(self._modules.values())  # type: ignore[arg-type]

    def _merge(self, result: dict[str, torch.Tensor], new: Any, part: AutoGuide) -> None:
        if not isinstance(new, dict):
            raise TypeError(
                f"Expected the part {part._pyro_name} to return a dict of values by site, got {new!r}"
            )
        twice = [name for name in new if name in result]
        if twice:
            raise ValueError(
                f"the part {part._pyro_name} samples {twice}, which an earlier part of {self._pyro_name}"
                " samples already: hide sites from one of them by handlers.block"
            )
        result.update(new)

    @staticmethod
    def _guide_site(site: Any) -> Any:
        return GuideSite(site)  # the parts see what else there is

    def _check_prototype(self, part_trace: Trace) -> None:
        """Check that a part's sites are the model's."""
        assert self.prototype_trace is not None  # the list sets itself up before its parts
        for name, site in part_trace.iter_stochastic_nodes():
            known = self.prototype_trace.nodes.get(name)
            if known is None:
                raise ValueError(
                    f"a part of {self._pyro_name} samples '{name}', which is no latent site of the list's"
                    f" model: {list(self.prototype_trace.stochastic_nodes)}"
                )
            shapes = [
                getattr(s["fn"], "batch_shape", ()) + getattr(s["fn"], "event_shape", ())
                for s in (known, site)
            ]
            if shapes[0] != shapes[1]:
                raise ValueError(
                    f"site '{name}' has shape {tuple(shapes[0])} in the model of {self._pyro_name} and"
                    f" {tuple(shapes[1])} in that of a part: build the parts from the same model"
                )

    def _update_master(self, master_ref: weakref.ref[Any]) -> None:
        super()._update_master(master_ref)
        self._adopt_parts()

    def _adopt_parts(self) -> None:
        for part in self._parts():
            part._update_master(weakref.ref(self))

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._adopt_parts()
