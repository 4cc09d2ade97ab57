"""What programs and inference need of a distribution."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from sumprod.distributions.score_parts import ScoreParts


class Distribution(ABC):
    """A stochastic function with a density.

    Attributes:
        has_rsample: draws carry gradients to the parameters.
        has_enumerate_support: the support is finite and can be listed.
    """

    has_rsample = False
    has_enumerate_support = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """A draw, reparameterised where the distribution can be."""
        if self.has_rsample:
            return self.rsample(*args, **kwargs)
        return self.sample(*args, **kwargs)

    @abstractmethod
    def sample(self, *args: Any, **kwargs: Any) -> Any:
        """A draw without gradients."""
        raise NotImplementedError

    def rsample(self, *args: Any, **kwargs: Any) -> Any:
        """A reparameterised draw."""
        raise NotImplementedError(f"{type(self).__name__} has no reparameterised sampler")

    @abstractmethod
    def log_prob(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """The log-density at `x`, of the batch shape."""
        raise NotImplementedError

    def score_parts(self, x: Any, *args: Any, **kwargs: Any) -> ScoreParts:
        """The log-density split for gradient estimators."""
        log_prob = self.log_prob(x, *args, **kwargs)
        return ScoreParts(log_prob, 0, log_prob) if self.has_rsample else ScoreParts(log_prob, log_prob, 0)

    def enumerate_support(self, expand: bool = True) -> Any:
        """All values, along a new leftmost dim."""
        raise NotImplementedError(f"the support of {type(self).__name__} cannot be enumerated")

    def conjugate_update(self, other: Distribution) -> tuple[Distribution, Distribution]:
        """This density times another of a conjugate family, as an updated density and a constant."""
        raise NotImplementedError(
            f"{type(self).__name__} has no conjugate update by {type(other).__name__}"
        )

    def has_rsample_(self, value: bool) -> Distribution:
        """Set whether draws of this object are reparameterised; returns it."""
        if not isinstance(value, bool):
            raise ValueError(f"Expected value in [False, True], got {value!r}")
        self.has_rsample = value
        return self
