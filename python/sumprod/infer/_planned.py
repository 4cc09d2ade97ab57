"""Algorithms that Pyro has and sumprod does not have yet.

Their names can be imported, so that a program which only mentions them runs; making one is an error.
"""

from __future__ import annotations

from typing import Any

__all__ = [
    "CSIS",
    "SVGD",
    "EnergyDistance",
    "ReweightedWakeSleep",
    "SMCFilter",
    "TraceTMC_ELBO",
    "TraceTailAdaptive_ELBO",
    "Trace_MMD",
]


class _Planned:
    """Raises NotImplementedError when made."""

    instead = ""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError(f"sumprod has no {type(self).__name__} yet: {self.instead}")


class TraceTailAdaptive_ELBO(_Planned):
    """Tail-adaptive f-divergence; not available yet."""

    instead = "use RenyiELBO"


class TraceTMC_ELBO(_Planned):
    """Tensor Monte Carlo; not available yet."""

    instead = "use RenyiELBO"


class Trace_MMD(_Planned):
    """Maximum mean discrepancy; not available yet."""

    instead = "use Trace_ELBO"


class EnergyDistance(_Planned):
    """Energy distance, a loss without densities; not available yet."""

    instead = "use Trace_ELBO with a tractable likelihood"


class ReweightedWakeSleep(_Planned):
    """Reweighted wake-sleep; not available yet."""

    instead = "use RenyiELBO"


class CSIS(_Planned):
    """Compiled sequential importance sampling; not available yet."""

    instead = "train the guide with SVI and give it to Importance"


class SMCFilter(_Planned):
    """Sequential Monte Carlo filtering; not available yet."""

    instead = "use Importance"


class SVGD(_Planned):
    """Stein variational gradient descent; not available yet."""

    instead = "use SVI with an autoguide"
