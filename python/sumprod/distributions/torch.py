"""Every distribution of torch, with the shape operations of programs."""

from __future__ import annotations

import inspect
from typing import Any

import torch

from sumprod.distributions.torch_distribution import Independent, TorchDistributionMixin

__all__: list[str] = ["Independent"]


def _expand_of(family: Any) -> Any:
    """torch's expand, which makes an object of our class; a `has_rsample` set by hand goes along."""

    def expand(self: Any, batch_shape: Any, _instance: Any = None) -> Any:
        expanded = family.expand(self, torch.Size(batch_shape), _instance)
        if "has_rsample" in self.__dict__:
            expanded.__dict__["has_rsample"] = self.__dict__["has_rsample"]
        return expanded

    return expand


def _families() -> dict[str, type]:
    """torch's families by name, each as a subclass with the mixin."""
    found: dict[str, type] = {}
    for name, family in vars(torch.distributions).items():
        if (
            inspect.isclass(family)
            and issubclass(family, torch.distributions.Distribution)
            and family is not torch.distributions.Distribution
            and name not in ("Independent", "ExponentialFamily")
        ):
            attributes: dict[str, Any] = {
                "__module__": __name__,
                "__doc__": f"`torch.distributions.{name}` with `to_event`, `mask`, `expand_by` and calls.",
                "expand": _expand_of(family),
            }
            found[name] = type(name, (family, TorchDistributionMixin), attributes)
    return found


globals().update(_families())
__all__ += sorted(_families())
