"""`VonMises` under the module name that it has in Pyro 0.3."""

from sumprod.distributions.torch import VonMises

__all__ = ["VonMises"]
