"""Guides written by hand, as parts of an `AutoGuideList`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from sumprod.infer.autoguide.base import AutoGuide, Model


def _no_medians(*args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
    return {}


class AutoCallable(AutoGuide):
    """A guide made of a function.

    Args:
        model: the program that the guide belongs to.
        guide: a program; it returns a dict of its values by site, or None.
        median: a function of the model's arguments that returns a dict of medians by site.
    """

    def __init__(
        self,
        model: Model,
        guide: Callable[..., Any],
        median: Callable[..., dict[str, torch.Tensor]] = _no_medians,
    ) -> None:
        super().__init__(model)
        self._guide = guide
        self._median = median

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the function; returns what it returns, an empty dict for None."""
        result = self._guide(*args, **kwargs)
        return {} if result is None else result

    def median(self, *args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
        """What the function `median` returns."""
        return self._median(*args, **kwargs)
